"""A file for support: the doctor's findings and the data they are based on, without secrets."""

from __future__ import annotations

import io
import json
import re
import tarfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from natskit.errors import SettingsError
from natskit.identity.files import write_private

LOG_BYTES = 256 * 1024
"""The end of each log."""

REDACTED = "[redacted]"
_SECRETS = tuple(
    re.compile(pattern)
    for pattern in (
        r"()-----BEGIN [A-Z ]*PRIVATE KEY-----(?s:.*?)(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)",
        r"()eyJ[\w-]{10,}\.[\w-]{10,}(?:\.[\w-]*)?",  # JWTs
        r"()\bS[ACNOUX][A-Z2-7]{54,}\b",  # seeds of nkeys
        r"()AGE-SECRET-KEY-1[0-9A-Z]+",
        r"()\$argon2\w*\$\S+",
        r"(?i)\b((?:authorization|cookie|set-cookie)[\"']?\s*[:=]\s*)[^\n]+",
        r"(://)[^\s/]+(?=@)",
        # What signs in once: OIDC's answers (OpenID Connect Core, 3.1.2.5), and the tickets of backends.
        r"(?i)([?&](?:code|state|nonce|ticket|session_state)=)[^&\s\"'<>]+",
        r"(?i)((?:password|passphrase|secret|token)[\"']?\s*[:=]\s*\")(?:[^\"\\\n]|\\.)*",
        r"(?i)((?:password|passphrase|secret|token)[\"']?\s*[:=]\s*[\"']?)[^\s\"']+",
    )
)
"""Patterns of keys, tokens and passwords. The first group of each pattern stays."""


def redacted(text: str) -> str:
    """A text without keys, JWTs, hashes of passwords, cookies, and credentials, codes and tickets in URLs."""
    for secret in _SECRETS:
        text = secret.sub(rf"\g<1>{REDACTED}", text)
    return text


def write(path: Path, seen: Mapping[str, Any], logs: Path | None) -> None:
    """Write the texts in ``seen``, by name, and the end of each log into a new private file, a gzipped tar.

    Raises :class:`SettingsError`.
    """
    if path.exists():
        raise SettingsError(f"{path} exists already: choose another file")
    files = {f"{name}.json": json.dumps(content, indent=2) for name, content in seen.items()}
    for log in sorted(logs.glob("*.log")) if logs else ():
        files[f"log/{log.name}"] = log.read_bytes()[-LOG_BYTES:].decode(errors="replace")
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:gz") as archive:
        for name, text in files.items():
            content = redacted(text).encode()
            entry = tarfile.TarInfo(f"natskit-doctor/{name}")
            entry.size, entry.mode, entry.mtime = len(content), 0o600, int(time.time())
            archive.addfile(entry, io.BytesIO(content))
    try:
        write_private(path, made.getvalue())
    except OSError as error:
        raise SettingsError(f"{path} cannot be written: {error.strerror}") from None
