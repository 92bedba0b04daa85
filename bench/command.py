"""What one waits for at a terminal: a command, and a deploy that changes nothing, each beside what its tools take."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from bench.stage import Row, Stage

BIN = Path(sys.executable).parent
STATUS_SECONDS, DEPLOY_SECONDS = 0.45, 2.2


def rows(stage: Stage) -> Iterator[Row]:
    """``natskit status`` and a deploy that changes nothing."""
    assert stage.site.deploy("--json").changes == {}
    with tempfile.TemporaryDirectory() as folder:
        empty = Path(folder) / "empty.py"
        empty.touch()
        yield _row(
            stage,
            "natskit status, against an empty Python program",
            lambda: stage.site.natskit("status"),
            [str(BIN / "python"), "-c", "pass"],
            STATUS_SECONDS,
        )
        yield _row(
            stage,
            "a deploy that changes nothing on this machine, against an empty deploy of pyinfra",
            lambda: stage.site.deploy(),
            [str(BIN / "pyinfra"), "-y", "@local", str(empty)],
            DEPLOY_SECONDS,
        )


def _row(stage: Stage, what: str, ours: Callable[[], object], floor: list[str], aim: float) -> Row:
    pairs = [(_seconds(ours), _seconds(lambda: _run(floor))) for _ in range(stage.rounds)]
    mine, bare = (statistics.median(times) for times in zip(*pairs, strict=True))
    return Row(
        "12",
        what,
        mine / bare,
        f"{mine:.2f} s against {bare:.2f} s",
        f"≤ {aim:g} s",
        mine <= aim,
        "from the start of the process to its end, with two hubs and a project that runs; in turn",
    )


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, capture_output=True)


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
