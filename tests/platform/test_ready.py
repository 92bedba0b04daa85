"""``natskit ready`` starts a project on each runner, and removes it without a trace."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.platform.site import LocalSite, deployed

pytestmark = pytest.mark.platform


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalSite]:
    """A separate platform, which these tests break."""
    with deployed(Path(tmp_path_factory.mktemp("ready")) / "local") as site:
        yield site


def trials(site: LocalSite) -> list[dict[str, Any]]:
    """The audit's events about the projects that were made to try the runner, oldest first."""
    events = [json.loads(line) for line in site.natskit("audit", "--json").stdout.splitlines()]
    made = {event["project_id"] for event in events if event["kind"] == "runner_try"}
    return [event for event in events if event.get("project_id") in made]


def test_a_project_was_started_and_a_trace_is_in_the_audit_alone(machine: LocalSite) -> None:
    # The runner reports states on its own, the last one maybe after the deletion.
    kinds = [event["kind"] for event in trials(machine) if event["kind"] != "project_state"]
    assert kinds[0] == "runner_try"
    assert kinds[-1] == "project_delete"
    assert "start_project" in kinds
    assert machine.natskit_json("project", "list") == []
    assert list((machine.root / "runner" / "projects").iterdir()) == []
    (runner,) = machine.natskit_json("runner", "list")
    assert (runner["projects"], runner["running"]) == (0, 0)


def test_an_account_that_has_no_room_left_does_not_matter(machine: LocalSite) -> None:
    assert machine.deploy(hub_max_projects_per_account="1").returncode == 0
    machine.natskit("project", "create", "admin@localhost", "The only one")
    machine.natskit("ready")
    assert machine.deploy().returncode == 0


def test_where_no_project_starts_it_says_so_by_the_name_of_the_runner(machine: LocalSite) -> None:
    projects = machine.root / "runner" / "projects"
    aside = projects.rename(projects.with_name("aside"))
    projects.write_text("no folder")
    try:
        done = machine.natskit("ready", "--timeout", "15", check=False)
    finally:
        projects.unlink()
        aside.rename(projects)
    assert done.returncode == 1
    assert "projects do not work" in done.stderr
    assert "runner local: the project did not start: " in done.stderr
    assert "File exists" in done.stderr
    assert "Traceback" not in done.stderr
    assert "natskit is up" not in done.stdout
    assert [p["title"] for p in machine.natskit_json("project", "list")] == ["The only one"]
    machine.natskit("ready")
