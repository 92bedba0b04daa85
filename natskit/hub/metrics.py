"""What a hub counts, for Prometheus. The ping's fast path counts for itself and is read when asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

Numbers = Callable[[], Mapping[str, float]]

_FAST = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.05, 0.5)
_SLOW = (0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0)


class Metrics:
    """The metrics of one hub, in a registry of its own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.callouts = Counter(
            "natskit_hub_callouts", "Connections asked about, by outcome", ["result"], registry=self._registry
        )
        self.callout_seconds = Histogram(
            "natskit_hub_callout_seconds", "Time to answer a callout", buckets=_FAST, registry=self._registry
        )
        self.requests = Histogram(
            "natskit_hub_request_seconds",
            "Time to answer a request, by who asked and outcome",
            ["kind", "outcome"],
            buckets=_SLOW,
            registry=self._registry,
        )
        self.sign_ins = Counter("natskit_hub_sign_ins", "Sign-ins, by outcome", ["result"], registry=self._registry)
        self.audit = Counter(
            "natskit_hub_audit_events", "Audit events, by outcome", ["result"], registry=self._registry
        )
        self.cut = Counter("natskit_hub_connections_cut", "Connections cut", registry=self._registry)

    def watch(self, gauges: Numbers, counters: Numbers) -> None:
        """Numbers that are kept elsewhere and read when Prometheus asks."""
        self._registry.register(_Watched(gauges, counters))

    def text(self) -> bytes:
        """Everything, in Prometheus' text format."""
        return generate_latest(self._registry)


class _Watched:
    def __init__(self, gauges: Numbers, counters: Numbers) -> None:
        self._gauges, self._counters = gauges, counters

    def collect(self) -> Iterable[Metric]:
        for name, value in self._gauges().items():
            yield GaugeMetricFamily(name, name.replace("_", " "), value=value)
        for name, value in self._counters().items():
            yield CounterMetricFamily(name, name.replace("_", " "), value=value)
