"""Prometheus and Alertmanager of Debian on the hosts of the group monitoring, with natskit's rules.

Both listen on loopback alone. Debian's own units stay off: natskit's know the folder, the ports and a sandbox.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from pathlib import Path

from pyinfra import host
from pyinfra.api import StringCommand, operation
from pyinfra.facts.files import Link
from pyinfra.operations import apt
from pyinfra.operations import files as pyinfra_files

from natskit.config import referenced_files
from natskit.config.render import ALERTMANAGER, RULES, prometheus_values, render
from natskit.config.settings import Settings
from natskit.config.topology import Topology
from natskit.identity.identity import Identity
from natskit.identity.tls import ensure_ca
from roles import service
from roles.files import WrittenFile, checked_file, private_directory
from roles.managed_program import Program
from roles.systemd import UNITS

PACKAGES = ["prometheus", "prometheus-alertmanager"]
PROGRAMS = ("prometheus", "alertmanager")
FILES = ("token", "natskit.rules.yml", "ca.crt", "prometheus.yml", "alertmanager.yml")
"""In the folder, beside one with the data of each program."""


def deploy(settings: Settings, site: Topology, identity: Identity) -> None:
    """Install, configure, activate."""
    # Before they are installed: Debian would start them, on ports of its own choice.
    for package in PACKAGES:
        _masked(name=f"Keep Debian's own unit of {package} off", unit=f"{package}.service")
    apt.packages(name="Install Prometheus and Alertmanager", packages=PACKAGES, no_recommends=True)
    directory, owner = settings.platform_root / "monitoring", service.owner(settings, "monitoring")
    for folder in (directory, directory / "prometheus", directory / "alertmanager"):
        private_directory(folder, owner)
    _prometheus(settings, directory, owner, _files(settings, site, identity, directory, owner))
    _alertmanager(settings, directory, owner)


def retire(settings: Settings) -> None:
    """End what a host runs that was in the group: it would still have the token, and tell of alerts twice.

    What they have recorded stays, and so do Debian's packages, whose own units stay off.
    """
    if not service.uses_systemd(settings):
        return
    for name in PROGRAMS:
        service.retire(settings, prefix=name, keep=[])
    for file in FILES:
        path = settings.platform_root / "monitoring" / file
        pyinfra_files.file(name=f"Leave no {file} of the group monitoring", path=str(path), present=False)


@operation()
def _masked(unit: str) -> Generator[StringCommand, None, None]:
    """Mask a unit (systemctl(1)), also one that does not exist yet."""
    found = host.get_fact(Link, path=str(UNITS / unit))
    if found and found["link_target"] == "/dev/null":
        host.noop(f"{unit} is masked")
        return
    yield StringCommand(f"systemctl stop {unit} 2>/dev/null; systemctl mask --quiet {unit}")


def _files(settings: Settings, site: Topology, identity: Identity, directory: Path, owner: str) -> list[WrittenFile]:
    """What Prometheus reads beside its configuration, and its configuration, which promtool checks together with
    them."""
    contents = {"token": referenced_files.metrics_token(settings) + "\n", "natskit.rules.yml": RULES.read_text()}
    if settings.platform_tls:
        contents["ca.crt"] = identity.files.read(ensure_ca(identity.files, now=int(time.time()))).decode()
    found = [
        checked_file(name=f"Give Prometheus {name}", content=content, path=directory / name, owner=owner)
        for name, content in contents.items()
    ]
    configuration = checked_file(
        name="Render prometheus.yml",
        content=render("prometheus.yml", prometheus_values(settings, site)),
        path=directory / "prometheus.yml",
        owner=owner,
        check=["/usr/bin/promtool", "check", "config", "{}"],
        explain="natskit made it from the settings of the inventory: docs/how-to/monitor.md",
    )
    return [*found, configuration]


def _prometheus(settings: Settings, directory: Path, owner: str, files: list[WrittenFile]) -> None:
    command = [
        "/usr/bin/prometheus",
        f"--config.file={directory}/prometheus.yml",
        f"--storage.tsdb.path={directory}/prometheus",
        f"--storage.tsdb.retention.time={settings.monitoring_retention}d",
        f"--web.listen-address=127.0.0.1:{settings.monitoring_port}",
    ]
    _run(settings, "prometheus", command, directory, owner, settings.monitoring_port, files)


def _alertmanager(settings: Settings, directory: Path, owner: str) -> None:
    configuration = checked_file(
        name="Render alertmanager.yml",
        content=referenced_files.alertmanager(settings) or ALERTMANAGER.read_text(),
        path=directory / "alertmanager.yml",
        owner=owner,
        check=["/usr/bin/amtool", "check-config", "{}"],
        explain="the setting monitoring_alertmanager_file names the file on the control machine",
    )
    command = [
        "/usr/bin/prometheus-alertmanager",
        f"--config.file={directory}/alertmanager.yml",
        f"--storage.path={directory}/alertmanager",
        f"--web.listen-address=127.0.0.1:{settings.monitoring_alertmanager_port}",
        "--cluster.listen-address=",  # it is alone
    ]
    port = settings.monitoring_alertmanager_port
    _run(settings, "alertmanager", command, directory, owner, port, [configuration])


def _run(
    settings: Settings,
    name: str,
    command: list[str],
    directory: Path,
    owner: str,
    port: int,
    files: list[WrittenFile],
) -> None:
    wait = [
        str(service.python(settings)),
        "-m",
        "natskit.ops.health_wait",
        "--not-a-hub",
        f"http://127.0.0.1:{port}/-/ready",
    ]
    program = Program(
        name=name,
        command=command,
        healthy=[*wait, service.HEALTHY_SECONDS],
        unit={"user": owner, "directory": str(directory)},
    )
    service.run(settings, program, reload_on=files)
