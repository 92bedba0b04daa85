"""Run each command on a host in a known state, whatever the user's shell does first.

sshd runs a command with the user's own shell, which reads the user's files (.bashrc, .zshenv). What they print comes
before the command's output. The command also inherits the umask that they or the host (login.defs, pam_umask) set.
"""

from __future__ import annotations

from pyinfra.api import Host, StringCommand
from pyinfra.connectors.util import CommandOutput, OutputLine

BEGIN = "natskit: the output begins"
_PREPARED = "_natskit_prepared"


def prepare(host: Host) -> None:
    """Run each command of a host with the umask 022, and remove output that was printed before it began."""
    run = host.connector.run_shell_command
    if getattr(run, _PREPARED, False):
        return

    def run_prepared(command: StringCommand, *words: object, **arguments: object) -> tuple[bool, CommandOutput]:
        # On a line of its own, even if the output before it ends without a newline.
        begin = f"umask 022; printf '\\n{BEGIN}\\n'; printf '\\n{BEGIN}\\n' >&2;"
        status, output = run(StringCommand(begin, command), *words, **arguments)  # type: ignore[arg-type]
        return status, CommandOutput(without_what_came_before(output))

    setattr(run_prepared, _PREPARED, True)
    host.connector.run_shell_command = run_prepared  # type: ignore[method-assign]


def without_what_came_before(output: CommandOutput) -> list[OutputLine]:
    """The lines of the command itself. If it never began, all lines, since they say why."""
    found: list[OutputLine] = []
    waiting = {line.buffer_name for line in output if line.line == BEGIN}
    for line in output:
        if line.buffer_name not in waiting:
            found.append(line)
        elif line.line == BEGIN:
            waiting.remove(line.buffer_name)
    return found
