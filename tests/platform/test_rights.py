"""How people and administrators change rights, with the command and the client, on a whole platform."""

from __future__ import annotations

import asyncio

import pytest

from natskit.client import Client
from natskit.errors import SignInError
from natskit.rpc import RpcError
from tests.mounts import mounted
from tests.platform.raw import ClosedError
from tests.platform.site import LocalSite, Site, World

PASSWORD = "a long enough password"  # noqa: S105


def test_an_account_is_removed(site: Site, world: World) -> None:
    email = f"leaver@{site.domain}"
    site.natskit("account", "add", email, "--password-stdin", stdin=PASSWORD)
    given, deleted = (site.natskit_json("project", "create", email, title)["project_id"] for title in ("Give", "Drop"))
    refused = site.natskit("account", "remove", email, "--yes", check=False)
    assert refused.returncode == 1
    assert "owns 2 projects" in refused.stderr
    asked = site.natskit("account", "remove", email, "--delete-projects", stdin="n\n", check=False)
    assert asked.returncode == 1
    site.natskit("project", "delete", deleted, "--yes")
    gone = site.natskit_json("account", "remove", email, "--give-projects-to", world.email_b, "--yes")
    assert gone["projects"] == [given]
    assert given in {p["project_id"] for p in site.natskit_json("project", "list", "--account", world.email_b)}
    assert email not in {row["email"] for row in site.natskit_json("account", "list")}
    site.natskit("project", "delete", given, "--yes")


def test_an_account_whose_removal_failed_is_removed_again(site: LocalSite) -> None:
    """The files of one project cannot be removed at first; later they can."""
    email = f"twice@{site.domain}"
    site.natskit("account", "add", email, "--password-stdin", stdin=PASSWORD)
    stuck, deep, plain = (site.natskit_json("project", "create", email, title)["project_id"] for title in "SDP")
    deeper = "import os; [(os.mkdir('folder'), os.chdir('folder')) for _ in range(1500)]"
    site.natskit("exec", deep, "--start", "--", "python3", "-c", deeper)
    site.natskit("exec", stuck, "--start", "--", "mkdir", "mounted")
    folders = site.root / "runner" / "projects"
    with mounted(folders / stuck / "home" / "mounted"):
        failed = site.natskit("account", "remove", email, "--delete-projects", "--yes", check=False)
        assert failed.returncode == 1
        assert "mounted" in failed.stderr
        assert not (folders / deep).exists()
        assert [p["project_id"] for p in site.natskit_json("project", "list") if p["title"] in "SDP"] == [stuck]
    gone = site.natskit_json("account", "remove", email, "--delete-projects", "--yes")
    assert gone["projects"] == [stuck]
    assert not (folders / stuck).exists()
    assert email not in {row["email"] for row in site.natskit_json("account", "list")}
    assert not {stuck, deep, plain} & {p["project_id"] for p in site.natskit_json("project", "list")}
    site.natskit("account", "add", email, "--password-stdin", stdin=PASSWORD)
    site.natskit("account", "remove", email, "--yes")


def test_keys_of_projects_are_rotated(site: Site, world: World) -> None:
    agent = ["exec", world.names["p"], "--", "sh", "-c", "echo $PPID"]
    before, process = site.project_creds(world.names["p"]), site.natskit(*agent).stdout
    assert site.natskit("project", "rotate-keys", world.names["p"]).stdout == "The project has a new key.\n"
    after = site.project_creds(world.names["p"])
    assert after != before
    done = site.natskit_json("project", "rotate-keys", "--all")
    assert {row["project_id"] for row in done if row["rotated"]} >= {world.names["p"], world.names["q"]}
    assert site.project_creds(world.names["p"]) != after
    assert site.natskit(*agent).stdout == process, "it goes on"
    for old in (before, after):
        with pytest.raises((ClosedError, ConnectionError)):
            site.tcp(old)
    stopped = site.natskit_json("project", "create", world.email_a, "Stopped")["project_id"]
    assert "is not running" in site.natskit("project", "rotate-keys", stopped).stdout
    refused = site.natskit("project", "move", stopped, "--runner", "nowhere", check=False)
    assert refused.returncode == 1
    assert "there is no runner 'nowhere'" in refused.stderr
    runner = next(row for row in site.natskit_json("runner", "list") if row["runner_id"] == world.names["r"])
    assert (runner["alive"], runner["revoked"]) == (True, False)
    moved = site.natskit("project", "move", stopped, "--runner", runner["name"])
    assert moved.stdout == f"'Stopped' is on {runner['name']}.\n"
    site.natskit("project", "delete", stopped, "--yes")


def test_a_project_goes_on_without_the_key_that_a_guest_has_copied(site: Site, world: World) -> None:
    email = f"guest@{site.domain}"
    site.natskit("account", "add", email, "--password-stdin", stdin=PASSWORD)
    project = site.natskit_json("project", "create", world.email_a, "Shared")["project_id"]
    agent = ["exec", project, "--", "sh", "-c", "echo $PPID"]
    process = site.natskit("exec", project, "--start", *agent[2:]).stdout
    for lose in (["project", "unshare", project, email], ["account", "disable", email]):
        site.natskit("project", "share", project, email)
        copied = site.project_creds(project)
        site.tcp(copied).close()
        site.natskit(*lose)
        with pytest.raises((ClosedError, ConnectionError)):
            site.tcp(copied)
        assert site.natskit(*agent).stdout == process, "it goes on"
        site.tcp(site.project_creds(project)).close()
    site.natskit("project", "delete", project, "--yes")


def test_sessions_of_a_program(site: Site) -> None:
    made = site.natskit_json("account", "add", f"program@{site.domain}")

    async def work() -> None:
        async with await Client.sign_in(site.url, made["email"], made["password"], ca_file=site.ca_file) as client:
            assert client.must_change_password
            with pytest.raises(RpcError, match="change it first"):
                await client.call_hub("create_project", title="P")
            await client.call_hub("change_password", current_password=made["password"], new_password=PASSWORD)
            assert not client.must_change_password
            assert await client.call_hub("list_projects") == []
            async with await Client.sign_in(site.url, made["email"], PASSWORD, ca_file=site.ca_file) as other:
                sessions = await client.call_hub("list_sessions")
                assert sorted(s["mine"] for s in sessions) == [False, True]
                assert all(s["device"].startswith("natskit/") for s in sessions)
                theirs = next(s["session_id"] for s in sessions if not s["mine"])
                await client.call_hub("end_session", session_id=theirs)
                with pytest.raises(SignInError):
                    await other.call_hub("list_sessions")
            await client.call_hub("end_all_sessions", keep_this=True)
            assert len(await client.call_hub("list_sessions")) == 1
            await client.call_hub("end_all_sessions")
            with pytest.raises(SignInError):
                await client.call_hub("list_sessions")

    asyncio.run(work())
    site.natskit("account", "remove", made["email"], "--yes")
