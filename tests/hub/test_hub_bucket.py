"""The view of a bucket, against a real nats-server: writers that meet, lost messages, a server that restarts."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import shutil
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from nats.aio.msg import Msg

from natskit.bus.connection import Connection
from natskit.bus.jetstream import api, ask
from natskit.hub.state import bucket as bucket_module
from natskit.hub.state import bulk_read
from natskit.hub.state.bucket import Bucket
from natskit.hub.state.records import Membership, Project, Runner
from natskit.process.lifecycle import cancel
from natskit.rpc import RpcError
from tests.hub.site import Site
from tests.kit.wait import eventually


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Site]:
    async with Site.without_hubs(tmp_path_factory.mktemp("bucket")) as site:
        yield site


@contextlib.asynccontextmanager
async def view(
    site: Site, changes: list[tuple[str, Any]] | None = None, expired: list[str] | None = None
) -> AsyncIterator[Bucket[Runner]]:
    """A view of its own connection, as another hub has it."""
    connection = await site.state()
    seen = changes if changes is not None else []
    bucket: Bucket[Runner] = Bucket(
        connection,
        "runners",
        lambda _, data: Runner.from_json(data),
        lambda key, new: seen.append((key, new.version if new else None)),
        (expired if expired is not None else []).append,
    )
    task = asyncio.create_task(bucket.follow())
    try:
        await bucket.wait_current(10)
        yield bucket
    finally:
        await cancel([task])
        await connection.close()


def runner(version: str) -> Runner:
    return Runner(version=version, last_seen=time.time())


async def test_hubs_that_start_at_once_see_each_others_writes(server: Site) -> None:
    async with contextlib.AsyncExitStack() as stack:
        views = await asyncio.gather(*(stack.enter_async_context(view(server)) for _ in range(4)))
        await views[0].change("a", lambda _: runner("1"))
        for other in views:
            assert (await other.find("a")) is not None


async def test_no_increment_is_lost_between_writers(server: Site) -> None:
    key = str(uuid.uuid4())

    def increment(old: Runner | None) -> Runner:
        return Runner(version=str(int(old.version) + 1 if old else 1), last_seen=0)

    async with view(server) as one, view(server) as two:
        await asyncio.gather(*(bucket.change(key, increment) for bucket in (one, two) for _ in range(8)))
        # Read anew: a writer waits until its own view has the write, the other's may be a moment behind.
        async with view(server) as late:
            final = late.get(key)
        assert final is not None
        assert final.version == "16"
        for bucket in (one, two):
            while bucket.get(key) != final:
                await asyncio.wait_for(bucket.changed(5), 5)


async def test_what_was_deleted_can_be_made_again_by_anyone(server: Site) -> None:
    key = str(uuid.uuid4())
    async with view(server) as one, view(server) as two:
        for bucket, other in ((one, two), (two, one), (one, two)):
            await bucket.change(key, lambda _: runner("x"))
            assert bucket.get(key) is not None
            assert await other.find(key) is not None
            await other.change(key, lambda _: None)
            assert other.get(key) is None
        async with view(server) as late:
            assert late.get(key) is None
            await late.change(key, lambda old: old or runner("y"))


async def test_changes_missed_during_a_restart_are_seen_after_it(server: Site) -> None:
    gone, stays, new = (str(uuid.uuid4()) for _ in range(3))
    changes: list[tuple[str, Any]] = []
    async with view(server, changes) as follower:
        async with view(server) as writer:
            await writer.change(gone, lambda _: runner("1"))
            await writer.change(stays, lambda _: runner("1"))
        await follower.find(stays)
        server.stop_server()
        server.start_server()
        async with view(server) as writer:
            await writer.change(gone, lambda _: None)
            await writer.change(new, lambda _: runner("2"))
            await writer.change(stays, lambda _: runner("3"))

        async def caught_up() -> bool:
            kept = follower.get(stays)
            seen = follower.get(gone) is None and follower.get(new) is not None and kept == writer.get(stays)
            return seen and follower.current.is_set()

        await eventually(caught_up, "the follower has caught up")
        assert (gone, None) in changes
        assert (new, "2") in changes
        assert (stays, "3") in changes


async def test_a_lost_message_is_noticed_without_any_reconnect(server: Site) -> None:
    key = str(uuid.uuid4())
    async with view(server) as follower, view(server) as writer:
        # As when a server that passes messages on has dropped some: the subscription is gone, the connection is not.
        assert follower._subscription is not None
        await follower._connection._send_unsubscribe(follower._subscription._id)
        await writer.change(key, lambda _: runner("1"))

        async def seen() -> bool:
            return follower.get(key) is not None

        await eventually(seen, "the follower started over", 20)
        await writer.change(key, lambda _: None)

        async def gone() -> bool:
            return follower.get(key) is None

        await eventually(gone, "the follower follows again")


async def test_the_next_message_tells_of_one_that_was_lost(server: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the leader is asked: that is never done here."""
    monkeypatch.setattr(bucket_module, "CHECK_SECONDS", 3600)
    lost, key = str(uuid.uuid4()), str(uuid.uuid4())
    async with view(server) as follower, view(server) as writer:
        take = follower._on_message

        async def lossy(message: Msg) -> None:
            if not message.subject.endswith(lost):
                await take(message)

        assert follower._subscription is not None
        follower._subscription._cb = lossy
        await writer.change(lost, lambda _: runner("1"))
        await writer.change(key, lambda _: runner("1"))

        async def seen() -> bool:
            return follower.get(key) is not None and follower.get(lost) is not None

        await eventually(seen, "both are seen")


async def test_what_is_written_while_the_bucket_is_read_is_seen(server: Site) -> None:
    """Values that change, come and go while another view reads all: it ends with what is stored."""
    keys = [str(uuid.uuid4()) for _ in range(40)]
    async with view(server) as writer:
        await asyncio.gather(*(writer.change(key, lambda _: runner("0")) for key in keys))
        stop = asyncio.Event()

        async def write(key: str) -> None:
            number = 0
            while not stop.is_set():
                number += 1
                value = None if number % 3 == 0 else runner(str(number))
                await writer.change(key, functools.partial(lambda new, _: new, value))

        writing = [asyncio.create_task(write(key)) for key in keys]
        try:
            async with contextlib.AsyncExitStack() as stack:
                late = [await stack.enter_async_context(view(server)) for _ in range(5)]
                stop.set()
                await asyncio.gather(*writing)

                async def same() -> bool:
                    return all(other.entries == writer.entries for other in late)

                await eventually(same, "all have the same view")
        finally:
            await cancel(writing)


async def test_delete_markers_are_bounded(server: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bucket_module, "MARKERS", 3)
    keys = [str(uuid.uuid4()) for _ in range(6)]
    async with view(server) as one:
        for key in keys:
            await one.change(key, lambda _: runner("1"))
            await one.change(key, lambda _: None)
        assert list(one._markers) == keys[-3:]
        async with view(server) as late:
            assert list(late._markers) == keys[-3:]
            await late.change(keys[0], lambda _: runner("again"))
        found = await one.find(keys[0])
        assert found is not None
        assert found.version == "again"


async def test_what_ends_by_time_is_gone_at_once_and_can_be_made_again(server: Site) -> None:
    key, longer = str(uuid.uuid4()), str(uuid.uuid4())
    changes: list[tuple[str, Any]] = []
    expired: list[str] = []
    async with view(server, changes, expired) as one, view(server) as two:
        await one.change(longer, lambda _: runner("1"), ttl="1s")
        await one.change(longer, lambda _: runner("2"), ttl="60s")
        await one.change(key, lambda _: runner("1"), ttl="2s")
        written = time.monotonic()
        await two.find(key)
        while one.get(key) is not None or two.get(key) is not None:
            await one.changed(0.01)
        assert 1.9 < time.monotonic() - written < 3
        assert expired == [key]
        assert changes[-1] == (key, None)
        assert one.get(longer) is not None, "what was prolonged goes on"
        for bucket in (two, one):
            await bucket.change(key, lambda old: old or runner("again"))
            await bucket.change(key, lambda _: None)
        assert expired == [key]
        async with view(server) as late:
            assert late.get(key) is None
            await late.change(key, lambda old: old or runner("once more"))


async def test_what_ends_while_the_server_is_away_is_gone_when_it_is_back(server: Site) -> None:
    key = str(uuid.uuid4())
    async with view(server) as follower:
        await follower.change(key, lambda _: runner("1"), ttl="1s")
        over = time.monotonic() + 1
        server.stop_server()

        async def is_over() -> bool:
            return time.monotonic() > over

        await eventually(is_over, "its time is over")
        assert follower.get(key) is not None
        server.start_server()

        async def gone() -> bool:
            return follower.get(key) is None and follower.current.is_set()

        await eventually(gone, "it is gone")


async def test_an_end_that_was_not_heard_is_noticed(server: Site) -> None:
    key = str(uuid.uuid4())
    async with view(server) as follower:
        await follower.change(key, lambda _: runner("1"), ttl="1s")
        assert follower._subscription is not None
        await follower._connection._send_unsubscribe(follower._subscription._id)

        async def gone() -> bool:
            return follower.get(key) is None

        await eventually(gone, "the follower started over")


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"subject_delete_marker_ttl": 0}, "stores no markers of expired values: deploy to change that"),
        ({"allow_direct": False}, "cannot be read in batches: deploy to change that"),
        ({"republish": None}, "does not republish its changes on state.runners.>: deploy to change that"),
    ],
)
async def test_a_stream_that_is_not_what_hubs_need_is_not_used(server: Site, changed: dict[str, Any], why: str) -> None:
    admin = await server.streams_admin()
    config = (await api(admin, "STREAM.INFO.KV_runners", {}))["config"]
    try:
        await api(admin, "STREAM.UPDATE.KV_runners", config | changed)
        bucket: Bucket[Runner] = Bucket(
            await server.state(),
            "runners",
            lambda _, data: Runner.from_json(data),
            lambda _, __: None,
        )
        task = asyncio.create_task(bucket.follow())
        await eventually(lambda: why in bucket.problem, "the view says what is wrong")
        assert not bucket.current.is_set()
        await cancel([task])
    finally:
        server.make_streams()


async def test_a_full_bucket_takes_no_more_keys_and_lets_go_of_those_it_has(server: Site) -> None:
    """nats-server itself would not even take a deletion any more."""
    async with view(server) as roomy:
        await asyncio.gather(*(roomy.change(f"full-{n}", lambda _: runner("x" * 400)) for n in range(40)))
        listed = await roomy._connection.request("info.runners", b"", timeout=2)
        used = json.loads(listed.data)["state"]["bytes"]
        server.make_streams(state_bytes=used * 11 // 10)
        async with view(server) as small:
            with pytest.raises(RpcError, match=r"no room for more runners .* raise hub_state_max_bytes") as refused:
                await small.change("one-more", lambda _: runner("1"))
            assert refused.value.kind == "limit"
            await small.change("full-1", lambda _: runner("y" * 400))
            await small.change("full-2", lambda _: None)
        # Between two looks at the stream, nats-server says so.
        server.make_streams()
        async with view(server) as blind:
            server.make_streams(state_bytes=used - 1000)
            blind._is_full = False
            with pytest.raises(RpcError, match="no room for more runners"):
                await blind.change("one-more", lambda _: runner("1"))
        server.make_streams()
    async with view(server) as roomy:
        await roomy.change("one-more", lambda _: runner("1"))


async def test_unreadable_values_do_not_stop_the_view(server: Site) -> None:
    key = str(uuid.uuid4())
    async with view(server) as follower:
        for body in (b"", b"{", b"[]", b'{"version": 1}', b"\xff"):
            await follower._connection.request(f"$KV.runners.{key}", body, timeout=2)
        await follower.change("after", lambda _: runner("1"))
        assert follower.get(key) is None


def test_records_ignore_what_a_newer_hub_wrote() -> None:
    assert Membership.from_json(b'{"role": "owner", "since": 1, "new_field": 2}').role == "owner"


async def test_that_nothing_is_to_do_is_said_by_the_stream_not_by_an_old_view(server: Site) -> None:
    """What another hub has just written is not in the view yet, and may be what is asked for, or its opposite."""
    key = str(uuid.uuid4())
    async with view(server) as one, view(server) as late:
        await one.change(key, lambda _: runner("1"))
        await late.find(key)
        hear_later(late)
        await one.change(key, lambda _: None)
        assert late.get(key) is not None, "it has not heard of it"
        made = await late.change(key, lambda old: old or runner("2"))
        assert made is not None
        assert made.version == "2"
        await late.change(key, lambda _: None)
        hear_later(late)
        await one.change(key, lambda _: runner("3"))
        assert await late.change(key, lambda _: None) is None
        async with view(server) as fresh:
            assert fresh.get(key) is None
        hear_later(late)
        await one.change(key, lambda _: runner("4"))
        assert late.get(key) is None, "it has not heard of it"
        await late.confirm(key)
        assert late.get(key) == one.get(key)
        await late.confirm("never-written")


def hear_later(bucket: Bucket[Runner]) -> None:
    """What the view is told from now on, it hears after a while."""
    subscription: Any = bucket._subscription
    heard, goes_on = subscription._cb, asyncio.Event()

    async def wait(message: Any) -> None:
        await goes_on.wait()
        await heard(message)

    subscription._cb = wait
    asyncio.get_running_loop().call_later(0.3, goes_on.set)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Connection, int]]:
    """The connection and the first sequence of each bulk read."""
    found: list[tuple[Connection, int]] = []
    read = bulk_read.read

    async def noted(connection: Connection, bucket: str, subjects: str, first: int, *rest: Any) -> None:
        found.append((connection, first))
        await read(connection, bucket, subjects, first, *rest)

    monkeypatch.setattr(bulk_read, "read", noted)
    return found


async def same_as_a_new_one(server: Site, follower: Bucket[Runner]) -> None:
    """Wait until a view is what somebody sees who reads the whole bucket."""

    async def same() -> bool:
        async with view(server) as fresh:
            return follower.current.is_set() and follower.entries == fresh.entries

    await eventually(same, "the view is the stream's", 20)


def firsts(reads: list[tuple[Connection, int]], follower: Bucket[Runner]) -> set[int]:
    return {first for connection, first in reads if connection is follower._connection}


async def test_after_a_restart_only_what_came_since_is_read(server: Site, reads: list[tuple[Connection, int]]) -> None:
    gone, stays = str(uuid.uuid4()), str(uuid.uuid4())
    changes: list[tuple[str, Any]] = []
    async with view(server, changes) as follower:
        for key in (gone, stays, "last"):
            await follower.change(key, lambda _: runner("1"))
        before = follower.applied
        reads.clear()
        changes.clear()
        server.stop_server()
        server.start_server()
        async with view(server) as writer:
            await writer.change(gone, lambda _: None)
            await writer.change(stays, lambda _: runner("2"))
        await same_as_a_new_one(server, follower)
    assert changes == [(gone, None), (stays, "2")]
    assert firsts(reads, follower) == {before + 1}


async def test_an_empty_bucket_after_a_restart(server: Site) -> None:
    connection = await server.state()
    bucket = Bucket(connection, "projects", lambda _, data: Project.from_json(data), lambda _, __: None)
    task = asyncio.create_task(bucket.follow())
    try:
        await bucket.wait_current(10)
        back = asyncio.Event()
        connection.on_reconnect(back.set)
        server.stop_server()
        server.start_server()
        await asyncio.wait_for(back.wait(), 20)
        await bucket.wait_current(20)
        await bucket.change("a", lambda _: Project(title="P", created_at=0))
    finally:
        await cancel([task])
        await connection.close()


async def test_a_view_whose_last_message_is_gone_is_the_streams_again(
    server: Site, reads: list[tuple[Connection, int]]
) -> None:
    async with view(server) as follower:
        await follower.change("last", lambda _: runner("1"))
        server.stop_server()
        server.start_server()
        reads.clear()
        async with view(server) as writer:
            await writer.change("last", lambda _: runner("2"))
        await same_as_a_new_one(server, follower)
        found = follower.get("last")
        assert found is not None
        assert found.version == "2"


async def test_a_server_that_lets_little_wait_is_read_in_small_batches(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Otherwise it would disconnect a hub whenever that reads the state."""
    site = Site(tmp_path_factory.mktemp("pending"))
    site.max_pending = 1024 * 1024
    try:
        site.start_server()
        hub = await site.state()
        large = runner("x" * 60_000).to_json()
        for number in range(200):
            await hub.request(f"$KV.runners.large-{number}", large, timeout=5)
        async with view(site) as whole:
            assert len(whole.entries) == 200
    finally:
        await site.close()


@pytest.mark.parametrize("clock", ["by_leader", "since_boot"])
async def test_a_view_that_was_away_for_longer_than_markers_stay_reads_everything(
    server: Site, reads: list[tuple[Connection, int]], clock: str
) -> None:
    """Either clock is enough: the other may have been set."""
    async with view(server) as follower:
        await follower.change("last", lambda _: runner("1"))
        server.stop_server()
        complete = follower._complete
        assert complete is not None
        if clock == "by_leader":
            follower._complete = complete._replace(by_leader="2026-01-01T00:00:00.123456789Z")
        else:
            follower._complete = complete._replace(since_boot=complete.since_boot - 1801)
        reads.clear()
        server.start_server()
        await same_as_a_new_one(server, follower)
        assert min(firsts(reads, follower)) < follower.applied


async def test_a_stream_that_was_rolled_back_is_read_anew(server: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has the same name and age, and as many messages, or more: other ones."""
    written = asyncio.Event()

    async def watch_once_it_is_written() -> None:
        await written.wait()
        await Bucket._watch(follower)

    lost, kept, *new = (str(uuid.uuid4()) for _ in range(5))
    async with view(server) as follower:
        await follower.change(kept, lambda _: runner("1"))
        server.stop_server()
        backup = server.root / "backup"
        shutil.copytree(server.root / "jetstream", backup)
        server.start_server()
        async with view(server) as writer:
            await writer.change(kept, lambda _: runner("2"))
            await writer.change(lost, lambda _: runner("1"))
        await same_as_a_new_one(server, follower)
        assert follower.get(lost) is not None
        monkeypatch.setattr(follower, "_watch", watch_once_it_is_written)
        server.stop_server()
        shutil.rmtree(server.root / "jetstream")
        backup.rename(server.root / "jetstream")
        server.start_server()
        async with view(server) as writer:
            for key in new:
                await writer.change(key, lambda _: runner("1"))
        written.set()
        await same_as_a_new_one(server, follower)
        assert follower.get(lost) is None
        found = follower.get(kept)
        assert found is not None
        assert found.version == "1"


async def bulk_answers(connection: Connection) -> list[tuple[bytes, bytes]]:
    """What a replica answers to a bulk read of the whole bucket now."""
    answers: list[tuple[bytes, bytes]] = []

    def note(headers: bytes, data: bytes) -> bool:
        answers.append((headers, data))
        return headers.startswith(b"NATS/1.0 204")

    question = {"seq": 1, "batch": 10_000, "max_bytes": bulk_read.MOST_BYTES, "next_by_subj": "$KV.runners.>"}
    await connection.ask_many("read.runners", json.dumps(question).encode(), note, 5)
    return answers


@contextlib.asynccontextmanager
async def view_of_replica(site: Site, answers: list[tuple[bytes, bytes]]) -> AsyncIterator[Bucket[Runner]]:
    """A view whose first bulk read is answered like this."""
    reader = await site.state()
    ask_many = reader.ask_many

    async def lagging(subject: str, body: bytes, take: Any, stall: float) -> None:
        if not answers:
            await ask_many(subject, body, take, stall)
        while answers:
            take(*answers.pop(0))

    reader.ask_many = lagging  # type: ignore[method-assign]
    bucket: Bucket[Runner] = Bucket(reader, "runners", lambda _, data: Runner.from_json(data), lambda _, __: None)
    task = asyncio.create_task(bucket.follow())
    try:
        await bucket.wait_current(20)
        assert not answers, "the replica was read"
        yield bucket
    finally:
        await cancel([task])
        await reader.close()


async def test_a_replica_that_lags_gives_no_deleted_right_back(server: Site) -> None:
    """Its host was away until the marker was gone, so nothing in the stream says that the key was deleted."""
    key, stays = str(uuid.uuid4()), str(uuid.uuid4())
    connection = await server.state()
    for name in (key, stays):
        await connection.request(f"$KV.runners.{name}", runner("1").to_json(), timeout=5)
    answers = await bulk_answers(connection)
    marker = {"KV-Operation": "PURGE", "Nats-Rollup": "sub", "Nats-TTL": "1s"}
    await connection.request(f"$KV.runners.{key}", b"", timeout=5, headers=marker)

    async def is_gone() -> bool:
        info = await ask(connection, "info", "runners", {"subjects_filter": f"$KV.runners.{key}"})
        return not info["state"].get("subjects")

    await eventually(is_gone, "the marker is gone", 20)
    async with view_of_replica(server, answers) as bucket:
        assert bucket.get(stays) is not None
        assert bucket.get(key) is None
    await connection.close()


async def test_a_replica_of_a_stream_that_was_replaced_is_not_believed(server: Site) -> None:
    """It has not heard of that yet: its messages have the same sequences, and are others."""
    key = str(uuid.uuid4())
    connection = await server.state()
    await connection.request(f"$KV.runners.{key}", runner("now").to_json(), timeout=5)
    answers = await bulk_answers(connection)
    old = [(headers.replace(b"Time-Stamp: 20", b"Time-Stamp: 19"), data) for headers, data in answers]
    old[-2] = (old[-2][0], runner("before").to_json())
    async with view_of_replica(server, old) as bucket:
        found = bucket.get(key)
        assert found is not None
        assert found.version == "now"
    await connection.close()
