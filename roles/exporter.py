"""The exporter of a host: what Prometheus may read of it. Without a token there is none."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from pyinfra.operations import files as pyinfra_files

from natskit.config import referenced_files
from natskit.config.settings import Settings
from natskit.config.topology import Topology
from natskit.exporter.config import ExporterProgram
from natskit.identity import report
from natskit.identity.identity import Identity
from natskit.ops.stream_provisioning import WITH_STREAMS
from natskit.process.metrics_file import Gauge, text
from roles import build, service, tls
from roles.files import checked_file, private_directory
from roles.managed_program import Program

NAME = "exporter"


def prepare(settings: Settings) -> None:
    """Make the folder in which other programs leave metrics. systemd shows it to the runner only if it exists when the
    runner starts."""
    if settings.metrics_token_file is None:
        return
    path, owner = written(settings), service.owner(settings, NAME)
    if owner:  # the ids of projects concern nobody else on the host
        pyinfra_files.directory(name=f"Make folder {path}", path=str(path), mode="750", user="root", group=owner)
    else:
        private_directory(path)


def deploy(settings: Settings, site: Topology, identity: Identity) -> None:
    """Install, configure, activate; or remove it."""
    service.retire(settings, prefix=NAME, keep=[NAME] if settings.metrics_token_file else [])
    if settings.metrics_token_file is None:
        return
    directory, owner = settings.platform_root / NAME, service.owner(settings, NAME)
    python = str(service.python(settings))
    private_directory(directory, owner)
    certificate = tls.install(settings, identity, NAME, directory, owner) if settings.platform_tls else []
    if settings == site.exporter[0]:
        if settings.platform_tls:
            tls.ensure_all(site, identity)  # hosts are prepared side by side, and this tells of all
        checked_file(
            name="Tell the exporter when keys and certificates end",
            content=ends(identity, site),
            path=written(settings) / "identity.prom",
            mode="644",
        )
    configuration = checked_file(
        name="Render exporter.json",
        content=program_file(settings, site, identity),
        path=directory / "exporter.json",
        owner=owner,
    )
    program = Program(
        name=NAME,
        command=[python, "-m", "natskit.exporter", "--settings", str(directory / "exporter.json")],
        environment={} if service.uses_systemd(settings) else build.environment(settings, []),
        priority=50,
        unit={"user": owner, "directory": str(directory)},
    )
    service.run(settings, program, restart_on=[configuration], reload_on=certificate)


def written(settings: Settings) -> Path:
    """The folder in which programs of a host leave metrics for its exporter."""
    return settings.platform_root / "metrics"


def access(settings: Settings, site: Topology, number: int, tls_files: Path) -> dict[str, Any] | None:
    """Where a program shows its metrics, and to whom; ``number`` 0 is the exporter, 1 the first hub."""
    if settings.metrics_token_file is None:
        return None
    return {
        "host": settings.listen,
        "port": settings.metrics_port + number,
        "token_sha256": hashlib.sha256(referenced_files.metrics_token(settings).encode()).hexdigest(),
        "networks": site.scrapers,
        "tls": {"certificate": tls_files / "host.crt", "key": tls_files / "host.key"}
        if settings.platform_tls
        else None,
    }


def program_file(settings: Settings, site: Topology, identity: Identity) -> str:
    """The content of ``exporter.json``, validated by the exporter's own model."""
    in_nats = settings in site.nats
    program = ExporterProgram.model_validate(
        {
            "access": access(settings, site, 0, settings.platform_root / NAME / "tls"),
            "units": units(settings, site) if service.uses_systemd(settings) else [],
            "nats_monitor": f"http://127.0.0.1:{settings.nats_monitor_port}" if in_nats else None,
            "nats_accounts": [identity.account_public_key(account) for account in WITH_STREAMS] if in_nats else [],
            "shown": shown(settings, site),
            "folders": folders(settings, site),
            "written": written(settings),
        }
    )
    return json.dumps(program.model_dump(mode="json"), indent=2) + "\n"


def folders(settings: Settings, site: Topology) -> list[str]:
    """The folders whose file systems are watched: those that the exporter may get to, which has no right of its own."""
    own = [settings.nats_jetstream_directory] if settings in site.nats and settings.nats_jetstream_directory else []
    return sorted({"/", str(settings.platform_root), *own})


def units(settings: Settings, site: Topology) -> list[str]:
    """The units that should run on a host."""
    found = ["natskit-nats.service"] if settings in site.nats else []
    beside = [*settings.hub_names, *settings.keeper_names] if settings in site.hub else []
    found += [f"natskit-{name}.service" for name in beside]
    found += ["nginx.service"] if settings in site.proxy else []
    found += ["natskit-runner.service"] if settings in site.runner else []
    found += ["natskit-prometheus.service", "natskit-alertmanager.service"] if settings in site.monitoring else []
    return found


def shown(settings: Settings, site: Topology) -> list[dict[str, Any]]:
    """The ports whose certificates the exporter looks at. Hubs, and nats-server's other ports, ask for a certificate of
    their clients first; what they show is in ``identity.prom``."""
    found: list[dict[str, Any]] = []
    if settings in site.nats and settings.platform_tls:
        place = {"host": settings.nats_host or "127.0.0.1", "port": settings.nats_port}
        found.append({"name": "nats-server", "protocol": "nats", **place})
    if settings in site.proxy:
        place = {"host": settings.proxy_listen or "127.0.0.1", "port": settings.proxy_port}
        found.append({"name": "site", "server_name": settings.proxy_name, **place})
    return [{**port, "host": "127.0.0.1" if port["host"] == "0.0.0.0" else port["host"]} for port in found]


def ends(identity: Identity, site: Topology) -> str:
    """When JWTs and certificates of the identity end, as metrics."""
    ends = Gauge(
        "natskit_identity_end_seconds", "When a JWT or certificate of the control machine ends, in Unix seconds"
    )
    in_use = report.InUse(frozenset(tls.used(site)))
    for entry in report.entries(identity.directory, in_use):
        # The exporter looks at what is served. Nobody renews the certificates of hosts that are gone.
        if entry.expires is not None and entry.problem != "left over" and entry.file != "tls/proxy.crt":
            ends.add(float(entry.expires), kind=entry.kind, name=entry.name, file=entry.file)
    deployed = Gauge.of("natskit_identity_entries", "JWTs and certificates that end", float(len(ends.samples)))
    return text([ends, deployed])
