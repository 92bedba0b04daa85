"""Which calls of the API become audit events: refused and failed ones, and successful ones of audited methods. A call
that its method ends with ``invalid_params`` counts as refused, and only if the method is audited.

An event has the method's name, the outcome, and the parameters that are known to hold no secret. The same holds for the
methods of a platform's own packages.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from natskit.hub.audit.events import Audit
from natskit.hub.caller import Caller
from natskit.hub.state.view import State
from natskit.rpc import Declaration, Request

_SAFE = (
    "project_id",
    "account_id",
    "runner_id",
    "runner",
    "session_id",
    "email",
    "give_projects_to",
    "delete_projects",
    "role",
    "disabled",
    "version",
    "what",
)
"""Parameters and members of results that are ids or the like. Any other may be a secret."""
_SAFE_OF_ADMIN = (*_SAFE, "name")
"""The same for admin methods, where ``name`` is a runner's. In a method of a platform's own package, which is for
accounts, it may be private."""
_REFUSED = frozenset(
    {"forbidden", "must_change_password", "not_found", "limit", "conflict", "invalid_state", "invalid_params"}
)
_UNLESS_AUDITED = frozenset({"ok", "invalid_params"})
"""Outcomes that are events of audited methods only. The others are events of every method."""


def is_audited(method: str, declaration: Declaration) -> bool:
    """Whether a successful call of a method is an event: as the method declares, or else as its name says."""
    if declaration.audited is not None:
        return declaration.audited
    return not (method.startswith(("list_", "get_")) or method.endswith("_list"))


def record_call(
    audit: Audit,
    state: State,
    caller: Caller,
    request: Request,
    declaration: Declaration,
    outcome: str,
    result: Any,
) -> None:
    """Record a call of a method. ``outcome`` is ``ok`` or the kind of the error."""
    if outcome in _UNLESS_AUDITED and not is_audited(request.method, declaration):
        return
    refused = outcome in _REFUSED
    safe = _SAFE_OF_ADMIN if caller.kind == "admin" else _SAFE
    fields = _safe(request.params, safe) | _safe(result, safe)
    named = _account_named(state, fields)
    about: dict[str, Any] = {
        "by": caller.kind if caller.kind == "admin" else f"{caller.kind} {caller.id}",
        "session_id": caller.session_id,
        **fields,
        "outcome": "ok" if outcome == "ok" else "refused" if refused else "failed",
        "reason": None if outcome == "ok" else outcome,
    }
    about.pop("account_id", None)
    if caller.kind == "account":
        target = named if named != caller.id else None
        audit.record_of_account(request.method, account=caller.id, target=target, **about)
    elif caller.kind == "admin":
        audit.record(request.method, account=named or "-", said_by=request.said_by, **about)
    else:
        audit.record_of_account(request.method, account=named or "-", **about)


def _safe(values: Any, names: Iterable[str]) -> dict[str, Any]:
    if not isinstance(values, dict):
        return {}
    return {key: values[key] for key in names if isinstance(values.get(key), str | bool)}


def _account_named(state: State, fields: dict[str, Any]) -> str | None:
    """The account that a call is about, by its id or its e-mail."""
    if "account_id" in fields:
        return str(fields["account_id"])
    claim = state.claim_of_email(str(fields["email"])) if "email" in fields else None
    return claim.account_id if claim is not None else None
