"""What ``natskit doctor`` wants to know of every host, over the deploy's own connections."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import gevent
from pyinfra.api import FactBase, Host, Inventory
from pyinfra.context import ctx_host

from natskit.config.settings import Settings
from natskit.config.topology import Topology
from natskit.doctor import machine_probe
from natskit.doctor.gathered import FILE_VARIABLE
from roles.exporter import folders
from roles.preflight import HostLook, used


class MachineLook(FactBase[dict[str, Any] | None]):
    """The output of ``natskit/doctor/machine_probe.py``, run as root. A host that cannot run it fails no deploy."""

    def command(self, folders: list[str]) -> str:
        return f"python3 - {shlex.join(folders)} <<'END' || true\n{Path(machine_probe.__file__).read_text()}\nEND"

    def process(self, output: Iterable[str]) -> dict[str, Any] | None:
        found: dict[str, Any] | None = next((json.loads(line) for line in output if line.startswith("{")), None)
        return found


def look(inventory: Inventory, site: Topology, known: dict[str, Settings]) -> None:
    """Write what all hosts say of themselves into the file that the doctor named, if it did."""
    path = os.environ.get(FILE_VARIABLE)
    if not path:
        return
    hosts = list(inventory.get_active_hosts())
    there = [known[host.name] for host in hosts]
    looking = [gevent.spawn(_look, host, site, known[host.name], there) for host in hosts]
    gevent.joinall(looking)
    seen = {host.name: one.value for host, one in zip(hosts, looking, strict=True)}
    silent: dict[str, Any] = {"machine": None, "unreached": {}}
    found = [seen.get(name) or {"host": settings.platform_name, **silent} for name, settings in known.items()]
    Path(path).write_text(json.dumps(found))


def _look(host: Host, site: Topology, settings: Settings, there: list[Settings]) -> dict[str, Any]:
    uses = used(settings, site, there)
    with ctx_host.use(host):
        machine = host.get_fact(MachineLook, folders=watched(settings, site))
        reach = host.get_fact(HostLook, folder=str(settings.platform_root), places=list(uses), connect=True) or {}
    names = {place: f"{other.platform_name} at {place}" for place, other in uses.items()}
    return {
        "host": settings.platform_name,
        "machine": machine,
        "unreached": {names[place]: why for place, why in reach.get("unreached", {}).items()},
    }


def watched(settings: Settings, site: Topology) -> list[str]:
    """The folders whose file systems the doctor looks at: the exporter's, and the projects'."""
    return [*folders(settings, site), *([machine_probe.PROJECTS] if settings in site.runner else [])]
