"""One nats-server, a hub and two keepers for each module of this folder; and a runner, where a test asks for it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from natskit.bus.credentials import CredsText
from natskit.client import Client
from tests.hub.site import Site
from tests.keeper.running import Place, start_runner
from tests.keeper.writer import person, project_of
from tests.kit.wait import eventually


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Site]:
    site = Site(tmp_path_factory.mktemp("keeper"))
    try:
        site.start_server()
        site.start_hub("hub-1")
        site.start_keeper("keeper-1")
        site.start_keeper("keeper-2")
        await site.healthy("hub-1")
        await site.keeper_ready("keeper-1")
        await site.keeper_ready("keeper-2")
        yield site
    finally:
        await site.close()
        for name in site.keepers:
            print(f"---- {name}\n{(site.root / name / 'keeper.log').read_text()[-4000:]}")


@pytest.fixture(scope="module")
def project_settings() -> dict[str, Any]:
    """How the runner limits projects: a module of tests may have a fixture of its own."""
    return {}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def runner(site: Site, project_settings: dict[str, Any]) -> AsyncIterator[Path]:
    """The folder of a runner."""
    folder = site.root / "runner"
    folder.mkdir(mode=0o700)
    creds = folder / "runner.creds"
    creds.touch(0o600)
    creds.write_text(site.runner_creds)
    program = {
        "runner_id": site.runner_id,
        "name": "local",
        "nats": {"urls": [f"nats://127.0.0.1:{site.nats_port}"]},
        "creds": str(creds),
        "directory": str(folder),
        "project": project_settings,
    }
    (folder / "runner.json").write_text(json.dumps(program))
    process = start_runner(folder)
    yield folder
    process.terminate()
    process.wait(30)
    print((folder / "runner.log").read_text()[-8000:])


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(site: Site) -> AsyncIterator[Client]:
    """The operator's client."""
    url = f"nats://127.0.0.1:{site.nats_port}"
    async with await Client.admin(url, CredsText(site.identity.creds("PLATFORM", "admin"))) as client:
        yield client


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def place(site: Site, runner: Path, client: Client) -> Place:
    async def is_alive() -> bool:
        status = await client.call_hub("status")
        return bool(status["runners"] and status["runners"][0]["alive"])

    await eventually(is_alive, "the runner is alive", 60)
    owner = await person(site)
    project = await project_of(owner)
    made = Place(client, owner, project, runner / "projects" / project / "home")
    await made.start()
    return made
