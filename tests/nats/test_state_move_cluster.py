"""The move of the state on three nats-servers, one of which dies meanwhile."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from natskit.backup import stream_snapshot
from natskit.backup.state_move import MOVE_STATE, move
from natskit.bus.connection import Connection, connect
from natskit.bus.credentials import CredsText
from natskit.bus.jetstream import api
from natskit.bus.permissions import BACKUP_INBOX, BUCKETS, Permissions
from natskit.bus.servers import NatsServers
from natskit.errors import BackupError, StateError
from natskit.identity.identity import Identity
from natskit.ops.stream_provisioning import StreamSettings, wanted
from tests.kit.wait import eventually
from tests.nats.test_restart_gate import NAMES, Cluster

SETTINGS = StreamSettings(replicas=3)
OLDER = Permissions(("$KV.>", "audit.>", "$JS.API.STREAM.>"), ("_INBOX.older.>",))


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """Three nats-servers whose PLATFORM may have streams."""
    identity = Identity.ensure(tmp_path / "identity", now=int(time.time()))
    identity.note_state("PLATFORM", now=int(time.time()))
    cluster = Cluster(tmp_path, identity, NAMES)
    try:
        for name in NAMES:
            cluster.start(name)
        yield cluster
    finally:
        for server in cluster.servers.values():
            server.kill()


async def connected(cluster: Cluster, account: str, rights: Permissions, inbox: str) -> Connection:
    creds = cluster.identity.temporary_creds(account, "older", rights, now=int(time.time()), seconds=600)
    servers = NatsServers(urls=[cluster.url(name) for name in NAMES])
    return await connect(servers, name="older", inbox_prefix=inbox, creds=CredsText(creds), timeout=20)


async def written(hub: Connection, subject: str) -> int:
    ack = json.loads((await hub.request(subject, b"1", timeout=5)).data)
    assert "error" not in ack, ack
    return int(ack["seq"])


async def test_a_server_that_dies_costs_nothing(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = await connected(cluster, "PLATFORM", OLDER, "_INBOX.older")
    for config in wanted(SETTINGS):

        async def made(config: dict[str, Any] = config) -> bool:
            try:
                await api(hub, f"STREAM.CREATE.{config['name']}", config)
            except StateError:  # the servers have yet to find each other
                return False
            return True

        await eventually(made, "the stream", 30)
    for number in range(50):
        await written(hub, f"$KV.accounts.{number}")
    source, target = [await connected(cluster, name, MOVE_STATE, BACKUP_INBOX) for name in ("PLATFORM", "STATE")]
    key = cluster.identity.account_public_key("STATE")
    dead: list[str] = []

    async def fails(*_: Any) -> Any:
        """The leader of a frozen stream dies."""
        info = await api(source, "STREAM.INFO.KV_accounts", {})
        dead.append(info["cluster"]["leader"])
        cluster.servers[dead[0]].kill()
        raise BackupError("nats-server does not answer")

    with monkeypatch.context() as patched:
        put = stream_snapshot.put

        async def put_until_runners(connection: Connection, snapshot: Any, pieces: Any) -> Any:
            if snapshot.config["name"] == f"KV_{BUCKETS[-1]}":
                return await fails()
            return await put(connection, snapshot, pieces)

        patched.setattr(stream_snapshot, "put", put_until_runners)
        with pytest.raises(BackupError, match=r"does not answer$"):
            await move(source, target, SETTINGS, key)
    # All serve as before. A move waits for the server that is away: nats-server would, with all streams frozen.
    assert await written(hub, "$KV.accounts.after") == 51
    with pytest.raises(BackupError, match=f"nats-server {dead[0]} is away"):
        await move(source, target, SETTINGS, key)
    assert await written(hub, "$KV.accounts.after") == 52
    cluster.start(dead[0])

    async def moved() -> bool:
        try:
            return len(await move(source, target, SETTINGS, key)) == len(BUCKETS) + 1
        except BackupError as error:
            if "is away" not in str(error):
                raise
            return False

    await eventually(moved, "the state is moved", 60)

    async def whole() -> bool:
        info = await api(target, "STREAM.INFO.KV_accounts", {})
        replicas = info["cluster"]["replicas"]
        return info["state"]["messages"] == 51 and len(replicas) == 2 and all(one["current"] for one in replicas)

    await eventually(whole, "three copies", 60)
    for connection in (hub, source, target):
        await connection.close()
