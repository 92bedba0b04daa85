"""The passphrase of an encrypted identity: its sources and its protection.

The sources, in this order: the variable ``NATSKIT_IDENTITY_PASSPHRASE``; the output of the command in
``NATSKIT_IDENTITY_PASSPHRASE_COMMAND`` (run without a shell, such as ``pass show natskit``); a question on the
terminal. natskit removes these variables from its environment before it starts any child process. A child that needs
the passphrase gets a file descriptor to read it from (:func:`handed_down`).
"""

from __future__ import annotations

import getpass
import os
import shlex
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from natskit.errors import IdentityError

VARIABLE = "NATSKIT_IDENTITY_PASSPHRASE"
COMMAND = "NATSKIT_IDENTITY_PASSPHRASE_COMMAND"
NEW_VARIABLE = "NATSKIT_IDENTITY_NEW_PASSPHRASE"
"""The variable with the new passphrase for a change. Without it, natskit asks on the terminal."""
DESCRIPTOR = "NATSKIT_IDENTITY_PASSPHRASE_FD"
"""The variable with the number of an inherited file descriptor, which natskit's child processes read the passphrase
from."""
LEAST = 8
"""Minimum length of a new passphrase. scrypt slows down guesses to one per second (c2sp.org/age)."""

_given: dict[str, str] = {}


def withdraw() -> None:
    """Remove the variables from this process's environment and remember their values."""
    for name in (VARIABLE, COMMAND, NEW_VARIABLE):
        value = os.environ.pop(name, None)
        if value:  # set to nothing is not set
            _given[name] = value
    descriptor = os.environ.pop(DESCRIPTOR, None)
    if descriptor is not None:
        _given.setdefault(VARIABLE, _inherited(descriptor))


def remember(passphrase: str) -> None:
    """Keep a correct passphrase, for :func:`handed_down` and so that natskit does not ask again."""
    _given[VARIABLE] = passphrase


@contextmanager
def handed_down() -> Iterator[tuple[dict[str, str], tuple[int, ...]]]:
    """The additional environment and the ``pass_fds`` that give a child the passphrase; empty if none is known here.

    The passphrase is in an anonymous file in memory, which several processes can read one after the other.
    """
    withdraw()
    if VARIABLE not in _given:
        yield {}, ()
        return
    fd = os.memfd_create("passphrase")
    try:
        os.write(fd, _given[VARIABLE].encode())
        yield {DESCRIPTOR: str(fd)}, (fd,)
    finally:
        os.close(fd)


def current(what: str) -> str:
    """The existing passphrase of ``what``. Raises :class:`IdentityError` if no source provides it."""
    withdraw()
    if VARIABLE in _given:
        return _given[VARIABLE]
    if COMMAND in _given:
        return _from_command(_given[COMMAND])
    return _asked(f"Passphrase of {what}: ")


def chosen(what: str) -> str:
    """A new passphrase for ``what``; on the terminal it must be typed twice.

    Raises :class:`IdentityError`, also if the passphrase is too short.
    """
    withdraw()
    if VARIABLE in _given or COMMAND in _given:
        return _long_enough(current(what))
    return _asked_twice(what)


def changed(what: str) -> str:
    """A different passphrase for ``what``. Raises :class:`IdentityError` as :func:`chosen` does."""
    withdraw()
    return _long_enough(_given[NEW_VARIABLE]) if NEW_VARIABLE in _given else _asked_twice(what)


def _inherited(descriptor: str) -> str:
    try:
        fd = int(descriptor)
        text = os.pread(fd, 10_000, 0).decode()
        os.close(fd)
    except (OSError, ValueError):
        raise IdentityError(f"{DESCRIPTOR} = {descriptor[:10]!r} is no descriptor of a file: unset it") from None
    return text


def _from_command(command: str) -> str:
    # Its words may be secret, and so may what it says: neither goes into an error.
    try:
        words = shlex.split(command)
        done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=False)
    except (OSError, ValueError, IndexError) as error:
        raise IdentityError(f"the command in {COMMAND} cannot be run: {type(error).__name__}") from None
    if done.returncode != 0:
        raise IdentityError(f"the command in {COMMAND} ended with exit code {done.returncode}")
    return done.stdout.rstrip("\r\n")


def _asked_twice(what: str) -> str:
    first = _long_enough(_asked(f"New passphrase for {what}: "))
    if _asked("The same again: ") != first:
        raise IdentityError("the two passphrases are not the same: nothing was changed")
    return first


def _asked(prompt: str) -> str:
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        raise IdentityError(
            f"{prompt.rstrip(': ')}: there is no terminal to ask on; set {VARIABLE} or {COMMAND}"
        ) from None
    try:
        return getpass.getpass(prompt)
    except EOFError:
        raise IdentityError(f"{prompt.rstrip(': ')}: none was given") from None


def _long_enough(passphrase: str) -> str:
    if len(passphrase) < LEAST:
        raise IdentityError(f"the passphrase has {len(passphrase)} characters, and needs {LEAST} at least")
    return passphrase
