"""A user of a project may have copied its agent's creds. The hubs refuse them when the user loses the project.

The runner in these tests behaves like one that is away: it gives the project no new key. So the hubs have to refuse the
old key by themselves.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from natskit.bus.connection import Connection
from natskit.identity import claims, nkey
from tests.hub.site import Site, call
from tests.hub.test_revocations import Event, Scene, disable, leave, remove, scene_of, unshare
from tests.kit.wait import eventually
from tests.platform.raw import ClosedError, RawClient


async def remove_owner_for_an_heir(scene: Scene) -> None:
    who = {"email": scene.owner_email, "give_projects_to": scene.email}
    await call(scene.admin, "hub.admin", "account_remove", **who)


EVENTS: list[Event] = [unshare, leave, disable, remove, remove_owner_for_an_heir]


class Runner:
    """A runner that starts no processes, and does not answer requests for new keys."""

    def __init__(self, site: Site, connection: Connection) -> None:
        self._mine = f"hub.runner.{site.runner_id}"
        self._connection = connection
        self.creds: dict[str, str] = {}

    async def on_request(self, message: Any) -> None:
        request = json.loads(message.data)
        if request["method"] == "rotate_project_keys":
            return
        if request["method"] == "start_project":
            project_id, seed = request["params"]["project_id"], nkey.create_seed("user")
            ticket = await self.say("project_credentials", project_id=project_id, public_key=nkey.public_key(seed))
            self.creds[project_id] = claims.format_creds(ticket["jwt"], seed)
            await self.say("project_state", project_id=project_id, state="running")
        await message.respond(json.dumps({"jsonrpc": "2.0", "id": request["id"], "result": {}}).encode())

    async def say(self, method: str, **params: Any) -> Any:
        return await call(self._connection, self._mine, method, **params)


@pytest.mark.parametrize("event", EVENTS, ids=[event.__name__ for event in EVENTS])
async def test_a_copied_key_is_refused(site: Site, event: Event) -> None:
    connection = await site.runner()
    runner = Runner(site, connection)
    await runner.say("register", version="1")
    await connection.subscribe(f"runners.{site.runner_id}.api", cb=runner.on_request)
    scene = await scene_of(site)
    await call(scene.admin, "hub.admin", "start_project", project_id=scene.project)
    agent = as_agent(scene, runner)
    assert scene.project not in (await runner.say("heartbeat", running=[scene.project]))["need_keys"]
    await event(scene)

    async def cut() -> bool:
        with pytest.raises((ClosedError, OSError)):
            agent.ping()
        return True

    await eventually(cut, "the agent is cut")
    for hub in ("hub-1", "hub-2"):  # whichever of them is asked
        site.kill_hub(hub)
        with pytest.raises((ClosedError, OSError)):
            as_agent(scene, runner)
        site.start_hub(hub)
        await site.healthy(hub)
    for answer in (await runner.say("heartbeat", running=[]), await runner.say("register", version="1")):
        assert scene.project in answer["need_keys"]
    await call(scene.admin, "hub.admin", "project_delete", project_id=scene.project)
    await connection.close()  # nobody takes the orders of the next test's runner


def as_agent(scene: Scene, runner: Runner) -> RawClient:
    return RawClient.tcp("127.0.0.1", scene.site.nats_port, runner.creds[scene.project])
