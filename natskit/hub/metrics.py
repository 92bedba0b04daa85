"""The metrics of a hub, for Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric

Numbers = Callable[[], Mapping[str, float]]

_FAST = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.05, 0.5)
_SLOW = (0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0)


class Metrics:
    """The metrics of one hub, in a registry of its own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.callouts = Counter(
            "natskit_hub_callouts", "Auth callouts, by outcome", ["result"], registry=self._registry
        )
        self.callout_seconds = Histogram(
            "natskit_hub_callout_seconds", "Time to answer a callout", buckets=_FAST, registry=self._registry
        )
        self._requests = Histogram(
            "natskit_hub_request_seconds",
            "Time to answer a request, by kind of caller and outcome",
            ["kind", "outcome"],
            buckets=_SLOW,
            registry=self._registry,
        )
        self.refused_requests = Counter(
            "natskit_hub_refused_requests",
            "Requests that the hub refused before reading them (over its caller's share, too large), by kind of caller",
            ["kind"],
            registry=self._registry,
        )
        """``_enter`` in ``natskit/hub/api/dispatch.py`` counts them."""
        self.file_bytes = Counter(
            "natskit_hub_file_bytes", "Bytes of files passed on over HTTP, up or down", ["way"], registry=self._registry
        )
        self.sign_ins = Counter("natskit_hub_sign_ins", "Sign-ins, by outcome", ["result"], registry=self._registry)
        self.audit = Counter(
            "natskit_hub_audit_events", "Audit events, by outcome", ["result"], registry=self._registry
        )
        self.disconnected = Counter(
            "natskit_hub_connections_cut", "Connections that the hub ended", registry=self._registry
        )

        self._outcomes: dict[tuple[str, str], Histogram] = {}
        """The parts of the histogram of requests: to look them up by their labels costs as much as to count."""

    def request(self, kind: str, outcome: str, seconds: float) -> None:
        """A request of this kind of caller was answered."""
        found = self._outcomes.get((kind, outcome))
        if found is None:
            found = self._outcomes[kind, outcome] = self._requests.labels(kind, outcome)
        found.observe(seconds)

    def numbers(self) -> dict[str, float]:
        """What has happened since the hub was started, and the events of the audit that wait, for people."""
        counted = {
            (sample.name, *sample.labels.values()): sample.value
            for metric in self._registry.collect()
            for sample in metric.samples
        }

        def total(name: str, *only: str) -> float:
            values = ((labels, value) for (found, *labels), value in counted.items() if found == name)
            return sum(value for labels, value in values if not only or labels[0] in only)

        return {
            "callouts": total("natskit_hub_callouts_total", "granted"),
            "callouts_refused": total("natskit_hub_callouts_total", "refused", "malformed"),
            "callouts_shed": total("natskit_hub_callouts_total", "shed"),
            "callout_seconds": total("natskit_hub_callout_seconds_sum"),
            "callouts_answered": total("natskit_hub_callout_seconds_count"),
            "requests": total("natskit_hub_request_seconds_count"),
            "requests_refused": total("natskit_hub_refused_requests_total"),
            "sign_ins": total("natskit_hub_sign_ins_total", "ok"),
            "sign_ins_refused": total("natskit_hub_sign_ins_total", "refused"),
            "audit_waiting": total("natskit_hub_audit_waiting"),
        }

    def watch(self, gauges: Numbers) -> None:
        """Read these numbers, which are kept elsewhere, whenever Prometheus asks."""
        self._registry.register(_Watched(gauges))

    def text(self) -> bytes:
        """Everything, in Prometheus' text format."""
        return generate_latest(self._registry)


class _Watched:
    def __init__(self, gauges: Numbers) -> None:
        self._gauges = gauges

    def collect(self) -> Iterable[Metric]:
        for name, value in self._gauges().items():
            yield GaugeMetricFamily(name, name.replace("_", " "), value=value)
