"""One request with many answers, on a real nats-server."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import nats.errors
import pytest
import pytest_asyncio
from nats.aio.msg import Msg

from natskit.bus.connection import Connection, connect
from natskit.bus.request_many import request_many
from natskit.bus.servers import NatsServers
from tests.kit.ports import free_port
from tests.kit.wait import eventually

LONG = 60.0
"""Seconds that no request here takes: a test that waits so long has not ended where it should."""


@pytest.fixture(scope="module")
def urls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    port = free_port()
    program = Path(sys.executable).with_name("nats-server")
    folder = tmp_path_factory.mktemp("request-many")
    with (folder / "log").open("ab") as log:
        words = ["-a", "127.0.0.1", "-p", str(port), "-js", "-sd", str(folder)]
        server = subprocess.Popen([program, *words], stderr=log)
    try:
        yield [f"nats://127.0.0.1:{port}"]
    finally:
        server.kill()
        server.wait(10)


@pytest_asyncio.fixture(loop_scope="module")
async def connection(urls: list[str]) -> AsyncIterator[Connection]:
    opened = await connect(NatsServers(urls=urls), name="test", inbox_prefix="_INBOX.test", timeout=10)
    yield opened
    await opened.close()


async def answer_with(connection: Connection, subject: str, *answers: str) -> None:
    """Answer each request on a subject with these messages."""

    async def on_request(message: Msg) -> None:
        for answer in answers:
            await message.respond(answer.encode())

    await connection.subscribe(subject, cb=on_request)


def texts(messages: list[Msg]) -> list[str]:
    return [message.data.decode() for message in messages]


async def test_answers_are_collected_until_the_time_is_over(connection: Connection) -> None:
    await answer_with(connection, "three", "a", "b", "c")
    started = time.monotonic()
    assert texts(await request_many(connection, "three", b"", seconds=0.5)) == ["a", "b", "c"]
    assert time.monotonic() - started >= 0.5


async def test_nobody_answers_in_time(connection: Connection) -> None:
    await answer_with(connection, "silent")
    assert await request_many(connection, "silent", b"", seconds=0.1) == []


async def test_the_last_answer_is_in_the_list_and_ends_it(connection: Connection) -> None:
    await answer_with(connection, "ends", "a", "end", "late")
    asked = []

    def is_last(message: Msg) -> bool:
        asked.append(message.data.decode())
        return message.data == b"end"

    assert texts(await request_many(connection, "ends", b"", seconds=LONG, is_last=is_last)) == ["a", "end"]
    assert asked == ["a", "end"]


async def test_a_number_of_answers_ends_it(connection: Connection) -> None:
    await answer_with(connection, "many", *"abcdef")
    assert texts(await request_many(connection, "many", b"", seconds=LONG, max_messages=2)) == ["a", "b"]


async def test_a_stall_ends_it_but_not_before_the_first_answer(connection: Connection) -> None:
    stall = 0.2

    async def slow(message: Msg) -> None:
        await asyncio.sleep(2 * stall)
        await message.respond(b"a")
        await message.respond(b"b")

    await connection.subscribe("slow", cb=slow)
    assert texts(await request_many(connection, "slow", b"", seconds=LONG, stall=stall)) == ["a", "b"]


async def test_a_stall_does_not_outlast_the_whole_time(connection: Connection) -> None:
    await answer_with(connection, "one", "a")
    assert texts(await request_many(connection, "one", b"", seconds=0.2, stall=LONG)) == ["a"]


async def test_nobody_listens(connection: Connection) -> None:
    with pytest.raises(nats.errors.NoRespondersError):
        await request_many(connection, "nobody", b"", seconds=LONG)


async def test_no_subscription_is_left_behind(connection: Connection) -> None:
    await answer_with(connection, "tidy", "a")
    before = set(connection._subs)
    await request_many(connection, "tidy", b"", seconds=LONG, max_messages=1)
    with pytest.raises(nats.errors.NoRespondersError):
        await request_many(connection, "nobody", b"", seconds=LONG)

    async def waits() -> bool:
        return set(connection._subs) != before

    waiting = asyncio.ensure_future(request_many(connection, "tidy", b"", seconds=LONG))
    await eventually(waits, "it waits for answers")
    waiting.cancel()
    await asyncio.wait([waiting])
    assert set(connection._subs) == before


async def test_a_batch_of_jetstream_ends_with_its_status(connection: Connection) -> None:
    """ADR-31: the last message of a batch of direct gets is empty and has the status 204."""
    jetstream = connection.jetstream()
    await jetstream.add_stream(name="BATCH", subjects=["batch"], allow_direct=True)
    for number in range(5):
        await jetstream.publish("batch", str(number).encode())
    query = json.dumps({"seq": 1, "batch": 3, "next_by_subj": "batch"}).encode()
    answers = await request_many(
        connection,
        "$JS.API.DIRECT.GET.BATCH",
        query,
        seconds=LONG,
        is_last=lambda message: "Status" in (message.headers or {}),
    )
    assert texts(answers) == ["0", "1", "2", ""]
    assert (answers[-1].headers or {})["Status"] == "204"


async def test_many_answers_are_handed_over_as_they_were_sent(connection: Connection) -> None:
    async def on_request(message: Msg) -> None:
        for number in range(3):
            await connection.publish(message.reply, b"%d" % number, headers={"Number": str(number)})
        await message.respond(b"end")

    await connection.subscribe("raw", cb=on_request)
    before, taken = set(connection._subs), []

    def take(headers: bytes, data: bytes) -> bool:
        taken.append((headers, data))
        return data == b"end"

    await connection.ask_many("raw", b"", take, LONG)
    expected = [(b"NATS/1.0\r\nNumber: %d\r\n\r\n" % number, b"%d" % number) for number in range(3)]
    assert taken == [*expected, (b"", b"end")]
    assert set(connection._subs) == before


async def test_many_answers_that_do_not_end(connection: Connection) -> None:
    await answer_with(connection, "endless", "a", "b")
    before = set(connection._subs)
    with pytest.raises(nats.errors.TimeoutError):
        await connection.ask_many("endless", b"", lambda *_: False, 0.2)
    with pytest.raises(nats.errors.NoRespondersError):
        await connection.ask_many("nobody", b"", lambda *_: False, LONG)

    def refuse(*_: bytes) -> bool:
        raise ValueError("not one of ours")

    with pytest.raises(ValueError, match="not one of ours"):
        await connection.ask_many("endless", b"", refuse, LONG)
    assert set(connection._subs) == before
    assert not connection._raw


async def test_many_answers_end_with_the_connection(connection: Connection) -> None:
    await answer_with(connection, "broken", "a")
    asking = asyncio.create_task(connection.ask_many("broken", b"", lambda *_: False, LONG))
    await eventually(lambda: connection._raw, "it has asked")
    await connection.flush()
    await connection.force_reconnect()
    with pytest.raises(nats.errors.ConnectionReconnectingError):
        await asking
