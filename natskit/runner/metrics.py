"""What a runner says of itself and of its projects to Prometheus, by a file that the host's exporter passes on."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Collection
from pathlib import Path
from typing import get_args

from natskit.process.metrics_file import Gauge, write
from natskit.runner.disk import Disk
from natskit.runner.project_agent import ProjectAgent, State

log = logging.getLogger(__name__)

SECONDS = 10.0


async def keep_written(
    path: Path, projects: Callable[[], Collection[ProjectAgent]], disk: Disk, is_connected: Callable[[], bool]
) -> None:
    """Write the file again and again, until cancelled."""
    failing = False
    while True:
        try:
            write(path, metrics(projects(), disk, is_connected(), time.time()))
            failing = False
        except OSError as error:
            if not failing:
                log.warning("%s: %s", path, error.strerror)
            failing = True
        await asyncio.sleep(SECONDS)


def metrics(projects: Collection[ProjectAgent], disk: Disk, is_connected: bool, now: float) -> list[Gauge]:
    """The metrics at ``now``, in Unix seconds."""
    states = Counter(project.state for project in projects)
    by_state = Gauge("natskit_runner_projects", "Projects of the runner, by state")
    for state in get_args(State):
        by_state.add(float(states[state]), state=state)
    ended = Gauge("natskit_project_unexpected_ends_total", "How often a project ended that should have run")
    held = Gauge("natskit_project_held", "Whether the runner has stopped a project, for its disk usage")
    size = Gauge("natskit_project_disk_bytes", "Disk usage of a project at its last measurement")
    for project in projects:
        ended.add(float(project.unexpected_ends), project_id=project.project_id)
        held.add(float(project.held), project_id=project.project_id)
        if (measured := disk.size(project.project_id)) is not None:
            size.add(float(measured), project_id=project.project_id)
    return [
        Gauge.of("natskit_runner_connected", "Whether the runner is connected to a nats-server", float(is_connected)),
        Gauge.of("natskit_runner_written_seconds", "When the runner has last said this, in Unix seconds", now),
        by_state,
        ended,
        held,
        size,
    ]
