"""Every rotation on a running platform: clients stay connected, no project stops, and the old keys are refused."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from natskit.client import Client
from natskit.errors import NatskitError
from natskit.identity import claims
from natskit.identity.rotation import KINDS, Kind
from natskit.process.lifecycle import cancel
from natskit.rpc import RpcError
from tests.kit.wait import eventually, wait_for
from tests.platform.raw import ClosedError, RawClient
from tests.platform.site import REPOSITORY, LocalSite, World

STAYS_CONNECTED = {"hub-keys": False, "project-keys": True, "nats-account": True, "operator-signing-key": False}
REFUSED = {
    "hub-keys": {"hub AUTH", "hub PLATFORM", "project", "runner"},
    "project-keys": {"project", "runner"},
    "nats-account": {"hub PLATFORM", "admin"},
    "operator-signing-key": set(),
}
"""Of the creds that were there before."""


@dataclass
class Load:
    """A browser that calls a hub and its project in turn."""

    asked: int = 0
    failed: list[str] = field(default_factory=list)
    """What was said to those that failed twice in a row."""

    async def run(self, browser: Client, project_id: str) -> None:
        while True:
            for of in ("hub", "project"):
                self.asked += 1
                if await _refusal(browser, project_id, of) and (again := await _refusal(browser, project_id, of)):
                    self.failed.append(f"{of}: {again}")
            await asyncio.sleep(0.05)


async def _refusal(browser: Client, project_id: str, of: str) -> str:
    try:
        await (browser.call_hub("whoami") if of == "hub" else browser.call_project(project_id, "ping"))
    except (NatskitError, RpcError) as error:
        return str(error)
    return ""


def creds(site: LocalSite, project_id: str) -> dict[str, str]:
    """Everybody's current creds."""
    hub = {f"hub {account}": site.read("hub-1", f"{account.lower()}.creds") for account in ("AUTH", "PLATFORM")}
    admin = Path(site.info["creds"]["platform_admin"]).read_text()
    projects = {"project": site.project_creds(project_id), "runner": site.read("runner", "runner.creds")}
    return hub | projects | {"admin": admin}


def is_let_in(site: LocalSite, text: str) -> bool:
    try:
        site.tcp(text).close()
    except (ClosedError, ConnectionError):
        return False
    return True


class Held:
    """A raw connection that only answers the server's pings, until the test or the server closes it."""

    def __init__(self, client: RawClient) -> None:
        self._client = client
        self._released = threading.Event()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._hold)
        self._thread.start()

    def _hold(self) -> None:
        try:
            while not self._released.wait(0.2):
                self._client.ping()
            self._client.ping()  # it may have been cut since the last one
        except (ClosedError, OSError) as error:
            self._error = error

    def was_cut(self) -> bool:
        """Close it. Returns whether the server had closed it."""
        self._released.set()
        self._thread.join(20)
        return self._error is not None


def rotate(site: LocalSite, kind: Kind) -> str:
    """Begin and complete a rotation, one of them with a deploy by hand. Returns its output."""
    words = ("identity", "rotate", kind, "--yes")
    if kind != "nats-account":
        return site.natskit(*words, *(("--wait", "0") if kind == "hub-keys" else ())).stdout
    refused = site.natskit(*words, "--wait", "5", check=False)
    assert "--wait 5 is only for hub-keys" in refused.stderr
    stopped = site.natskit(*words, "--no-deploy", check=False)
    assert stopped.returncode == 1
    assert f"NATSKIT_LOCAL={site.root} " in stopped.stderr
    assert f"pyinfra -y inventories/local.py {REPOSITORY}/deploy.py --data nats_port=" in stopped.stderr
    other = site.natskit("identity", "rotate", "hub-keys", "--yes", check=False)
    assert "a rotation of nats-account is not finished" in other.stderr
    assert site.deploy().returncode == 0
    return site.natskit(*words, "--no-deploy", "--deployed").stdout


def issuer(token: str) -> Any:
    return claims.decode(token)["iss"]


async def process_of(browser: Client, project_id: str) -> str:
    """The process of a project's agent."""
    async with browser.exec(project_id, command="echo $PPID") as run:
        return "".join([data.decode() async for _, data in run])


@pytest.mark.parametrize("kind", KINDS)
async def test_a_rotation(site: LocalSite, world: World, kind: Kind) -> None:
    project = world.names["p"]
    session = site.sign_in(world.email_a, world.password)
    held = Held(RawClient.websocket(site.websocket_url, ca_file=site.ca_file, cookie=session.cookie, origin=site.url))
    before = creds(site, project)
    load = Load()
    async with await Client.sign_in(site.url, world.email_a, world.password, ca_file=site.ca_file) as browser:
        agent = await process_of(browser, project)
        asking = asyncio.create_task(load.run(browser, project))
        said = await asyncio.to_thread(rotate, site, kind)
        await cancel([asking])
        assert "done: the old keys are refused everywhere" in said

        async def goes_on() -> bool:
            return await process_of(browser, project) == agent

        await eventually(goes_on, "the same agent answers", 30)
    assert load.asked > 20
    # One nats-server alone is away for as long as its restart takes.
    assert kind == "operator-signing-key" or not load.failed, f"{load}\n{said}"

    assert held.was_cut() != STAYS_CONNECTED[kind]
    assert {who for who, text in before.items() if not is_let_in(site, text)} == REFUSED[kind]
    assert all(is_let_in(site, text) for text in creds(site, project).values())
    with site.http() as http:
        answer = http.get("/api/session", headers={"Cookie": session.cookie})
    assert answer.status_code == 200, "nobody has to sign in again"
    renewed = issuer(next(iter(answer.cookies.values())))
    assert (renewed != issuer(session.cookie.partition("=")[2])) == (kind == "hub-keys")
    assert site.natskit("identity", "diff").stdout.startswith("All 1 nats-servers use")


def test_what_will_reconnect_is_said_before_it_begins(site: LocalSite, world: World) -> None:
    assert world
    index = (site.root / "identity" / "natskit.json").read_text()
    asked = site.natskit("identity", "rotate", "operator-signing-key", check=False, stdin="n\n")
    assert asked.returncode != 0
    assert asked.stdout.startswith("Connected now: ")
    assert "restarted, twice" in asked.stdout
    assert (site.root / "identity" / "natskit.json").read_text() == index


def noted(site: LocalSite) -> tuple[int, int]:
    said = site.natskit("audit", "--since", "1h").stdout
    return said.count("identity rotate project-keys: begun"), said.count("identity rotate project-keys: done")


def test_killed_it_leaves_no_deploy_behind_and_goes_on(site: LocalSite, world: World) -> None:
    assert world
    begun, done = noted(site)
    words = ["identity", "rotate", "project-keys", "--yes"]
    command = [str(Path(sys.executable).with_name("natskit")), *words]
    rotating = subprocess.Popen(command, env=site.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    def deploys() -> list[int]:
        children = map(int, Path(f"/proc/{rotating.pid}/task/{rotating.pid}/children").read_text().split())
        return [pid for pid in children if b"pyinfra" in Path(f"/proc/{pid}/cmdline").read_bytes()]

    (deploy,) = wait_for(deploys, "a deploy runs")
    rotating.kill()
    rotating.communicate(timeout=10)
    wait_for(lambda: not Path(f"/proc/{deploy}").exists(), "its deploy has ended, unfinished", seconds=3)
    assert "the old keys are refused everywhere" in site.natskit(*words).stdout
    assert noted(site) == (begun + 2, done + 1)
