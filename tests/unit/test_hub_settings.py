"""The hub's settings file: each error names file, key and rule."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from natskit.errors import SettingsError
from natskit.hub.config import HubProgram
from natskit.process.lifecycle import read_settings


def good() -> dict[str, Any]:
    return {
        "name": "hub-1",
        "http": {"port": 8101},
        "nats": {"urls": ["nats://127.0.0.1:4222"]},
        "creds": {"auth": "a", "platform": "p"},
        "keys": "keys.json",
        "allowed_origins": ["https://localhost:4043"],
    }


def test_defaults() -> None:
    program = HubProgram.model_validate(good())
    assert program.http.host == "127.0.0.1"
    assert program.session.sliding_seconds == 7 * 86400
    assert program.max_projects_per_account == 4000


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"nmae": "x"}, "nmae"),
        ({"name": "hub 1"}, "name"),
        ({"http": {"port": 0}}, "http.port"),
        ({"nats": {"urls": []}}, "nats.urls"),
        ({"session": {"sliding_seconds": 1}}, "session.sliding_seconds"),
        ({"max_projects_per_account": 4001}, "max_projects_per_account"),
        ({"runners": {"r": {"name": "x"}}}, "runners.r.public_key"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    path = tmp_path / "hub.json"
    path.write_text(json.dumps(good() | change))
    with pytest.raises(SettingsError, match=said) as caught:
        read_settings(path, HubProgram)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "null"])
def test_what_is_no_settings_file(tmp_path: Path, text: str) -> None:
    path = tmp_path / "hub.json"
    path.write_text(text)
    with pytest.raises(SettingsError, match=r"hub\.json"):
        read_settings(path, HubProgram)
    with pytest.raises(SettingsError, match="missing"):
        read_settings(tmp_path / "missing.json", HubProgram)
