"""The findings of a check."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

Severity = Literal["broken", "soon", "untidy"]
"""``broken``: users notice it now. ``soon``: it will break unless somebody acts. ``untidy``: it does no harm."""
_ORDER: tuple[Severity, ...] = get_args(Severity)


@dataclass(frozen=True)
class Finding:
    """One problem."""

    severity: Severity
    what: str
    why: str
    """The evidence from which the check concludes it."""
    mend: str
    """The command that fixes it, or advice if no command can."""

    def to_json(self) -> dict[str, Any]:
        """For scripts."""
        return asdict(self)


def in_order(findings: Iterable[Finding]) -> list[Finding]:
    """The most important ones first; checks that others depend on come before them."""
    return sorted(findings, key=lambda finding: _ORDER.index(finding.severity))
