"""The streams of the state are moved from PLATFORM, where older versions have them, to STATE, and back."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import nats.errors
import pytest
import pytest_asyncio

from natskit.backup import state_move, stream_snapshot
from natskit.backup.platform_streams import Site as RunningSite
from natskit.backup.platform_streams import accounts
from natskit.backup.state_move import MOVE_STATE, delete_frozen, move
from natskit.backup.stream_snapshot import Snapshot
from natskit.bus.connection import Connection, connect
from natskit.bus.credentials import CredsText
from natskit.bus.jetstream import JetStreamError, api
from natskit.bus.permissions import BACKUP_INBOX, BUCKETS, Permissions
from natskit.bus.servers import NatsServers
from natskit.errors import BackupError
from natskit.ops.stream_provisioning import StreamSettings, wanted
from tests.hub.site import Site
from tests.kit.wait import eventually

SETTINGS = StreamSettings()
MARKER = {"KV-Operation": "PURGE", "Nats-Rollup": "sub", "Nats-TTL": "3600s"}
STREAMS = ("AUDIT", *(f"KV_{bucket}" for bucket in BUCKETS))


class Older:
    """A nats-server whose PLATFORM has the streams of the state, as an older version has made them."""

    def __init__(self, site: Site) -> None:
        self.site = site

    async def connect(self, account: str, rights: Permissions, inbox: str) -> Connection:
        now = int(time.time())
        creds = self.site.identity.temporary_creds(account, "older", rights, now=now, seconds=600)
        servers = NatsServers(urls=[f"nats://127.0.0.1:{self.site.nats_port}"])
        return await connect(servers, name="older", inbox_prefix=inbox, creds=CredsText(creds), timeout=10)

    async def hub(self) -> Connection:
        """A hub of the older version, as far as the state is concerned."""
        rights = Permissions(("$KV.>", "audit.>", "$JS.API.STREAM.>"), ("_INBOX.older.>", "state.>"))
        return await self.connect("PLATFORM", rights, "_INBOX.older")

    async def forth(self) -> list[str]:
        return await self._move("PLATFORM", "STATE")  # as a deploy does

    async def back(self) -> list[str]:
        return await self._move("STATE", "PLATFORM", audit_last=True)  # as natskit state back does

    async def _move(self, source: str, target: str, audit_last: bool = False) -> list[str]:
        one, other = await self.mover(source), await self.mover(target)
        try:
            key = self.site.identity.account_public_key(target)
            return await move(one, other, SETTINGS, key, audit_last=audit_last)
        finally:
            await one.close()
            await other.close()

    async def mover(self, account: str) -> Connection:
        return await self.connect(account, MOVE_STATE, BACKUP_INBOX)


@pytest_asyncio.fixture
async def older(tmp_path: Path) -> AsyncIterator[Older]:
    site = Site(tmp_path)
    site.identity.note_state("PLATFORM", now=int(time.time()))
    site.make_streams = lambda **_: None  # type: ignore[method-assign]
    # As much as the inventory must offer at least: a move needs no more.
    site.max_file = sum(int(config["max_bytes"]) for config in wanted(SETTINGS))
    try:
        site.start_server()
        older = Older(site)
        hub = await older.hub()
        for config in wanted(SETTINGS):
            await api(hub, f"STREAM.CREATE.{config['name']}", config)
        for number in range(30):
            await put(hub, f"$KV.accounts.{number % 7}", b"%d" % number)
        await put(hub, "$KV.accounts.1", b"", MARKER)
        await put(hub, "$KV.sessions.ends", b"1", {"Nats-TTL": "3s"})
        await put(hub, "$KV.sessions.stays", b"1", {"Nats-TTL": "600s"})
        for number in range(100):
            await put(hub, "audit.x.-", b"%d" % number)
        yield older
        await hub.close()
    finally:
        await site.close()


async def put(hub: Connection, subject: str, value: bytes, headers: dict[str, str] | None = None) -> int:
    ack = json.loads((await hub.request(subject, value, timeout=5, headers=headers)).data)
    assert "error" not in ack, ack
    return int(ack["seq"])


async def messages(connection: Connection, stream: str) -> list[tuple[Any, ...]]:
    """Everything in a stream but what ends by itself."""
    found, sequence = [], 1
    last = (await api(connection, f"STREAM.INFO.{stream}", {}))["state"]["last_seq"]
    while sequence <= last:
        try:
            one = (await api(connection, f"STREAM.MSG.GET.{stream}", {"seq": sequence, "next_by_subj": ">"}))["message"]
        except Exception:
            break
        found.append((one["seq"], one["subject"], one.get("data"), one.get("hdrs"), one["time"]))
        sequence = one["seq"] + 1
    return [one for one in found if "ends" not in one[1]]


async def test_all_that_was_acknowledged_is_there_with_its_sequence(older: Older) -> None:
    hub = await older.hub()
    source, target = await older.mover("PLATFORM"), await older.mover("STATE")
    before = {stream: await messages(hub, stream) for stream in STREAMS}
    acknowledged: dict[bytes, int] = {}

    async def keep_writing() -> None:
        for number in range(1_000_000):
            try:
                acknowledged[b"%d" % number] = await put(hub, "$KV.projects.busy", b"%d" % number)
            except nats.errors.NoRespondersError:
                return

    writing = asyncio.create_task(keep_writing())
    await eventually(lambda: len(acknowledged) > 20, "writes go on")
    lines = await older.forth()
    await writing
    assert [line.partition(":")[0] for line in lines] == list(STREAMS)
    for stream in STREAMS:
        if stream != "KV_projects":
            assert await messages(target, stream) == before[stream], stream
    (last,) = await messages(target, "KV_projects")
    assert last[0] == max(acknowledged.values())
    configs = {config["name"]: config for config in wanted(SETTINGS)}
    for stream in STREAMS:
        config = (await api(target, f"STREAM.INFO.{stream}", {}))["config"]
        assert config | configs[stream] == config
    # Who still has the old ones takes no write, and hears of nothing.
    with pytest.raises(nats.errors.NoRespondersError):
        await hub.request("audit.x.-", b"late", timeout=2)
    assert (await api(hub, "STREAM.INFO.KV_accounts", {}))["config"].get("republish") is None
    # What ends by itself ends there too, with a marker.
    late = await older.site.state()

    async def ended() -> bool:
        found = await api(target, "STREAM.MSG.GET.KV_sessions", {"last_by_subj": "$KV.sessions.ends"})
        return "hdrs" in found["message"] and not found["message"].get("data")

    await eventually(ended, "the value has ended", 10)
    assert await put(late, "$KV.accounts.new", b"1") == before["KV_accounts"][-1][0] + 1
    for connection in (hub, source, target):
        await connection.close()


async def test_what_fails_leaves_everything_as_it_was(older: Older, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = await older.hub()
    source, target = await older.mover("PLATFORM"), await older.mover("STATE")
    configs = {stream: (await api(hub, f"STREAM.INFO.{stream}", {}))["config"] for stream in STREAMS}
    put_stream = stream_snapshot.put

    async def fails(connection: Connection, snapshot: Any, pieces: Any) -> Any:
        if snapshot.config["name"] == "KV_sessions":
            raise BackupError("the disk is full")
        return await put_stream(connection, snapshot, pieces)

    with monkeypatch.context() as patched:
        patched.setattr(stream_snapshot, "put", fails)
        with pytest.raises(BackupError, match="the disk is full"):
            await older.forth()
    assert await stream_snapshot.streams(target) == []
    for stream in STREAMS:
        config = (await api(hub, f"STREAM.INFO.{stream}", {}))["config"]
        assert config | {"metadata": None} == configs[stream] | {"metadata": None}
    await put(hub, "$KV.accounts.after", b"1")
    await put(hub, "audit.x.-", b"after")
    assert len(await older.forth()) == len(STREAMS)
    for connection in (hub, source, target):
        await connection.close()


async def test_the_way_back_has_what_came_since(older: Older) -> None:
    source, target = await older.mover("PLATFORM"), await older.mover("STATE")
    await older.forth()
    hub = await older.site.state()
    sequence = await put(hub, "$KV.accounts.since", b"1")
    await older.back()
    again = await older.hub()
    assert await put(again, "$KV.accounts.later", b"1") == sequence + 1
    assert ("$KV.accounts.since", "MQ==") in [one[1:3] for one in await messages(again, "KV_accounts")]
    # And forth once more; what is left behind then can be deleted.
    await older.forth()
    await api(again, "STREAM.CREATE.OWN", {"name": "OWN", "subjects": ["own"]})
    with pytest.raises(BackupError, match="delete OWN"):
        await delete_frozen(source)
    await api(again, "STREAM.DELETE.OWN", {})
    assert sorted(await delete_frozen(source)) == sorted([*STREAMS, "KV_probe"])
    assert await stream_snapshot.streams(source) == []
    assert await put(hub, "$KV.accounts.last", b"1") == sequence + 2
    for connection in (source, target, again):
        await connection.close()


async def test_a_restart_of_nats_server_leaves_everything_as_it_was(
    older: Older, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And so does an error that is none of natskit's."""
    hub = await older.hub()
    restarted: list[asyncio.Task[None]] = []

    async def restart() -> None:
        await asyncio.to_thread(older.site.stop_server)
        await asyncio.sleep(1)
        await asyncio.to_thread(older.site.start_server)

    async def fails(*_: Any) -> Any:
        restarted.append(asyncio.create_task(restart()))
        await eventually(lambda: not older.site.server.is_running, "nats-server has stopped")
        raise OSError("no space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(stream_snapshot, "put", fails)
        with pytest.raises(OSError, match="no space left"):
            await older.forth()
    await asyncio.gather(*restarted)
    await put(hub, "audit.x.-", b"after")
    await put(hub, "$KV.accounts.after", b"1")
    assert len(await older.forth()) == len(STREAMS)
    await hub.close()


async def test_a_move_that_was_killed_can_be_repeated(older: Older, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = await older.hub()
    put_stream = stream_snapshot.put

    async def killed(connection: Connection, snapshot: Any, *rest: Any) -> Any:
        if not isinstance(snapshot, Snapshot) or snapshot.config["name"] != "AUDIT":
            raise BackupError("as if killed here")
        return await put_stream(connection, snapshot, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(stream_snapshot, "put", killed)
        patched.setattr(state_move, "_serves", killed)
        with pytest.raises(BackupError, match="killed"):
            await older.forth()
    with pytest.raises(nats.errors.NoRespondersError):
        await hub.request("$KV.accounts.1", b"frozen", timeout=2)
    with monkeypatch.context() as patched:
        patched.setattr(state_move, "_update", _fails_for(state_move._update, "AUDIT"))
        with pytest.raises(BackupError, match="refused"):
            await older.forth()
    await put(hub, "$KV.accounts.after", b"1")
    await put(hub, "audit.x.-", b"after")
    assert len(await older.forth()) == len(STREAMS)
    await hub.close()


def _fails_for(update: Any, stream: str) -> Any:
    """The update, which fails once for a stream."""
    failed: list[str] = []

    async def updated(connection: Connection, config: dict[str, Any]) -> None:
        if config["name"] == stream and not failed:
            failed.append(stream)
            raise BackupError("refused")
        await update(connection, config)

    return updated


async def test_what_stays_behind_takes_no_write_of_an_older_version(older: Older) -> None:
    """Somebody deploys the older version without a move back: that cannot make the streams listen as before.

    Otherwise its hubs would let in whom others have locked out since.
    """
    hub = await older.hub()

    async def deploy() -> None:
        for config in wanted(SETTINGS):
            current = (await api(hub, f"STREAM.INFO.{config['name']}", {}))["config"]
            if config["name"] in ("AUDIT", "KV_probe"):
                with contextlib.suppress(JetStreamError):  # there may be no room
                    await api(hub, f"STREAM.UPDATE.{config['name']}", current | config)
                continue
            with pytest.raises(JetStreamError, match="roll-ups require the purge permission"):
                await api(hub, f"STREAM.UPDATE.{config['name']}", current | config)

    await older.forth()
    await deploy()
    for subject in ("$KV.accounts.new", "audit.x.-"):
        with contextlib.suppress(nats.errors.NoRespondersError):
            ack = json.loads((await hub.request(subject, b"1", timeout=5)).data)
            assert "error" in ack
    # The state is where it was, and can still go back.
    state = await older.site.state()
    sequence = await put(state, "$KV.accounts.since", b"1")
    await older.back()
    assert await put(hub, "$KV.accounts.later", b"1") == sequence + 1
    await older.forth()
    await deploy()
    source = await older.mover("PLATFORM")
    assert sorted(await delete_frozen(source)) == sorted([*STREAMS, "KV_probe"])
    for connection in (hub, source):
        await connection.close()


async def test_an_identity_of_before_the_move_moves_nothing(older: Older) -> None:
    await older.forth()
    source, target = await older.mover("PLATFORM"), await older.mover("STATE")
    with pytest.raises(BackupError, match="restore the identity"):
        await move(source, target, SETTINGS, "AOTHER")
    state = await older.site.state()
    sequence = await put(state, "$KV.accounts.since", b"1")
    # One that does not know that it was moved, but has the same NATS account, has nothing to do.
    assert all(line.endswith("was moved before") for line in await older.forth())
    assert await put(state, "$KV.accounts.later", b"1") == sequence + 1
    for connection in (source, target):
        await connection.close()


async def test_a_backup_has_the_state_once(older: Older) -> None:
    """What a move has left behind is not taken: a restore would take it for the state."""
    identity, url = older.site.identity, f"nats://127.0.0.1:{older.site.nats_port}"
    site = RunningSite(identity.directory, NatsServers(urls=[url]), ("test",), ())
    await older.forth()
    await older.back()
    assert await accounts(site, identity, frozenset()) == ["PLATFORM"]
    await older.forth()
    identity.note_state("moved", now=int(time.time()))
    assert await accounts(site, identity, frozenset()) == ["STATE"]


async def test_the_gate_has_room_after_a_move(older: Older) -> None:
    await older.forth()
    admin = await older.connect("STATE", Permissions(("$JS.API.STREAM.>",), ("_INBOX.older.>",)), "_INBOX.older")
    (probe,) = [config for config in wanted(SETTINGS) if config["name"] == "KV_probe"]
    await api(admin, "STREAM.CREATE.KV_probe", probe)
    await admin.close()


async def test_each_change_before_the_way_back_is_in_the_audit_log(older: Older) -> None:
    await older.forth()
    hub = await older.site.state()
    changed: list[int] = []

    async def keep_changing() -> None:
        for number in range(1_000_000):
            try:
                await put(hub, "$KV.projects.busy", b"%d" % number)
            except nats.errors.NoRespondersError:
                return
            changed.append(number)
            await put(hub, "audit.x.-", b"change %d" % number)

    changing = asyncio.create_task(keep_changing())
    await eventually(lambda: len(changed) > 20, "changes go on")
    await older.back()
    await changing
    again = await older.hub()
    last = (await messages(again, "AUDIT"))[-1]
    assert base64.b64decode(last[2]) == b"change %d" % changed[-1]
    for connection in (hub, again):
        await connection.close()
