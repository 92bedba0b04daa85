"""The alerts: Debian's promtool takes them, sees each fire and end, and people find what to do."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from natskit.config.render import ALERTMANAGER, RULES, TEMPLATES, prometheus_values, render
from natskit.config.settings import load
from natskit.config.topology import Topology
from natskit.identity.tls import ensure_ca
from tests.documents import REPOSITORY, pages

PROMTOOL = REPOSITORY / ".tools" / "prometheus" / "usr" / "bin" / "promtool"
AMTOOL = PROMTOOL.with_name("amtool")
TESTS = (Path(__file__).with_name("alerts.yml"), Path(__file__).with_name("slow-alerts.yml"))
RUNBOOK = "docs/how-to/respond-to-alerts.md"


@pytest.fixture(scope="module", autouse=True)
def tools() -> None:
    """Debian's Prometheus, unpacked."""
    subprocess.run([REPOSITORY / "scripts" / "prometheus"], check=True, capture_output=True, timeout=900)


def rules() -> dict[str, dict[str, Any]]:
    """Each alert by its name."""
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return {rule["alert"]: rule for group in groups for rule in group["rules"]}


def promtool(*words: str | Path) -> None:
    done = subprocess.run([PROMTOOL, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_prometheus_takes_the_rules() -> None:
    promtool("check", "rules", RULES)


@pytest.mark.parametrize("file", TESTS, ids=lambda path: path.stem)
def test_each_alert_fires_and_ends(tmp_path: Path, file: Path) -> None:
    shutil.copy(RULES, tmp_path)
    shutil.copy(file, tmp_path)
    promtool("test", "rules", tmp_path / file.name)


def test_no_alert_is_left_out() -> None:
    seen: dict[str, set[bool]] = {}
    for file in TESTS:
        for group in yaml.safe_load(file.read_text())["tests"]:
            for test in group["alert_rule_test"]:
                seen.setdefault(test["alertname"], set()).add(bool(test["exp_alerts"]))
    assert seen.pop("NatskitDeadMansSwitch") == {True}  # it never ends
    assert seen == {name: {True, False} for name in rules() if name != "NatskitDeadMansSwitch"}


def test_each_alert_has_a_runbook() -> None:
    headings = {re.sub(r"\W", "", line).lower() for line in re.findall(r"^## (.+)$", pages()[RUNBOOK], re.MULTILINE)}
    for name, rule in rules().items():
        assert rule["annotations"]["runbook_url"] == f"{RUNBOOK}#{name.lower()}"
        assert name.lower() in headings, name
        assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}


def test_the_reference_lists_them() -> None:
    rows = re.findall(r"^\| \[`(\w+)`\]\S+ \| (\w+) \| ([^|]+) \|", pages()["docs/reference/alerts.md"], re.MULTILINE)
    expected = [(name, rule["labels"]["severity"], rule.get("for", "at once")) for name, rule in rules().items()]
    assert rows == expected


@pytest.mark.parametrize("tls", [True, False])
def test_prometheus_takes_its_configuration(tmp_path: Path, tls: bool) -> None:
    token = tmp_path / "token"
    token.write_text("x" * 40)
    given: dict[str, Any] = {
        "platform_root": str(tmp_path),
        "metrics_token_file": str(token),
        "metrics_scrapers": ["127.0.0.1"],
    }
    if not tls:
        given |= {"platform_tls": False, "platform_manager": "supervisor"}
    settings = load(given, "inventory")
    site = Topology(*((settings,),) * 4)
    folder = tmp_path / "monitoring"
    folder.mkdir()
    for name in ("token", "ca.crt", RULES.name):
        (folder / name).write_text(RULES.read_text() if name == RULES.name else "x" * 40)
    path = folder / "prometheus.yml"
    path.write_text(render("prometheus.yml", prometheus_values(settings, site)))
    if tls:  # promtool also reads the CA
        authority = ensure_ca(tmp_path / "identity", now=int(time.time()))
        shutil.copy(authority, folder / "ca.crt")
    promtool("check", "config", path)
    content = yaml.safe_load(path.read_text())
    jobs = {job["job_name"]: job for job in content["scrape_configs"]}
    assert jobs["natskit-hosts"]["static_configs"][0]["targets"] == ["127.0.0.1:9464"]
    targets = [each["targets"] for each in jobs["natskit-hubs"]["static_configs"]]
    assert targets == [["127.0.0.1:9465"], ["127.0.0.1:9466"]]
    assert jobs["natskit-hubs"]["scheme"] == ("https" if tls else "http")
    assert jobs["natskit-hubs"].get("tls_config", {}).get("server_name") == ("hub.natskit" if tls else None)
    assert "x" * 40 not in path.read_text()


def test_alertmanager_takes_its_configuration() -> None:
    done = subprocess.run([AMTOOL, "check-config", ALERTMANAGER], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


DASHBOARDS = sorted((TEMPLATES / "monitoring").glob("*.json"))


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_a_dashboard_can_be_imported_and_asks_what_prometheus_understands(tmp_path: Path, path: Path) -> None:
    """What Grafana needs of a dashboard: unique ids, places that do not overlap, a data source that the reader chooses;
    and expressions that Prometheus parses."""
    board = json.loads(path.read_text())
    assert board["uid"] == path.stem
    assert [variable["name"] for variable in board["templating"]["list"]] == ["datasource"]
    panels = board["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in panels)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24
    asked = [target for panel in panels for target in panel["targets"]]
    assert {target["datasource"]["uid"] for target in asked} == {"${datasource}"}
    rules = [{"record": f"test:{number}", "expr": target["expr"]} for number, target in enumerate(asked)]
    (tmp_path / "rules.yml").write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    promtool("check", "rules", tmp_path / "rules.yml")


def test_there_are_dashboards() -> None:
    assert len(DASHBOARDS) == 3
