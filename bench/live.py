"""Raw connections that try one subject again and again: when is a right there, and when has it gone."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
from urllib.parse import urlsplit

import nkeys

from bench import wire
from bench.wire import Target
from tests.platform.raw import read_creds

TRY_EVERY = 0.002
"""Seconds between two tries, so that trying does not take the machine from what is measured."""


class Live:
    """One connection of a principal, raw: nothing it does depends on natskit's clients."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def open(self) -> None:
        """Connect. Raises :class:`ConnectionError` when refused."""
        await self.close()
        try:
            if self._target.is_websocket:
                self._reader, self._writer = await wire.handshake(self._target, None)
            else:
                self._reader, self._writer = await _over_tcp(self._target)
        except (OSError, asyncio.IncompleteReadError) as error:
            raise ConnectionError(str(error)) from None

    async def close(self) -> None:
        """Without a word."""
        if self._writer is not None:
            self._writer.transport.abort()
            self._writer = None

    async def may(self, subject: str) -> bool:
        """Whether the server lets it publish there. Raises :class:`ConnectionError` when it is cut."""
        if self._writer is None or self._reader is None:
            raise ConnectionError("cut")
        self._writer.write(wire.frame(self._target, f"PUB {subject} 0\r\n\r\nPING\r\n".encode()))
        said = b""
        while b"PONG" not in said:
            try:
                data = await self._reader.read(65536)
            except OSError:
                data = b""
            if not data:
                await self.close()
                raise ConnectionError("cut")
            said += data
        return b"Permissions Violation" not in said

    async def until_lost(self, subject: str) -> None:
        """Return when it can no longer publish there, because it is cut or because it is told so."""
        with contextlib.suppress(ConnectionError):
            while True:
                if not await self.may(subject):
                    return
                await asyncio.sleep(TRY_EVERY)

    async def until_granted(self, subject: str) -> None:
        """Return when it can publish there; whenever it is cut, it comes back at once."""
        while True:
            try:
                if await self.may(subject):
                    return
            except ConnectionError:
                with contextlib.suppress(ConnectionError):
                    await self.open()
                    continue
            await asyncio.sleep(TRY_EVERY)

    async def gets_back(self, subject: str) -> bool:
        """Whether a new connection with the same credentials has the right again."""
        try:
            await self.open()
            return await self.may(subject)
        except ConnectionError:
            return False


async def _over_tcp(target: Target) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    address = urlsplit(target.url)
    assert target.creds
    jwt, seed = read_creds(target.creds)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    nonce = json.loads((await reader.readline())[5:])["nonce"]
    signature = base64.urlsafe_b64encode(nkeys.from_seed(seed).sign(nonce.encode())).rstrip(b"=").decode()
    options = {"verbose": False, "protocol": 1, "lang": "bench", "version": "1", "jwt": jwt, "sig": signature}
    writer.write(b"CONNECT " + json.dumps(options).encode() + b"\r\nPING\r\n")
    said = b""
    while b"PONG" not in said:
        data = await reader.read(65536)
        if not data or b"-ERR" in data:
            writer.transport.abort()
            raise ConnectionError("refused")
        said += data
    return reader, writer
