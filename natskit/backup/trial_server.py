"""A separate nats-server on this machine for the time of a verification."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Collection, Iterable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

from natskit.bus.connection import Connection, connect
from natskit.bus.servers import NatsServers
from natskit.errors import BackupError
from natskit.process.lifecycle import end_with_parent

START_SECONDS = 30.0
END_SECONDS = 20.0
PAUSE = 0.05


@asynccontextmanager
async def trial_server(folder: Path, accounts: Collection[str], size: int) -> AsyncIterator[dict[str, Connection]]:
    """Start a nats-server, and connect to each of these NATS accounts as a user who may do anything there.

    ``folder`` is private and empty, and holds its streams, at most ``size`` bytes. Raises :class:`BackupError`.
    """
    free = shutil.disk_usage(folder).free
    if 2 * size > free:  # nats-server unpacks a stream before it moves it into place
        raise BackupError(
            f"{folder.parent} has {free // 1024**2} MiB free, and the restored streams need {2 * size // 1024**2} MiB: "
            "make room with `natskit backup prune`"
        )
    password = secrets.token_hex(16)
    configuration = folder / "nats.conf"
    configuration.touch(mode=0o600)
    configuration.write_text(_configuration(folder, accounts, password))
    with _running(configuration, folder / "log") as process:
        url = await _url(process, folder)
        async with contextlib.AsyncExitStack() as stack:
            yield {name: await _connected(stack, url, name, password) for name in accounts}


def _configuration(folder: Path, accounts: Iterable[str], password: str) -> str:
    users = {name: {"jetstream": "enabled", "users": [{"user": name, "password": password}]} for name in accounts}
    return json.dumps(
        {
            "server_name": "natskit-verify",
            "listen": "127.0.0.1:-1",
            "ports_file_dir": str(folder),
            "jetstream": {"store_dir": str(folder / "jetstream")},
            "accounts": users,
        }
    )


@contextlib.contextmanager
def _running(configuration: Path, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    program = Path(sys.executable).with_name("nats-server")
    with log.open("wb") as output:
        try:
            process = subprocess.Popen(
                [program, "-c", configuration], stdout=output, stderr=output, preexec_fn=end_with_parent
            )
        except OSError as error:
            raise BackupError(f"{program} cannot be started: {error.strerror}") from None
    try:
        yield process
    finally:
        process.kill()
        process.wait(END_SECONDS)


async def _url(process: subprocess.Popen[bytes], folder: Path) -> str:
    """Where it listens, once it does. Raises :class:`BackupError` with its log where it ends instead."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(START_SECONDS):
            while process.poll() is None:
                if url := _written_url(folder):
                    return url
                await asyncio.sleep(PAUSE)
    said = (folder / "log").read_text(errors="replace").strip().splitlines()[-1:]
    raise BackupError(f"the nats-server of the verification does not start: {' '.join(said)}")


def _written_url(folder: Path) -> str:
    """The URL that nats-server writes into its folder; empty while it has not."""
    for path in folder.glob("nats-server_*.ports"):
        with contextlib.suppress(ValueError, KeyError, IndexError):  # half-written
            return str(json.loads(path.read_text())["nats"][0])
    return ""


async def _connected(stack: contextlib.AsyncExitStack, url: str, name: str, password: str) -> Connection:
    address = url.replace("nats://", f"nats://{name}:{password}@")
    connection = await connect(
        NatsServers(urls=[address]), name="natskit verify", inbox_prefix="_INBOX.verify", timeout=START_SECONDS
    )
    stack.push_async_callback(connection.close)
    return connection
