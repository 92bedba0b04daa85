"""A real hub enforces the access that methods declare, both built-in methods and those of a plugin."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from natskit.bus.connection import Connection
from natskit.hub.api.user import natskit_hub
from natskit.ops import audit_reader
from natskit.rpc import RpcError
from tests.documents import block
from tests.hub.conftest import PASSWORD
from tests.hub.site import Site, call
from tests.hub.test_hub_api import person
from tests.kit.wait import eventually

OF_PROJECTS = {name: d.access for name, d in natskit_hub.declarations().items() if d.access in ("member", "owner")}
PARAMETERS: dict[str, Any] = {"title": "T", "email": "nobody@example.org", "path": "a", "text": "a"}
"""Of all of them together; an account that may not use a project learns nothing from any of them."""

PLUGIN = """
from natskit.hub.caller import Caller
from natskit.rpc import Methods

natskit_hub = Methods()


@natskit_hub.method(access="owner")
async def owners_method(caller: Caller, project_id: str) -> str:
    return f"owned by {caller.account.email}"


@natskit_hub.method(access="member", audited=False)
async def members_method(caller: Caller, project_id: str) -> str:
    return "hello, member"


@natskit_hub.method(one_time_password=True)
async def accounts_method(caller: Caller) -> str:
    return "hello"


@natskit_hub.method()
async def says_nothing(caller: Caller) -> str:
    return "hello"
"""


class Scene:
    """An owner, a collaborator and a stranger, and a project that the first two share."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.people: dict[str, tuple[Connection, str, str]] = {}
        self.project_id = ""

    async def ask(self, who: str, method: str, **params: Any) -> Any:
        connection, account_id, _ = self.people[who]
        return await call(connection, f"hub.api.{account_id}", method, **params)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def scene(site: Site) -> Scene:
    (Path(site.root) / "declaring_package.py").write_text(PLUGIN)
    shown = block("docs/how-to/add-your-own-api.md", "Say what a method needs", "python")
    (Path(site.root) / "shown_package.py").write_text(shown)
    for name in ("hub-1", "hub-2"):
        site.kill_hub(name)
    site.python_path = str(site.root)
    site.start_hub("hub-1", api_packages=["declaring_package", "shown_package"])
    await site.healthy("hub-1")
    admin, scene = await site.admin(), Scene(site)
    for who in ("owner", "collaborator", "stranger"):
        email, account_id, cookie = await person(site, admin)
        scene.people[who] = await site.browser(account_id, cookie), account_id, email
    scene.project_id = (await scene.ask("owner", "create_project", title="P"))["project_id"]

    async def shared() -> bool:
        await scene.ask("owner", "share_project", project_id=scene.project_id, email=scene.people["collaborator"][2])
        return True

    await eventually(shared, "the project is shared")

    async def may_use() -> bool:
        return bool(await scene.ask("collaborator", "list_projects"))

    await eventually(may_use, "the collaborator may use the project")
    return scene


def parameters(method: str, project_id: str) -> dict[str, Any]:
    """Valid parameters for any method of a project."""
    values = PARAMETERS | {"project_id": project_id}
    names = set(natskit_hub.parameters(method)) - {"account_id", "expected_version"}
    return {name: values[name] for name in names}


@pytest.mark.parametrize("method", sorted(OF_PROJECTS))
async def test_a_stranger_may_call_no_method_of_a_project(scene: Scene, method: str) -> None:
    with pytest.raises(RpcError, match="there is no such project, or it is not shared with you") as refused:
        await scene.ask("stranger", method, **parameters(method, scene.project_id))
    assert refused.value.kind == "not_found"


@pytest.mark.parametrize("method", sorted(name for name, access in OF_PROJECTS.items() if access == "owner"))
async def test_a_collaborator_may_call_no_method_of_an_owner(scene: Scene, method: str) -> None:
    with pytest.raises(RpcError, match="only the owner of a project may do that") as refused:
        await scene.ask("collaborator", method, **parameters(method, scene.project_id))
    assert refused.value.kind == "forbidden"


async def test_a_method_of_ones_own_declares_the_same(scene: Scene) -> None:
    project = {"project_id": scene.project_id}
    assert await scene.ask("owner", "owners_method", **project) == f"owned by {scene.people['owner'][2]}"
    assert await scene.ask("collaborator", "members_method", **project) == "hello, member"
    for who, method, kind in (
        ("collaborator", "owners_method", "forbidden"),
        ("stranger", "owners_method", "not_found"),
        ("stranger", "members_method", "not_found"),
    ):
        with pytest.raises(RpcError) as refused:
            await scene.ask(who, method, **project)
        assert refused.value.kind == kind
    assert await scene.ask("stranger", "says_nothing") == "hello", "any signed-in account"


async def test_the_example_of_the_docs_does_what_it_says(scene: Scene) -> None:
    project = {"project_id": scene.project_id}
    archived = {**project, "archived_by": scene.people["owner"][2]}
    assert await scene.ask("owner", "archive_project", **project) == archived
    assert await scene.ask("collaborator", "count_collaborators", **project) == 2
    for who, method, kind in (
        ("collaborator", "archive_project", "forbidden"),
        ("stranger", "count_collaborators", "not_found"),
    ):
        with pytest.raises(RpcError) as refused:
            await scene.ask(who, method, **project)
        assert refused.value.kind == kind


async def test_it_is_audited_as_declared(scene: Scene) -> None:
    admin = await scene.site.streams_admin()
    await scene.ask("owner", "members_method", project_id=scene.project_id)
    await scene.ask("owner", "owners_method", project_id=scene.project_id)

    async def kinds() -> set[str]:
        return {
            e["kind"]
            async for e in audit_reader.events(admin, 0)
            if e.get("outcome") == "ok" and "_method" in e["kind"]
        }

    async def written() -> bool:
        return "owners_method" in await kinds()

    await eventually(written, "the audited call is an event")
    assert "members_method" not in await kinds()


async def test_one_time_password_is_enough_where_declared(scene: Scene) -> None:
    site = scene.site
    admin = await site.admin()
    email, account_id, _ = await person(site, admin)
    password = (await call(admin, "hub.admin", "account_set_password", email=email))["password"]
    assert password != PASSWORD
    _, cookie = await site.sign_in("hub-1", email, password)
    browser = await site.browser(account_id, cookie)
    assert await call(browser, f"hub.api.{account_id}", "accounts_method") == "hello"
    with pytest.raises(RpcError) as refused:
        await call(browser, f"hub.api.{account_id}", "says_nothing")
    assert refused.value.kind == "must_change_password"


async def test_a_declaration_that_cannot_be_enforced_is_an_error_at_start(scene: Scene) -> None:
    site = scene.site
    (Path(site.root) / "wrong_package.py").write_text(PLUGIN.replace('access="owner"', 'access="ownr"'))
    site.start_hub("hub-3", api_packages=["wrong_package"])
    process, _ = site.hubs["hub-3"]
    assert await asyncio.to_thread(process.wait, 60) == 2
    assert "method 'owners_method': there is no access rule 'ownr'" in site.log("hub-3")
