"""Everything that can be killed or cut off, and what became of it under load.

    python -m tests.cluster.failures CLUSTER

kills one after the other on a cluster that runs, and prints a table. Projects there lose what they compute.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from natskit.runner.agent_unit import unit_of
from tests.cluster.load import Load, Seen, Target, Written, running
from tests.cluster.machines import UNITS, Machines
from tests.cluster.site import docker
from tests.kit.wait import wait_for

SETTLED_SECONDS = 5.0
"""How long is looked on after all is well again: what was asked meanwhile has failed or been answered by then."""


@dataclass(frozen=True)
class Failure:
    """One failure. ``happen`` returns when the platform can recover without further help."""

    name: str
    happen: Callable[[Machines, Target, float], None]
    outlived: bool = True
    """Whether others do the same work, and it is noticed at once: then no request fails twice. What is cut off says
    nothing, and is missed only when it does not answer two pings."""


def _where(machines: Machines, target: Target, machine: str) -> str:
    """``home`` is the runner of the load's project, ``nats`` the server with most of its browsers."""
    match machine:
        case "home":
            return machines.home_of(target.project_id)
        case "nats":
            return machines.busiest()
    return machine


def _killed(machine: str, unit: str = "") -> Callable[[Machines, Target, float], None]:
    def happen(machines: Machines, target: Target, _seconds: float) -> None:
        where = _where(machines, target, machine)
        which = unit_of(target.project_id) if unit == "project" else UNITS[where]
        machines.sh(where, f"systemctl kill --kill-who=main --signal=KILL {which}")

    return happen


def _host_killed(machine: str) -> Callable[[Machines, Target, float], None]:
    def happen(machines: Machines, target: Target, seconds: float) -> None:
        where = _where(machines, target, machine)
        docker("kill", machines.container(where))
        time.sleep(seconds)
        docker("start", machines.container(where))

    return happen


def _cut_off(machine: str) -> Callable[[Machines, Target, float], None]:
    def happen(machines: Machines, target: Target, seconds: float) -> None:
        with machines.isolated(_where(machines, target, machine)):
            time.sleep(2 * seconds)

    return happen


FAILURES = [
    Failure("nats-server", _killed("nats")),
    Failure("hub", _killed("hub-1")),
    Failure("nginx", _killed("proxy-1"), outlived=False),
    Failure("runner", _killed("home")),
    Failure("project agent", _killed("home", "project")),
    Failure("host of a nats-server", _host_killed("nats")),
    Failure("host of a hub", _host_killed("hub-2")),
    Failure("host of the proxy", _host_killed("proxy-1"), outlived=False),
    Failure("host of a runner", _host_killed("home")),
    Failure("nats-server cut off by the network", _cut_off("nats"), outlived=False),
    Failure("hub cut off by the network", _cut_off("hub-1"), outlived=False),
]


@dataclass(frozen=True)
class Result:
    """The effects of a failure."""

    failure: Failure
    seen: Seen
    well_again: float
    """Seconds from the failure until every part answered; of a host, it includes the time it was kept down."""


def inflict(machines: Machines, load: Load, failure: Failure, seconds: float) -> Result:
    """Cause a failure, with hosts away for ``seconds``, and watch until everything works again."""
    machines.wait_until_ready()
    started = time.monotonic()
    failure.happen(machines, load.target, seconds)
    machines.wait_until_ready()
    machines.wait_until_replicated()
    wait_for(lambda: machines.home_of(load.target.project_id), "the project runs again", 60)
    well_again = time.monotonic() - started
    time.sleep(SETTLED_SECONDS)
    return Result(failure, load.seen(started), well_again)


def table(results: list[Result], written: Written | None) -> str:
    """A line for each failure, and the totals of all writes."""
    lines = [
        "| killed | requests | failed first | after a retry | longest gap | writes | failed first | longest gap "
        "| silence of a browser | its reconnects | output of a command | all well after |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        seen = result.seen
        lines.append(
            f"| {result.failure.name} | {seen.count('request')} | {seen.failed_first('request')} "
            f"| {seen.failed('request')} | {seen.gap('request'):.1f} s | {seen.count('write')} "
            f"| {seen.failed_first('write')} | {seen.gap('write'):.1f} s | {seen.silence:.1f} s | {seen.reconnects} "
            f"| {seen.output} | {result.well_again:.1f} s |"
        )
    if written is not None:
        reckoning = f"{written.acknowledged} acknowledged, {written.found} found, {len(written.lost)} lost"
        lines += ["", f"Writes in all: {reckoning}."]
    return "\n".join(lines)


def matrix(machines: Machines, chosen: str, seconds: float) -> Iterator[str]:
    """Cause all failures one after the other, under one load. Returns lines to print."""
    results = []
    with running(machines.target()) as load:
        time.sleep(2)
        for failure in FAILURES:
            if chosen in failure.name:
                results.append(inflict(machines, load, failure, seconds))
                yield f"{failure.name}: {results[-1].seen.reasons()}"
    yield "\n" + table(results, load.written)


if __name__ == "__main__":
    for line in matrix(Machines.named(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "", 10.0):
        print(line, flush=True)
