"""Metrics in a file that the exporter of the host passes on (``natskit/exporter/written.py``), in Prometheus' text
format, for programs that have no port of their own."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Gauge:
    """One metric, and its samples by their labels."""

    name: str
    meaning: str
    samples: list[tuple[Mapping[str, str], float]] = field(default_factory=list)

    @classmethod
    def of(cls, name: str, meaning: str, value: float) -> Gauge:
        """A metric without labels."""
        return cls(name, meaning, [({}, value)])

    def add(self, value: float, **labels: str) -> None:
        """Add a sample."""
        self.samples.append((labels, value))


def text(metrics: Iterable[Gauge]) -> str:
    """The content of a file. A name that ends in ``_total`` is a counter's."""
    lines = []
    for metric in metrics:
        kind = "counter" if metric.name.endswith("_total") else "gauge"
        lines += [f"# HELP {metric.name} {metric.meaning}", f"# TYPE {metric.name} {kind}"]
        for labels, value in metric.samples:
            pairs = ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items())
            lines.append(f"{metric.name}{{{pairs}}} {value!r}" if pairs else f"{metric.name} {value!r}")
    return "\n".join(lines) + "\n"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def write(path: Path, metrics: Iterable[Gauge]) -> None:
    """Replace a file as a whole. Its folder says who may read it. Raises :class:`OSError`."""
    fd, made = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(fd, "w") as file:
            file.write(text(metrics))
        Path(made).chmod(0o644)
        Path(made).replace(path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            Path(made).unlink()
        raise
