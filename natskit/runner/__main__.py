"""``python -m natskit.runner --settings FILE``: the runner of one host, until SIGTERM."""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import logging
import os
import signal
import sys
from pathlib import Path

from pydantic import ValidationError

from natskit.errors import NatskitError, SettingsError
from natskit.runner.daemon import Runner
from natskit.runner.program import RunnerProgram


def main() -> int:
    """Read the settings and run until told to stop."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    parser = argparse.ArgumentParser(prog="python -m natskit.runner", description=__doc__)
    parser.add_argument("--settings", type=Path, required=True)
    path = parser.parse_args().settings
    try:
        program = read_settings(path)
        lock = take_directory(program.directory)
        try:
            asyncio.run(serve(program))
        finally:
            os.close(lock)
    except NatskitError as error:
        print(f"natskit runner: {error}", file=sys.stderr)
        return 2
    return 0


def read_settings(path: Path) -> RunnerProgram:
    """The settings in a file. Raises :class:`SettingsError`."""
    try:
        return RunnerProgram.model_validate_json(path.read_bytes())
    except OSError as error:
        raise SettingsError(f"{path}: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the file"
        raise SettingsError(f"{path}: {place}: {first['msg']}") from None


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
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    runner = Runner(program)
    starting = asyncio.ensure_future(runner.start())
    stopping = asyncio.ensure_future(stop.wait())
    await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
    if starting.done():
        starting.result()
    else:
        starting.cancel()
    await stopping
    await runner.close()


if __name__ == "__main__":
    sys.exit(main())
