"""docs/reference/settings.md explains every setting, and names the source of those of nats-server."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from natskit.config.settings import Settings

PAGE = Path(__file__).parent.parent.parent / "docs" / "reference" / "settings.md"
OURS = {"nats_version", "nats_jetstream_reserve", "nats_section_extra", "nats_extra"}
"""Settings of nats-server's role that are natskit's own."""
COUNTS = re.compile(
    r"_(port|count|replicas|size|max|connections|subscriptions|tokens|clients|msgs|limit|files|reports|iterations)$"
)
NUMBERS_OF_THINGS = (
    COUNTS.pattern + "|pending|concurrency|per_account|burst|processes|terminals|jobs|browsers|documents"
)


def rows() -> dict[str, list[str]]:
    """The cells of each setting: type, default, unit, meaning, source."""
    lines = re.findall(r"^\| `(\w+)` \| (.*) \|$", PAGE.read_text(), re.MULTILINE)
    return {name: [cell.strip() for cell in cells.split(" | ")] for name, cells in lines}


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_has_its_row(name: str) -> None:
    kind, default, unit, meaning, source = rows()[name]
    assert kind
    assert default
    assert meaning
    assert source or not name.startswith("nats_") or name in OURS
    if "number" in kind:
        assert unit or re.search(NUMBERS_OF_THINGS, name), f"{name}: what does it count?"
