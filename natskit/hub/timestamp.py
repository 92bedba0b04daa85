"""Times as the API and the audit show them."""

from __future__ import annotations

from datetime import UTC, datetime


def iso(seconds: float) -> str:
    """A Unix time in ISO 8601: UTC, to the millisecond, as in ``2026-01-31T12:00:00.000Z``."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
