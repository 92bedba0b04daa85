"""The command alone: its output, exit codes and handling of answers. tests/platform tests it with a platform."""

from __future__ import annotations

import fcntl
import json
import os
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from natskit.cli import cli, main
from natskit.cli.audit import called
from natskit.cli.checks import Part, Report, blame_proxy, compare, read_health, read_runner, some_are_enough
from natskit.cli.execute import exit_code as code_of
from natskit.cli.platform import Platform, note, show_table
from natskit.cli.project import find_project
from natskit.errors import NatskitError, SettingsError
from natskit.ops.supervisor import Process
from natskit.process.signals import signal_name, signal_number
from tests.kit.wait import wait_for

URL = "http://127.0.0.1:8101/healthz"


def commands(group: click.Group, *above: str) -> Iterator[tuple[str, ...]]:
    """The words of every command that is not a group."""
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
    slow = {"nats", "httpx", "rich", "pydantic", "jinja2", "supervisor", "yaml", "aiohttp", "importlib.metadata"}
    assert not slow & set(loaded)


@pytest.mark.parametrize("module", ["natskit.cli.checks", "natskit.ops.reload", "natskit.ops.restart_gate"])
def test_httpx_comes_without_its_command_line(module: str) -> None:
    code = f"import sys, {module}, httpx; print(*sys.modules); httpx.Client().close()"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "httpx" in loaded
    assert not {"httpx._main", "rich", "pygments"} & set(loaded)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["stauts"], "Did you mean one of: 'state', 'status'?"),
        (["exec", "P", "--strat", "--", "true"], "No such option"),
        (["exec", "P"], "Missing argument 'COMMAND...'"),
        (["exec", "P", "--env", "A", "--", "true"], "'A' must have the form KEY=VALUE"),
        (["exec", "P", "--timeout", "0", "--", "true"], "0"),
        (["account", "add", "a@b.c", "--password-stdin"], "standard input is empty"),
        (["account", "add", "a@b.c", "--password", "secret"], "No such option"),
        (["render", "nginx.conf", "--set", "proxy_port"], "'proxy_port' must have the form KEY=VALUE"),
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
    assert f"there is no {tmp_path}/platform.json: run `make up` or `natskit deploy` first" in err


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
        assert f"there is no identity in {wrong}: correct the path" in err
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
        (["nope"], "there is no template 'nope': use one of nats-server.conf, natskit-alertmanager.service"),
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
    with pytest.raises(SettingsError, match=r"platform\.json has no identity: .* deploy again"):
        Platform.find(str(tmp_path))["nats_urls"]
    (tmp_path / "platform.json").write_text("{")
    with pytest.raises(SettingsError, match=r"cannot be read .* deploy again"):
        Platform.find(str(tmp_path))


class Hub:
    """Answers ``project_list`` with projects of these titles. Their ids are their positions."""

    def __init__(self, *titles: str) -> None:
        self.projects = [
            {"project_id": f"{n:08}-0000-0000-0000-000000000000", "title": title} for n, title in enumerate(titles)
        ]

    async def list_hub(self, method: str, **_: Any) -> Any:
        assert method == "project_list"
        return self.projects


async def test_a_project_is_found_by_id_or_by_a_title_of_its_own() -> None:
    hub: Any = Hub("one", "two", "two", "00000000-0000-0000-0000-000000000000")
    assert (await find_project(hub, "one"))["project_id"].startswith("00000000")
    assert (await find_project(hub, hub.projects[2]["project_id"])) is hub.projects[2]
    assert (await find_project(hub, "00000000-0000-0000-0000-000000000000"))["title"] == "one"
    with pytest.raises(NatskitError, match="2 projects have the title 'two': use an id, such as 00000001-"):
        await find_project(hub, "two")
    with pytest.raises(NatskitError, match="there is no project 'three'"):
        await find_project(hub, "three")


async def test_a_project_is_found_by_what_one_sees() -> None:
    hub: Any = Hub("Cafe\u0301", "Demo", "D\u0435mo", "hidden\u200b")
    assert (await find_project(hub, "Caf\u00e9"))["project_id"].startswith("00000000")
    assert (await find_project(hub, "hidden"))["project_id"].startswith("00000003")
    with pytest.raises(NatskitError, match="2 projects have titles that look like 'Demo': use an id"):
        await find_project(hub, "Demo")


def test_an_account_of_the_audit_is_found_by_what_one_sees() -> None:
    names = {"id-1": "Jos\u00e9@b\u00fccher.example", "id-2": "jose@example.org"}
    for typed in ("jose\u0301@b\u00fccher.example", "JOS\u00c9@xn--bcher-kva.example"):
        assert "id-1" in called(typed, names)
        assert "id-2" not in called(typed, names)
    assert called("ID-2", names) >= {"id-2"}


def test_a_table_shows_what_cannot_be_seen(capsys: pytest.CaptureFixture[str]) -> None:
    show_table(["e-mail"], [["ada\u200b@example.org"], ["jos\u00e9@example.org"], ["\x1b[31m"]], "none")
    out = capsys.readouterr().out
    assert "ada\\u200b@example.org" in out
    assert "jos\u00e9@example.org" in out
    assert "\x1b" not in out


@pytest.mark.parametrize(
    ("exit_code", "number", "timed_out", "expected"),
    [(0, None, False, 0), (7, None, False, 7), (None, 9, False, 137), (None, 35, False, 163), (None, 15, True, 124)],
)
def test_the_exit_code_is_the_commands(
    exit_code: int | None, number: int | None, timed_out: bool, expected: int
) -> None:
    class Ended:
        pass

    ended: Any = Ended()
    ended.exit_code, ended.signal_number, ended.timed_out = exit_code, number, timed_out
    ended.signal = signal_name(number) if number is not None else None
    assert code_of(ended) == expected


@pytest.mark.parametrize("number", range(1, 65))
def test_every_signal_has_a_name_that_leads_back_to_its_number(number: int) -> None:
    assert signal_number(signal_name(number)) == number


def test_what_is_no_signal_has_no_number() -> None:
    assert signal_number("SIGNOTHING") is None
    assert signal_number("") is None


NATSKIT = str(Path(sys.executable).with_name("natskit"))
LONG = [NATSKIT, "render", "nginx.conf", "--set", "proxy_name=bus.example.org", "--set", "platform_root=/srv/natskit"]
"""More than a page of output (``click.echo``)."""


def test_output_that_cannot_be_written_at_once_arrives_whole() -> None:
    """Another program made the pipe non-blocking, as node and ssh do with theirs."""
    expected = subprocess.run(LONG, capture_output=True, check=True).stdout
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    assert len(expected) > 4096
    with open(reading, "rb") as reader:
        process = subprocess.Popen(LONG, stdout=writing, stderr=subprocess.PIPE)
        os.close(writing)
        wait_for(lambda: fcntl.ioctl(reader, termios.FIONREAD, b"\0" * 4) == struct.pack("i", 4096), "the pipe is full")
        assert reader.read() == expected
    assert process.communicate()[1] == b""
    assert process.returncode == 0


@pytest.mark.parametrize("words", [LONG, [NATSKIT, "--help"], [NATSKIT, "--version"], [NATSKIT, "render", "--list"]])
def test_a_reader_that_has_gone_ends_the_command_quietly(words: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(words, stdout=writing, stderr=subprocess.PIPE, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (128 + 13, b"")


@pytest.mark.parametrize("words", [LONG, [NATSKIT, "--help"], [NATSKIT, "--version"]])
def test_a_full_disk_is_one_line(words: list[str]) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 1
    assert done.stderr == b"natskit: standard output cannot be written: No space left on device\n"


def test_a_closed_output_is_one_line_and_gets_into_no_other_file() -> None:
    done = subprocess.run(["sh", "-c", '"$@" >&-', "sh", *LONG], stderr=subprocess.PIPE, check=False)
    assert done.returncode == 1
    assert done.stderr == b"natskit: standard output cannot be written: Bad file descriptor\n"


@pytest.mark.parametrize("redirect", ["2>/dev/full", "2>&-"])
def test_errors_that_cannot_be_said_are_still_errors(redirect: str) -> None:
    line = f'"$@" {redirect}'
    done = subprocess.run(["sh", "-c", line, "sh", NATSKIT, "stauts"], stdout=subprocess.PIPE, check=False)
    assert (done.returncode, done.stdout) == (2, b"")


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
    ("running", "failed", "state"), [(0, 0, "ok"), (3, 0, "ok"), (3, 1, "ok"), (0, 1, "warning"), (0, 4, "warning")]
)
def test_a_runner_on_which_no_project_runs_that_should_is_warned_of(running: int, failed: int, state: str) -> None:
    reason = "the agent ended (exit code 1)"
    row = {"name": "local", "alive": True, "version": "1", "heartbeat_age": 2.0, "running": running}
    part = read_runner(row | {"failed": failed, "failed_detail": reason if failed else ""})
    assert part.state == state
    assert (f"{failed} that should run failed, one because: {reason}" in part.detail) == (failed > 0)
    # Nothing to wait for: it does not get well by that.
    assert Report([part]).is_ready


def test_the_proxy_is_blamed_for_what_works_and_it_does_not_reach() -> None:
    parts = [Part("hub-1", "ok", ""), Part("hub-2", "ok", ""), Part("hub-3", "failed", ""), Part("proxy", "ok", "well")]
    blame_proxy(parts, {"hub-2": "no answer in time", "hub-3": "connection refused"})
    assert parts[-1] == Part("proxy", "warning", "well; does not reach hub-2, which works: no answer in time")
    assert not Report(parts).is_ready


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
        ("proxy", 502, "<html>", Part("proxy", "failed", f"{URL} answers 502, and the answer is not a hub's")),
        ("proxy", 200, [], Part("proxy", "failed", f"{URL} answers 200, and the answer is not a hub's")),
    ],
)
def test_only_a_hub_is_taken_for_a_hub(name: str, status: int, body: Any, expected: Part) -> None:
    assert read_health(name, URL, status, body if isinstance(body, str) else json.dumps(body)) == expected


@pytest.mark.parametrize(
    ("content", "words", "said"),
    [
        ("hosts: {a: {groups: [nats]}}", [], "has several hosts: choose one with --host: a"),
        ("proxy_port: 443", ["--host", "a"], "lists no hosts (docs/how-to/render.md)"),
        ("hosts: {a: {groups: [nats, hub, proxy]}}", ["--host", "b"], "there is no host 'b': use one of a"),
        ("hosts: {a: {groups: [nats]}}", ["--host", "a"], "the group hub has no host: add at least one"),
        (
            "hosts: {a: {groups: [natz]}}",
            ["--host", "a"],
            "hosts, a: groups must be a list with one or more of nats, hub",
        ),
        (
            "hosts: {a: {proxy_port: 443}}",
            ["--host", "a"],
            "hosts, a: groups must be a list with one or more of nats, hub",
        ),
        ("hosts: [a]", ["--host", "a"], "hosts must be a mapping of names to settings"),
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
