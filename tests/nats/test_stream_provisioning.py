"""The control machine makes the streams, and a hub that an attacker controls cannot change them, on a real server."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from natskit.bus.connection import Connection, connect
from natskit.bus.jetstream import api
from natskit.bus.permissions import AUDIT_STREAM, BUCKETS, PROBE_BUCKET, SCOPES, STREAMS, SYSTEM_SERVICES
from natskit.bus.servers import NatsServers
from natskit.errors import StateError
from natskit.ops.stream_provisioning import StreamSettings, apply, differences, wanted
from tests.hub.site import NO_TLS, Site
from tests.kit.wait import eventually
from tests.nats.test_restart_gate import NAMES, ask, started


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Site]:
    async with Site.without_hubs(tmp_path_factory.mktemp("streams")) as site:
        yield site


async def infos(admin: Connection) -> dict[str, dict[str, Any]]:
    return {name: await api(admin, f"STREAM.INFO.{name}", {}) for name in STREAMS}


async def test_all_of_them_are_made_and_nothing_is_changed_twice(server: Site) -> None:
    admin = await server.admin()
    assert {config["name"] for config in wanted(StreamSettings())} == set(STREAMS)
    assert await differences(admin, StreamSettings()) == []
    assert await apply(admin, StreamSettings()) == []
    more = StreamSettings(state_bytes=1 << 20, audit_seconds=7200)
    lines = [*(f"KV_{bucket}: max_bytes" for bucket in BUCKETS), "AUDIT: max_age"]
    assert await differences(admin, more) == lines
    assert await apply(admin, more) == lines
    assert await differences(admin, more) == []
    assert await apply(admin, StreamSettings()) == lines


async def test_more_copies_than_servers_are_refused_by_name(server: Site) -> None:
    admin = await server.admin()
    with pytest.raises(StateError, match=r"STREAM\.UPDATE\.KV_accounts: .*replicas"):
        await apply(admin, StreamSettings(replicas=3))
    assert await differences(admin, StreamSettings()) == []


async def test_streams_of_older_hubs_are_changed_and_keep_what_they_hold(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    site = Site(tmp_path_factory.mktemp("older"))
    site.make_streams = lambda **_: None  # type: ignore[method-assign]
    try:
        site.start_server()
        admin, hub = await site.admin(), await site.state()
        for config in wanted(StreamSettings()):
            if config["name"] != AUDIT_STREAM:
                newer = ("republish", "subject_delete_marker_ttl")
                config = {key: config[key] for key in config if key not in newer} | {"allow_direct": True}
            await api(admin, f"STREAM.CREATE.{config['name']}", config)
        await hub.request("$KV.accounts.x", b"kept", timeout=2)
        await hub.request("$KV.sessions.x", b"ends", timeout=2, headers={"Nats-TTL": "2s"})
        changed = "subject_delete_marker_ttl, allow_direct, republish"
        assert await apply(admin, StreamSettings()) == [f"KV_{bucket}: {changed}" for bucket in BUCKETS]
        assert (await infos(admin))["KV_accounts"]["state"]["messages"] == 1
        assert await apply(admin, StreamSettings()) == []
        # What was written before is announced as well when its time is over.
        arrived: asyncio.Queue[Any] = asyncio.Queue()
        await hub.subscribe("state.sessions.>", cb=arrived.put)
        message = await asyncio.wait_for(arrived.get(), 5)
        assert (message.data, message.headers["Nats-Marker-Reason"]) == (b"", "MaxAge")
    finally:
        await site.close()


async def test_each_change_is_published_to_the_hubs_with_its_sequence(server: Site) -> None:
    hub = await server.state()
    arrived: asyncio.Queue[Any] = asyncio.Queue()
    await hub.subscribe("state.runners.>", cb=arrived.put)
    await hub.flush()
    purge = {"KV-Operation": "PURGE", "Nats-Rollup": "sub", "Nats-TTL": "1s"}
    acks = []
    for body, headers in ((b"1", None), (b"2", {"Nats-TTL": "1s"}), (b"", purge), (b"3", None)):
        answer = await hub.request("$KV.runners.seen", body, timeout=2, headers=headers)
        acks.append(json.loads(answer.data)["seq"])
    seen = [await asyncio.wait_for(arrived.get(), 5) for _ in acks]
    assert [int(message.headers["Nats-Sequence"]) for message in seen] == acks == list(range(acks[0], acks[0] + 4))
    assert [message.data for message in seen] == [b"1", b"2", b"", b"3"]
    assert {message.subject for message in seen} == {"state.runners.seen"}
    assert ["KV-Operation" in message.headers for message in seen] == [False, False, True, False]
    # A marker that has expired goes without a word: no message, and no sequence.
    await hub.request("$KV.runners.gone", b"", timeout=2, headers=purge)
    admin = await server.admin()

    async def expired() -> bool:
        return bool((await api(admin, "STREAM.INFO.KV_runners", {}))["state"]["messages"] == 1)

    await eventually(expired, "the marker has expired")
    assert (await asyncio.wait_for(arrived.get(), 5)).subject == "state.runners.gone"
    await hub.flush()
    assert arrived.empty()
    assert (await api(admin, "STREAM.INFO.KV_runners", {}))["state"]["last_seq"] == acks[-1] + 1


async def test_the_end_of_a_value_is_published_when_it_comes(server: Site) -> None:
    hub = await server.state()
    arrived: asyncio.Queue[Any] = asyncio.Queue()
    await hub.subscribe("state.sessions.>", cb=arrived.put)
    await hub.flush()
    for ttl in ("1s", "2s"):  # the second takes the place of the first
        answer = await hub.request("$KV.sessions.ends", b"1", timeout=2, headers={"Nats-TTL": ttl})
    written = time.monotonic()
    messages = [await asyncio.wait_for(arrived.get(), 5) for _ in range(3)]
    assert 1.9 < time.monotonic() - written < 3
    marker = messages[-1]
    assert (marker.subject, marker.data) == ("state.sessions.ends", b"")
    assert marker.headers["Nats-Marker-Reason"] == "MaxAge"
    assert int(marker.headers["Nats-Sequence"]) == json.loads(answer.data)["seq"] + 1


VERBS = (
    "STREAM.DELETE.{}",
    "STREAM.PURGE.{}",
    "STREAM.MSG.DELETE.{}",
    "STREAM.UPDATE.{}",
    "STREAM.SNAPSHOT.{}",
    "STREAM.RESTORE.{}",
    "STREAM.LEADER.STEPDOWN.{}",
    "STREAM.PEER.REMOVE.{}",
    "CONSUMER.CREATE.{}",
    "CONSUMER.CREATE.{}.c",
    "CONSUMER.DURABLE.CREATE.{}.c",
    "CONSUMER.DELETE.{}.c",
)
VICTIMS = (AUDIT_STREAM, "KV_accounts", f"KV_{PROBE_BUCKET}")


async def test_a_reply_subject_gives_a_hub_no_stream(server: Site) -> None:
    """nats-server sends its answer to whatever reply subject a hub names, also where the hub may not publish.

    The acknowledgement of a write does reach the JetStream API that way. It is JSON, never empty, and no request has
    its fields, which nats-server insists on (``strict``, the default since 2.12). All that a hub may publish is tried;
    with DIRECT.GET or a consumer among that, the streams would be gone.
    """
    admin, probe = await server.admin(), await server.connect("probe", server.identity.creds("PLATFORM", "probe"))
    hub = await server.state()
    for subject in ("$KV.accounts.empty", "audit.x.-"):
        await hub.request(subject, b"", timeout=2)
    await probe.request(f"$KV.{PROBE_BUCKET}.nats-1", b"x", timeout=2)
    before, total = await infos(admin), await _asked(server)
    sent = 0
    for reply in (f"$JS.API.{verb.format(name)}" for verb in VERBS for name in VICTIMS):
        for subject, bodies in _publishable():
            for body in bodies:
                for headers in _HEADERS if subject.startswith(("$KV", "audit")) else (None,):
                    await hub.publish(subject, body, reply=reply, headers=headers)
                    sent += 1
        await hub.publish("$KV.accounts.traced", b"x", headers={"Nats-Trace-Dest": reply})
        await hub.flush()
    # A few it does not count.
    await eventually(lambda: _reached(server, total + sent * 9 // 10), "JetStream was asked all of that", 20)
    for subject in ("$KV.accounts.empty", "audit.x.-"):
        await hub.request(subject, b"", timeout=5)
    after = await infos(admin)
    for name in STREAMS:
        assert after[name]["created"] == before[name]["created"], name
        assert after[name]["config"] == before[name]["config"], name
        assert after[name]["state"]["consumer_count"] == 0, name
        assert after[name]["state"]["messages"] >= before[name]["state"]["messages"], name
    for name in (AUDIT_STREAM, f"KV_{PROBE_BUCKET}"):
        assert after[name]["state"]["first_seq"] == before[name]["state"]["first_seq"], name


_HEADERS = (None, {"Nats-Expected-Last-Sequence": "999999999"}, {"Nats-Rollup": "sub"})


def _publishable() -> list[tuple[str, list[bytes]]]:
    """Subjects on which a hub may publish to JetStream, with bodies that JetStream answers with a message or an
    error."""
    out = []
    for subject in SCOPES["hub"].publish:
        if not subject.startswith(("$KV.", "$JS.", "audit.")) or any(
            b in subject for b in ("projects", "memberships", "runners")
        ):
            continue
        by_sequence = [b'{"seq": 1}', b'{"last_by_subj": "$KV.accounts.empty"}', b'{"last_by_subj": "audit.x.-"}', b"{"]
        consumer = [b'{"stream_name":"KV_accounts","config":{"deliver_subject":"$JS.API.STREAM.DELETE.AUDIT"}}']
        out.append((subject.replace("*", "x").replace(">", "empty"), [b"", b"{}", *by_sequence, *consumer]))
    return out


async def test_one_copy_becomes_three_when_the_servers_are_there(tmp_path: Path) -> None:
    """A missing server matters only if something has to change."""
    with started(tmp_path) as cluster:
        await cluster.make_bucket()
        admin = await cluster.admin()
        one, three = StreamSettings(replicas=1), StreamSettings(replicas=3)
        await apply(admin, one)
        lines = [*(f"KV_{bucket}: num_replicas" for bucket in (*BUCKETS, PROBE_BUCKET)), "AUDIT: num_replicas"]
        assert await apply(admin, three) == lines
        assert await differences(admin, three) == []

        async def copied() -> dict[str, Any] | None:
            found = (await infos(admin))["AUDIT"]["cluster"]
            return found if [copy["current"] for copy in found["replicas"]] == [True, True] else None

        copies = await eventually(copied, "there are three copies", 30)
        assert copies is not None
        cluster.servers[next(name for name in NAMES if name != copies["leader"])].kill()

        async def answers() -> bool:
            return await differences(admin, three) == []

        await eventually(answers, "with one server away nothing is to be done", 30)
        await admin.close()


async def test_a_reply_subject_gives_a_hub_no_other_nats_account(tmp_path: Path) -> None:
    """On a cluster, a server's answer in SYS can be a request to the others' JetStream, so a user of SYS can delete
    everything."""
    with started(tmp_path) as cluster:
        identity = cluster.identity
        await cluster.make_bucket()
        hub = await cluster.connect("hub", "nats-1", "PLATFORM")
        purge = f"$JS.API.ACCOUNT.PURGE.{identity.account_public_key('PLATFORM')}"
        probe, wish = await cluster.connect("probe", "nats-2"), f"$JS.API.STREAM.INFO.KV_{PROBE_BUCKET}"
        for reply in (purge, "$JS.API.META.LEADER.STEPDOWN", f"$JS.API.STREAM.DELETE.KV_{PROBE_BUCKET}"):
            for subject in SYSTEM_SERVICES:
                await hub.publish(subject.replace("*", hub._server_info["server_id"]), b"{}", reply=reply)
        heard: asyncio.Queue[Any] = asyncio.Queue()
        await hub.subscribe("_INBOX.hub.answers", cb=heard.put)
        for _ in range(3):
            await hub.publish(SYSTEM_SERVICES[0], b"", reply="_INBOX.hub.answers")
            for _ in NAMES:  # each server has answered what it was asked before
                await asyncio.wait_for(heard.get(), 5)
        assert "error" not in await ask(probe, wish)
        creds = identity.creds_path("SYS", "admin")
        there = NatsServers(urls=[cluster.url("nats-1")])
        system = await connect(there, name="admin", inbox_prefix="_INBOX.admin", creds=creds, timeout=10)
        await system.publish(SYSTEM_SERVICES[0], b"", reply=purge)

        async def gone() -> bool:
            return "error" in await ask(probe, wish)

        await eventually(gone, "what a user of SYS can do")
        for client in (hub, probe, system):
            await client.close()


async def _asked(site: Site) -> int:
    async with httpx.AsyncClient(verify=NO_TLS) as client:
        answer = await client.get(f"http://127.0.0.1:{site.monitor_port}/jsz")
    return int(answer.json()["api"]["total"])


async def _reached(site: Site, number: int) -> bool:
    return await _asked(site) >= number
