"""A NATS client that knows nothing of permissions: it sends what it is told and reads what the server answers.

The tests of what is forbidden take this path, not natskit's own client, so that a right the client happens not to use
cannot hide behind it. One request is one round trip: the command, then PING, then everything up to PONG.
"""

from __future__ import annotations

import base64
import json
import re
import socket
import ssl
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar, Protocol

import nkeys
from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.http11 import Response
from websockets.protocol import Event, State
from websockets.typing import Origin
from websockets.uri import parse_uri

from tests.kit.wait import wait_for

TIMEOUT = 10.0


class ClosedError(Exception):
    """The server closed the connection. The message is its last ``-ERR``, or empty."""


class _Transport(Protocol):
    def send(self, data: bytes) -> None: ...
    def receive(self) -> bytes: ...
    def close(self) -> None: ...


def _dial(host: str, port: int) -> socket.socket:
    connection = socket.create_connection((host, port), timeout=TIMEOUT)
    # A command and its PING are two writes: the second would wait 40 ms for the first one's acknowledgement.
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


class _Tcp:
    def __init__(self, host: str, port: int, context: ssl.SSLContext | None) -> None:
        self._socket = _dial(host, port)
        self._greeting = b""
        if context:
            try:
                self._upgrade(context, host)
            except BaseException:
                self.close()
                raise

    def _upgrade(self, context: ssl.SSLContext, host: str) -> None:
        """Start TLS. The server sends INFO in the clear and then waits; this must not read a byte more."""
        while not self._greeting.endswith(b"\r\n"):
            if not (byte := self._socket.recv(1)):
                raise ClosedError("no INFO")
            self._greeting += byte
        self._socket = context.wrap_socket(self._socket, server_hostname=host)

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def receive(self) -> bytes:
        if self._greeting:
            greeting, self._greeting = self._greeting, b""
            return greeting
        try:
            return self._socket.recv(1 << 16)
        except (ConnectionResetError, ssl.SSLError):
            return b""

    def close(self) -> None:
        self._socket.close()


class UpgradeRefusedError(Exception):
    """The server answered the WebSocket upgrade with another status than 101."""

    def __init__(self, status: int) -> None:
        super().__init__(f"HTTP {status}")
        self.status = status


class _WebSocket:
    """The library's protocol on our own socket: no thread in between could swallow anything."""

    def __init__(self, url: str, context: ssl.SSLContext | None, origin: str | None, headers: dict[str, str]) -> None:
        uri = parse_uri(url)
        plain = _dial(uri.host, uri.port)
        self._socket = context.wrap_socket(plain, server_hostname=uri.host) if context else plain
        self._protocol = ClientProtocol(uri, origin=Origin(origin) if origin is not None else None, max_size=None)
        try:
            self._pending = self._upgrade(headers)
        except BaseException:
            self.close()
            raise

    def _upgrade(self, headers: dict[str, str]) -> list[Event]:
        request = self._protocol.connect()
        request.headers.update(headers)
        self._protocol.send_request(request)
        self._flush()
        while not (events := self._events()):
            pass
        response = events[0]
        assert isinstance(response, Response)
        if response.status_code != 101:
            raise UpgradeRefusedError(response.status_code)
        return events[1:]

    def send(self, data: bytes) -> None:
        if self._protocol.state is State.OPEN:  # else the server has said good-bye, which is found when reading
            self._protocol.send_binary(data)
            self._flush()

    def receive(self) -> bytes:
        events, self._pending = self._pending, []
        while not events:
            if self._protocol.state is State.CLOSED:
                return b""
            events = self._events()
        data = b""
        for event in events:
            if isinstance(event, Frame) and event.opcode in (Opcode.BINARY, Opcode.TEXT, Opcode.CONT):
                data += event.data
        return data or self.receive()

    def close(self) -> None:
        self._socket.close()

    def _events(self) -> list[Event]:
        try:
            data = self._socket.recv(1 << 16)
        except (ConnectionResetError, ssl.SSLError):
            data = b""
        if data:
            self._protocol.receive_data(data)
        else:
            self._protocol.receive_eof()
            if self._protocol.handshake_exc is not None:
                raise ClosedError(str(self._protocol.handshake_exc))
        with suppress(OSError):  # the server may be gone already: what it said counts, not that it heard us
            self._flush()
        return self._protocol.events_received()

    def _flush(self) -> None:
        for data in self._protocol.data_to_send():
            if data:
                self._socket.sendall(data)


class RawClient:
    """One connection. ``messages`` has the ``(subject, payload)`` of every MSG or HMSG so far."""

    opened: ClassVar[list[RawClient]] = []

    def __init__(
        self, transport: _Transport, jwt: str | None = None, seed: bytes | None = None, user: str | None = None
    ) -> None:
        self._transport = transport
        self.kept = False
        """Whether the test that opened it closes it; all others are closed behind each test."""
        RawClient.opened.append(self)
        self._buffer = b""
        self.messages: list[tuple[str, bytes]] = []
        self.errors: list[str] = []
        self._sid = 0
        line = self._line()
        if not line.startswith(b"INFO "):
            raise ClosedError(line.decode())
        self.info: dict[str, Any] = json.loads(line[5:])
        options: dict[str, Any] = {
            "verbose": False,
            "pedantic": False,
            "lang": "raw",
            "version": "1",
            "protocol": 1,
            "headers": True,
            "no_responders": True,
        }
        if jwt is not None:
            options["jwt"] = jwt
        if user is not None:
            options["user"] = user
        if seed is not None:
            signature = nkeys.from_seed(seed).sign(self.info["nonce"].encode())
            options["sig"] = base64.urlsafe_b64encode(signature).rstrip(b"=").decode()
        self.send(b"CONNECT " + json.dumps(options).encode() + b"\r\n")
        self.ping()

    @classmethod
    def tcp(
        cls, host: str, port: int, creds: Path | str | None = None, *, ca_file: Path | str | None = None
    ) -> RawClient:
        """Connect over TCP, with TLS if a CA is given, with a creds file (its path or text) or without."""
        context = ssl.create_default_context(cafile=str(ca_file)) if ca_file else None
        jwt, seed = read_creds(creds) if creds is not None else (None, None)
        return cls(_Tcp(host, port, context), jwt, seed)

    @classmethod
    def websocket(
        cls,
        url: str,
        *,
        ca_file: Path | str | None = None,
        cookie: str | None = None,
        origin: str | None = None,
        jwt: str | None = None,
        headers: dict[str, str] | None = None,
        user: str | None = None,
    ) -> RawClient:
        """Connect over WebSocket. Raises :class:`UpgradeRefusedError`, or :class:`ClosedError` if nats-server
        refuses."""
        context = ssl.create_default_context(cafile=str(ca_file)) if url.startswith("wss:") else None
        extra = dict(headers or {}) | ({"Cookie": cookie} if cookie is not None else {})
        return cls(_WebSocket(url, context, origin, extra), jwt, user=user)

    def send(self, data: bytes) -> None:
        """Send raw bytes. A closed connection shows only when reading."""
        with suppress(ConnectionError, ssl.SSLError):
            self._transport.send(data)

    def ping(self, timeout: float = TIMEOUT) -> list[str]:
        """Send PING and read up to PONG. Returns the ``-ERR`` texts before it. Raises :class:`ClosedError`."""
        before = len(self.errors)
        self.send(b"PING\r\n")
        deadline = time.monotonic() + timeout
        while self._read_one() != b"PONG":
            if time.monotonic() > deadline:
                raise TimeoutError("no PONG")
        return self.errors[before:]

    def publish(self, subject: str, payload: bytes = b"", reply: str = "") -> list[str]:
        """Publish. Returns the server's errors."""
        head = f"PUB {subject} {reply} {len(payload)}".replace("  ", " ")
        self.send(head.encode() + b"\r\n" + payload + b"\r\n")
        return self.ping()

    def subscribe(self, subject: str, queue: str = "") -> list[str]:
        """Subscribe. Returns the server's errors."""
        self._sid += 1
        self.send(f"SUB {subject} {queue} {self._sid}".replace("  ", " ").encode() + b"\r\n")
        return self.ping()

    def hear_from(self, other: RawClient, subject: str, payload: bytes = b"", reply: str = "") -> bytes:
        """Have ``other`` publish again and again until a payload arrives: its server may hear of a subscription
        later."""

        def heard() -> bool:
            assert other.publish(subject, payload, reply) == []
            self.ping()
            return any(name == subject for name, _ in self.messages)

        wait_for(heard, f"a message on {subject}", TIMEOUT)
        return self.wait_for_message(subject)

    def unsubscribe_all(self) -> None:
        """Drop all subscriptions."""
        for sid in range(1, self._sid + 1):
            self.send(f"UNSUB {sid}\r\n".encode())
        self.ping()

    def wait_for_message(self, subject: str | None = None, timeout: float = TIMEOUT) -> bytes:
        """The payload of the next message not yet taken (on ``subject``, if given)."""
        deadline = time.monotonic() + timeout
        while True:
            for index, (name, payload) in enumerate(self.messages):
                if subject is None or name == subject:
                    del self.messages[index]
                    return payload
            if time.monotonic() > deadline:
                raise TimeoutError(f"no message on {subject}")
            self._read_one()

    def request(self, subject: str, payload: bytes, inbox: str, timeout: float = TIMEOUT) -> bytes:
        """Publish with a reply subject (already subscribed to) and wait for the answer."""
        self.publish(subject, payload, inbox)
        return self.wait_for_message(inbox, timeout)

    def wait_closed(self, timeout: float = TIMEOUT) -> str:
        """Wait until the server closes the connection. Returns its last ``-ERR``."""
        deadline = time.monotonic() + timeout
        try:
            while time.monotonic() < deadline:
                self._read_one()
        except (ClosedError, OSError):
            return self.errors[-1] if self.errors else ""
        raise TimeoutError("the server did not close the connection")

    def close(self) -> None:
        """Close the socket."""
        self._transport.close()

    def _fill(self) -> None:
        data = self._transport.receive()
        if not data:
            raise ClosedError(self.errors[-1] if self.errors else "")
        self._buffer += data

    def _line(self) -> bytes:
        while b"\r\n" not in self._buffer:
            self._fill()
        line, self._buffer = self._buffer.split(b"\r\n", 1)
        return line

    def _exactly(self, size: int) -> bytes:
        while len(self._buffer) < size:
            self._fill()
        data, self._buffer = self._buffer[:size], self._buffer[size:]
        return data

    def _read_one(self) -> bytes:
        line = self._line()
        if line.startswith((b"MSG ", b"HMSG ")):
            words = line.split()
            payload = self._exactly(int(words[-1]) + 2)[:-2]
            self.messages.append((words[1].decode(), payload))
        elif line.startswith(b"-ERR"):
            self.errors.append(line[5:].decode().strip("'"))
        elif line == b"PING":
            self.send(b"PONG\r\n")
        return line


def read_creds(creds: Path | str) -> tuple[str, bytes]:
    """The JWT and the seed of a creds file (ADR-14's decorated format)."""
    text = creds.read_text() if isinstance(creds, Path) else creds
    blocks = re.findall(r"-----BEGIN [^-]+-----\s*(\S+)\s*-+END", text)
    return blocks[0], blocks[1].encode()
