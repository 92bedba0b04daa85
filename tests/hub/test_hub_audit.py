"""The audit of two real hubs: it records the right events, a hub's creds cannot delete them, and no request waits for
it."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from typing import Any

import nats.errors
import pytest

from natskit.bus.permissions import AUDIT_STREAM
from natskit.cli.audit import row
from natskit.errors import ConnectionLostError
from natskit.ops import audit_reader
from natskit.ops.stream_provisioning import StreamSettings, apply, differences
from natskit.rpc import RpcError, encode_request
from tests.hub.conftest import PASSWORD
from tests.hub.site import Site, call
from tests.kit.wait import eventually

ADA = ("ada@example.org", PASSWORD)
BACKENDS = {"shop": {"sha256": "0" * 64}}
"""A wrong token is refused, and noted, without a look at the state."""


@pytest.fixture(scope="module")
def hub_settings() -> dict[str, Any]:
    return {"backends": BACKENDS}


async def found(site: Site, **wanted: Any) -> list[dict[str, Any]]:
    """This module's events with these fields."""
    reader = await site.streams_admin()
    return [e async for e in audit_reader.events(reader, 0) if wanted.items() <= e.items()]


async def noted(site: Site, **wanted: Any) -> dict[str, Any]:
    """The first event with these fields, as soon as it arrives."""
    events: list[dict[str, Any]] = await eventually(lambda: found(site, **wanted), f"an event {wanted}")
    return events[0]


async def test_who_did_what(site: Site) -> None:
    admin = await site.admin()
    made = await call(admin, "hub.admin", "account_add", email="ada@example.org", password=PASSWORD)
    friend = await call(admin, "hub.admin", "account_add", email="grace@example.org", password=PASSWORD)
    await noted(site, kind="account_add", account=made["account_id"], by="admin", email="ada@example.org")
    account_id, cookie = await site.sign_in("hub-1", "ada@example.org", PASSWORD)
    event = await noted(site, kind="sign_in", account=account_id, outcome="ok")
    assert event["address"] == "127.0.0.1"
    assert event["user_agent"].startswith("python-httpx")
    create = encode_request("create_project", {"title": "Secret plan"})
    answer = await site.http("hub-2", "POST", "/api/rpc", create, cookie=cookie)
    project_id = answer.json()["result"]["project_id"]
    share = encode_request("share_project", {"project_id": project_id, "email": "grace@example.org"})
    assert "result" in (await site.http("hub-1", "POST", "/api/rpc", share, cookie=cookie)).json()
    await noted(site, kind="create_project", account=account_id, project_id=project_id, hub="hub-2")
    shared = await noted(site, kind="share_project", account=account_id, project_id=project_id)
    assert shared["target"] == friend["account_id"]
    await site.http("hub-1", "POST", "/api/sign-out", cookie=cookie)
    await noted(site, kind="sign_out", account=account_id, session_id=event["session_id"])
    said = encode_request("note", {"what": "rotated the hubs' keys"}, said_by="ada@laptop")
    assert "result" in json.loads((await admin.request("hub.admin", said, timeout=5)).data)
    await noted(site, kind="note", what="rotated the hubs' keys", by="admin", said_by="ada@laptop")
    lied = encode_request("create_project", {"title": "x"}, said_by="admin")
    await site.http("hub-1", "POST", "/api/rpc", lied, cookie=(await site.sign_in("hub-1", *ADA))[1])
    await eventually(lambda: found(site, kind="create_project", account=account_id, hub="hub-1"), "the second project")
    assert not await found(site, kind="create_project", said_by="admin")
    everything = json.dumps(await found(site))
    for secret in (PASSWORD, cookie, "Secret plan"):
        assert secret not in everything


async def test_a_hub_cannot_take_anything_away(site: Site) -> None:
    admin, hub = await site.admin(), await site.state()
    await call(admin, "hub.admin", "account_add", email="kept@example.org", password=PASSWORD)
    await noted(site, kind="account_add", email="kept@example.org")
    before = (await _info(site))["state"]
    config = (await _info(site))["config"] | {"max_bytes": 1 << 20}
    for verb, body in (
        ("STREAM.CREATE", config),
        ("STREAM.UPDATE", config),
        ("STREAM.PURGE", {}),
        ("STREAM.DELETE", {}),
        ("STREAM.MSG.DELETE", {"seq": 1}),
        ("STREAM.RESTORE", {}),
        ("CONSUMER.CREATE", {"stream_name": AUDIT_STREAM, "config": {}}),
        ("DIRECT.GET", {"seq": 1}),
    ):
        with pytest.raises(nats.errors.TimeoutError):
            await hub.request(f"$JS.API.{verb}.{AUDIT_STREAM}", json.dumps(body).encode(), timeout=0.2)
    for headers in ({"Nats-Rollup": "all"}, {"Nats-Rollup": "sub"}, {"Nats-TTL": "1s"}):
        answer = await hub.request("audit.x.-", b"{}", timeout=2, headers=headers)
        assert "error" in json.loads(answer.data), headers
    after = await _info(site)
    assert after["state"]["messages"] >= before["messages"]
    assert after["state"]["first_seq"] == before["first_seq"] == 1
    assert after["config"]["deny_delete"]
    assert after["config"]["deny_purge"]


async def _info(site: Site) -> dict[str, Any]:
    answer = await (await site.streams_admin()).request(f"$JS.API.STREAM.INFO.{AUDIT_STREAM}", b"", timeout=2)
    info: dict[str, Any] = json.loads(answer.data)
    return info


async def test_why_somebody_was_refused(site: Site) -> None:
    admin = await site.admin()
    made = await call(admin, "hub.admin", "account_add", email="mary@example.org", password=PASSWORD)
    account_id, cookie = await site.sign_in("hub-1", "mary@example.org", PASSWORD)
    for _ in range(3):
        for email, password in (
            ("mary@example.org", "wrong password"),
            ("nobody@example.org", PASSWORD),
            ("typed my password here", PASSWORD),
        ):
            body = {"email": email, "password": password}
            assert (await site.http("hub-1", "POST", "/api/sign-in", body)).status_code == 401
    wrong = encode_request("change_password", {"current_password": "x", "new_password": "a new long password"})
    await site.http("hub-1", "POST", "/api/rpc", wrong, cookie=cookie)
    await call(admin, "hub.admin", "account_disable", email="mary@example.org")
    body = {"email": "mary@example.org", "password": PASSWORD}
    assert (await site.http("hub-1", "POST", "/api/sign-in", body)).status_code == 401
    with pytest.raises(ConnectionLostError):
        await site.browser(account_id, cookie, patience=0.5)
    await noted(site, kind="connect", account=account_id, outcome="refused", address="127.0.0.1")
    await noted(site, kind="change_password", account=account_id, reason="forbidden")
    refused = [(e["account"], e["reason"], e["email"]) for e in await found(site, kind="sign_in", outcome="refused")]
    # Each once, however often it was tried: the others are counted at the end of the minute.
    assert sorted(refused) == [
        ("-", "unknown e-mail", "nobody@example.org"),
        (made["account_id"], "disabled", "mary@example.org"),
        (made["account_id"], "wrong password", "mary@example.org"),
    ]
    assert "typed my password" not in json.dumps(await found(site))


async def test_what_an_audited_method_refuses(site: Site) -> None:
    """Also if the method answers ``invalid_params``. Usually that answer means that no method was called."""
    admin = await site.admin()
    for method, params in (
        ("account_add", {"email": "no address"}),
        ("account_add", {"mail": "ada@example.org"}),
        ("account_add", {"email": 7}),
        ("runner_revoke", {"name": "nowhere"}),
    ):
        with pytest.raises(RpcError):
            await call(admin, "hub.admin", method, **params)
    event = await noted(site, kind="runner_revoke", name="nowhere", by="admin")
    assert (event["outcome"], event["reason"]) == ("refused", "not_found")
    invalid = await found(site, reason="invalid_params")
    assert [(event["kind"], event["outcome"], event["email"]) for event in invalid] == [
        ("account_add", "refused", "no address")
    ]


async def test_a_hub_that_is_told_to_stop_writes_what_it_has(site: Site) -> None:
    """It also writes its counted events, without the help of the other hub."""
    for _ in range(5):
        await site.http("hub-2", "POST", "/api/sign-in", {"email": "late@example.org", "password": "x"})
    site.kill_hub("hub-2", signal.SIGTERM)
    events = await found(site, email="late@example.org", hub="hub-2")
    assert [event.get("count", 1) for event in events] == [1, 4]
    site.start_hub("hub-2", backends=BACKENDS)
    await site.healthy("hub-2")


async def test_nobody_waits_for_the_audit_and_it_catches_up(site: Site) -> None:
    async def refused() -> int:
        async with site.client("hub-1") as client:
            headers = {"Authorization": "Bearer x", "X-Forwarded-For": "203.0.113.9"}
            return (await client.post("/api/backend/session", content=b"{}", headers=headers)).status_code

    site.stop_server()
    assert await refused() == 401
    metrics = (await site.http("hub-1", "GET", "/metrics")).text
    assert "natskit_hub_audit_waiting 1.0" in metrics
    site.start_server()
    await site.healthy("hub-1")
    assert (await noted(site, kind="backend", address="203.0.113.9"))["reason"] == "token"
    assert len(await found(site, kind="backend", address="203.0.113.9")) == 1


async def test_the_ids_of_a_run_have_no_gap(site: Site) -> None:
    runs: dict[str, list[int]] = {}
    for event in await found(site):
        run, _, number = event["id"].rpartition(".")
        runs.setdefault(run, []).append(int(number))
    assert len(runs) >= 2
    for run, numbers in runs.items():
        assert sorted(numbers) == list(range(1, len(numbers) + 1)), run


async def test_what_a_hub_that_was_taken_writes_is_still_readable(site: Site) -> None:
    """More than one batch, messages that are no events, and messages that could end or fool a reader."""
    admin, hub = await site.streams_admin(), await site.state()
    started = time.time()
    nasty = [
        b"",
        b"no JSON",
        b"[]",
        b"[" * 8000,
        b'{"kind": "\\ud800\\u001b[2J"}',
        b'{"account": {"a": []}, "kind": 7}',
    ]
    await asyncio.gather(*(hub.request("audit.x.-", body, timeout=5) for body in nasty))
    event = json.dumps({"kind": "forged", "outcome": "ok", "account": "-", "text": "x" * 4000}).encode()
    for _ in range(6):
        await asyncio.gather(*(hub.request("audit.x.-", event, timeout=5) for _ in range(200)))
    answer = await hub.request("audit.x.-", b"x" * 9000, timeout=5)
    assert "error" in json.loads(answer.data)
    events = [e async for e in audit_reader.events(admin, started)]
    assert len([e for e in events if e["kind"] == "forged"]) == 1200
    assert len([e for e in events if e["kind"] == "unreadable"]) == 4
    for e in events[:10]:
        assert all(text.isprintable() for text in row(e, {}))


async def test_a_changed_retention(site: Site) -> None:
    admin = await site.streams_admin()
    config = (await _info(site))["config"]
    assert await differences(admin, StreamSettings()) == []
    other = StreamSettings(audit_bytes=64 << 20)
    assert await differences(admin, other) == ["AUDIT: max_bytes"]
    assert await apply(admin, other) == ["AUDIT: max_bytes"]
    assert await apply(admin, other) == []
    after = (await _info(site))["config"]
    assert after["max_bytes"] == 64 << 20
    assert after | {"max_bytes": config["max_bytes"]} == config
    # Not even the control machine takes these back.
    undone = json.dumps(after | {"deny_delete": False, "deny_purge": False}).encode()
    answer = json.loads((await admin.request(f"$JS.API.STREAM.UPDATE.{AUDIT_STREAM}", undone, timeout=2)).data)
    assert "error" in answer
