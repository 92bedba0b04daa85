"""Coming back to a terminal shows the live screen also in xterm.js, with which the console draws."""

from __future__ import annotations

import base64
import json
import random
import subprocess
from pathlib import Path
from typing import Any

import pytest

from natskit.project.terminals.queries import Output
from tests.agent.viewing import Drawn
from tests.kit.vt_screens import AFTER, COLUMNS, ROWS, SCREENS

REPOSITORY = Path(__file__).parents[2]
DRAW = '. scripts/node && cd web && exec node "$1"'
CUTS = 40
ALIKE = [name for name in SCREENS if name != "margins"]
"""In origin mode the live screen is wrong: see findings/xterm-adds-the-margin-twice-in-origin-mode.sh."""


def draw_with_xterm(streams: list[bytes]) -> list[dict[str, Any]]:
    """What each stream leaves on a screen of xterm.js: cells, cursor, and which screen it is."""
    asked = {"columns": COLUMNS, "rows": ROWS, "streams": [base64.b64encode(stream).decode() for stream in streams]}
    script = str(REPOSITORY / "tests" / "kit" / "xterm_cells.mjs")
    command = ["bash", "-c", DRAW, "bash", script]
    done = subprocess.run(
        command, cwd=REPOSITORY, input=json.dumps(asked), capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    looks: list[dict[str, Any]] = json.loads(done.stdout[done.stdout.index("[") :])
    return looks


@pytest.mark.parametrize("name", ALIKE)
def test_coming_back_after_a_cut_at_any_byte_shows_every_cell(name: str) -> None:
    """One viewer has seen all of it, and the others what draws the screen at the cut, and then the rest."""
    whole = b"\x1bc" + SCREENS[name] + AFTER
    cuts = sorted(random.sample(range(len(whole) + 1), CUTS))
    emulator, output, streams = Drawn(COLUMNS, ROWS), Output(), [whole]
    for start, end in zip([0, *cuts], cuts, strict=False):
        emulator.screen.feed(output.add(whole[start:end]))
        kept = output.rest()
        streams.append(emulator.screen.draw(None) + kept + whole[end:])
        output.add(kept)
    live, *others = draw_with_xterm(streams)
    different = {cut: other for cut, other in zip(cuts, others, strict=True) if other != live}
    assert sorted(different) == [], [
        pair
        for other in different.values()
        for pair in zip(live["cells"], other["cells"], strict=True)
        if len(set(pair)) > 1
    ][:5]
