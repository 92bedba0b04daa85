"""The real ``nats`` command against the platform, with contexts from exported creds."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from natskit.identity.identity import NATS_ACCOUNTS
from tests.kit.nats_tools import Tool, environment, needs
from tests.platform.site import REPOSITORY, LocalSite, World

pytestmark = needs("nats")

HUBS = {"hub-1", "hub-2"}
KEEPERS = {"keeper-1", "keeper-2"}
LISTENERS = ["tcp", "websocket"]
REFUSED = ("--timeout", "2s")
"""The command waits that long for an answer, although the server has refused its request at once."""


@pytest.fixture(scope="module")
def nats(site: LocalSite, tmp_path_factory: pytest.TempPathFactory) -> Tool:
    """The command, with a context for each kind of connection, as in docs/how-to/nats-and-nsc.md."""
    folder = tmp_path_factory.mktemp("nats")
    site.natskit("identity", "export", str(folder / "exported"))
    creds = folder / "exported" / "keys" / "creds" / "natskit"
    websocket = f"ws://127.0.0.1:{site.data['nats_websocket_port']}"
    proxy = (site.websocket_url, "--tlsca", site.ca_file)
    tool = Tool("nats", folder)
    for name, user, server in (
        ("tcp", "PLATFORM/admin", (site.info["nats_urls"][0],)),
        ("websocket", "PLATFORM/admin", (websocket,)),
        ("proxy", "PLATFORM/admin", proxy),
        ("system", "SYS/admin", (site.info["nats_urls"][0],)),
        ("state", "STATE/admin", (site.info["nats_urls"][0],)),
        ("hub", "AUTH/hub", (site.info["nats_urls"][0],)),
    ):
        context = ("--creds", str(creds / f"{user}.creds"), "--inbox-prefix", f"_INBOX.{user.partition('/')[2]}")
        tool.run("context", "save", name, "--server", *server, *context)
    return tool


def account_key(site: LocalSite, name: str) -> str:
    """The public key of a NATS account, from natskit."""
    listed = site.natskit_json("identity", "list")
    (file,) = (Path(one["file"]) for one in listed if one["name"] == f"NATS account {name}" and one["kind"] == "key")
    return file.stem


@pytest.mark.parametrize("listener", LISTENERS)
def test_micro_ls_lists_all_hubs_and_keepers(nats: Tool, listener: str) -> None:
    found = nats.json("--context", listener, "micro", "ls")
    assert {one["name"] for one in found} == {"hub", "keeper"}
    assert {one["metadata"][one["name"]] for one in found} == HUBS | KEEPERS


@pytest.mark.parametrize("listener", LISTENERS)
def test_micro_info_shows_what_a_hub_answers(nats: Tool, listener: str) -> None:
    info = nats.json("--context", listener, "micro", "info", "hub")["info"]
    subjects = {one["subject"]: one["queue_group"] for one in info["endpoints"]}
    assert subjects == dict.fromkeys(("hub.api.*", "hub.project.*", "hub.runner.*", "hub.admin"), "hub")


def test_micro_stats_counts_requests(nats: Tool, site: LocalSite) -> None:
    def requests() -> int:
        found = nats.json("--context", "tcp", "micro", "stats", "hub")
        return sum(point["num_requests"] for one in found for point in one["endpoints"] if point["name"] == "admin")

    before = requests()
    site.natskit("account", "list")
    assert requests() > before


def test_server_report_connections_shows_the_platforms_programs(world: World, nats: Tool) -> None:
    found = nats.json("--context", "system", "server", "report", "connections")
    names = {one["name"] for one in found}
    assert {f"{hub}-{what}" for hub in HUBS for what in ("platform", "services", "auth")} <= names
    assert {f"project {world.names['p']}", f"project {world.names['q']}"} <= names


def test_server_report_accounts_shows_each_nats_account(nats: Tool, site: LocalSite) -> None:
    found = {one["account"]: one for one in nats.json("--context", "system", "server", "report", "accounts")}
    assert {account_key(site, name) for name in NATS_ACCOUNTS} == set(found)
    names = {one["name"] for one in found[account_key(site, "AUTH")]["connection_info"]}
    assert names == {f"{hub}-{what}" for hub in HUBS for what in ("auth", "state")}


@pytest.mark.parametrize("report", ["jetstream", "health", "mem", "cpu"])
def test_server_reports_name_the_server(nats: Tool, report: str) -> None:
    assert "local" in nats.run("--context", "system", "server", "report", report).stdout


def test_server_report_is_refused_to_the_admin_of_the_platform(nats: Tool) -> None:
    done = nats.run("--context", "tcp", *REFUSED, "server", "report", "accounts", check=False)
    assert done.returncode == 1
    assert 'Permissions Violation for Publish to "$SYS.REQ.SERVER.PING.' in done.stderr + done.stdout


def test_the_proxy_refuses_a_client_that_is_no_browser(nats: Tool) -> None:
    """The command sends no Origin, and has no option to do so."""
    done = nats.run("--context", "proxy", "micro", "ls", check=False)
    assert done.returncode == 1
    assert "invalid websocket connection" in done.stderr


def test_without_the_inbox_prefix_nothing_is_answered(nats: Tool) -> None:
    done = nats.run("--context", "tcp", *REFUSED, "--inbox-prefix", "_INBOX", "micro", "ls", check=False)
    assert 'Permissions Violation for Subscription to "_INBOX.' in done.stderr + done.stdout
    assert "hub-1" not in done.stdout


@pytest.mark.parametrize("context", ["tcp", "state", "hub"])
def test_no_creds_of_a_deploy_delete_a_stream(nats: Tool, context: str) -> None:
    done = nats.run("--context", context, *REFUSED, "stream", "rm", "--force", "KV_accounts", check=False)
    assert done.returncode == 1
    assert 'Permissions Violation for Publish to "$JS.API.STREAM.DELETE.KV_accounts"' in done.stderr + done.stdout
    assert nats.json("--context", "state", "stream", "info", "KV_accounts")["config"]["name"] == "KV_accounts"


@needs("nsc")
def test_the_commands_of_the_how_to_guide_run(site: LocalSite, tmp_path: Path) -> None:
    """All of them in one shell, in order, like a reader."""
    page = (REPOSITORY / "docs" / "how-to" / "nats-and-nsc.md").read_text()
    script = "".join(re.findall(r"```sh\n(.*?)```", page, re.DOTALL))
    assert "nats --context" in script
    assert "natskit identity import" in script
    here = {
        "nats://127.0.0.1:4222": site.info["nats_urls"][0],
        "ws://127.0.0.1:4223": f"ws://127.0.0.1:{site.data['nats_websocket_port']}",
        "/mnt/ramdisk": str(tmp_path),
    }
    for written, meant in here.items():
        assert written in script
        script = script.replace(written, meant)
    variables = environment(tmp_path) | {"NATSKIT_PLATFORM": str(site.root)}
    variables["PATH"] = f"{Path(sys.executable).parent}:{variables['PATH']}"
    command = ["bash", "-eu", "-O", "expand_aliases", "-c", script]
    done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"
    assert "Permissions Violation" not in done.stdout + done.stderr
