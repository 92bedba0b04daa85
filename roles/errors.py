"""The error with which a role ends a run."""

from __future__ import annotations

from types import TracebackType

from pyinfra.api.exceptions import PyinfraError


class DeployError(PyinfraError):
    """Ends the run with this message, which must be enough for a user who does not read natskit's code.

    pyinfra would print the file and line from the traceback before the message. Without a traceback, it prints only the
    message.
    """

    def _no_line(self) -> None:
        """The traceback that pyinfra sees: none."""

    def _ignore(self, _: TracebackType | None) -> None:
        """Accept a traceback and drop it: contextlib sets it again when it raises the error."""

    __traceback__ = property(_no_line, _ignore)
