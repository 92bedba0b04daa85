"""The alerts that a hub sees have the names, severities and limits of Prometheus' rules, and are not told otherwise."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import yaml

from natskit.config.render import RULES
from natskit.hub.services import alerts
from natskit.hub.services.alerts import alerts as found_in
from natskit.hub.state.records import Backup

NOW = 1_800_000_000.0
LIMITS = {
    "NatskitAuditWaiting": alerts.AUDIT_WAITING,
    "NatskitStorageNearlyFull": alerts.STORAGE,
    "NatskitMemoryLow": alerts.MEMORY,
    "NatskitDiskNearlyFull": alerts.DISK,
    "NatskitBackupOld": alerts.BACKUP_OLD,
    "NatskitBackupUnverified": alerts.BACKUP_UNVERIFIED,
}
"""What each alert compares with."""


def rules() -> dict[str, dict[str, Any]]:
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return {rule["alert"]: rule for group in groups for rule in group["rules"]}


def server(**more: Any) -> dict[str, Any]:
    return {"name": "nats-1", "storage_bytes": 1, "storage_limit_bytes": 10, "has_leader": True} | more


def runner(host: dict[str, float] | None = None, **more: Any) -> dict[str, Any]:
    usual = {"memory_bytes": 100, "memory_available_bytes": 50, "disk_bytes": 100, "disk_free_bytes": 50}
    return {"name": "r", "alive": True, "revoked": False, "host": usual | (host or {})} | more


WELL: dict[str, Any] = {
    "hub": {"name": "hub-1", "problems": [], "counters": {"audit_waiting": 0}},
    "nats_servers": [server(), server(name="nats-2"), server(name="nats-3")],
    "nats_servers_expected": 3,
    "runners": [runner()],
}
GOOD_BACKUP = Backup(begun=NOW - 60, verified=NOW - 60)
ILL: dict[str, tuple[dict[str, Any], Backup | None]] = {
    "NatskitHubUnhealthy": ({"hub": WELL["hub"] | {"problems": ["not connected"]}}, GOOD_BACKUP),
    "NatskitAuditWaiting": ({"hub": WELL["hub"] | {"counters": {"audit_waiting": 1001.0}}}, GOOD_BACKUP),
    "NatskitNatsUnhealthy": ({"nats_servers": [server(), server(name="nats-2")]}, GOOD_BACKUP),
    "NatskitJetStreamWithoutLeader": ({"nats_servers": [server(has_leader=False)] * 3}, GOOD_BACKUP),
    "NatskitStorageNearlyFull": ({"nats_servers": [server(storage_bytes=9), server(), server()]}, GOOD_BACKUP),
    "NatskitRunnerSilent": ({"runners": [runner(alive=False) | {"host": None}]}, GOOD_BACKUP),
    "NatskitMemoryLow": ({"runners": [runner({"memory_available_bytes": 4})]}, GOOD_BACKUP),
    "NatskitDiskNearlyFull": ({"runners": [runner({"disk_free_bytes": 9})]}, GOOD_BACKUP),
    "NatskitBackupOld": ({}, Backup(begun=NOW - 37 * 3600, verified=NOW - 60)),
    "NatskitBackupUnverified": ({}, Backup(begun=NOW - 60)),
    "NatskitBackupUnknown": ({}, None),
}


def test_nothing_is_told_while_all_is_well() -> None:
    assert found_in(WELL, GOOD_BACKUP, NOW) == []
    revoked = WELL | {"runners": [runner(alive=False, revoked=True)]}
    assert found_in(revoked, GOOD_BACKUP, NOW) == [], "a runner that somebody revoked is not expected"
    one_knows_no_leader = WELL | {"nats_servers": [server(has_leader=False), server(), server()]}
    assert found_in(one_knows_no_leader, GOOD_BACKUP, NOW) == []


@pytest.mark.parametrize("name", ILL)
def test_each_is_told_alone_and_as_prometheus_calls_it(name: str) -> None:
    ill, backup = ILL[name]
    (told,) = found_in(WELL | ill, backup, NOW)
    assert (told["name"], told["severity"]) == (name, rules()[name]["labels"]["severity"])


@pytest.mark.parametrize("name", LIMITS)
def test_the_limits_are_those_of_the_rules(name: str) -> None:
    """The rule's expression ends with its limit, or has it in each of its halves."""
    numbers = re.findall(r"(?<![\w.])\d[\d.]*(?: \* \d+)?(?![\w.])", rules()[name]["expr"])
    assert LIMITS[name] in {math.prod(map(float, number.split(" * "))) for number in numbers}, numbers


def test_the_critical_ones_come_first() -> None:
    ill = WELL | ILL["NatskitDiskNearlyFull"][0] | ILL["NatskitNatsUnhealthy"][0]
    assert [told["severity"] for told in found_in(ill, None, NOW)] == ["critical", "warning", "warning"]
