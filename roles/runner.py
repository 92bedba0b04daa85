"""The runner of a host: starts and stops the agents of its projects."""

from __future__ import annotations

import json
import time
from pathlib import Path

from natskit import __version__
from natskit.identity import Identity
from natskit.identity.tls import ensure_ca
from natskit.runner.program import RunnerProgram
from natskit.settings import Settings
from natskit.topology import Topology
from roles import build, service, systemd
from roles.files import checked_file, private_directory
from roles.program import Program

PROJECT_OPEN_FILES = 4096
STATE_NAME = "natskit-project"
"""Folder below systemd's own (``/var/lib``) with the projects' files, one folder each."""


def deploy(settings: Settings, site: Topology, identity: Identity) -> None:
    """Install, configure, activate."""
    directory, python = settings.platform_root / "runner", str(service.python(settings))
    private_directory(directory)
    creds, _ = identity.runner_creds(settings.runner_uuid, now=int(time.time()))
    # Read anew at each connect: other creds are no reason for a restart, which ends projects where there is no systemd.
    checked_file(name="Give the runner its creds", content=creds, path=directory / "runner.creds")
    files = [
        checked_file(
            name="Render runner.json", content=program_file(settings, site, python), path=directory / "runner.json"
        ),
    ]
    if settings.platform_tls:
        authority = identity.files.read(ensure_ca(identity.files, now=int(time.time()))).decode()
        # Projects may read it as well, which they may not in the runner's folder.
        files.append(checked_file(name="Give the runner the CA", content=authority, path=ca_file(settings), mode="644"))
    command = [python, "-m", "natskit.runner", "--settings", str(directory / "runner.json")]
    unit = {"python": python, "runner_directory": str(directory), "state_name": STATE_NAME}
    if service.uses_systemd(settings):
        _define_projects(settings, unit)
    program = Program(
        name="runner",
        # Before a hub listens, nats-server keeps whoever connects waiting for the whole nats_auth_timeout.
        command=command if service.uses_systemd(settings) else [*service.after(settings), *command],
        environment={}
        if service.uses_systemd(settings)
        else build.environment(settings, settings.runner_project_api_packages),
        priority=40,
        unit=unit,
    )
    service.run(settings, program, restart_on=files)


def _define_projects(settings: Settings, unit: dict[str, str]) -> None:
    """The unit that each project is an instance of; those that run keep what they were started with."""
    template = Program(
        name="project@",
        command=[],
        unit={
            **unit,
            "memory": settings.runner_project_memory,
            "cpu_percent": settings.runner_project_cpu,
            "tasks": settings.runner_project_processes,
            "file_bytes": settings.runner_project_file or "infinity",
            "open_files": PROJECT_OPEN_FILES,
        },
    )
    systemd.define(template, str(systemd.UNITS / "natskit-project@.service"))


def ca_file(settings: Settings) -> Path:
    """Where the runner's host has the certificate of the platform's CA."""
    return settings.platform_root / "ca.crt"


def known_runners(site: Topology, identity: Identity) -> dict[str, dict[str, str]]:
    """The runners the hubs let in, by their ids."""
    found = {}
    for settings in site.runner:
        _, public_key = identity.runner_creds(settings.runner_uuid, now=int(time.time()))
        found[settings.runner_uuid] = {"name": settings.runner_label, "public_key": public_key}
        if retiring := identity.retiring_runners.get(settings.runner_uuid):
            found[settings.runner_uuid]["retiring_key"] = retiring
    return found


def program_file(settings: Settings, site: Topology, python: str) -> str:
    """The content of ``runner.json``, checked by the runner's own model."""
    directory = settings.platform_root / "runner"
    on_systemd = service.uses_systemd(settings)
    program = RunnerProgram.model_validate(
        {
            "runner_id": settings.runner_uuid,
            "name": settings.runner_label,
            "version": __version__,
            "nats": {"urls": site.nats_urls_for(settings)}
            | ({"ca_file": ca_file(settings)} if settings.platform_tls else {}),
            "creds": directory / "runner.creds",
            "directory": directory,
            "python": python,
            "project": {
                # What systemd limits for a project as a whole need not be limited for each of its processes.
                "memory_bytes": None if on_systemd else settings.runner_project_memory,
                "max_file_bytes": settings.runner_project_file,
                "window_bytes": settings.runner_project_window,
                "api_packages": settings.runner_project_api_packages,
            }
            | ({"max_disk_bytes": settings.runner_project_disk} if on_systemd else {}),
        }
        | (
            {"manager": "systemd", "state_name": STATE_NAME, "disk_reserve_bytes": settings.runner_disk_reserve}
            if on_systemd
            else {}
        )
    )
    return json.dumps(program.model_dump(mode="json"), indent=2) + "\n"
