"""How a role ends a run."""

from __future__ import annotations

from types import TracebackType

from pyinfra.api.exceptions import PyinfraError


class DeployError(PyinfraError):
    """The run ends with this message: it says all there is to say, to somebody who does not read our code.

    pyinfra puts the file and line of ours in front of what it is raised with; without them, it says only that.
    """

    def _no_line(self) -> None:
        """There is none to be told."""

    def _ignore(self, _: TracebackType | None) -> None:
        """contextlib puts it back on its way out."""

    __traceback__ = property(_no_line, _ignore)
