"""A few counters and gauges in Prometheus' text format."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

_Key = tuple[str, tuple[tuple[str, str], ...]]


class Metrics:
    """Counters, and sums with a count (``_sum``, ``_count``)."""

    def __init__(self) -> None:
        self._values: dict[_Key, float] = defaultdict(float)

    def count(self, name: str, **labels: str) -> None:
        """Add one to a counter."""
        self._values[name, tuple(labels.items())] += 1

    def observe(self, name: str, value: float, **labels: str) -> None:
        """Add a measurement."""
        key = tuple(labels.items())
        self._values[f"{name}_sum", key] += value
        self._values[f"{name}_count", key] += 1

    def text(self, gauges: Mapping[str, float]) -> str:
        """Everything, with ``gauges`` of this moment."""
        lines: list[str] = []
        typed: set[str] = set()
        rows = [(key, value, "counter") for key, value in sorted(self._values.items())]
        rows += [((name, ()), value, "gauge") for name, value in gauges.items()]
        for (name, labels), value, kind in rows:
            if name not in typed:
                typed.add(name)
                lines.append(f"# TYPE {name} {kind}")
            inner = ",".join(f'{k}="{v}"' for k, v in labels)
            lines.append(f"{name}{{{inner}}} {value:g}" if inner else f"{name} {value:g}")
        return "\n".join(lines) + "\n"
