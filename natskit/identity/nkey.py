"""nkeys: Ed25519 key pairs whose text says what they are (ADR-14; github.com/nats-io/nkeys)."""

from __future__ import annotations

import base64
import binascii
import secrets
from typing import Literal

import nacl.exceptions
import nacl.signing
import nkeys

from natskit.errors import IdentityError

Kind = Literal["operator", "account", "user"]

_PREFIXES: dict[Kind, int] = {
    "operator": nkeys.PREFIX_BYTE_OPERATOR,
    "account": nkeys.PREFIX_BYTE_ACCOUNT,
    "user": nkeys.PREFIX_BYTE_USER,
}
_PUBLIC_KEY_LENGTH = 35  # prefix byte, 32 bytes of key, CRC-16


def create_seed(kind: Kind) -> str:
    """A new seed (``SO…``, ``SA…`` or ``SU…``) from the operating system's randomness."""
    return str(nkeys.encode_seed(secrets.token_bytes(32), _PREFIXES[kind]).decode())


def key_pair(seed: str) -> nkeys.KeyPair:
    """The key pair of a seed. Raises :class:`IdentityError`, which never quotes the seed."""
    try:
        return nkeys.from_seed(seed.strip().encode())
    except (nkeys.NkeysError, ValueError, IndexError) as error:
        raise IdentityError(f"a seed is not an nkey seed ({type(error).__name__}): restore it from a backup") from None


def public_key(seed: str) -> str:
    """The public key (``O…``, ``A…`` or ``U…``) of a seed. Raises :class:`IdentityError`."""
    return str(key_pair(seed).public_key.decode())


def is_public_key(value: str, kind: Kind) -> bool:
    """Whether ``value`` is a well-formed public key of that kind, checksum included."""
    raw = _decode(value)
    return raw is not None and raw[0] == _PREFIXES[kind]


def verify(public: str, data: bytes, signature: bytes) -> bool:
    """Whether ``signature`` is the Ed25519 signature of ``data`` by the owner of a public key."""
    raw = _decode(public)
    if raw is None:
        return False
    try:
        nacl.signing.VerifyKey(raw[1:33]).verify(data, signature)
    except (nacl.exceptions.BadSignatureError, ValueError):
        return False
    return True


def _decode(public: str) -> bytes | None:
    try:
        raw = base64.b32decode(public.encode() + b"=" * (-len(public) % 8))
    except (binascii.Error, UnicodeEncodeError):
        return None
    if len(raw) != _PUBLIC_KEY_LENGTH or nkeys.crc16(raw[:33]).to_bytes(2, "little") != raw[33:]:
        return None
    return raw
