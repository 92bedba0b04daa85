"""Metrics of a real platform: a scraper with the token reads all of them, a real Prometheus takes them, and rules and
dashboards name none that does not exist."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from natskit.backup.record import Record
from natskit.cli.canary import STEPS
from natskit.config.render import RULES, TEMPLATES
from natskit.exporter import cgroups
from natskit.exporter.nats_server import _streams
from natskit.ops.supervisor import processes, socket_of
from tests.documents import REPOSITORY
from tests.kit.ports import free_ports
from tests.kit.wait import wait_for
from tests.platform.site import LocalSite, deployed

TOKEN = "y" * 40

BACKUP = {metric.name for metric in Record(target="", backups=1, begun=datetime.now(UTC), verified=None).metrics()}


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalSite]:
    """A platform that shows its metrics."""
    root = Path(tmp_path_factory.mktemp("watched"))
    token = root / "token"
    token.touch(mode=0o600)
    token.write_text(TOKEN)
    port = str(free_ports(3)[0])
    shown = {"metrics_token_file": str(token), "metrics_scrapers": "127.0.0.1", "metrics_port": port}
    with deployed(root / "local", **shown) as site:
        wait_for(lambda: scrape(site), "the exporter listens", 60)
        yield site


def scrape(site: LocalSite, number: int = 0, token: str = TOKEN) -> str:
    url = f"http://127.0.0.1:{int(site.data['metrics_port']) + number}/metrics"
    asked = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})
    with urllib.request.urlopen(asked, timeout=20) as answer:
        return str(answer.read().decode())


def names(text: str) -> set[str]:
    return {sample.name for family in text_string_to_metric_families(text) for sample in family.samples}


def test_a_scraper_reads_everything(watched: LocalSite) -> None:
    watched.natskit("project", "create", "admin@localhost", "Watched")
    watched.natskit("exec", "Watched", "--start", "--", "true")

    def running() -> bool:
        return 'natskit_runner_projects{state="running"} 1.0' in scrape(watched)

    wait_for(running, "the runner's file says that a project runs", 60)
    text = scrape(watched)
    assert "natskit_nats_healthy 1.0" in text
    assert 'natskit_certificate_end_seconds{port="site"}' in text
    assert "natskit_runner_connected 1.0" in text
    assert "natskit_exporter_part_up" in text
    assert not re.search(r"natskit_exporter_part_up\{.*\} 0.0", text)
    for number in (1, 2):
        assert "natskit_hub_healthy 1.0" in scrape(watched, number)
    for number in (0, 1, 2):
        with pytest.raises(urllib.error.HTTPError, match="401"):
            scrape(watched, number, "z" * 40)


def test_the_token_is_nowhere_on_the_host(watched: LocalSite) -> None:
    found = subprocess.run(["grep", "-rlF", TOKEN, watched.root], capture_output=True, text=True, check=False)
    assert found.stdout == ""


def test_a_part_that_is_down_is_seen(watched: LocalSite) -> None:
    (nats,) = [process for process in processes(socket_of(watched.root)) if process.name == "nats"]
    os.kill(nats.pid, signal.SIGSTOP)
    try:
        wait_for(lambda: "natskit_nats_healthy 0.0" in scrape(watched), "the exporter says so")
    finally:
        os.kill(nats.pid, signal.SIGCONT)
    wait_for(lambda: "natskit_nats_healthy 1.0" in scrape(watched), "it is well again")
    watched.natskit("ready")


def test_the_canary_does_what_a_user_does_and_says_which_step_fails(watched: LocalSite) -> None:
    password = watched.root.parent / "canary"
    password.touch(mode=0o600)
    password.write_text("wrong\n")
    words = ("canary", "--email", "canary@example.org", "--password-file", str(password))
    right = "correct horse battery staple"
    watched.natskit("account", "add", "canary@example.org", "--password-stdin", stdin=right)
    failed = watched.natskit(*words, check=False)
    assert (failed.returncode, failed.stderr.startswith("natskit: sign in: ")) == (1, True), failed.stderr
    assert "natskit_canary_good 0.0" in scrape(watched)

    password.write_text(right + "\n")
    seconds = watched.natskit_json(*words)["seconds"]
    assert list(seconds) == list(STEPS)
    assert watched.natskit_json("project", "list", "--account", "canary@example.org") == []
    text = scrape(watched)
    assert "natskit_canary_good 1.0" in text
    assert 'natskit_canary_step_seconds{step="start it"}' in text

    password.chmod(0o644)
    assert f"{password} can be read by others: run chmod go= {password}" in watched.natskit(*words, check=False).stderr


async def test_rules_and_dashboards_name_metrics_that_exist(watched: LocalSite) -> None:
    # Of cgroups, clusters and backups, this platform has none: their names come from what shows them. Sign-ins and the
    # canary are those of the test before.
    cluster: dict[str, Any] = {
        "account_details": [
            {
                "stream_detail": [
                    {
                        "name": "s",
                        "state": {"messages": 1, "bytes": 1},
                        "cluster": {"leader": "n", "replicas": [{"name": "r"}]},
                    }
                ]
            }
        ],
        "meta_cluster": {"leader": "n"},
    }
    shown = [*_streams([cluster], "n"), *await cgroups.collect(["x.service"])]
    there = set().union(*(names(scrape(watched, number)) for number in (0, 1, 2)))
    there |= {f"{metric.name}{suffix}" for metric in shown for suffix in ("", "_total")}
    there |= {"natskit_nats_jetstream_meta_leader", "natskit_project_disk_bytes", "up"} | BACKUP
    groups = yaml.safe_load(RULES.read_text())["groups"]
    used = set(re.findall(r"natskit_[a-z0-9_]+", " ".join(rule["expr"] for group in groups for rule in group["rules"])))
    for path in sorted((TEMPLATES / "monitoring").glob("*.json")):
        used |= set(re.findall(r"natskit_[a-z0-9_]+", json.dumps(json.loads(path.read_text())["panels"])))
    assert used - there == set()
    assert len(used) > 30


def test_promtool_reads_all_of_them(watched: LocalSite) -> None:
    subprocess.run([REPOSITORY / "scripts" / "prometheus"], check=True, capture_output=True, timeout=900)
    promtool = REPOSITORY / ".tools" / "prometheus" / "usr" / "bin" / "promtool"
    for number in (0, 1, 2):
        done = subprocess.run(
            [promtool, "check", "metrics"],
            input=scrape(watched, number),
            capture_output=True,
            text=True,
            check=False,
        )
        # 3: it has read all of them, and would have named some differently.
        assert done.returncode in (0, 3), done.stdout + done.stderr
