"""The alerts that a hub can see, under the names and with the limits of ``templates/monitoring/natskit.rules.yml``.

Prometheus sees more, and waits before it fires. A hub cannot ask it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from natskit.hub.state.records import Backup

STORAGE, MEMORY, DISK = 0.8, 0.05, 0.1
AUDIT_WAITING = 1000
BACKUP_OLD, BACKUP_UNVERIFIED = 36 * 3600, 9 * 86400

Severity = Literal["critical", "warning"]
Alert = tuple[str, Severity, str]
"""Name, severity, and what it is about."""


def alerts(found: Mapping[str, Any], backup: Backup | None, now: float) -> list[dict[str, str]]:
    """The alerts for what :class:`natskit.hub.services.overview.Overview` has found at ``now``, the critical ones
    first."""
    programs = (*_of_hub(found["hub"]), *_of_servers(found), *_of_runners(found["runners"]))
    in_order = sorted((*programs, *_of_backup(backup, now)), key=lambda one: (one[1] != "critical", one[0], one[2]))
    return [{"name": name, "severity": severity, "about": about} for name, severity, about in in_order]


def _of_hub(hub: Mapping[str, Any]) -> Iterator[Alert]:
    for problem in hub["problems"]:
        yield "NatskitHubUnhealthy", "critical", f"{hub['name']}: {problem}"
    if hub["counters"]["audit_waiting"] > AUDIT_WAITING:
        yield "NatskitAuditWaiting", "warning", f"{hub['name']} keeps {hub['counters']['audit_waiting']:.0f} events"


def _of_servers(found: Mapping[str, Any]) -> Iterator[Alert]:
    servers, expected = found["nats_servers"], found["nats_servers_expected"]
    if len(servers) < expected:
        names = ", ".join(server["name"] for server in servers) or "none"
        yield "NatskitNatsUnhealthy", "critical", f"{len(servers)} of {expected} nats-servers answer: {names}"
    if any(server["has_leader"] is False for server in servers):
        lacking = ", ".join(server["name"] for server in servers if server["has_leader"] is False)
        if not any(server["has_leader"] for server in servers):
            yield "NatskitJetStreamWithoutLeader", "critical", f"no leader is known to {lacking}"
    for server in servers:
        limit, used = server["storage_limit_bytes"], server["storage_bytes"]
        if limit and used / limit > STORAGE:
            yield "NatskitStorageNearlyFull", "warning", f"{server['name']}: {used / limit:.0%} of its streams' space"


def _of_runners(runners: list[dict[str, Any]]) -> Iterator[Alert]:
    for runner in runners:
        if not runner["alive"] and not runner["revoked"]:
            yield "NatskitRunnerSilent", "critical", f"runner {runner['name']}"
        if (host := runner["host"]) is None:
            continue
        if host["memory_available_bytes"] / host["memory_bytes"] < MEMORY:
            yield "NatskitMemoryLow", "warning", f"the host of runner {runner['name']}"
        if host["disk_free_bytes"] / host["disk_bytes"] < DISK:
            yield "NatskitDiskNearlyFull", "warning", f"the host of runner {runner['name']}"


def _of_backup(backup: Backup | None, now: float) -> Iterator[Alert]:
    if backup is None:
        yield "NatskitBackupUnknown", "warning", "no backup is known"
        return
    if now - backup.begun > BACKUP_OLD:
        yield "NatskitBackupOld", "critical", f"the last one was begun {(now - backup.begun) / 3600:.0f} hours ago"
    if now - (backup.verified or 0) > BACKUP_UNVERIFIED:
        age = f"for {(now - backup.verified) / 86400:.0f} days" if backup.verified else "ever"
        yield "NatskitBackupUnverified", "warning", f"no backup was verified {age}"
