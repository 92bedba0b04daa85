"""An index of the view: sets of keys by a key."""

from __future__ import annotations

import sys


class Index:
    """Sets of strings, by a string. Only sets with members are kept.

    Nearly all have one member: a project has one owner and no other member, an account one session. A set of one takes
    216 bytes, so such a member is kept without a set. Equal strings are kept once (:func:`sys.intern`).
    """

    def __init__(self) -> None:
        self._members: dict[str, str | set[str]] = {}

    def __len__(self) -> int:
        """The number of keys that have members."""
        return len(self._members)

    def get(self, key: str) -> set[str]:
        """The members of a key, as a set of the caller's own; empty if there are none."""
        found = self._members.get(key)
        if found is None:
            return set()
        return {found} if isinstance(found, str) else set(found)

    def has(self, key: str, member: str) -> bool:
        """Whether a key has this member."""
        found = self._members.get(key)
        return found == member if isinstance(found, str) else found is not None and member in found

    def add(self, key: str, member: str) -> None:
        """Add a member to a key, if it is not there."""
        found = self._members.get(key)
        if found is None:
            self._members[sys.intern(key)] = sys.intern(member)
        elif isinstance(found, set):
            found.add(sys.intern(member))
        elif found != member:
            self._members[key] = {found, sys.intern(member)}

    def discard(self, key: str, member: str) -> None:
        """Take a member from a key, if it is there."""
        found = self._members.get(key)
        if found == member:
            del self._members[key]
        elif isinstance(found, set):
            found.discard(member)
            if len(found) == 1:
                self._members[key] = found.pop()
