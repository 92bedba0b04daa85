"""The command by itself: what it says, how it exits, what it makes of the answers. With a platform: tests/platform."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from natskit.cli import cli, main
from natskit.cli.checks import Part, Report, compare, read_health, some_are_enough
from natskit.cli.execute import _exit_code
from natskit.cli.platform import Platform, note
from natskit.cli.project import find_project
from natskit.cli.supervisor import Process
from natskit.errors import NatskitError, SettingsError

URL = "http://127.0.0.1:8101/healthz"


def commands(group: click.Group, *above: str) -> Iterator[tuple[str, ...]]:
    """The words of every command that does something."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, *above, name)
        else:
            yield (*above, name)


@pytest.mark.parametrize("words", list(commands(cli)), ids=" ".join)
def test_every_command_explains_itself_with_an_example(words: tuple[str, ...]) -> None:
    done = CliRunner().invoke(cli, [*words, "--help"])
    assert done.exit_code == 0
    assert f"natskit {' '.join(words)}" in done.output.partition("Example")[2]


def test_help_loads_nothing_slow() -> None:
    code = "import sys, natskit.cli; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"nats", "httpx", "rich", "pydantic", "jinja2", "supervisor", "yaml", "aiohttp"} & set(loaded)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["stauts"], "Did you mean 'status'?"),
        (["exec", "P", "--strat", "--", "true"], "No such option"),
        (["exec", "P"], "Missing argument 'COMMAND...'"),
        (["exec", "P", "--env", "A", "--", "true"], "'A' is not KEY=VALUE"),
        (["exec", "P", "--timeout", "0", "--", "true"], "0"),
        (["account", "add", "a@b.c", "--password-stdin"], "standard input is empty"),
        (["account", "add", "a@b.c", "--password", "secret"], "No such option"),
        (["render", "nginx.conf", "--set", "proxy_port"], "'proxy_port' is not KEY=VALUE"),
    ],
)
def test_wrong_usage_exits_with_2(words: list[str], said: str) -> None:
    done = CliRunner().invoke(cli, words)
    assert done.exit_code == 2
    assert said in done.output


def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of ``natskit WORDS``."""
    monkeypatch.setattr(sys, "argv", ["natskit", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr()
    return int(ended.value.code or 0), said.out, said.err


@pytest.mark.parametrize("words", [["status"], ["ready"], ["account", "list"], ["exec", "P", "--", "true"]])
def test_no_platform_is_one_line_with_the_fix(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(monkeypatch, capsys, "--platform", str(tmp_path), *words)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert f"there is no {tmp_path}/platform.json: run `make up` first" in err


@pytest.mark.parametrize(
    "words", [["encrypt", "{}"], ["decrypt", "{}"], ["passphrase", "{}"], ["backup", "FILE", "--identity", "{}"]]
)
def test_a_folder_without_an_identity_is_named_and_left_alone(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NATSKIT_IDENTITY_PASSPHRASE", "correct horse battery staple")
    other = tmp_path / "other"
    other.mkdir(mode=0o700)
    (other / "id.nk").write_text("of somebody else")
    for wrong in (tmp_path / "typo", other):
        code, out, err = run(monkeypatch, capsys, "identity", *(word.format(wrong) for word in words))
        assert (code, out, err.count("\n")) == (1, "", 1)
        assert f"there is no identity in {wrong}: say where it is" in err
    assert [path.name for path in tmp_path.rglob("*")] == ["other", "id.nk"]


def test_an_audit_that_cannot_be_reached_is_said_and_stops_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    note(str(tmp_path), "identity push")
    err = capsys.readouterr().err
    assert err.startswith("not in the audit: identity push (there is no ")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nope"], "there is no template 'nope': there are nats-server.conf, natskit-hub.service"),
        (["nginx.conf", "--set", "proxy_prot=1"], "unknown setting proxy_prot: did you mean proxy_port?"),
        (["nginx.conf", "--set", "proxy_port=x"], "proxy_port = 'x'"),
        (["nginx.conf", "--settings", "/nowhere/site.yaml"], "/nowhere/site.yaml cannot be read"),
        (["nats-server.conf"], "--identity .local/identity"),
    ],
)
def test_render_names_what_is_wrong(
    words: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(monkeypatch, capsys, "render", *words)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert said in err


@pytest.mark.parametrize("text", ["proxy_port: 8443\nproxy_name: bus.example.org\n", '{"proxy_port": 8443}'])
def test_render_takes_yaml_json_and_pairs(text: str, tmp_path: Path) -> None:
    file = tmp_path / "settings"
    file.write_text(text)
    from_file = CliRunner().invoke(cli, ["render", "nginx.conf", "--settings", str(file)]).output
    assert "listen 127.0.0.1:8443" in from_file
    over_it = CliRunner().invoke(cli, ["render", "nginx.conf", "--settings", str(file), "--set", "proxy_port=9443"])
    assert "listen 127.0.0.1:9443" in over_it.output
    assert "8443" not in over_it.output


def test_a_platform_of_another_version_is_named(tmp_path: Path) -> None:
    (tmp_path / "platform.json").write_text("{}")
    with pytest.raises(SettingsError, match=r"platform\.json has no nats_urls: .* deploy again"):
        Platform.find(str(tmp_path))["nats_urls"]
    (tmp_path / "platform.json").write_text("{")
    with pytest.raises(SettingsError, match=r"cannot be read .* deploy again"):
        Platform.find(str(tmp_path))


class Hub:
    """Answers ``project_list`` with these titles; the ids are made of the positions."""

    def __init__(self, *titles: str) -> None:
        self.projects = [
            {"project_id": f"{n:08}-0000-0000-0000-000000000000", "title": title} for n, title in enumerate(titles)
        ]

    async def call_hub(self, method: str, **_: Any) -> Any:
        assert method == "project_list"
        return self.projects


async def test_a_project_is_found_by_id_or_by_a_title_of_its_own() -> None:
    hub: Any = Hub("one", "two", "two", "00000000-0000-0000-0000-000000000000")
    assert (await find_project(hub, "one"))["project_id"].startswith("00000000")
    assert (await find_project(hub, hub.projects[2]["project_id"])) is hub.projects[2]
    assert (await find_project(hub, "00000000-0000-0000-0000-000000000000"))["title"] == "one"
    with pytest.raises(NatskitError, match="2 projects are called 'two': use an id, 00000001-"):
        await find_project(hub, "two")
    with pytest.raises(NatskitError, match="there is no project 'three'"):
        await find_project(hub, "three")


@pytest.mark.parametrize(
    ("exit_code", "signal", "timed_out", "expected"),
    [(0, None, False, 0), (7, None, False, 7), (None, "SIGKILL", False, 137), (None, "SIGTERM", True, 124)],
)
def test_the_exit_code_is_the_commands(
    exit_code: int | None, signal: str | None, timed_out: bool, expected: int
) -> None:
    class Ended:
        pass

    ended: Any = Ended()
    ended.exit_code, ended.signal, ended.timed_out = exit_code, signal, timed_out
    assert _exit_code(ended) == expected


def test_one_hub_of_two_only_warns_and_is_named() -> None:
    parts = [Part("hub-1", "ok", ""), Part("hub-2", "failed", "gone"), Part("proxy", "ok", "")]
    some_are_enough(parts, ["hub-1", "hub-2"], 1)
    assert (Report(parts).state, Report(parts).summary) == ("warning", "warning: hub-2: gone")


def test_no_hub_at_all_is_a_failure() -> None:
    parts = [Part("hub-1", "failed", "gone"), Part("hub-2", "failed", "gone")]
    some_are_enough(parts, ["hub-1", "hub-2"], 1)
    assert Report(parts).state == "failed"


def test_a_part_that_answers_from_elsewhere_is_a_failure() -> None:
    parts = [Part("nats", "ok", "3 connections"), Part("runner", "ok", "local")]
    running = [Process("nats", "FATAL", 0, "Exited too quickly"), Process("runner", "RUNNING", 12, "")]
    compare(parts, running, ["nats", "runner", "proxy"])
    found = {part.name: (part.state, part.detail) for part in parts}
    assert found == {
        "nats": ("failed", "3 connections; supervisor says FATAL (Exited too quickly)"),
        "runner": ("ok", "local (pid 12)"),
        "proxy": ("failed", "supervisor does not know it: deploy again"),
    }


@pytest.mark.parametrize(
    ("name", "status", "body", "expected"),
    [
        ("hub-1", 200, {"hub": "hub-1", "version": "1"}, Part("hub-1", "ok", "healthy", "1")),
        ("proxy", 200, {"hub": "hub-1", "version": "1"}, Part("proxy", "ok", "healthy, answered by hub-1")),
        (
            "hub-1",
            503,
            {"hub": "hub-1", "version": "1", "problems": ["no NATS", "no state"]},
            Part("hub-1", "failed", "unavailable: no NATS, no state", "1"),
        ),
        ("proxy", 502, "<html>", Part("proxy", "failed", f"{URL} answers 502, and not as a hub does")),
        ("proxy", 200, [], Part("proxy", "failed", f"{URL} answers 200, and not as a hub does")),
    ],
)
def test_only_a_hub_is_taken_for_a_hub(name: str, status: int, body: Any, expected: Part) -> None:
    assert read_health(name, URL, status, body if isinstance(body, str) else json.dumps(body)) == expected


@pytest.mark.parametrize(
    ("content", "words", "said"),
    [
        ("hosts: {a: {groups: [nats]}}", [], "has several hosts: say which with --host, one of a"),
        ("proxy_port: 443", ["--host", "a"], "has no hosts to choose from (docs/render.md)"),
        ("hosts: {a: {groups: [nats, hub, proxy]}}", ["--host", "b"], "there is no host 'b': there are a"),
        ("hosts: {a: {groups: [nats]}}", ["--host", "a"], "no host is in the group hub: a platform needs one"),
        ("hosts: {a: {groups: [natz]}}", ["--host", "a"], "hosts, a: groups must be a list of some of nats, hub"),
        ("hosts: {a: {proxy_port: 443}}", ["--host", "a"], "hosts, a: groups must be a list of some of nats, hub"),
        ("hosts: [a]", ["--host", "a"], "hosts must have settings by name"),
        (
            "hosts: {a: {groups: [nats, hub, proxy], proxy_prot: 1}}",
            ["--host", "a"],
            "host a: unknown setting proxy_prot",
        ),
        (
            "hosts: {a: {groups: [nats, hub, proxy]}}",
            ["--host", "a", "--set", "proxy_prot=1"],
            "unknown setting proxy_prot",
        ),
    ],
)
def test_render_for_one_host_of_several_names_what_is_wrong(
    content: str,
    words: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "site.yaml").write_text(content)
    code, out, err = run(monkeypatch, capsys, "render", "nginx.conf", "--settings", str(tmp_path / "site.yaml"), *words)
    assert (code, out) == (1, "")
    assert said in err
