"""Settings: right values get their types, and errors name place, key and rule, all at once."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from natskit.bus.permissions import check_id
from natskit.config.settings import Settings, load
from natskit.errors import SettingsError

ROOT = {"platform_root": "/srv/natskit", "platform_manager": "supervisor", "platform_tls": False}


def refusal(**data: Any) -> str:
    """The error of :func:`load` for wrong settings."""
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
    assert "docs/reference/settings.md" in refusal(zzz=1)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"nats_port": 0}, "nats_port = 0: input should be greater than or equal to 1"),
        ({"nats_port": 65536}, "nats_port = 65536: input should be less than or equal to 65535"),
        ({"nats_port": "many"}, "nats_port = 'many': input should be a valid integer"),
        ({"hub_count": 0}, "hub_count = 0"),
        ({"hub_max_projects_per_account": 4001}, "hub_max_projects_per_account = 4001: input should be less than"),
        ({"nats_extra": "Lame_Duck_Duration: 10m"}, "set nats_lame_duck_duration instead"),
        ({"nats_lame_duck_duration": 1201}, "nats_lame_duck_duration = 1201: input should be less than"),
        ({"nats_lame_duck_duration": 10}, "nats_lame_duck_duration = 10: input should be greater than"),
        ({"nats_port": 4043}, "proxy_port and nats_port are both 4043: choose different ports"),
        ({"hub_port": 8221}, "nats_monitor_port"),
        ({"hub_administrators": "ada"}, "hub_administrators[0] = 'ada': 'ada' is no e-mail address"),
        ({"hub_administrators": "ada@example.org,bo b@x.org"}, "hub_administrators[1]"),
        ({"hub_session_sliding": 10, "hub_session_absolute": 9}, "hub_session_absolute must not be shorter"),
        ({"hub_password_memory": 7000}, "hub_password_memory = 7000: input should be greater than or equal to 7168"),
        (
            {"hub_password_memory": 12 * 1024},
            "hub_password_memory = 12288: with hub_password_iterations = 2, OWASP asks for at least 19456 KiB",
        ),
        ({"hub_password_iterations": 1}, "with hub_password_iterations = 1, OWASP asks for at least 47104 KiB"),
        ({"nats_max_payload": 8_000_000, "nats_max_pending": 4_000_000}, "must not be higher than nats_max_pending"),
        ({"hub_port": 65535}, "hub_port = 65535: hub_count = 2 needs ports above 65535"),
        ({"platform_root": "relative"}, "platform_root = relative is not an absolute path"),
        ({"platform_root": "/srv/my $platform"}, "has $, which starts a variable in nginx: choose another folder"),
        ({"platform_root": "/srv/" + "x" * 80}, "has 85 bytes, more than the 72 that leave space"),
        ({"platform_root": "/srv/" + "ü" * 40}, "has 85 bytes, more than the 72 that leave space"),
        (
            {"platform_root": "/srv/my platform", "platform_manager": "systemd"},
            "with a special meaning for systemd or nginx",
        ),
        (
            {"platform_programs": "/opt/50%", "platform_manager": "systemd"},
            "with a special meaning for systemd or nginx",
        ),
        ({"platform_python_path": '/srv/"own"'}, 'platform_python_path /srv/"own" has a quote'),
        ({"proxy_name": "a; deny all"}, "proxy_name = 'a; deny all': not a host name"),
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
        taken = {4222, 5004, 6222, 8222, 4043, 9090, 9093}
        assert taken & set(range(first, first + count)) or first + count > 65536
        return
    assert settings.hub_ports == list(range(first, first + count))
    assert settings.hub_ports[-1] <= 65535
