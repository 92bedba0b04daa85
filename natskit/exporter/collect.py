"""Everything that an exporter shows, gathered whenever it is asked."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric

from natskit.errors import NatskitError
from natskit.exporter import cgroups, machine, nats_server, written
from natskit.exporter.certificates import Certificates
from natskit.exporter.config import ExporterProgram

log = logging.getLogger(__name__)

Families = Iterable[Metric]
Collect = Callable[[], Awaitable[Families]]

SECONDS = 4.0
"""The most that one part may take: a scrape is over after ten seconds."""


class Exporter:
    """The metrics of one host."""

    def __init__(self, program: ExporterProgram) -> None:
        self._parts: dict[str, Collect] = {"machine": machine.Machine(program.folders).collect}
        if program.units:
            self._parts["cgroups"] = lambda: cgroups.collect(program.units)
        if monitor := program.nats_monitor:
            self._parts["nats-server"] = lambda: nats_server.collect(monitor, program.nats_accounts)
        if program.shown:
            self._parts["certificates"] = Certificates(program.shown).collect
        self._written = program.written
        self._failing: set[str] = set()

    async def text(self) -> bytes:
        """Everything, in Prometheus' text format. A part that fails is missing, and ``natskit_exporter_part_up`` says
        so."""
        done = await asyncio.gather(*(self._collect(name, collect) for name, collect in self._parts.items()))
        up = GaugeMetricFamily(
            "natskit_exporter_part_up", "Whether this part of the host's metrics could be read", labels=["part"]
        )
        seconds = GaugeMetricFamily("natskit_exporter_part_seconds", "Time to read a part", labels=["part"])
        families: list[Metric] = [up, seconds]
        for name, (found, took) in zip(self._parts, done, strict=True):
            up.add_metric([name], float(found is not None))
            seconds.add_metric([name], took)
            families += found or ()
        registry = CollectorRegistry()
        registry.register(_Read(families))
        return generate_latest(registry) + written.read(self._written)

    async def _collect(self, name: str, collect: Collect) -> tuple[list[Metric] | None, float]:
        began = time.monotonic()
        try:
            found: list[Metric] | None = list(await asyncio.wait_for(collect(), SECONDS))
            self._failing.discard(name)
        except (NatskitError, OSError, TimeoutError, ValueError, KeyError) as error:
            found = None
            if name not in self._failing:  # once, not at each scrape
                log.warning("%s cannot be read: %s", name, error or type(error).__name__)
            self._failing.add(name)
        return found, time.monotonic() - began


class _Read:
    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        yield from self._families
