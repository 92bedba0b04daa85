"""What a user notices when a part of the platform dies: as little as can be."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import time
import uuid
from pathlib import Path
from typing import Any

import pytest

from natskit import rpc
from natskit.client import Client
from tests.platform.raw import RawClient
from tests.platform.site import Site, World, wait_for


def pid_of(site: Site, program: str) -> int:
    """The process id of one of the platform's programs, as its service manager knows it."""
    parts = json.loads(site.natskit("status", "--json", check=False).stdout)["processes"]
    return int(next(part["pid"] for part in parts if part["name"] == program))


async def admin(site: Site) -> Client:
    return await Client.admin(site.info["nats_urls"][0], Path(site.info["creds"]["platform_admin"]))


async def test_a_hub_killed_under_load_loses_at_most_what_was_in_flight(site: Site, world: World) -> None:
    session = site.sign_in(world.email_a, world.password)
    client = RawClient.websocket(site.websocket_url, ca_file=site.ca_file, cookie=session.cookie, origin=site.url)
    inbox = world.name("_INBOX.account.{a}.load")
    client.subscribe(inbox)
    victim = pid_of(site, "hub-1")
    answered: dict[str, int] = {}
    lost = 0
    for count in range(300):
        if count == 100:
            os.kill(victim, signal.SIGKILL)
        client.send(
            f"PUB {world.name('hub.api.{a}')} {inbox} ".encode()
            + (lambda body: str(len(body)).encode() + b"\r\n" + body + b"\r\n")(rpc.encode_request("ping"))
        )
        try:
            hub = rpc.decode_response(client.wait_for_message(inbox, 2))["hub"]
            answered[hub] = answered.get(hub, 0) + 1
        except TimeoutError:
            lost += 1
    assert lost <= 1
    assert set(answered) == {"hub-1", "hub-2"}
    wait_for(lambda: pid_of(site, "hub-1") not in {0, victim}, "hub-1 to be started again")
    wait_for(lambda: site.natskit("status", check=False).returncode == 0, "the platform to be whole again")


async def test_everybody_comes_back_after_nats_server_restarts(site: Site, world: World) -> None:
    browser = await Client.sign_in(site.url, world.email_a, world.password, ca_file=site.ca_file)
    project = world.names["p"]
    news: asyncio.Queue[bytes] = asyncio.Queue()

    async def heard(message: object) -> None:
        news.put_nowait(message.data)  # type: ignore[attr-defined]

    await browser.subscribe(f"events.project.{project}.news", heard)
    server = pid_of(site, "nats")
    os.kill(server, signal.SIGKILL)
    wait_for(lambda: pid_of(site, "nats") not in {0, server}, "nats-server to be started again")

    async def works() -> bool:
        assert (await browser.call_hub("ping"))["pong"]
        return bool(await browser.call_project(project, "ping"))

    deadline = time.monotonic() + 20
    while True:
        try:
            if await works():
                break
        except Exception:
            assert time.monotonic() < deadline, "hub and project did not come back"
            await asyncio.sleep(0.05)
    raw = site.tcp(site.project_creds(world.names["p"]))
    while news.empty():
        assert time.monotonic() < deadline, "the subscription did not come back"
        raw.publish(f"events.project.{project}.news", b"hello again")
        await asyncio.sleep(0.05)
    raw.close()
    assert await browser.call_hub("list_projects")
    await browser.close()
    wait_for(lambda: site.natskit("status", check=False).returncode == 0, "the platform to be whole again")


async def test_a_runner_that_was_killed_brings_its_projects_back(site: Site, world: World) -> None:
    client = await admin(site)
    runner = pid_of(site, "runner")
    os.kill(runner, signal.SIGKILL)
    wait_for(lambda: pid_of(site, "runner") not in {0, runner}, "the runner to be started again")
    deadline = time.monotonic() + 30
    while True:
        try:
            assert await client.call_project(world.names["p"], "ping", wait=1)
            break
        except Exception:
            assert time.monotonic() < deadline, "the project did not come back"
            await asyncio.sleep(0.05)
    await client.close()


async def test_a_command_streams_through_a_reconnect(site: Site, world: World) -> None:
    """The connection is cut in the middle of an answer; what the command printed arrives whole all the same."""
    browser = await Client.sign_in(site.url, world.email_a, world.password, ca_file=site.ca_file)
    total = 40_000_000
    received, cut = 0, False
    async with browser.exec(world.names["p"], command=f"yes | head -c {total}") as running:
        async for _, data in running:
            received += len(data)
            if not cut and received > total // 4:
                cut = True
                site.natskit("project", "share", world.names["q"], world.email_a)  # a grant kicks the connection
    assert running.exit_code == 0
    assert received == total
    site.natskit("project", "unshare", world.names["q"], world.email_a)
    await browser.close()


async def test_a_closed_client_leaves_no_socket(site: Site, world: World) -> None:
    """Not even until the end of the TLS session has been agreed upon: the event loop may be closed next."""
    client = await Client.sign_in(site.url, world.email_a, world.password, ca_file=site.ca_file)
    transport: Any = client.connection._transport
    socket = transport._ws.get_extra_info("socket")
    assert socket.fileno() != -1
    await client.close()
    assert socket.fileno() == -1


async def test_a_program_works_while_its_rights_change_all_the_time(site: Site, world: World) -> None:
    """Made, started, used and deleted without a pause, while grants of somebody else cut the connection in between."""
    email = f"{uuid.uuid4()}@example.org"
    site.natskit("account", "add", email, "--password-stdin", stdin=world.password)
    operator = await admin(site)
    cuts = 0

    async def change_rights() -> None:
        while True:
            for method in ("project_share", "project_unshare"):
                await operator.call_hub(method, project_id=world.names["q"], email=email)
                await asyncio.sleep(random.uniform(0, 1.2))

    async with await Client.sign_in(site.url, email, world.password, ca_file=site.ca_file) as client:

        def note(status: str, _reason: str) -> None:
            nonlocal cuts
            cuts += status == "disconnected"

        client.on_status(note)
        changing = asyncio.create_task(change_rights())
        for number in range(4):
            project = (await client.call_hub("create_project", title=f"Demo {number}"))["project_id"]
            await client.call_hub("start_project", project_id=project, wait=40)
            async with client.exec(project, command="echo once >> runs; cat runs") as run:
                assert await run.output() == (b"once\n", b"")
            written = await client.call_project(
                project, "write_text_file", path="a", text="1", expected_version="absent"
            )
            await client.call_project(
                project, "write_text_file", path="a", text="2", expected_version=written["version"]
            )
            mine = [p for p in await client.call_hub("list_projects") if p["role"] == "owner"]
            assert [p["title"] for p in mine] == [f"Demo {number}"], "made once, and the one before is gone"
            await client.call_hub("delete_project", project_id=project)
        assert not changing.done(), changing.exception()
        changing.cancel()
    await operator.close()
    assert cuts > 6


async def test_state_survives_a_restart_of_everything(site: Site, world: World) -> None:
    title = f"kept {uuid.uuid4()}"
    created = site.natskit_json("project", "create", world.email_b, title)["project_id"]
    for program in ("nats", "hub-1", "hub-2", "runner", "proxy"):
        os.kill(pid_of(site, program), signal.SIGKILL)
    site.natskit("ready")
    assert title in [project["title"] for project in site.natskit_json("project", "list")]
    site.natskit("project", "delete", created, "--yes")


@pytest.mark.parametrize("path", ["../../../etc/passwd", "/etc/passwd", "link/passwd"])
async def test_a_project_keeps_to_its_home(site: Site, world: World, path: str) -> None:
    client = await admin(site)
    async with client.exec(world.names["p"], command="ln -sfn /etc link") as running:
        async for _ in running:
            pass
    calls: list[tuple[str, dict[str, Any]]] = [("read_text_file", {}), ("write_text_file", {"text": "x"})]
    for method, more in calls:
        with pytest.raises(rpc.RpcError):
            await client.call_project(world.names["p"], method, path=path, **more)
    await client.close()
