"""The ``natskit`` command against a platform: exit codes, streams, and errors of one line."""

from __future__ import annotations

import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from tests.platform.site import Site, World

SHELL = ["sh", "-c"]


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (["true"], 0),
        ([*SHELL, "exit 7"], 7),
        ([*SHELL, "kill -TERM $$"], 143),
        (["no-such-command"], 127),
    ],
)
def test_the_exit_code_is_the_commands(site: Site, world: World, command: list[str], code: int) -> None:
    assert site.natskit("exec", world.names["p"], "--", *command, check=False).returncode == code


def test_a_timeout_is_124_and_ends_the_command(site: Site, world: World) -> None:
    mark = str(uuid.uuid4())
    line = f"sleep 600 # {mark}"
    done = site.natskit("exec", world.names["p"], "--timeout", "0.3", "--", *SHELL, line, check=False)
    assert done.returncode == 124
    left = site.natskit(
        "exec", world.names["p"], "--", *SHELL, f"grep -l {mark[:-1]}[{mark[-1]}] /proc/*/cmdline || true"
    )
    assert left.stdout == ""


def test_output_and_errors_go_where_they_belong(site: Site, world: World) -> None:
    done = site.natskit("exec", world.names["p"], "--", *SHELL, "echo out; echo err >&2")
    assert (done.stdout, done.stderr) == ("out\n", "err\n")


def test_bytes_pass_through_unchanged(site: Site, world: World) -> None:
    data = bytes(range(256)) * 20_000
    command = [str(Path(sys.executable).with_name("natskit")), "exec", world.names["p"], "--stdin", "--", "cat"]
    done = subprocess.run(
        command, cwd=site.root, env=site.environment, input=data, capture_output=True, timeout=60, check=True
    )
    assert done.stdout == data


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["exec", "no such project", "--", "true"], "there is no project 'no such project'"),
        (["project", "create", "nobody@example.org", "x"], "nobody@example.org"),
        (["account", "add", "a@example.org"], "a@example.org"),
        (["--platform", "/nonexistent", "account", "list"], "/nonexistent/platform.json"),
        (["render", "nginx.conf", "--set", "proxy_prot=1"], "did you mean proxy_port?"),
        (["render", "no.conf"], "there is no template 'no.conf'"),
    ],
)
def test_a_mistake_gets_one_clear_line(site: Site, world: World, arguments: list[str], said: str) -> None:
    assert world.email_a == "a@example.org"
    done = site.natskit(*arguments, check=False)
    assert done.returncode in {1, 2}
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_accounts_and_projects_as_a_script_sees_them(site: Site, world: World) -> None:
    emails = {row["email"]: row["account_id"] for row in site.natskit_json("account", "list")}
    assert emails[world.email_a] == world.names["a"]
    (project,) = site.natskit_json("project", "list", "--account", world.email_a)
    assert (project["project_id"], project["role"]) == (world.names["p"], "owner")


def test_status_names_every_part(site: Site, world: World) -> None:
    assert world.names
    report = site.natskit_json("status")
    assert report["state"] == "ok"
    assert {"nats", "hub-1", "hub-2", "proxy", "runner", "bus"} <= {part["name"] for part in report["parts"]}
