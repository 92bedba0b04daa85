"""An administrator sees how the platform is, as two real hubs know it. Nobody else does."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pytest
from nats.aio.msg import Msg

from natskit.bus.connection import Connection
from natskit.errors import ConnectionLostError
from natskit.hub.timestamp import iso
from natskit.process.lifecycle import spawn
from natskit.rpc import RpcError, decode_response, encode_request
from tests.hub.conftest import PASSWORD
from tests.hub.site import Site, call
from tests.kit.wait import eventually

ADMINISTRATOR = "Ada@Example.org"
HOST = {
    "load": 0.5,
    "processors": 2.0,
    "memory_bytes": 4e9,
    "memory_available_bytes": 1e8,
    "disk_bytes": 1e10,
    "disk_free_bytes": 5e9,
}
USED = {"cpu_seconds": 1.5, "memory_bytes": 4096.0, "tasks": 3.0, "disk_bytes": 99}
OF_BACKUPS = {"NatskitBackupOld", "NatskitBackupUnverified", "NatskitBackupUnknown"}


@pytest.fixture(scope="module")
def hub_settings() -> dict[str, Any]:
    return {"administrators": ["ada@example.org"]}


async def over_http(site: Site, cookie: str, method: str, hub: str = "hub-1", **params: Any) -> Any:
    answer = await site.http(hub, "POST", "/api/rpc", encode_request(method, params), cookie=cookie)
    return decode_response(answer.content)


async def signed_in(site: Site, email: str) -> tuple[str, str]:
    """The id and the cookie of an account, which is made if there is none."""
    admin = await site.admin()
    if not any(one["email"] == email for one in await call(admin, "hub.admin", "account_list")):
        await call(admin, "hub.admin", "account_add", email=email, password=PASSWORD)
    return await site.sign_in("hub-1", email, PASSWORD)


async def test_only_an_administrator_may_ask(site: Site) -> None:
    ada_id, ada = await signed_in(site, ADMINISTRATOR)
    _, bob = await signed_in(site, "bob@example.org")
    _, alike = await signed_in(site, "ada@example.org.example")
    assert (await over_http(site, ada, "whoami"))["administrator"] is True
    assert (await over_http(site, ada, "describe_platform"))["hub"]["name"] == "hub-1"
    browser = await site.browser(ada_id, ada)
    assert (await call(browser, f"hub.api.{ada_id}", "describe_platform"))["accounts"] == 3
    for cookie in (bob, alike):
        assert (await over_http(site, cookie, "whoami"))["administrator"] is False
        with pytest.raises(RpcError, match="only an administrator of the platform") as refused:
            await over_http(site, cookie, "describe_platform")
        assert refused.value.kind == "forbidden"


async def test_an_administrator_with_a_one_time_password_changes_it_first(site: Site) -> None:
    admin = await site.admin()
    await signed_in(site, ADMINISTRATOR)
    made = await call(admin, "hub.admin", "account_set_password", email=ADMINISTRATOR)
    try:
        _, cookie = await site.sign_in("hub-1", ADMINISTRATOR, made["password"])
        with pytest.raises(RpcError) as refused:
            await over_http(site, cookie, "describe_platform")
        assert refused.value.kind == "must_change_password"
    finally:
        await call(admin, "hub.admin", "account_set_password", email=ADMINISTRATOR, password=PASSWORD)


class RawRunner:
    """Answers hubs as a runner does, and says that two projects use something: one is not its own."""

    def __init__(self, connection: Connection, runner_id: str) -> None:
        self._connection, self._id = connection, runner_id
        self.projects: list[str] = []
        self._tasks: set[asyncio.Task[Any]] = set()

    async def take(self, message: Msg) -> None:
        """nats-py waits for a callback before it calls the next one, and an answer may ask a hub."""
        spawn(self._tasks, self._answer(message))

    async def _answer(self, message: Msg) -> None:
        asked = json.loads(message.data)
        result: dict[str, Any] = {"state": "running"}
        if asked["method"] == "start_project":
            report = {"project_id": asked["params"]["project_id"], "state": "running"}
            await call(self._connection, f"hub.runner.{self._id}", "project_state", **report)
        elif asked["method"] == "usage":
            result = {"host": HOST, "projects": [{"project_id": one, **USED} for one in self.projects]}
        await self._connection.publish(
            message.reply, json.dumps({"jsonrpc": "2.0", "id": 1, "result": result}).encode()
        )


async def test_what_is_seen(site: Site) -> None:
    _, ada = await signed_in(site, ADMINISTRATOR)
    site.start_keeper("keeper-1")
    await site.keeper_ready("keeper-1")
    admin, connection = await site.admin(), await site.runner()
    made = [
        (await call(admin, "hub.admin", "project_create", email=ADMINISTRATOR, title=title))["project_id"]
        for title in ("Busy", "Elsewhere")
    ]
    silent = await over_http(site, ada, "describe_platform")
    assert {"name": "NatskitRunnerSilent", "severity": "critical", "about": "runner local"} in silent["alerts"]
    assert silent["runners"][0]["host"] is None

    runner = RawRunner(connection, site.runner_id)
    runner.projects = made
    await connection.subscribe(f"runners.{site.runner_id}.api", cb=runner.take)
    await call(connection, f"hub.runner.{site.runner_id}", "register", version="1.2.3")
    await call(admin, "hub.admin", "start_project", project_id=made[0])

    async def complete() -> dict[str, Any] | None:
        seen: dict[str, Any] = await over_http(site, ada, "describe_platform")
        return seen if seen["use"] else None

    seen = await eventually(complete, "the use of the project is seen", 10)
    assert [(one["role"], one["name"]) for one in seen["connected"]] == [
        ("hub", "hub-1"),
        ("hub", "hub-2"),
        ("keeper", "keeper-1"),
    ]
    (server,) = seen["nats_servers"]
    assert (server["name"], seen["nats_servers_expected"]) == ("test", 1)
    assert server["connections"] >= 5
    assert server["storage_limit_bytes"] > 0
    (row,) = seen["runners"]
    assert (row["name"], row["version"], row["alive"], row["host"]) == ("local", "1.2.3", True, HOST)
    assert {alert["name"] for alert in seen["alerts"]} == {"NatskitMemoryLow", "NatskitBackupUnknown"}
    named = {"project_id": made[0], "title": "Busy", "owner": ADMINISTRATOR, "runner": "local"}
    assert seen["use"] == [named | USED], "a runner says nothing of a project that it does not have"
    assert seen["hub"]["counters"]["sign_ins"] >= 1


async def test_refused_connections_are_counted(site: Site) -> None:
    ada_id, ada = await signed_in(site, ADMINISTRATOR)
    before = {hub: await _counters(site, ada, hub) for hub in ("hub-1", "hub-2")}
    with pytest.raises(ConnectionLostError):
        await site.browser(ada_id, "no.such.cookie", patience=1)

    async def refused() -> bool:
        now = [await _counters(site, ada, hub) for hub in ("hub-1", "hub-2")]
        return any(
            one["callouts_refused"] > earlier["callouts_refused"]
            for one, earlier in zip(now, before.values(), strict=True)
        )

    await eventually(refused, "the refused connection is counted", 10)


async def test_the_last_backup_that_the_control_machine_tells_of(site: Site) -> None:
    _, ada = await signed_in(site, ADMINISTRATOR)
    admin, now = await site.admin(), time.time()

    async def names_at(hub: str) -> tuple[set[str], dict[str, Any]]:
        seen = await over_http(site, ada, "describe_platform", hub)
        return {alert["name"] for alert in seen["alerts"]} & OF_BACKUPS, seen["backup"]

    async def told(expected: set[str], begun: float, verified: float | None) -> None:
        await call(admin, "hub.admin", "note_backup", begun=begun, verified=verified)
        for hub in ("hub-1", "hub-2"):

            async def is_seen(hub: str = hub) -> bool:
                names, backup = await names_at(hub)
                return names == expected and backup["begun"] == iso(begun)

            await eventually(is_seen, f"{hub} knows of the backup", 10)

    await told(set(), now - 60, now - 30)
    await told({"NatskitBackupOld", "NatskitBackupUnverified"}, now - 37 * 3600, now - 10 * 86400)
    await told({"NatskitBackupUnverified"}, now - 60, None)
    with pytest.raises(RpcError, match="begun"):
        await call(admin, "hub.admin", "note_backup", begun=-1)
    runners = await call(admin, "hub.admin", "runner_list")
    assert [one["name"] for one in runners] == ["local"], "the record of backups is no runner"


async def _counters(site: Site, cookie: str, hub: str) -> dict[str, float]:
    counters: dict[str, float] = (await over_http(site, cookie, "describe_platform", hub))["hub"]["counters"]
    return counters
