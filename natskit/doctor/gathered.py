"""What the hosts of a platform said of themselves in the doctor's dry run of a deploy."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from natskit.doctor import machine
from natskit.doctor.finding import Finding

FILE_VARIABLE = "NATSKIT_DOCTOR_FILE"
"""The environment variable by which the doctor tells its dry run where to write what hosts say."""


def findings(path: Path, known: set[str] | None) -> Iterator[Finding]:
    """What is wrong with the hosts. ``known`` are the projects that hubs know, if a hub answers.

    Without the file there is nothing: a dry run that ends before it asks the hosts is a finding of its own.
    """
    records: list[dict[str, Any]] = json.loads(path.read_text() or "[]")
    for record in records:
        if record["machine"] is None:
            yield Finding(
                "soon",
                f"{record['host']} says nothing about itself",
                "it does not answer over SSH, or it cannot run the doctor's program, which needs Python 3.8",
                f"log in to {record['host']} as a deploy does, and there: python3 --version; df",
            )
        else:
            yield from machine.findings(record["machine"], record["host"], known)
        yield from machine.unreached(record["host"], record["unreached"])
