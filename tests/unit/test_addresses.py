"""Host names and origins as browsers write them."""

from __future__ import annotations

import pytest

from natskit.config.settings import Settings, load
from natskit.errors import SettingsError
from natskit.identity.claims import cookie_name
from natskit.validation.addresses import host_name, origin


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("LOCALHOST", "localhost"),
        ("Bus.Example.ORG.", "bus.example.org"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("BÜCHER.example", "xn--bcher-kva.example"),
        ("127.0.0.1", "127.0.0.1"),
        ("4u.example.org", "4u.example.org"),
    ],
)
def test_a_host_name_is_written_as_a_browser_writes_it(written: str, meant: str) -> None:
    assert host_name(written) == host_name(meant) == meant


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("https://bus.example.org", "leave out scheme, port and path, and write bus.example.org"),
        ("bus.example.org:443", "leave out scheme, port and path, and write bus.example.org"),
        ("bus.example.org/nats", "leave out scheme, port and path, and write bus.example.org"),
        ("[::1]", "IPv6"),
        ("a..b", "not a host name"),
        ("-a.example.org", "not a host name"),
        ("a_b.example.org", "not a host name"),
        ("a" * 64 + ".org", "not a host name"),
        ("a b", "not a host name"),
        ("", "not a host name"),
        ("127.1", "four numbers"),
        ("2130706433", "four numbers"),
        ("0x7f.0.0.1", "four numbers"),
        ("010.0.0.1", "four numbers"),
        ("192.0.2.256", "four numbers"),
    ],
)
def test_what_is_no_host_name_is_refused_with_what_to_write(wrong: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        host_name(wrong)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("https://LOCALHOST:4043/", "https://localhost:4043"),
        ("HTTPS://localhost.:443", "https://localhost"),
        ("https://bücher.example/a?b#c", "https://xn--bcher-kva.example"),
        ("http://bus.example.org:80", "http://bus.example.org"),
        ("https://bus.example.org:80", "https://bus.example.org:80"),
        ("https://[::0001]:4043", "https://[::1]:4043"),
    ],
)
def test_an_origin_is_written_as_a_browser_writes_it(written: str, meant: str) -> None:
    assert origin(written) == meant


@pytest.mark.parametrize("wrong", ["localhost:4043", "ftp://localhost", "https://", "https://a:b@c", "https://a:99999"])
def test_what_is_no_origin_is_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match=r"scheme|password|Port"):
        origin(wrong)


def test_the_site_has_one_address_however_its_name_is_spelt() -> None:
    for name in ("bus.example.org", "BUS.Example.org", "bus.example.org."):
        settings = Settings.model_validate({"proxy_name": name, "proxy_port": 443})
        assert (settings.proxy_name, settings.url) == ("bus.example.org", "https://bus.example.org")


def test_a_host_that_is_this_machine_by_another_spelling_is_not_listened_on_from_outside() -> None:
    assert Settings.model_validate({"platform_address": "LocalHost."}).listen == "127.0.0.1"


@pytest.mark.parametrize(
    ("setting", "value", "said"),
    [
        ("proxy_name", "https://bus.example.org", "proxy_name = 'https://bus.example.org': not a host name alone"),
        ("platform_address", "10.0.0.1:22", "platform_address = '10.0.0.1:22': not a host name alone"),
        ("nats_client_advertise", "bus.example.org:x", "nats_client_advertise = 'bus.example.org:x': write HOST:PORT"),
        ("proxy_certificate_hosts", "a,b c", "proxy_certificate_hosts[1] = 'b c': not a host name"),
        ("hub_oidc_issuer", "https://Login.example.org/x", "write its host as the provider does: login.example.org"),
        ("hub_oidc_issuer", "https://login.example.org./x", "write its host as the provider does: login.example.org"),
        ("hub_oidc_domains", "@example.org", "hub_oidc_domains[0] = '@example.org': not a host name"),
    ],
)
def test_a_setting_that_is_no_host_is_named_with_its_value_and_what_to_write(
    setting: str, value: str, said: str
) -> None:
    with pytest.raises(SettingsError) as refused:
        load({setting: value}, "inventory")
    assert str(refused.value).startswith(f"inventory: {setting}")
    assert said in str(refused.value)


def test_sites_of_one_host_have_cookies_of_different_names() -> None:
    urls = ("https://bus.example.org", "https://bus.example.org:4043", "https://bus.example.org:8443")
    names = [cookie_name(url) for url in urls]
    assert names == ["__Host-natskit", "__Host-natskit-4043", "__Host-natskit-8443"]
