"""Validate, normalize and compare e-mail addresses, titles and passwords.

Texts that look the same, or are typed the same way, are equal; invisible characters are refused. Each kind of text has
one form for storage and one key for comparison. Sources: Unicode normalization (UAX 15), invisible characters
(``Default_Ignorable_Code_Point`` in DerivedCoreProperties), look-alikes and mixed scripts (UTS 39), domain names (UTS
46, through ``idna``), passwords (RFC 8265, 4.2: OpaqueString).
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_right

import idna

from natskit.errors import NatskitError

TITLE_LENGTH = 200
LONGEST = 1000
"""Maximum number of characters to examine in an address or host name; more than any that can be stored."""
LONGEST_TITLE = 10_000
"""Maximum number of characters to examine in a title, before repeated spaces are removed."""
_ADDRESS = re.compile(r"[^@\s]{1,64}@[^@\s]{1,190}")
_NOT_LETTERS = re.compile(r"[\W\d_]+")

_IGNORED = (
    *((0x00AD, 0x00AD), (0x034F, 0x034F), (0x061C, 0x061C), (0x115F, 0x1160), (0x17B4, 0x17B5), (0x180B, 0x180F)),
    *((0x200B, 0x200F), (0x202A, 0x202E), (0x2060, 0x206F), (0x3164, 0x3164), (0xFE00, 0xFE0F), (0xFEFF, 0xFEFF)),
    *((0xFFA0, 0xFFA0), (0xFFF0, 0xFFF8), (0x1BCA0, 0x1BCA3), (0x1D173, 0x1D17A), (0xE0000, 0xE0FFF)),
)
"""Default_Ignorable_Code_Point: invisible characters, and characters that change how others look."""
_STARTS = [first for first, _ in _IGNORED]
_BLANK = "\u2800\U0001d159\ufff9\ufffa\ufffb"
"""Other blank characters: the empty Braille pattern, a note without a head, marks of interlinear text."""
_JOINERS = "\u200c\u200d"

_LOOK_ALIKES = str.maketrans(
    # Small letters: Cyrillic, Greek, Armenian, Latin ones of other shapes. Within a script no two become the same.
    "аеорсухіјѕһԁԛԝӏёїӕә" + "αγικνορυ" + "օոսհցզյ" + "ıɑɡᴄᴏᴠᴡᴢ"
    # Capitals: Cyrillic, Greek.
    + "АВЕКМНОРСТУХЅІЈ" + "ΑΒΕΖΗΙΚΜΝΟΡΤΥΧ"
    # Hyphens and apostrophes, which some keyboards and word processors put in.
    + "\u2010\u2012\u2013\u2212" + "\u2019\u02bc",
    "aeopcyxijshdqwlëïæə" + "ayiĸvopu" + "onuhgqj" + "iagcovwz"
    + "ABEKMHOPCTYXSIJ" + "ABEZHIKMNOPTYX"
    + "----" + "''",
)  # fmt: skip
"""Letters that look like another one in most fonts, and that letter, from UTS 39 (confusables.txt). The whole table
would also equate 1 and l, and rn and m."""
_ALIKE_SCRIPTS = {"LATIN", "CYRILLIC", "GREEK", "ARMENIAN", "COPTIC", "CHEROKEE"}
"""Scripts with letters that look like another script's. No word mixes two of them."""


class NameRefusedError(NatskitError):
    """A text is not a valid name. The message gives the reason."""


# ---- e-mail addresses


def checked_address(text: str) -> str:
    """An e-mail address in the form for storage. Raises :class:`NameRefusedError`."""
    if len(text) > LONGEST:
        raise NameRefusedError(f"{text[:80]!r}… is no e-mail address")
    address = _folded_width(text)
    for character in address:
        if _is_unseen(character) or unicodedata.category(character) in ("Cc", "Cf", "Cs", "Co", "Cn"):
            raise NameRefusedError(
                f"{text.strip()[:80]!r} has the character {_named(character)}, which cannot be seen: leave it out"
            )
    if not _ADDRESS.fullmatch(address):
        raise NameRefusedError(f"{text.strip()[:80]!r} is no e-mail address")
    if address.isascii():
        return address
    for word in _NOT_LETTERS.split(address):
        _check_script(word, address)
    return address.lower()  # capitals of two scripts look the same where small letters do not


def is_address(text: str) -> bool:
    """Whether a text is a valid e-mail address."""
    try:
        checked_address(text)
    except NameRefusedError:
        return False
    return True


def address_form(text: str) -> str:
    """The same for all ways to type an address, but different for addresses that only look alike.

    It identifies an address's owner where no password does.
    """
    address = unicodedata.normalize("NFC", text.strip()[:LONGEST])
    local, at, domain = address.rpartition("@")
    return f"{local.lower()}@{domain_form(domain)}" if at else address.lower()  # an @ of full width is none


def address_key(text: str) -> str:
    """The comparison key of an address: equal for addresses that look the same or are typed the same way, valid or
    not."""
    local, at, domain = _folded_width(text).rpartition("@")
    return f"{_key(local.casefold())}{at}{_key(_unicode_domain(domain))}"


def domain_of(address: str) -> str:
    """The form of an address's domain."""
    return domain_form(address.rpartition("@")[2])


def domain_form(domain: str) -> str:
    """The same for all ways to write a domain: in capitals, as Unicode or as ``xn--…``, with a final dot."""
    name = _folded_width(domain).lower()
    if name.isascii() and "xn--" not in name:
        return name
    try:
        return idna.encode(name, uts46=True).decode()
    except idna.IDNAError:  # what is no host name of the Internet, such as a_b
        return name


def _unicode_domain(domain: str) -> str:
    name = _folded_width(domain)
    if name.isascii() and "xn--" not in name.lower():
        return name.lower()
    try:
        return idna.decode(name, uts46=True).casefold()
    except idna.IDNAError:
        return name.casefold()


def name_key(name: str) -> str:
    """The comparison key of a host name: equal for names that look the same."""
    return _key(_unicode_domain(name))


# ---- titles


def checked_title(text: str) -> str:
    """A title in the form for storage: composed, without control characters, with single spaces.

    Raises :class:`NameRefusedError` for a title without visible characters or with invisible ones.
    """
    text = unicodedata.normalize("NFC", text[:LONGEST_TITLE])
    # Control characters would command a terminal.
    plain = "".join(" " if unicodedata.category(c) == "Cc" else c for c in text)
    title = " ".join(plain.split()).encode(errors="replace").decode()
    if not 1 <= len(title) <= TITLE_LENGTH:
        raise NameRefusedError(f"a title has 1 to {TITLE_LENGTH} characters")
    unseen = first_unseen(title)
    if unseen:
        raise NameRefusedError(f"the title has the character {_named(unseen)}, which cannot be seen: leave it out")
    if not is_seen(title):
        raise NameRefusedError("a title has something that can be seen, not only marks")
    return title


def title_key(title: str) -> str:
    """The comparison key of a title: equal for titles that look the same."""
    return _key(" ".join("".join(c for c in title if not _is_unseen(c)).split()))


def is_seen(text: str) -> bool:
    """Whether a text is visible, which marks without a letter are not."""
    return any((not _is_unseen(c) and unicodedata.category(c)[0] in "LNPS") or _is_new(c) for c in text)


# ---- passwords


def checked_password(text: str) -> str:
    """A password in the form for hashing. Raises :class:`NameRefusedError`, which never quotes the password."""
    password = opaque(text)
    if first_unseen(password) or any(unicodedata.category(c) in ("Cc", "Cs") for c in password):
        raise NameRefusedError(
            "the password has a character that cannot be seen, such as a control character: type it again"
        )
    return password


def password_forms(text: str) -> list[str]:
    """The forms in which a typed password may have been hashed, the most likely first.

    Earlier hubs hashed passwords without normalization, so the form depended on the keyboard: macOS may send é as e and
    an accent.
    """
    return list(dict.fromkeys((opaque(text), text, unicodedata.normalize("NFD", text))))


def opaque(text: str) -> str:
    """RFC 8265, 4.2.2: replace all kinds of spaces by a space, and compose characters (NFC)."""
    return unicodedata.normalize("NFC", "".join(" " if unicodedata.category(c) == "Zs" else c for c in text))


# ---- what cannot be seen


def first_unseen(text: str) -> str:
    """The first invisible character in a place where it is not allowed; empty if there is none.

    Joiners are allowed in emoji and in Persian and Indic words, selectors after the characters they modify, tags in
    flags.
    """
    for place, character in enumerate(text):
        if not _is_unseen(character):
            continue
        before, after = text[:place].rstrip("\ufe0f")[-1:], text[place + 1 : place + 2]
        if character in _JOINERS and _takes_joiners(before) and _takes_joiners(after):
            continue
        if unicodedata.name(character, "").startswith("VARIATION SELECTOR") and before.strip():
            continue
        if "\U000e0020" <= character <= "\U000e007f" and "\U0001f3f4" in text[:place]:
            continue
        return character
    return ""


def shown(text: str) -> str:
    """The text with invisible characters written as escapes, such as ``\\u200b``."""
    if text.isascii() and text.isprintable():
        return text
    unseen = first_unseen(text)
    return "".join(
        c.encode("unicode_escape").decode() if (unseen and _is_unseen(c)) or not _is_safe(c) else c for c in text
    )


def _is_safe(character: str) -> bool:
    """Whether a character has no effect on a terminal."""
    known = character.isprintable() or unicodedata.category(character) == "Zs" or character in _JOINERS
    return known or _is_unseen(character) or _is_new(character)


def _is_unseen(character: str) -> bool:
    number = ord(character)
    if number < 0xAD:
        return False
    at = bisect_right(_STARTS, number) - 1
    return (at >= 0 and number <= _IGNORED[at][1]) or character in _BLANK


def _is_new(character: str) -> bool:
    """Whether this may be a character, such as a new emoji, that Python's version of Unicode does not have yet."""
    number = ord(character)
    return unicodedata.category(character) == "Cn" and not _is_unseen(character) and number & 0xFFFE != 0xFFFE


def _takes_joiners(character: str) -> bool:
    return bool(character) and not character.isascii() and not character.isspace() and not _is_unseen(character)


def _named(character: str) -> str:
    name = unicodedata.name(character, "")
    return f"U+{ord(character):04X}" + (f" ({name})" if name else "")


# ---- what looks the same


def _folded_width(text: str) -> str:
    """Convert full-width letters of an address to normal ones (NFKC), and all kinds of full stops to dots."""
    address = unicodedata.normalize("NFKC", text.strip()[:LONGEST])
    return address.replace("\u3002", ".").replace("\uff61", ".").strip().removesuffix(".")


def _key(text: str) -> str:
    if text.isascii():
        return text
    # Casefolding makes i and a dot of the capital I with a dot, which no font tells from i.
    folded = unicodedata.normalize("NFKC", text).replace("i\u0307", "i")
    return unicodedata.normalize("NFC", folded.translate(_LOOK_ALIKES))


def _check_script(word: str, address: str) -> None:
    scripts: dict[str, str] = {}
    for letter in word:
        script = unicodedata.name(letter, "").partition(" ")[0]
        if script in _ALIKE_SCRIPTS:
            scripts.setdefault(script, letter)
    if len(scripts) > 1:
        first, second = list(scripts.values())[:2]
        raise NameRefusedError(
            f"{address[:80]!r} has letters of two scripts in one word, {_named(first)} and {_named(second)}: "
            "they look alike, write all of them in one"
        )
