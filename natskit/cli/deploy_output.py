"""Of pyinfra's output, what changed and what failed, once for all hosts."""

from __future__ import annotations

import re
from collections.abc import Iterator

_OPERATION = re.compile(r"--> Starting (?:serial )?operation: (.*?) *$")
_STAGE = re.compile(
    r"\s*$|\s*Loading: |--> (Loading|Connecting|Preparing|Proposed|Beginning|Disconnecting|Skipping|Detected)"
)
_QUIET = re.compile(r".*(Connected$|Ready: )|\s*(Ops|Groups|Operation|Grand|\[@local\] *$)")
_HOST = re.compile(r"\s*\[([^]]+)\]\s*(.*?) *$")


RESULTS = "--> Results:"
"""Begins the last part of pyinfra's output. An interrupted pyinfra exits with 0, but does not print it."""


class Digest:
    """Reads line after line, and gives back the lines to show."""

    def __init__(self) -> None:
        self.complete = False
        """Whether pyinfra came to its results."""
        self._operation = ""
        self._hosts = 0
        self._said: dict[str, list[str]] = {}
        """What hosts said in this operation, with the hosts that said it."""
        self._changed = 0
        self._other = False

    def feed(self, line: str) -> Iterator[str]:
        """The lines to show once this one has been read."""
        if operation := _OPERATION.match(line):
            yield from self._told()
            self._operation = operation[1]
        elif re.search(r" Success *$", line):
            self._hosts += 1
            self._changed += 1
        elif re.search(r" (No changes|Skipped) *$", line) or self.complete:
            return
        elif line.startswith(RESULTS):
            yield from self._told()
            self.complete = True
        elif _STAGE.match(line) or _QUIET.match(line):
            return
        elif host := _HOST.match(line):
            if host[2]:
                self._said.setdefault(host[2], []).append(host[1].strip())
                self._other = True
        else:
            yield from self._told()
            yield line
            self._other = True

    def end(self) -> Iterator[str]:
        """The lines to show after the last one."""
        yield from self._told()
        if self._changed:
            yield f"{self._changed} changes"
        elif not self._other:
            yield "nothing to change"

    def _told(self) -> Iterator[str]:
        """What is known of an operation, when the next one begins."""
        if self._hosts:
            yield f"  {self._operation}" + (f" ({self._hosts} hosts)" if self._hosts > 1 else "")
        if self._said and self._operation:
            yield f"  {self._operation} failed:"
        for text, hosts in self._said.items():
            yield f"    [{', '.join(hosts)}] {text}"
        self._hosts = 0
        self._said.clear()
