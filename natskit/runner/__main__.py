"""``python -m natskit.runner --settings FILE``: the runner of one host, until SIGTERM."""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import os
import sys
from pathlib import Path

from natskit.errors import NatskitError, SettingsError
from natskit.process import core_dumps
from natskit.process.lifecycle import log_to_stderr, read_settings, until_stopped
from natskit.rpc import set_program_name
from natskit.runner.config import RunnerProgram
from natskit.runner.daemon import Runner


def main() -> int:
    """Read the settings and run until told to stop."""
    core_dumps.forbid()
    log_to_stderr()
    parser = argparse.ArgumentParser(prog="python -m natskit.runner", description=__doc__)
    parser.add_argument("--settings", type=Path, required=True)
    path = parser.parse_args().settings
    try:
        program = read_settings(path, RunnerProgram)
        lock = take_directory(program.directory)
        try:
            asyncio.run(serve(program))
        finally:
            os.close(lock)
    except NatskitError as error:
        print(f"natskit runner: {error}", file=sys.stderr)
        return 2
    return 0


def take_directory(directory: Path) -> int:
    """Make sure no other runner uses the directory, until the returned descriptor is closed."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    fd = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise SettingsError(f"{directory} is in use by another runner: stop it first") from None
    return fd


async def serve(program: RunnerProgram) -> None:
    """Run until SIGTERM or SIGINT."""
    set_program_name(f"runner {program.name}")
    runner = Runner(program)
    await until_stopped(runner.start(), runner.close, started=lambda: None)


if __name__ == "__main__":
    sys.exit(main())
