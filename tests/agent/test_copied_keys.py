"""An account that lost a project may have copied its key. All hubs refuse the key at once, and the project
continues."""

from __future__ import annotations

import asyncio
import signal
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pytest

from natskit.client import Client
from natskit.errors import ConnectionLostError
from natskit.rpc import decode_response, encode_request
from natskit.runner.orphans import processes_of
from tests.agent.test_with_hub import Platform, running
from tests.hub.conftest import PASSWORD
from tests.kit.wait import eventually
from tests.platform.raw import ClosedError, RawClient

LINES = 30


@dataclass
class Scene:
    """A running project, shared with a guest who has copied its creds and poses as the project."""

    platform: Platform
    admin: Client
    hub: str
    owner_email: str
    owner_cookie: str
    guest_email: str
    guest: str
    guest_cookie: str
    project: str
    copied: str

    async def rpc(self, method: str, cookie: str, **params: Any) -> Any:
        site, request = self.platform.site, encode_request(method, params)
        return decode_response((await site.http(self.hub, "POST", "/api/rpc", request, cookie=cookie)).content)

    def thief(self) -> RawClient:
        return RawClient.tcp("127.0.0.1", self.platform.site.nats_port, self.copied)

    async def let_in(self) -> RawClient | None:
        """Connect with the copied key. ``None`` if a busy hub refuses for now."""
        try:
            return await asyncio.to_thread(self.thief)
        except ClosedError:
            return None

    async def pings(self) -> bool:
        try:
            return bool((await self.admin.call_project(self.project, "ping", wait=1))["pong"])
        except ConnectionLostError:
            return False


async def scene_of(platform: Platform, admin: Client, hub: str) -> Scene:
    people = []
    for who in ("owner", "guest"):
        email = f"{who}-{uuid.uuid4()}@example.org"
        await admin.call_hub("account_add", email=email, password=PASSWORD)
        people.append((email, *await platform.site.sign_in(hub, email, PASSWORD)))
    (owner_email, _, owner_cookie), (guest_email, guest, guest_cookie) = people
    project = (await admin.call_hub("project_create", email=owner_email, title="P"))["project_id"]
    await admin.call_hub("project_share", project_id=project, email=guest_email)
    await admin.call_hub("start_project", project_id=project, wait=40)
    copied = (platform.directory(project) / "project.creds").read_text()
    return Scene(*(platform, admin, hub, owner_email, owner_cookie, guest_email, guest, guest_cookie), project, copied)


async def unshare(scene: Scene) -> None:
    await scene.rpc("unshare_project", scene.owner_cookie, project_id=scene.project, email=scene.guest_email)


async def unshare_by_admin(scene: Scene) -> None:
    await scene.admin.call_hub("project_unshare", project_id=scene.project, email=scene.guest_email)


async def leave(scene: Scene) -> None:
    await scene.rpc("unshare_project", scene.guest_cookie, project_id=scene.project, account_id=scene.guest)


async def disable(scene: Scene) -> None:
    await scene.admin.call_hub("account_disable", email=scene.guest_email)


async def remove(scene: Scene) -> None:
    await scene.admin.call_hub("account_remove", email=scene.guest_email)


async def disable_owner(scene: Scene) -> None:
    await scene.admin.call_hub("account_disable", email=scene.owner_email)


async def hand_over(scene: Scene) -> None:
    await scene.admin.call_hub("account_remove", email=scene.owner_email, give_projects_to=scene.guest_email)


Event = Callable[[Scene], Awaitable[None]]
EVENTS: list[Event] = [unshare, unshare_by_admin, leave, disable, remove, disable_owner, hand_over]


@pytest.fixture(scope="module")
async def platform() -> AsyncIterator[Platform]:
    async with running("natskit-copied-", ttl=900) as platform:
        yield platform


@pytest.fixture(scope="module")
async def admin(platform: Platform) -> AsyncIterator[Client]:
    async with await platform.admin() as admin:

        async def alive() -> bool:
            runners = (await admin.call_hub("status"))["runners"]
            return any(runner["alive"] for runner in runners)

        await eventually(alive, "the runner is alive")
        yield admin


async def restart_hub(platform: Platform, name: str) -> None:
    platform.start_hub(name)
    await platform.site.healthy(name)


@pytest.mark.parametrize("killed", [False, True], ids=["two hubs", "the hub that let them in is dead"])
async def test_a_copied_key_is_dead_and_the_project_goes_on(platform: Platform, admin: Client, killed: bool) -> None:
    if killed:
        platform.site.kill_hub("hub-2")
    scenes = [await scene_of(platform, admin, "hub-1") for _ in EVENTS]
    if killed:
        await restart_hub(platform, "hub-2")
        platform.site.kill_hub("hub-1")
        for scene in scenes:
            scene.hub = "hub-2"
    try:
        await asyncio.gather(*(loses(scene, event) for scene, event in zip(scenes, EVENTS, strict=True)))
    finally:
        if killed:
            await restart_hub(platform, "hub-1")
        for scene in scenes:
            await admin.call_hub("project_delete", project_id=scene.project, wait=40)


async def loses(scene: Scene, event: Event) -> None:
    thief = await eventually(scene.let_in, f"{event.__name__}: the copied key is good so far", 10)
    assert thief is not None
    agent = processes_of(scene.project)[0]
    async with scene.admin.exec(scene.project, command=f"for i in $(seq {LINES}); do echo $i; sleep 0.1; done") as run:
        lines = aiter(run)
        read = [(await anext(lines))[1]]
        await event(scene)
        await out(scene, thief)
        await eventually(scene.pings, f"{event.__name__}: the project answers again", 10)
        read += [data async for _, data in lines]
    assert b"".join(read) == "".join(f"{i}\n" for i in range(1, LINES + 1)).encode(), event.__name__
    assert run.exit_code == 0
    assert agent in processes_of(scene.project), "the agent is the same process"
    await out(scene, thief)
    thief.close()
    assert (scene.platform.directory(scene.project) / "project.creds").read_text() != scene.copied


async def out(scene: Scene, thief: RawClient) -> None:
    """Check that the client with the copied creds is disconnected, and that every hub refuses it."""

    async def cut() -> bool:
        try:
            thief.ping()
        except (ClosedError, OSError):
            return True
        return False

    await eventually(cut, "the copied key is cut", 5)
    for _ in range(3):
        with pytest.raises((ClosedError, OSError)):
            await asyncio.to_thread(scene.thief)


async def test_who_reads_a_commands_output_reads_no_further(platform: Platform, admin: Client) -> None:
    """The account keeps its inbox, so the agent could still write there."""
    scene = await scene_of(platform, admin, "hub-1")
    agent = set(processes_of(scene.project))
    guest = await platform.site.browser(scene.guest, scene.guest_cookie)
    inbox, heard = f"_INBOX.account.{scene.guest}.{scene.project}.reads", asyncio.Event()

    async def hear(_: Any) -> None:
        heard.set()

    await guest.subscribe(inbox, cb=hear)
    command = encode_request("exec", {"command": "while :; do echo tick; sleep 0.05; done"})
    await guest.publish(f"projects.{scene.project}.api", command, reply=inbox)
    await heard.wait()
    assert set(processes_of(scene.project)) > agent
    await unshare(scene)

    async def ended() -> bool:
        return set(processes_of(scene.project)) == agent

    await eventually(ended, "the command that wrote to who has left has ended", 8)
    await guest.close()
    await admin.call_hub("project_delete", project_id=scene.project, wait=40)


async def test_nobody_waits_for_a_runner_that_is_away(platform: Platform, admin: Client) -> None:
    scene = await scene_of(platform, admin, "hub-1")
    thief = await asyncio.to_thread(scene.thief)
    assert platform.runner is not None
    platform.runner.send_signal(signal.SIGSTOP)
    try:
        async with asyncio.timeout(10):  # less than a runner is waited for
            await unshare(scene)
        await out(scene, thief)
    finally:
        platform.runner.send_signal(signal.SIGCONT)
    await eventually(scene.pings, "the project has its new key", 30)
    await out(scene, thief)
    thief.close()


async def test_a_key_is_renewed_although_the_hub_died_that_was_asked(platform: Platform, admin: Client) -> None:
    """One hub accepts the key and dies before it tells the runner; the other hub tells the runner."""
    scene = await scene_of(platform, admin, "hub-1")
    agent = processes_of(scene.project)[0]
    thief = await asyncio.to_thread(scene.thief)
    await unshare(scene)
    platform.site.kill_hub("hub-1")
    try:
        await out(scene, thief)
        await eventually(scene.pings, "the project has its new key", 30)
        assert agent in processes_of(scene.project), "the agent is the same process"
        await out(scene, thief)
        thief.close()
    finally:
        await restart_hub(platform, "hub-1")
