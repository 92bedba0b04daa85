"""The nkeys that a hub signs with."""

from __future__ import annotations

import base64

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from natskit.identity import nkey

_SEED_BYTES = slice(2, 34)
"""Of the bytes of a seed: between two of prefixes and two of a checksum (ADR-14)."""


class Signer:
    """An nkey that signs with OpenSSL, in less time than PyNaCl; to verify, PyNaCl takes less."""

    def __init__(self, seed: str) -> None:
        """Raises :class:`IdentityError`, which never quotes the seed."""
        self.public_key: bytes = nkey.key_pair(seed).public_key
        text = seed.strip()
        raw = base64.b32decode(text + "=" * (-len(text) % 8))[_SEED_BYTES]
        self._key = Ed25519PrivateKey.from_private_bytes(raw)

    def sign(self, data: bytes) -> bytes:
        """The Ed25519 signature of the data."""
        return self._key.sign(data)
