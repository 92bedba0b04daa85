"""The control machine makes the streams, and a hub that an attacker controls cannot change them, on a real server."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from natskit.bus.connection import Connection, connect
from natskit.bus.jetstream import JetStreamError, api
from natskit.bus.jetstream import ask as ask_state
from natskit.bus.permissions import (
    AUDIT_STREAM,
    BUCKETS,
    DOCUMENT_SCOPES,
    DOCUMENT_STREAMS,
    HUB_IN_AUTH,
    PROBE_BUCKET,
    STREAMS,
    SYSTEM_SERVICES,
    Permissions,
)
from natskit.bus.servers import NatsServers
from natskit.errors import StateError
from natskit.ops import audit_reader
from natskit.ops.stream_provisioning import StreamSettings, apply, differences, wanted
from tests.hub.site import Site
from tests.kit.wait import eventually
from tests.nats.test_restart_gate import NAMES, Cluster, ask, started


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Site]:
    async with Site.without_hubs(tmp_path_factory.mktemp("streams")) as site:
        yield site


async def infos(admin: Connection) -> dict[str, dict[str, Any]]:
    return {name: await api(admin, f"STREAM.INFO.{name}", {}) for name in STREAMS}


async def test_all_of_them_are_made_and_nothing_is_changed_twice(server: Site) -> None:
    admin = await server.streams_admin()
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
    admin = await server.streams_admin()
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
        admin, hub = await site.streams_admin(), await site.state()
        for config in wanted(StreamSettings()):
            if config["name"] != AUDIT_STREAM:
                newer = ("republish", "subject_delete_marker_ttl")
                config = {key: config[key] for key in config if key not in newer}
                config["allow_direct"] = config["name"] == f"KV_{PROBE_BUCKET}"
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
    admin = await server.streams_admin()

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


async def test_a_reply_subject_gives_nobody_a_stream(server: Site) -> None:
    """nats-server sends its answer to whatever reply subject a caller names, also where the caller may not publish.

    Stored values may be what a request of the JetStream API needs: nothing at all, or a configuration. Everything that
    hubs and keepers may publish is tried. At last, a user of STATE itself does it at once: so only hosts that have the
    streams as files have one, the gate's.
    """
    admin, probe = await server.streams_admin(), await server.connect("probe", server.identity.creds("STATE", "probe"))
    hub, keeper = await server.state(), await server.connect("keeper", server.identity.creds("DOCS", "keeper"))
    larger = json.dumps((await infos(admin))["KV_accounts"]["config"] | {"max_bytes": 1 << 30}).encode()
    for subject, value in (("$KV.projects.empty", b""), ("$KV.projects.larger", larger), ("audit.x.-", b"")):
        assert "error" not in json.loads((await hub.request(subject, value, timeout=2)).data)
    await probe.request(f"$KV.{PROBE_BUCKET}.nats-1", b"x", timeout=2)
    before = await infos(admin)
    replies = [f"$JS.API.{verb.format(name)}" for verb in VERBS for name in VICTIMS]
    documents = await server.connect("admin", server.identity.creds("DOCS", "admin"))
    document_streams = {name: (await api(documents, f"STREAM.INFO.{name}", {}))["created"] for name in DOCUMENT_STREAMS}
    replies += [f"$JS.API.STREAM.DELETE.{name}" for name in DOCUMENT_STREAMS]
    replies += ["$KV.sessions.x", "$KV.memberships.x.x", "audit.y.-", "read.projects", "info.projects"]
    for client, publish in ((hub, HUB_IN_AUTH.publish), (keeper, DOCUMENT_SCOPES["keeper"].publish)):
        for subject in (subject for subject in publish if subject.startswith(_OF_STATE)):
            for reply in replies:
                for body in _bodies(subject):
                    await client.publish(subject.replace(">", "tried"), body, reply=reply)
                    # A trace is written where the client is, and does reach an import. A hub may write there anyway.
                    if client is keeper or reply.startswith("$JS."):
                        traced = {"Nats-Trace-Dest": reply}
                        await client.publish(subject.replace(">", "tried"), body, headers=traced)
        await client.flush()
    # What they asked later is answered, so what they asked before would have been.
    for client in (hub, keeper):
        for verb, question in (("read", b'{"last_by_subj": "$KV.projects.empty"}'), ("info", b"")):
            assert (await client.request(f"{verb}.projects", question, timeout=10)) is not None
    after = await infos(admin)
    for name in STREAMS:
        assert after[name]["created"] == before[name]["created"], name
        assert after[name]["config"] == before[name]["config"], name
        assert after[name]["state"]["consumer_count"] == 0, name
        assert after[name]["state"]["messages"] >= before[name]["state"]["messages"], name
    for name in (AUDIT_STREAM, f"KV_{PROBE_BUCKET}"):
        assert after[name]["state"]["first_seq"] == before[name]["state"]["first_seq"], name
    for bucket, key in (("sessions", "x"), ("memberships", "x.x")):
        with pytest.raises(JetStreamError, match="no message found"):
            await ask_state(hub, "find", bucket, {"last_by_subj": f"$KV.{bucket}.{key}"})
    assert not [e async for e in audit_reader.events(admin, 0) if e.get("kind") == "y"]
    for name, created in document_streams.items():
        assert (await api(documents, f"STREAM.INFO.{name}", {}))["created"] == created

    rights = Permissions(("$JS.API.DIRECT.GET.KV_projects",), ())
    creds = server.identity.temporary_creds("STATE", "hub", rights, now=int(time.time()), seconds=60)
    of_state = await server.connect("hub", creds)
    wish = json.dumps({"last_by_subj": "$KV.projects.empty"}).encode()
    await of_state.publish("$JS.API.DIRECT.GET.KV_projects", wish, reply=f"$JS.API.STREAM.DELETE.{AUDIT_STREAM}")

    async def gone() -> bool:
        return AUDIT_STREAM not in {name for name in STREAMS if await _exists(admin, name)}

    await eventually(gone, "what a user of STATE can do")
    server.make_streams()


_OF_STATE = ("$KV.", "read.", "find.", "info.", "audit.")


def _bodies(subject: str) -> list[bytes]:
    """Requests that are answered with a stored value, with JSON or with an error."""
    if subject.startswith(("$KV.", "audit.")):
        return [b"", b"{}"]
    found: list[dict[str, Any]] = [{"last_by_subj": f"$KV.projects.{key}"} for key in ("empty", "larger")]
    several = {"seq": 1, "batch": 10, "next_by_subj": ">"}
    consumer = b'{"stream_name":"KV_accounts","config":{"deliver_subject":"$JS.API.STREAM.DELETE.AUDIT"}}'
    return [b"", b"{", *(json.dumps(each).encode() for each in (*found, several)), consumer]


async def _exists(admin: Connection, name: str) -> bool:
    try:
        await api(admin, f"STREAM.INFO.{name}", {})
    except JetStreamError:
        return False
    return True


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


async def _state_from_another_server(cluster: Cluster) -> None:
    """A hub whose server has no copy of a stream gets an answer, but to no other import and to no stream."""
    admin = await cluster.admin()
    (config,) = [config for config in wanted(StreamSettings()) if config["name"] == "KV_projects"]
    await api(admin, "STREAM.CREATE.KV_projects", config)
    leader = (await api(admin, "STREAM.INFO.KV_projects", {}))["cluster"]["leader"]
    hub = await cluster.connect("hub", next(name for name in NAMES if name != leader), "AUTH")
    assert "error" not in json.loads((await hub.request("$KV.projects.empty", b"", timeout=5)).data)
    for reply in (f"$JS.API.STREAM.DELETE.KV_{PROBE_BUCKET}", "$JS.API.STREAM.DELETE.KV_projects", "$KV.projects.x"):
        for body in (b'{"last_by_subj": "$KV.projects.empty"}', b'{"seq": 1, "batch": 10, "next_by_subj": ">"}'):
            await hub.publish("read.projects", body, reply=reply)
    read = await hub.request("read.projects", b'{"last_by_subj": "$KV.projects.empty"}', timeout=5)
    assert (read.headers or {})["Nats-Subject"] == "$KV.projects.empty"
    info = await ask_state(hub, "info", "projects", {})
    assert info["state"]["last_seq"] == 1
    assert await _exists(admin, f"KV_{PROBE_BUCKET}")
    for client in (admin, hub):
        await client.close()


async def test_a_reply_subject_gives_a_hub_no_other_nats_account(tmp_path: Path) -> None:
    """On a cluster, a server's answer in SYS can be a request to the others' JetStream, so a user of SYS can delete
    everything."""
    with started(tmp_path) as cluster:
        identity = cluster.identity
        await cluster.make_bucket()
        hub = await cluster.connect("hub", "nats-1", "PLATFORM")
        purge = f"$JS.API.ACCOUNT.PURGE.{identity.account_public_key('STATE')}"
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
        await _state_from_another_server(cluster)
        creds = identity.creds_path("SYS", "admin")
        there = NatsServers(urls=[cluster.url("nats-1")])
        system = await connect(there, name="admin", inbox_prefix="_INBOX.admin", creds=creds, timeout=10)
        await system.publish(SYSTEM_SERVICES[0], b"", reply=purge)

        async def gone() -> bool:
            return "error" in await ask(probe, wish)

        await eventually(gone, "what a user of SYS can do")
        for client in (hub, probe, system):
            await client.close()
