"""The creds a NATS user connects with: a file, or its text (ADR-14)."""

from __future__ import annotations

import os
import re
from pathlib import Path

from nats.aio.client import RawCredentials

from natskit.errors import NatskitError


class CredsText(RawCredentials):
    """The text of a creds file. An encrypted identity decrypts creds into memory and never writes them to a file."""

    def __repr__(self) -> str:
        return "CredsText()"


Creds = Path | CredsText
"""Where a user's JWT and seed come from: a file, or its text."""

_CREDS = re.compile(r"-BEGIN NATS USER JWT-+\s+\S+\s.*-BEGIN USER NKEY SEED-+\s+SU[A-Z2-7]{56}\s", re.DOTALL)
"""What a creds file contains (ADR-14). nats-py fails with a traceback when it is given anything else."""


def check_readable(file: Path) -> None:
    """Raises :class:`NatskitError` if this process cannot read a file."""
    if not os.access(file, os.R_OK):
        raise NatskitError(f"{file} cannot be read: it does not exist, or another user owns it")


def check_creds(creds: Creds) -> None:
    """Raises :class:`NatskitError` if creds cannot be read, or hold no JWT with its seed."""
    if isinstance(creds, Path):
        check_readable(creds)
        text, where = creds.read_text(errors="replace"), str(creds)
    else:
        text, where = str(creds), "the file with this user's creds"
    if not _CREDS.search(text):
        raise NatskitError(f"{where} holds no JWT with its seed: restore it, or run a deploy, which writes it again")
