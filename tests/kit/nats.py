"""The one way to start a nats-server in tests and measurements."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Self

from natskit.identity.identity import NATS_ACCOUNTS, Identity
from tests.kit.wait import wait_for

PROGRAM = Path(sys.executable).with_name("nats-server")
READY = "Server is ready"
"""nats-server logs this once it listens for clients, which it does last."""


class NatsServer:
    """A nats-server as a process of its own: its configuration and log are ``NAME.conf`` and ``NAME.log`` in a folder.

    It can be stopped and started again, with another configuration if need be; the log goes on.
    """

    def __init__(self, folder: Path, config: str = "", name: str = "nats") -> None:
        self.config_file, self.log_file = folder / f"{name}.conf", folder / f"{name}.log"
        self.config = config
        self._process: subprocess.Popen[bytes] | None = None
        self._log_start = 0

    def start(self, config: str = "") -> Self:
        """Start it without waiting until it is ready: the servers of a cluster may need each other for that."""
        self.config = config or self.config
        self.config_file.parent.mkdir(parents=True, exist_ok=True)
        self.config_file.write_text(self.config)
        return self.start_as_configured()

    def start_as_configured(self, environment: Mapping[str, str] | None = None) -> Self:
        """Start it with the configuration file that already exists."""
        assert not self.is_running, f"{self.config_file} runs already"
        with self.log_file.open("ab") as log:
            self._log_start = log.tell()
            self._process = subprocess.Popen([PROGRAM, "-c", self.config_file], stdout=log, stderr=log, env=environment)
        return self

    def wait_until_ready(self) -> Self:
        """Wait until clients can connect. If it ends instead, fail with its log."""
        wait_for(lambda: READY in self.said() or not self.is_running, f"{self.config_file} is ready")
        assert READY in self.said(), f"nats-server has ended:\n{self.said()}"
        return self

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The process of the last start."""
        assert self._process is not None, f"{self.config_file} was never started"
        return self._process

    def log(self) -> str:
        """Its log, of all of its starts."""
        return self.log_file.read_text() if self.log_file.exists() else ""

    def said(self) -> str:
        """Its log since its last start."""
        with self.log_file.open() as log:
            log.seek(self._log_start)
            return log.read()

    def stop(self) -> None:
        """Stop it as a deploy does, and wait. Does nothing if it does not run."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Kill it, and wait. Does nothing if it does not run."""
        self._end(signal.SIGKILL)

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Freeze it: the process lives and its ports are open, but it does not answer."""
        self.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)

    def _end(self, number: signal.Signals) -> None:
        if self.is_running:
            self.process.send_signal(signal.SIGCONT)
            self.process.send_signal(number)
            self.process.wait(20)


@contextlib.contextmanager
def running(folder: Path, config: str, name: str = "nats") -> Iterator[NatsServer]:
    """A running nats-server that is ready."""
    server = NatsServer(folder, config, name)
    try:
        yield server.start().wait_until_ready()
    finally:
        server.kill()


def operator_mode(identity: Identity, accounts: Iterable[str] = NATS_ACCOUNTS, resolver: Path | None = None) -> str:
    """Configuration of a server that trusts an identity and has these NATS accounts of it, in memory or in a folder."""
    kind = "MEMORY" if resolver is None else f'{{ type: full, dir: "{resolver}" }}'
    preload = ", ".join(f"{identity.account_public_key(name)}: {identity.account_jwt(name)}" for name in accounts)
    return f"""
        operator: {identity.operator_jwt}
        system_account: {identity.account_public_key("SYS")}
        resolver: {kind}
        resolver_preload: {{ {preload} }}
    """
