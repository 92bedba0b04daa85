"""A user hardly notices when a part of the platform dies."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import uuid
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from typing import Any

import pytest

from natskit import rpc
from natskit.client import Client
from tests.kit.wait import eventually, wait_for
from tests.platform.raw import RawClient
from tests.platform.site import Site, World


def pid_of(site: Site, program: str) -> int:
    """The process id of one of the platform's programs, from its service manager."""
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

    await eventually(works, "hub and project to come back")
    raw = site.tcp(site.project_creds(world.names["p"]))

    def arrived() -> bool:
        raw.publish(f"events.project.{project}.news", b"hello again")
        return not news.empty()

    await eventually(arrived, "the subscription to come back")
    raw.close()
    assert await browser.call_hub("list_projects")
    await browser.close()
    wait_for(lambda: site.natskit("status", check=False).returncode == 0, "the platform to be whole again")


async def test_a_runner_that_was_killed_brings_its_projects_back(site: Site, world: World) -> None:
    client = await admin(site)
    runner = pid_of(site, "runner")
    os.kill(runner, signal.SIGKILL)
    wait_for(lambda: pid_of(site, "runner") not in {0, runner}, "the runner to be started again")
    await eventually(lambda: client.call_project(world.names["p"], "ping", wait=1), "the project to come back")
    await client.close()


async def test_a_command_streams_through_a_reconnect(site: Site, world: World) -> None:
    """The connection breaks in the middle of an answer, and the whole output still arrives."""
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
    """Not even until the TLS session has ended: the event loop may close next."""
    client = await Client.sign_in(site.url, world.email_a, world.password, ca_file=site.ca_file)
    transport: Any = client.connection._transport
    socket = transport._ws.get_extra_info("socket")
    assert socket.fileno() != -1
    await client.close()
    assert socket.fileno() == -1


async def test_a_program_works_while_its_rights_change_all_the_time(site: Site, world: World) -> None:
    """It makes, starts, uses and deletes projects without a pause, while another account's grants close its
    connection."""
    email = f"{uuid.uuid4()}@example.org"
    site.natskit("account", "add", email, "--password-stdin", stdin=world.password)
    cuts = 0

    async def change_rights(operator: Client) -> None:
        while True:
            for method in ("project_share", "project_unshare"):
                await operator.call_hub(method, project_id=world.names["q"], email=email)
                await asyncio.sleep(random.uniform(0, 1.2))

    async with (
        await admin(site) as operator,
        await Client.sign_in(site.url, email, world.password, ca_file=site.ca_file) as client,
    ):

        def note(status: str, _reason: str) -> None:
            nonlocal cuts
            cuts += status == "disconnected"

        client.on_status(note)
        async with cancelled_after(change_rights(operator)):
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
    assert cuts > 6


@contextlib.asynccontextmanager
async def cancelled_after(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run ``work`` until the block ends. It must not end by itself before."""
    task = asyncio.create_task(work)
    try:
        yield
        assert not task.done(), task.exception()
    finally:
        task.cancel()
        await asyncio.wait([task])


async def test_state_survives_a_restart_of_everything(site: Site, world: World) -> None:
    title = f"kept {uuid.uuid4()}"
    created = site.natskit_json("project", "create", world.email_b, title)["project_id"]
    for program in ("nats", "hub-1", "hub-2", "keeper-1", "keeper-2", "runner", "proxy"):
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
