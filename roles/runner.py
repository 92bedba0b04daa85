"""The runner of a host: starts and stops the agents of its projects."""

from __future__ import annotations

import json
import sys
import time

from natskit import __version__
from natskit.identity import Identity
from natskit.runner.program import RunnerProgram
from natskit.settings import Settings
from roles import build, service
from roles.files import checked_file, private_directory


def deploy(settings: Settings, identity: Identity) -> None:
    """Install, configure, activate."""
    directory = settings.platform_root / "runner"
    private_directory(directory)
    creds, _ = identity.runner_creds(settings.runner_uuid, now=int(time.time()))
    files = [
        checked_file(name="Give the runner its creds", content=creds, path=str(directory / "runner.creds")),
        checked_file(name="Render runner.json", content=program_file(settings), path=str(directory / "runner.json")),
    ]
    program = service.Program(
        name="runner",
        # Before a hub listens, nats-server keeps whoever connects waiting for the whole nats_auth_timeout.
        command=[
            *service.after(f"http://127.0.0.1:{settings.hub_port}/healthz"),
            *[sys.executable, "-m", "natskit.runner", "--settings", str(directory / "runner.json")],
        ],
        environment=build.environment(settings, settings.runner_project_api_packages),
        priority=40,
    )
    service.run(settings, program, restart_on=files)


def known_runners(settings: Settings, identity: Identity) -> dict[str, dict[str, str]]:
    """The runners the hubs let in, by their ids."""
    _, public_key = identity.runner_creds(settings.runner_uuid, now=int(time.time()))
    return {settings.runner_uuid: {"name": settings.runner_name, "public_key": public_key}}


def program_file(settings: Settings) -> str:
    """The content of ``runner.json``, checked by the runner's own model."""
    directory = settings.platform_root / "runner"
    program = RunnerProgram.model_validate(
        {
            "runner_id": settings.runner_uuid,
            "name": settings.runner_name,
            "version": __version__,
            "nats": {"urls": [settings.nats_url]},
            "creds": directory / "runner.creds",
            "directory": directory,
            "python": sys.executable,
            "project": {
                "memory_bytes": settings.runner_project_memory,
                "max_processes": settings.runner_project_processes,
                "max_file_bytes": settings.runner_project_file,
                "window_bytes": settings.runner_project_window,
                "api_packages": settings.runner_project_api_packages,
            },
        }
    )
    return json.dumps(program.model_dump(mode="json"), indent=2) + "\n"
