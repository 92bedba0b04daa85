"""Settings: what is right is typed, what is wrong is named with its place, key and rule, all at once."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from natskit.errors import SettingsError
from natskit.permissions import check_id
from natskit.settings import Settings, load

ROOT = {"platform_root": "/srv/natskit", "platform_manager": "supervisor", "platform_tls": False}


def refusal(**data: Any) -> str:
    """What :func:`load` says about wrong settings."""
    with pytest.raises(SettingsError) as refused:
        load(ROOT | data, "inventory")
    return str(refused.value)


def test_defaults_are_those_of_the_readme() -> None:
    settings = load(ROOT, "inventory")
    assert settings.nats_url == "nats://127.0.0.1:4222"
    assert settings.url == "https://localhost:4043"
    assert settings.hub_ports == [8101, 8102]
    assert settings.hub_names == ["hub-1", "hub-2"]
    assert settings.nats_sync_interval == "always"


def test_strings_from_a_command_line_are_typed() -> None:
    settings = load(ROOT | {"nats_port": "14222", "nats_debug": "true", "hub_api_packages": "one, two"}, "inventory")
    assert settings.nats_port == 14222
    assert settings.nats_debug is True
    assert settings.hub_api_packages == ["one", "two"]


def test_the_default_port_of_https_is_not_part_of_the_origin() -> None:
    assert load(ROOT | {"proxy_port": 443, "proxy_name": "bus.example.org"}, "").url == "https://bus.example.org"


@pytest.mark.parametrize(
    ("wrong", "near"),
    [("nats_prot", "nats_port"), ("hub_session_slidng", "hub_session_sliding"), ("proxy_nmae", "proxy_name")],
)
def test_an_unknown_setting_is_answered_with_the_nearest_one(wrong: str, near: str) -> None:
    assert refusal(**{wrong: 1}) == f"inventory: unknown setting {wrong}: did you mean {near}?"


def test_an_unknown_setting_near_to_nothing_says_where_they_all_are() -> None:
    assert "docs/settings.md" in refusal(zzz=1)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"nats_port": 0}, "nats_port = 0: input should be greater than or equal to 1"),
        ({"nats_port": 65536}, "nats_port = 65536: input should be less than or equal to 65535"),
        ({"nats_port": "many"}, "nats_port = 'many': input should be a valid integer"),
        ({"hub_count": 0}, "hub_count = 0"),
        ({"hub_max_projects_per_account": 4001}, "hub_max_projects_per_account = 4001: input should be less than"),
        ({"nats_lame_duck_duration": 10}, "nats_lame_duck_duration = 10: input should be greater than"),
        ({"nats_port": 4043}, "proxy_port and nats_port are both 4043: give each its own port"),
        ({"hub_port": 8221}, "nats_monitor_port"),
        ({"hub_session_sliding": 10, "hub_session_absolute": 9}, "hub_session_absolute must not be shorter"),
        ({"nats_max_payload": 8_000_000, "nats_max_pending": 4_000_000}, "must not be higher than nats_max_pending"),
        ({"hub_port": 65535}, "hub_port = 65535: no room below 65536 for the 2 of hub_count"),
        ({"platform_root": "relative"}, "platform_root must be an absolute path"),
        ({"platform_root": "/srv/my platform"}, "has a character that supervisor or nginx read as more than a name"),
        ({"platform_root": "/srv/" + "x" * 80}, "longer than 72 characters"),
        ({"proxy_name": "a; deny all"}, "proxy_name = 'a; deny all': string should match pattern"),
        ({"nats_sync_interval": "sometimes"}, "nats_sync_interval = 'sometimes': string should match pattern"),
        ({"runner_id": "ABC"}, "runner_id = 'ABC': string should match pattern"),
        ({"hub_api_packages": "../evil"}, "hub_api_packages"),
    ],
)
def test_a_wrong_value_is_named_with_its_key_and_rule(data: dict[str, Any], said: str) -> None:
    refused = refusal(**data)
    assert refused.startswith("inventory: ")
    assert said in refused


def test_every_wrong_setting_is_named_at_once() -> None:
    lines = refusal(nats_port=0, hub_prot=1, proxy_port="x").splitlines()
    assert len(lines) == 3
    assert all(line.startswith("inventory: ") for line in lines)


@given(st.text(min_size=1, max_size=40))
def test_any_runner_name_makes_a_valid_id_that_stays_the_same(name: str) -> None:
    settings = Settings.model_validate(ROOT | {"runner_name": name})
    check_id(settings.runner_uuid, "runner id")
    assert settings.runner_uuid == Settings.model_validate(ROOT | {"runner_name": name}).runner_uuid


@given(st.integers(1, 65535), st.integers(1, 64))
def test_hub_ports_are_consecutive_and_never_shared(first: int, count: int) -> None:
    try:
        settings = load(ROOT | {"hub_port": first, "hub_count": count}, "inventory")
    except SettingsError:
        taken = {4222, 5004, 6222, 8222, 4043}
        assert taken & set(range(first, first + count)) or first + count > 65536
        return
    assert settings.hub_ports == list(range(first, first + count))
    assert settings.hub_ports[-1] <= 65535
