"""Changes that others notice have a rate limit. Two hubs count the same changes; an administrator has no limit."""

from __future__ import annotations

from typing import Any

import pytest

from natskit.hub.state.view import PROJECTS_AT_ONCE
from natskit.rpc import RpcError
from tests.hub.site import Site, call
from tests.hub.test_hub_api import person
from tests.hub.test_revocations import Scene
from tests.kit.wait import eventually

MOST = 2
MANY = MOST * PROJECTS_AT_ONCE


@pytest.fixture(scope="module")
def hub_settings() -> dict[str, Any]:
    return {"share_changes_per_minute": MOST}


async def until_refused(scene: Scene, method: str, cookie: str, each: list[dict[str, Any]]) -> int:
    """Send calls, through either hub, until one is refused. Returns how many succeeded."""
    done = 0

    async def all_of_them() -> None:
        nonlocal done
        for params in each:
            scene.hub = ("hub-1", "hub-2")[done % 2]
            await scene.rpc(method, cookie, **params)
            done += 1

    with pytest.raises(RpcError, match=r"too often in the last minute; try again in \d+ s") as refused:
        await all_of_them()
    assert refused.value.kind == "limit"
    assert 0 < refused.value.data["retry_after"] <= 60
    return done


async def test_renaming(site: Site) -> None:
    admin = await site.admin()
    _, _, cookie = await person(site, admin)
    scene = Scene(site, admin)
    project = (await scene.rpc("create_project", cookie, title="P"))["project_id"]
    titles = [{"project_id": project, "title": f"P {number}"} for number in range(3 * MOST)]
    assert MOST <= await until_refused(scene, "rename_project", cookie, titles) <= MOST + 1
    other = (await scene.rpc("create_project", cookie, title="Q"))["project_id"]
    await scene.rpc("rename_project", cookie, project_id=other, title="R")


async def test_unsharing_and_deleting(site: Site) -> None:
    admin = await site.admin()
    owner_email, _, cookie = await person(site, admin)
    email, _, guest_cookie = await person(site, admin)
    other_email, _, _ = await person(site, admin)
    scene = Scene(site, admin)
    projects = [
        {"project_id": (await call(admin, "hub.admin", "project_create", email=owner_email, title="P"))["project_id"]}
        for _ in range(MANY + 6)
    ]
    for project in projects:
        await call(admin, "hub.admin", "project_share", **project, email=email)

    async def all_there() -> bool:
        for scene.hub in ("hub-1", "hub-2"):
            if len(await scene.rpc("list_projects", guest_cookie)) < len(projects):
                return False
        return True

    await eventually(all_there, "all are shared")
    unshared = await until_refused(scene, "unshare_project", cookie, [{**p, "email": email} for p in projects])
    assert MANY <= unshared <= MANY + 1
    await call(admin, "hub.admin", "project_unshare", **projects[-1], email=email)  # an administrator is not stopped
    left = await scene.rpc("list_projects", guest_cookie)
    await scene.rpc(
        "unshare_project", guest_cookie, project_id=left[0]["project_id"], email=email
    )  # who leaves neither
    # What was given a moment ago can be taken from somebody else.
    await scene.rpc("share_project", cookie, **projects[-2], email=other_email)
    await scene.rpc("unshare_project", cookie, **projects[-2], email=other_email)

    deleted = await until_refused(scene, "delete_project", cookie, projects)
    assert MANY <= deleted <= MANY + 1
    await call(admin, "hub.admin", "project_delete", **projects[-1])
