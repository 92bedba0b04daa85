"""``python -m natskit.project --settings FILE``: one project agent, until SIGTERM or the end of its runner."""

from __future__ import annotations

import natskit.bus.nats_without_aiohttp  # noqa: F401 - must come first

# isort: split
import argparse
import asyncio
import contextlib
import logging
import os
import resource
import signal
import sys
from pathlib import Path

from natskit.errors import NatskitError, SettingsError
from natskit.process import arenas
from natskit.process.lifecycle import end_with_parent, log_to_stderr, read_settings, until_stopped
from natskit.process.sd_notify import tell_systemd
from natskit.project.agent import Agent
from natskit.project.config import ProjectLimits, ProjectProgram
from natskit.rpc import load_methods, set_program_name


def main() -> int:
    """Read the settings, apply the limits, and answer until a signal stops the agent."""
    log_to_stderr()
    arenas.share()
    parser = argparse.ArgumentParser(prog="python -m natskit.project", description=__doc__)
    parser.add_argument("--settings", type=Path, required=True)
    parser.add_argument("--ready-fd", type=int, help="a pipe that is told when the agent answers")
    arguments = parser.parse_args()
    path = arguments.settings
    try:
        program = read_settings(path, ProjectProgram).beside(path)
        die_with(program.parent_pid)
        apply_limits(program.limits)
        asyncio.run(serve(program, arguments.ready_fd))
    except NatskitError as error:
        print(f"natskit project: {error}", file=sys.stderr)
        return 2
    return 0


def die_with(parent: int | None) -> None:
    """End when the runner ends, for whatever reason: otherwise a restarted runner would start a second agent."""
    if parent is None:
        return
    end_with_parent()
    if os.getppid() != parent:
        raise SettingsError(f"the runner (process {parent}) is gone already")


def apply_limits(limits: ProjectLimits) -> None:
    """Limit this process and everything it starts."""
    wanted = {
        resource.RLIMIT_DATA: limits.memory_bytes,
        resource.RLIMIT_NPROC: limits.max_processes and limits.max_processes + _threads_of_user(),
        resource.RLIMIT_FSIZE: limits.max_file_bytes,
        resource.RLIMIT_NOFILE: limits.max_open_files,
        resource.RLIMIT_CORE: 0,
    }
    for limit, value in wanted.items():
        if value is not None:
            hard = resource.getrlimit(limit)[1]
            most = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.setrlimit(limit, (most, most))


def _threads_of_user() -> int:
    count = 0
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # ended meanwhile
            if entry.stat().st_uid == os.getuid():
                count += len(os.listdir(entry / "task"))
    return count


async def serve(program: ProjectProgram, ready_fd: int | None = None) -> None:
    """Answer until SIGTERM or SIGINT."""
    if ready_fd is not None:
        os.set_inheritable(ready_fd, False)
    set_program_name(f"the agent of project {program.project_id}")
    agent = Agent(program, load_methods("natskit.project", "natskit_project", program.api_packages))

    def started() -> None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, agent.renew)
        logging.getLogger("natskit.project").info("project %s answers", program.project_id)
        if ready_fd is not None:
            os.write(ready_fd, b"1")
            os.close(ready_fd)
        tell_systemd("READY=1")

    await until_stopped(agent.start(), agent.close, started=started)


if __name__ == "__main__":
    sys.exit(main())
