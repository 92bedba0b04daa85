"""The runner of a host, which starts and stops the agents of its projects."""

from __future__ import annotations

import json
import time
from pathlib import Path

from pyinfra import host

from natskit import __version__
from natskit.config.render import project_values
from natskit.config.settings import Settings
from natskit.config.topology import Topology
from natskit.identity.identity import Identity
from natskit.identity.tls import ensure_ca
from natskit.runner.config import RunnerProgram
from natskit.runner.sandbox import HOMES, SHOWN
from roles import artifacts, build, exporter, service, systemd
from roles.files import checked_file, private_directory, public_directory
from roles.managed_program import Program
from roles.project_mounts import Devices


def deploy(settings: Settings, site: Topology, identity: Identity) -> None:
    """Install, configure, activate."""
    directory, python = settings.platform_root / "runner", str(service.python(settings))
    private_directory(directory)
    if service.uses_systemd(settings):
        private_directory(HOMES.parent)
        private_directory(HOMES)
        public_directory(settings.runner_shown)
    creds, _ = identity.runner_creds(settings.runner_uuid, now=int(time.time()))
    # The runner reads its creds at each connect, so new ones need no restart, which would end projects without systemd.
    checked_file(name="Give the runner its creds", content=creds, path=directory / "runner.creds")
    files = [
        checked_file(
            name="Render runner.json", content=program_file(settings, site, python), path=directory / "runner.json"
        ),
    ]
    if settings.platform_tls:
        authority = identity.files.read(ensure_ca(identity.files, now=int(time.time()))).decode()
        # Readable by all users: projects that an earlier version started, and that may still run, read it too.
        files.append(checked_file(name="Give the runner the CA", content=authority, path=ca_file(settings), mode="644"))
        if service.uses_systemd(settings):
            path = settings.runner_shown / "ca.crt"
            checked_file(name="Give projects the CA", content=authority, path=path, mode="644")
    command = [python, "-m", "natskit.runner", "--settings", str(directory / "runner.json")]
    if service.uses_systemd(settings):
        _define_projects(settings, python)
    program = Program(
        name="runner",
        # Before a hub listens, nats-server keeps every client waiting for the whole nats_auth_timeout.
        command=command if service.uses_systemd(settings) else [*service.after(settings), *command],
        environment={}
        if service.uses_systemd(settings)
        else build.environment(settings, settings.runner_project_api_packages),
        priority=40,
        unit={
            "python": python,
            "runner_directory": str(directory),
            "homes": str(HOMES),
            "metrics": str(exporter.written(settings)),
        },
    )
    service.run(settings, program, restart_on=files)


def _define_projects(settings: Settings, python: str) -> None:
    """Define the unit whose instances are the projects. Running projects keep the definition they were started with."""
    devices = host.get_fact(Devices, paths=settings.runner_project_devices) if settings.runner_project_devices else []
    values = project_values(
        settings,
        python,
        python_prefix=artifacts.target().prefix,
        devices=[device.path for device in devices],
        device_groups=sorted({device.group for device in devices} - {"root"}),
    )
    systemd.define(Program(name="project@", command=[], unit=values), str(systemd.UNITS / "natskit-project@.service"))


def ca_file(settings: Settings) -> Path:
    """The path of the platform's CA certificate on the runner's host."""
    return settings.platform_root / "ca.crt"


def known_runners(site: Topology, identity: Identity) -> dict[str, dict[str, str]]:
    """The runners that the hubs admit, by id."""
    found = {}
    for settings in site.runner:
        _, public_key = identity.runner_creds(settings.runner_uuid, now=int(time.time()))
        found[settings.runner_uuid] = {"name": settings.runner_label, "public_key": public_key}
        if retiring := identity.retiring_runners.get(settings.runner_uuid):
            found[settings.runner_uuid]["retiring_key"] = retiring
    return found


def program_file(settings: Settings, site: Topology, python: str) -> str:
    """The content of ``runner.json``, validated by the runner's own model."""
    directory = settings.platform_root / "runner"
    on_systemd = service.uses_systemd(settings)
    program = RunnerProgram.model_validate(
        {
            "runner_id": settings.runner_uuid,
            "name": settings.runner_label,
            "version": __version__,
            "nats": {"urls": site.nats_urls_for(settings)}
            | ({"ca_file": ca_file(settings)} if settings.platform_tls else {}),
            "project_nats": _project_nats(settings, site),
            "metrics_file": exporter.written(settings) / "runner.prom" if settings.metrics_token_file else None,
            "creds": directory / "runner.creds",
            "directory": directory,
            "python": python,
            "project": {
                # systemd limits the memory of a project as a whole, so its processes need no limit of their own.
                "memory_bytes": None if on_systemd else settings.runner_project_memory,
                "max_file_bytes": settings.runner_project_file,
                "window_bytes": settings.runner_project_window,
                "unattended": {
                    "max_terminals": settings.runner_project_terminals,
                    "scrollback_bytes": settings.runner_project_scrollback,
                    "recording_bytes": settings.runner_project_recording,
                    "clipboard": settings.runner_project_clipboard,
                    "max_jobs": settings.runner_project_jobs,
                    "job_output_bytes": settings.runner_project_job_output,
                    "output_rate": settings.runner_project_output_rate,
                },
                "max_documents": settings.runner_project_documents,
                "reader_patience": settings.runner_project_reader_patience,
                "api_packages": settings.runner_project_api_packages,
                "environment": settings.runner_project_environment,
            }
            | ({"max_disk_bytes": settings.runner_project_disk} if on_systemd else {}),
        }
        | ({"manager": "systemd", "disk_reserve_bytes": settings.runner_disk_reserve} if on_systemd else {})
    )
    return json.dumps(program.model_dump(mode="json"), indent=2) + "\n"


def _project_nats(settings: Settings, site: Topology) -> dict[str, object] | None:
    """The servers projects connect to. On a host, projects see the CA's certificate at another path."""
    if not settings.platform_tls or not service.uses_systemd(settings):
        return None
    return {"urls": site.nats_urls_for(settings), "ca_file": SHOWN / "ca.crt"}
