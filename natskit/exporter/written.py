"""Metrics that other programs leave in files ``*.prom``: the runner, the deploy, backups and the canary.

The format is that of Prometheus, as for node_exporter's textfile collector. A program replaces its file as a whole.
"""

from __future__ import annotations

from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

LARGEST = 4 * 1024 * 1024
"""Bytes of one file."""


def read(folder: Path) -> bytes:
    """The content of all files that Prometheus can read; others are left out, and a metric counts them."""
    texts, bad = [], 0
    for path in sorted(folder.glob("*.prom")):
        try:
            text = path.read_bytes()[:LARGEST].decode()
            for _ in text_string_to_metric_families(text):
                pass
            texts.append(text if text.endswith("\n") else f"{text}\n")
        except (OSError, ValueError):
            bad += 1
    head = "# HELP natskit_exporter_unreadable_files Files of other programs' metrics that cannot be read\n"
    head += f"# TYPE natskit_exporter_unreadable_files gauge\nnatskit_exporter_unreadable_files {bad}\n"
    return (head + "".join(texts)).encode()
