"""Names that look alike or are typed alike are equal, and natskit refuses invisible characters."""

from __future__ import annotations

import time
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from natskit.validation.names import (
    NameRefusedError,
    address_form,
    address_key,
    checked_address,
    checked_password,
    checked_title,
    domain_form,
    first_unseen,
    is_address,
    name_key,
    opaque,
    password_forms,
    shown,
    title_key,
)

SAME_ADDRESSES = [
    ("ada@example.org", " Ada@EXAMPLE.org. "),
    ("ada@example.org", "ａｄａ＠ｅｘａｍｐｌｅ。ｏｒｇ"),
    ("josé@example.org", "jose\u0301@example.org"),
    ("josé@example.org", "JOSÉ@example.org"),
    ("ada@bücher.example", "ada@xn--bcher-kva.example"),
    ("ada@bücher.example", "ada@BU\u0308CHER.example"),
    ("ada@bücher.example", "ada@XN--BCHER-KVA.example."),
    ("o'neil@example.org", "o\u2019neil@example.org"),
]
ALIKE = [
    ("coco@example.org", "сосо@example.org"),
    ("ivan.a@example.org", "ivan.а@example.org"),
    ("admin@example.org", "admın@example.org"),
    ("admin@example.org", "ADMİN@example.org"),
    ("ada@coco.example", "ada@сосо.example"),
    ("strasse@example.org", "straße@example.org"),
    ("fine@example.org", "ﬁne@example.org"),
]


@pytest.mark.parametrize(("one", "other"), SAME_ADDRESSES)
def test_addresses_that_are_typed_as_the_same(one: str, other: str) -> None:
    assert address_key(one) == address_key(other)
    assert is_address(one)
    assert is_address(other)
    assert address_key(checked_address(other)) == address_key(one)


@pytest.mark.parametrize("typed", ["\ufb01ne@example.org", "\uff46ine@example.org", "fine\uff20example.org"])
def test_an_address_that_is_stored_as_another_one_is_known_by_its_form(typed: str) -> None:
    assert checked_address(typed) == "fine@example.org"
    assert address_form(typed) != address_form("fine@example.org")


@pytest.mark.parametrize(("one", "other"), ALIKE)
def test_addresses_that_look_the_same_and_are_not(one: str, other: str) -> None:
    assert address_key(one) == address_key(other)
    assert address_form(one) != address_form(other), "a proof of one address does not prove the other"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("ada@example.org", "adá@example.org"),
        ("ada1@example.org", "adal@example.org"),
        ("rn@example.org", "m@example.org"),
        ("a@b.org", "a@b.com"),
        ("νικος@example.org", "νικας@example.org"),
        ("рука@example.org", "река@example.org"),
        ("a.b@example.org", "ab@example.org"),
    ],
)
def test_addresses_that_are_not_the_same(one: str, other: str) -> None:
    assert address_key(one) != address_key(other)
    assert is_address(one)
    assert is_address(other)


@pytest.mark.parametrize(
    ("address", "named"),
    [
        ("ada\u200b@example.org", r"U\+200B \(ZERO WIDTH SPACE\), which cannot be seen"),
        ("\u202eada@example.org", r"U\+202E \(RIGHT-TO-LEFT OVERRIDE\)"),
        ("ada@exam\u00adple.org", r"U\+00AD \(SOFT HYPHEN\)"),
        ("a\u2066da@example.org", r"U\+2066"),
        ("a\u200dda@example.org", r"U\+200D"),
        ("a\u034fda@example.org", r"U\+034F"),
        ("ada\ufe0f@example.org", r"U\+FE0F"),
        ("ada\ue000@example.org", r"U\+E000"),
        ("a\u3164@example.org", r"FILLER"),
        ("a\u2800@example.org", r"U\+2800"),
        ("\ufeffada@example.org", r"U\+FEFF"),
        ("ada\U000e0041@example.org", r"U\+E0041"),
        ("a\x00@example.org", r"U\+0000"),
        ("a\ud800@example.org", r"U\+D800"),
        ("a\u0378@example.org", r"U\+0378"),
        ("аda@example.org", r"two scripts in one word, U\+0430 \(CYRILLIC SMALL LETTER A\) and U\+0064"),
        ("ada@exаmple.org", "two scripts in one word"),
        ("ρaypal@example.org", "two scripts in one word"),
        ("a b@example.org", "is no e-mail address"),
        ("a\u00a0b@example.org", "is no e-mail address"),
        ("@example.org", "is no e-mail address"),
        ("ada", "is no e-mail address"),
        ("", "is no e-mail address"),
    ],
)
def test_addresses_that_are_refused(address: str, named: str) -> None:
    with pytest.raises(NameRefusedError, match=named) as refused:
        checked_address(address)
    assert str(refused.value).isprintable(), "what cannot be seen does not come back"


@given(st.text())
def test_whatever_is_taken_keeps_its_key(text: str) -> None:
    try:
        address = checked_address(f"{text}@example.org")
    except NameRefusedError:
        return
    assert checked_address(address) == address
    assert address_key(address) == address_key(f"{text}@example.org")
    assert not first_unseen(address)


@given(st.emails())
def test_plain_addresses_are_as_before(address: str) -> None:
    assert checked_address(address) == address
    if address.partition("@")[2].lower().startswith("xn--") or ".xn--" in address.lower():
        return
    assert address_key(address) == address_form(address) == address.lower()


@given(st.text() | st.text("xn-0123456789abzé.", max_size=30).map(lambda text: f"xn--{text}"))
def test_no_text_is_too_much_for_a_key(text: str) -> None:
    for key in (domain_form, name_key, address_key, address_form, title_key, opaque, shown):
        assert isinstance(key(text), str)
        assert isinstance(key(f"a@{text}"), str)


def test_a_megabyte_is_refused_at_once() -> None:
    began = time.process_time()
    for character in ("a", "\ufdfa", "\u200d", "é", "\u0301", "."):
        text = character * 1_000_000
        assert not is_address(text)
        assert not is_address(f"a@{text}")
        assert address_key(f"a@{text}") == address_key(f"a@{text}")
        with pytest.raises(NameRefusedError):
            checked_title(text)
    assert time.process_time() - began < 1


def test_domains_and_hosts() -> None:
    assert domain_form("BÜCHER.example.") == domain_form("xn--bcher-kva.example") == "xn--bcher-kva.example"
    assert domain_form("сосо.example") != domain_form("coco.example")
    assert domain_form("A_B.c") == "a_b.c"
    assert name_key("B.Example.ORG.") == name_key("b.example.org")


@pytest.mark.parametrize(
    "title",
    [
        "\U0001f469\u200d\U0001f680",
        "\u2764\ufe0f\u200d\U0001f525",
        "1\ufe0f\u20e3 first",
        "\U0001f3f4\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",
        "می\u200cخواهم",
        "क्\u200dष",
        "\U0001fae8",
        "3D-модель",
        "...",
    ],
)
def test_titles_keep_what_belongs_into_them(title: str) -> None:
    assert checked_title(title) == unicodedata.normalize("NFC", title)


@pytest.mark.parametrize(
    "title",
    [
        *("\u200b", "\u200b\u200b", "\u00ad", "\u2800", "\u3164", "\ufe0f", "\u0301", "\u200d", "\ufeff", "\U000e0041"),
        *("a\u200bb", "\u202etxt", "a\u2066b", "a\u200db", "trailing\u2060", "\ue000", "\ufffe", "\u00a0", ""),
    ],
)
def test_titles_in_which_something_cannot_be_seen(title: str) -> None:
    with pytest.raises(NameRefusedError, match=r"which cannot be seen|something that can be seen|a title has 1 to"):
        checked_title(title)


def test_titles_that_look_the_same() -> None:
    assert title_key("De\u0301mo") == title_key("Démo")
    assert title_key("D\u0435mo") == title_key("Demo"), "with a Cyrillic letter"
    assert title_key("Demo\u200b") == title_key("Demo")
    assert title_key("First  steps") == title_key("First steps")
    assert title_key("demo") != title_key("Demo")
    assert checked_title("De\u0301mo") == "Démo"


def test_passwords() -> None:
    composed, decomposed = "pässwörter sind lang", unicodedata.normalize("NFD", "pässwörter sind lang")
    assert checked_password(decomposed) == composed
    assert checked_password("with\u00a0spaces\u3000inside") == "with spaces inside"
    assert checked_password(" Case and ends stay ") == " Case and ends stay "
    assert password_forms("plain words") == ["plain words"]
    assert password_forms(composed) == [composed, decomposed]
    assert password_forms(decomposed) == [composed, decomposed]
    assert opaque("a\u00a0b") == "a b"
    for unseen in ("hidden\u200bcharacter", "hidden\ufeffcharacter", "with a \x07 bell", "half \ud800 of one"):
        with pytest.raises(NameRefusedError, match="cannot be seen") as refused:
            checked_password(unseen)
        assert "hidden" not in str(refused.value)
    assert checked_password("👩\u200d🚀 to the moon") == "👩\u200d🚀 to the moon"


def test_what_cannot_be_seen_is_written_out() -> None:
    assert shown("ada\u200b@example.org") == "ada\\u200b@example.org"
    assert shown("\u202ecod.txt") == "\\u202ecod.txt"
    assert shown("\x1b[31m") == "\\x1b[31m"
    for plain in ("José", "\U0001f469\u200d\U0001f680", "می\u200cخواهم", "日本 語", "a\u00a0b", "\U0001fae8"):
        assert shown(plain) == plain
