"""Large messages with data after their JSON, which natskit sends in pieces and receives past nats-py's buffer."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop
from nats.aio.msg import Msg

from natskit.bus.connection import Connection, connect
from natskit.bus.large_messages import LARGE_BYTES
from natskit.bus.payload import Pieces, json_and_data, with_data
from natskit.bus.request import request_with_data
from natskit.bus.servers import NatsServers
from natskit.identity.tls import ensure_ca, ensure_host_certificate
from tests.kit.nats import NatsServer, running
from tests.kit.ports import free_port

BLOB = random.Random(1).randbytes(900_000)
SIZES = [0, 1, 40_000, LARGE_BYTES - 200, LARGE_BYTES - 1, LARGE_BYTES, LARGE_BYTES + 1, 500_000, len(BLOB)]
LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop,
    "uvloop": uvloop.new_event_loop,
}


def run(loop: str, work: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        runner.run(work)


@pytest.fixture(params=["plain", "tls"])
def servers(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[NatsServers]:
    port, tls, ca = free_port(), "", None
    if request.param == "tls":
        ensure_ca(tmp_path, now=int(time.time()))
        ensure_host_certificate(tmp_path, "nats", ["127.0.0.1"], now=int(time.time()))
        files, ca = tmp_path / "tls" / "hosts" / "nats", tmp_path / "tls" / "ca.crt"
        tls = f'tls: {{ cert_file: "{files}.crt", key_file: "{files}.key" }}'
    with running(tmp_path, f"listen: 127.0.0.1:{port}\n{tls}") as server:
        assert isinstance(server, NatsServer)
        yield NatsServers(urls=[f"{'tls' if ca else 'nats'}://127.0.0.1:{port}"], ca_file=ca)


@contextlib.asynccontextmanager
async def connected(servers: NatsServers) -> AsyncIterator[Connection]:
    connection = await connect(servers, name="test", inbox_prefix="_INBOX", timeout=10)
    try:
        yield connection
    finally:
        await connection.close()


@pytest.mark.parametrize("loop", LOOPS)
def test_every_size_arrives_as_it_was_sent(loop: str, servers: NatsServers) -> None:
    async def work() -> None:
        async with connected(servers) as asking, connected(servers) as answering:

            async def answer(message: Msg) -> None:
                body, data = json_and_data(message)
                await asking_back(message.reply, body, data)

            async def asking_back(reply: str, body: bytes, data: memoryview) -> None:
                payload, headers = with_data(body, Pieces(data[:7], data[7:]) if data else b"")
                await answering.publish(reply, payload, headers=headers)

            await answering.subscribe("echo", cb=answer)
            await answering.flush()

            async def ask(size: int, number: int) -> None:
                body, begin = b'{"number":%d}' % number, number % 1000
                sent = BLOB[begin : begin + size]
                got, data = await request_with_data(asking, "echo", body, sent, 20)
                assert (got, bytes(data)) == (body, sent)

            for size in SIZES:
                await ask(size, size)
            everything = (SIZES * 4)[::-1]
            await asyncio.gather(*(ask(size, number) for number, size in enumerate(everything)))

    run(loop, work())


@pytest.mark.parametrize("loop", LOOPS)
def test_a_connection_that_breaks_within_a_large_message_comes_back(loop: str, tmp_path: Path) -> None:
    port, left = free_port(), 400_000

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Passes bytes on; the first connection ends within the message."""
        nonlocal left
        back, forth = await asyncio.open_connection("127.0.0.1", port)

        async def pump(source: asyncio.StreamReader, target: asyncio.StreamWriter, *, counts: bool) -> None:
            nonlocal left
            while data := await source.read(65_536):
                if counts and left >= 0:
                    left -= len(data)
                    if left < 0:
                        break
                target.write(data)
                await target.drain()
            target.close()

        pumps = pump(reader, forth, counts=False), pump(back, writer, counts=True)
        with contextlib.suppress(OSError):
            await asyncio.gather(*pumps)

    async def work() -> None:
        relayed, heard = await asyncio.start_server(relay, "127.0.0.1", 0), asyncio.Queue[bytes]()
        relay_port = relayed.sockets[0].getsockname()[1]
        through = NatsServers(urls=[f"nats://127.0.0.1:{relay_port}"])

        async def on_message(message: Msg) -> None:
            heard.put_nowait(bytes(json_and_data(message)[1]))

        async with connected(through) as listening, connected(NatsServers(urls=[f"nats://127.0.0.1:{port}"])) as saying:
            await listening.subscribe("x", cb=on_message)
            await listening.flush()
            back = asyncio.Event()
            listening.on_reconnect(back.set)
            payload, headers = with_data(b"{}", BLOB)
            await saying.publish("x", payload, headers=headers)
            await asyncio.wait_for(back.wait(), 10)
            await listening.flush()
            await saying.publish("x", payload, headers=headers)
            assert await asyncio.wait_for(heard.get(), 10) == BLOB
            assert heard.empty()
        relayed.close()

    with running(tmp_path, f"listen: 127.0.0.1:{port}"):
        run(loop, work())
