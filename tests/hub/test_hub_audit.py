"""The audit of two real hubs: what is noted, that nobody with a hub's creds takes it away, and that nobody waits."""

from __future__ import annotations

import json
from typing import Any

import nats.errors
import pytest

from natskit import trail
from natskit.connection import Connection
from natskit.hub.audit import stream_config
from natskit.permissions import AUDIT_STREAM
from natskit.rpc import encode_request
from tests.hub.conftest import PASSWORD
from tests.hub.site import Site, call, eventually


async def found(connection: Connection, **wanted: Any) -> list[dict[str, Any]]:
    """The events of this module's platform that have these fields."""
    return [e async for e in trail.events(connection, 0) if wanted.items() <= e.items()]


async def noted(connection: Connection, **wanted: Any) -> dict[str, Any]:
    """The first such event, once it is there."""
    return (await eventually(lambda: found(connection, **wanted), f"an event {wanted}"))[0]


async def test_who_did_what(site: Site) -> None:
    admin = await site.admin()
    made = await call(admin, "hub.admin", "account_add", email="ada@example.org", password=PASSWORD)
    friend = await call(admin, "hub.admin", "account_add", email="grace@example.org", password=PASSWORD)
    await noted(admin, kind="account_add", account=made["account_id"], by="admin", email="ada@example.org")
    account_id, cookie = await site.sign_in("hub-1", "ada@example.org", PASSWORD)
    event = await noted(admin, kind="sign_in", account=account_id, outcome="ok")
    assert event["address"] == "127.0.0.1"
    assert event["user_agent"].startswith("python-httpx")
    create = encode_request("create_project", {"title": "Secret plan"})
    answer = await site.http("hub-2", "POST", "/api/rpc", create, cookie=cookie)
    project_id = answer.json()["result"]["project_id"]
    share = encode_request("share_project", {"project_id": project_id, "email": "grace@example.org"})
    assert "result" in (await site.http("hub-1", "POST", "/api/rpc", share, cookie=cookie)).json()
    await noted(admin, kind="create_project", account=account_id, project_id=project_id, hub="hub-2")
    shared = await noted(admin, kind="share_project", account=account_id, project_id=project_id)
    assert shared["target"] == friend["account_id"]
    await site.http("hub-1", "POST", "/api/sign-out", cookie=cookie)
    await noted(admin, kind="sign_out", account=account_id, session_id=event["session_id"])
    everything = json.dumps(await found(admin))
    for secret in (PASSWORD, cookie, "Secret plan"):
        assert secret not in everything


async def test_a_hub_cannot_take_anything_away(site: Site) -> None:
    admin, hub = await site.admin(), await site.connect("hub", site.identity.creds("PLATFORM", "hub"))
    await call(admin, "hub.admin", "account_add", email="kept@example.org", password=PASSWORD)
    await noted(admin, kind="account_add", email="kept@example.org")
    before = (await _info(admin))["state"]
    config = stream_config(3600, 1 << 20, 1)
    for verb, body in (
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
    for changed in (config, config | {"deny_purge": False}, config | {"max_msgs": 1}):
        answer = await hub.request(f"$JS.API.STREAM.CREATE.{AUDIT_STREAM}", json.dumps(changed).encode(), timeout=2)
        assert json.loads(answer.data)["error"]["err_code"] == 10058
    for headers in ({"Nats-Rollup": "all"}, {"Nats-Rollup": "sub"}, {"Nats-TTL": "1s"}):
        answer = await hub.request("audit.x.-", b"{}", timeout=2, headers=headers)
        assert "error" in json.loads(answer.data), headers
    after = await _info(admin)
    assert after["state"]["messages"] >= before["messages"]
    assert after["state"]["first_seq"] == before["first_seq"] == 1
    assert after["config"]["deny_delete"]
    assert after["config"]["deny_purge"]


async def _info(admin: Connection) -> dict[str, Any]:
    answer = await admin.request(f"$JS.API.STREAM.INFO.{AUDIT_STREAM}", b"", timeout=2)
    info: dict[str, Any] = json.loads(answer.data)
    return info
