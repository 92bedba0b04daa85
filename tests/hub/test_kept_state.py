"""The file of what a hub last had of a bucket: what it saves, and that a file in doubt gives no right back."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import shutil
import signal
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from natskit.bus.connection import Connection
from natskit.hub.state import bulk_read, kept_file
from natskit.hub.state.bucket import Bucket
from natskit.hub.state.records import Runner
from natskit.process.lifecycle import cancel
from tests.hub.conftest import PASSWORD
from tests.hub.site import Site
from tests.hub.test_hub_api import person
from tests.hub.test_hub_bucket import runner, view
from tests.kit.wait import eventually

OWNER = "the NATS account"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Site]:
    async with Site.without_hubs(tmp_path_factory.mktemp("kept")) as site:
        yield site


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "state"
    made.mkdir(mode=0o700)
    return made


@pytest.fixture
def firsts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The first sequence of each bulk read."""
    found: list[int] = []
    read = bulk_read.read

    async def noted(connection: Connection, bucket: str, subjects: str, first: int, *rest: Any) -> None:
        found.append(first)
        await read(connection, bucket, subjects, first, *rest)

    monkeypatch.setattr(bulk_read, "read", noted)
    return found


@contextlib.asynccontextmanager
async def hub(site: Site, folder: Path, owner: str = OWNER) -> AsyncIterator[Bucket[Runner]]:
    """What a hub that starts has of the bucket; at its end it writes its file."""
    connection = await site.state()
    bucket: Bucket[Runner] = Bucket(connection, "runners", lambda _, data: Runner.from_json(data), lambda _, __: None)
    await bucket.load(folder, owner)
    following = asyncio.create_task(bucket.follow())
    try:
        await bucket.wait_current(20)
        yield bucket
        await bucket.keep(folder, owner)
    finally:
        await cancel([following])
        await connection.close()


async def is_the_streams(site: Site, bucket: Bucket[Runner]) -> None:
    async with view(site) as fresh:
        assert bucket.entries == fresh.entries


async def a_file(site: Site, folder: Path) -> Path:
    """The file of a hub, with something in it."""
    async with hub(site, folder) as bucket:
        for key in ("a", "b", str(uuid.uuid4())):
            await bucket.change(key, lambda _: runner(str(uuid.uuid4())))
    return folder / "runners"


async def test_a_hub_that_starts_reads_what_came_since_and_nothing_else(
    server: Site, folder: Path, firsts: list[int]
) -> None:
    gone, changed, new = (str(uuid.uuid4()) for _ in range(3))
    async with hub(server, folder) as bucket:
        for key in (gone, changed, "last"):
            await bucket.change(key, lambda _: runner("1"))
        had = bucket.applied
    assert (folder / "runners").stat().st_mode & 0o777 == 0o600
    async with view(server) as writer:
        await writer.change(gone, lambda _: None)
        await writer.change(changed, lambda _: runner("2"))
        await writer.change(new, lambda _: runner("1"))
    firsts.clear()
    async with hub(server, folder) as bucket:
        assert firsts == [had + 1]
        await is_the_streams(server, bucket)
        assert bucket.get(gone) is None
        await bucket.change(gone, lambda old: old or runner("again"))
    firsts.clear()
    async with hub(server, folder) as bucket:
        assert min(firsts) > had, "the file was written again"


def rewritten(path: Path, **fields: Any) -> None:
    """The same file with another header."""

    async def write() -> None:
        async with kept_file.opened(path) as (header, pieces):
            items = [item async for piece in pieces for item in piece]
        await kept_file.write(path, msgspec.structs.replace(header, **fields), items)

    with asyncio.Runner() as loop:
        loop.run(write())


def names(folder: Path) -> list[str]:
    return [file.name for file in folder.iterdir()]


def flipped(path: Path, place: float) -> None:
    data = bytearray(path.read_bytes())
    data[int(place * (len(data) - 1))] ^= 1
    path.write_bytes(data)


DOUBTFUL: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "cut off": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"x"),
    "first byte": lambda path: flipped(path, 0),
    "a byte of the header": lambda path: flipped(path, 0.1),
    "a byte in the middle": lambda path: flipped(path, 0.7),
    "last byte": lambda path: flipped(path, 1),
    "a huge piece": lambda path: path.write_bytes(kept_file.FORMAT + b"\xff" * 100),
    "readable by others": lambda path: path.chmod(0o640),
    "a link": lambda path: path.rename(path.with_name("elsewhere")).with_name("runners").symlink_to("elsewhere"),
    "a folder": lambda path: path.rename(path.with_name("elsewhere")).with_name("runners").mkdir(),
    "of another bucket": lambda path: rewritten(path, bucket="sessions"),
    "of another platform": lambda path: rewritten(path, owner="another"),
    "of another version": lambda path: rewritten(path, made_by="0.0.1 x"),
    "of an earlier start of the host": lambda path: rewritten(path, booted_at=kept_file.booted_at() - 60),
    "from the future": lambda path: rewritten(path, complete_since_boot=kept_file.since_boot() + 60),
    "old": lambda path: rewritten(path, complete_since_boot=kept_file.since_boot() - 1801),
    "old by the leader's clock": lambda path: rewritten(path, complete_by_leader="2026-01-01T00:00:00Z"),
    "without a time": lambda path: rewritten(path, complete_by_leader="x"),
    "of a stream made at another time": lambda path: rewritten(path, created="2026-01-01T00:00:00Z"),
    "with another last message": lambda path: rewritten(path, content=b"x"),
    "with a last message of another time": lambda path: rewritten(path, stored_at="2026-01-01T00:00:00Z"),
    "with too few entries": lambda path: rewritten(path, count=1),
}


@pytest.mark.parametrize("spoil", DOUBTFUL.values(), ids=DOUBTFUL.keys())
async def test_a_file_in_doubt_is_not_used(
    server: Site, folder: Path, firsts: list[int], spoil: Callable[[Path], object]
) -> None:
    path = await a_file(server, folder)
    await asyncio.to_thread(spoil, path)
    firsts.clear()
    async with hub(server, folder) as bucket:
        assert min(firsts) < bucket.applied - 1, "it has read the bucket"
        await is_the_streams(server, bucket)


async def test_a_file_that_makes_a_hub_crash_is_not_loaded_again(server: Site, folder: Path) -> None:
    path = await a_file(server, folder)

    class Crash(BaseException): ...

    async def read() -> None:
        async with kept_file.opened(path) as (_, pieces):
            async for _ in pieces:
                raise Crash

    with pytest.raises(Crash):
        await read()
    assert names(folder) == []
    # Killed while it read the file:
    path = await a_file(server, folder)
    path.rename(path.with_suffix(".loading"))
    async with hub(server, folder) as bucket:
        await is_the_streams(server, bucket)
    assert names(folder) == ["runners"]


async def test_the_loop_answers_while_a_file_is_written_and_read(folder: Path) -> None:
    """Between two pieces of which each has a part of the entries."""
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    header = kept_file.Header(
        bucket="runners",
        owner=OWNER,
        made_by=kept_file.made_by(),
        booted_at=kept_file.booted_at(),
        created="",
        sequence=10 * kept_file.PIECE,
        stored_at="",
        content=b"",
        complete_by_leader="2026-01-01T00:00:00Z",
        complete_since_boot=kept_file.since_boot(),
        count=10 * kept_file.PIECE,
        markers={},
    )
    value = runner("1").to_json()
    beside = asyncio.create_task(others())
    await kept_file.write(folder / "runners", header, ((str(n), n, value) for n in range(10 * kept_file.PIECE)))
    assert turns >= 10
    turns = 0
    bucket: Bucket[Runner] = Bucket(Connection(), "runners", lambda _, d: Runner.from_json(d), lambda _, __: None)
    await bucket.load(folder, OWNER)
    assert len(bucket.entries) == 10 * kept_file.PIECE
    assert turns >= 20
    await cancel([beside])


async def test_what_cannot_be_written_stops_nothing(server: Site, folder: Path) -> None:
    async with hub(server, folder) as bucket:
        with pytest.raises(OSError, match="No such file"):
            await bucket.keep(folder / "missing", OWNER)
        await bucket.change("a", lambda _: runner("1"))


async def test_hubs_write_their_files_and_start_with_them(tmp_path: Path) -> None:
    """In processes of their own: one that was told to stop, and one that was killed."""
    async with Site.without_hubs(tmp_path) as site:
        site.start_hub("hub-1", keep_state_seconds=3600)
        await site.healthy("hub-1")
        email, _, _ = await person(site, await site.admin())
        state = tmp_path / "hub-1" / "state"
        assert names(state) == []
        assert await asyncio.to_thread(site.kill_hub, "hub-1", signal.SIGTERM) == 0
        written = sorted(names(state))
        assert {"accounts", "sessions"} <= {*written}
        assert {file.stat().st_mode & 0o777 for file in state.glob("*")} == {0o600}
        site.start_hub("hub-1")
        await site.healthy("hub-1")
        assert "bucket accounts: 2 keys from the file" in site.log("hub-1")
        await site.sign_in("hub-1", email, PASSWORD)

        async def wrote_again() -> bool:
            return (state / "sessions").stat().st_mtime_ns > before

        before = (state / "sessions").stat().st_mtime_ns
        await eventually(wrote_again, "it writes them now and then")
        await asyncio.to_thread(site.kill_hub, "hub-1")
        site.start_hub("hub-1")
        await site.healthy("hub-1")
        assert site.log("hub-1").count("bucket accounts: 2 keys from the file") == 2


# ---- a model: what a hub has after its start is what the stream has, whatever happened in between

CHANGES = st.lists(st.tuples(st.sampled_from(("account", "session", "membership")), st.booleans()), max_size=4)
"""Rights by their keys, and whether each is given."""


class World:
    """A nats-server with the bucket, a hub that comes and goes, and what the bucket must have."""

    def __init__(self, site: Site, folder: Path) -> None:
        self.site, self.folder = site, folder
        self.expected: dict[str, str] = {}
        self.backup: tuple[Path, dict[str, str]] | None = None
        self.files: list[bytes] = []

    async def hub_runs(self) -> None:
        """A hub starts, has what the model has, and ends in an orderly way."""
        async with hub(self.site, self.folder) as bucket:
            self.same(bucket)
        if self.expected:
            self.files.append((self.folder / "runners").read_bytes())

    async def lose_writes(self, which: int) -> None:
        """A hub was killed before it wrote the later files: an earlier one is there."""
        if self.files:
            (self.folder / "runners").write_bytes(self.files[which % len(self.files)])

    def same(self, bucket: Bucket[Runner]) -> None:
        has = {key: entry.value.version for key, entry in bucket.entries.items()}
        assert has == self.expected

    async def change(self, changes: list[tuple[str, bool]]) -> None:
        """Another hub gives and takes rights."""
        async with view(self.site) as other:
            for key, gives in changes:
                value = runner(str(uuid.uuid4())) if gives else None
                await other.change(key, functools.partial(lambda new, _: new, value))
                if value is None:
                    self.expected.pop(key, None)
                else:
                    self.expected[key] = value.version

    async def spoil(self, place: float) -> None:
        if (path := self.folder / "runners").exists():
            flipped(path, place)

    async def make_anew(self) -> None:
        """The stream is deleted, and another one has its name."""
        await self.restarted(lambda: shutil.rmtree(self.site.root / "jetstream"))
        self.expected = {}

    async def back_up(self) -> None:
        backup = self.site.root / f"backup-{uuid.uuid4()}"
        await self.restarted(lambda: shutil.copytree(self.site.root / "jetstream", backup))
        self.backup = backup, dict(self.expected)

    async def roll_back(self) -> None:
        """The sequence goes back, and comes to where it was with other messages."""
        if self.backup is None:
            return
        kept, self.expected = self.backup[0], dict(self.backup[1])

        def put_back() -> None:
            shutil.rmtree(self.site.root / "jetstream")
            shutil.copytree(kept, self.site.root / "jetstream")

        await self.restarted(put_back)

    async def restarted(self, between: Callable[[], object]) -> None:
        self.site.stop_server()
        await asyncio.to_thread(between)
        self.site.start_server()


class Kept(RuleBasedStateMachine):
    """A right is a key. One that was taken away is never there again, and one that was given is never missing."""

    def __init__(self, site: Site, root: Path, loop: asyncio.Runner) -> None:
        super().__init__()
        folder = root / str(uuid.uuid4())
        folder.mkdir(mode=0o700)
        self._loop, self.world = loop, World(site, folder)
        self.run(self.world.make_anew())

    def run(self, doing: Coroutine[Any, Any, None]) -> None:
        self._loop.run(doing)

    @rule(changes=CHANGES)
    def change(self, changes: list[tuple[str, bool]]) -> None:
        self.run(self.world.change(changes))

    @rule()
    def hub_runs(self) -> None:
        self.run(self.world.hub_runs())

    @rule(which=st.integers(0, 5))
    def lose_writes(self, which: int) -> None:
        self.run(self.world.lose_writes(which))
        self.run(self.world.hub_runs())

    @rule(place=st.floats(0, 1))
    def spoil(self, place: float) -> None:
        self.run(self.world.spoil(place))
        self.run(self.world.hub_runs())

    @rule()
    def back_up(self) -> None:
        self.run(self.world.back_up())

    @rule(changes=CHANGES, is_new=st.booleans())
    def history_is_another(self, changes: list[tuple[str, bool]], is_new: bool) -> None:
        """The sequence goes back, and comes to where it was, or further, with other messages."""
        self.run(self.world.make_anew() if is_new else self.world.roll_back())
        self.run(self.world.change(changes))
        self.run(self.world.hub_runs())

    def teardown(self) -> None:
        self.run(self.world.hub_runs())


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Site, asyncio.Runner]]:
    """A nats-server and the loop of its clients: the rules of a state machine are no coroutines."""
    with asyncio.Runner() as loop:
        site = Site(tmp_path_factory.mktemp("model"))
        site.start_server()
        try:
            yield site, loop
        finally:
            loop.run(site.close())


def test_a_right_that_was_taken_away_is_never_given_again(alone: tuple[Site, asyncio.Runner], tmp_path: Path) -> None:
    site, loop = alone
    run_state_machine_as_test(
        functools.partial(Kept, site, tmp_path, loop),  # type: ignore[arg-type]  # any factory will do
        settings=settings(
            max_examples=int(os.environ.get("NATSKIT_KEPT_EXAMPLES", "4")),
            stateful_step_count=12,
            deadline=None,
            database=None,
            derandomize=True,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
            report_multiple_bugs=False,
        ),
    )
