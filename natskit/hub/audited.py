"""What of the calls of the API goes into the audit: every method that is not known to change nothing, those of your own
packages included, by its name, its outcome, and the parameters that are known to hold no secret."""

from __future__ import annotations

from typing import Any

from natskit.hub.audit import Audit
from natskit.hub.caller import Caller
from natskit.hub.records import EmailClaim, email_key
from natskit.hub.state import State
from natskit.rpc import Request

_QUIET = frozenset(
    {
        "ping",
        "whoami",
        "status",
        "account_sessions",
        "is_let_in",
        "project_state",
        "heartbeat",
        "read_text_file_from_project",
        "write_text_file_to_project",
    }
)
"""Methods that change nothing of who may do what; besides those called ``list_…``, ``get_…`` and ``…_list``."""
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
"""Parameters, and parts of a result, that are ids and alike. Whatever else a method takes may be a secret."""
_REFUSED = frozenset({"forbidden", "must_change_password", "not_found", "limit", "conflict", "invalid_state"})
_UNASKED = frozenset({"parse_error", "invalid_request", "method_not_found", "invalid_params"})
"""Outcomes of what never was a request to do something."""


def is_quiet(method: str) -> bool:
    """Whether a successful call is not worth an event."""
    return method in _QUIET or method.startswith(("list_", "get_")) or method.endswith("_list")


def record_call(audit: Audit, state: State, caller: Caller, request: Request, outcome: str, result: Any) -> None:
    """Note a call of a method and how it ended; ``outcome`` is ``ok`` or the kind of the error."""
    if outcome in _UNASKED or (outcome == "ok" and is_quiet(request.method)):
        return
    refused = outcome in _REFUSED
    fields = _safe(request.params) | _safe(result)
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


def _safe(values: Any) -> dict[str, Any]:
    if not isinstance(values, dict):
        return {}
    return {key: values[key] for key in _SAFE if isinstance(values.get(key), str | bool)}


def _account_named(state: State, fields: dict[str, Any]) -> str | None:
    """The account that a call is about, by its id or its e-mail."""
    if "account_id" in fields:
        return str(fields["account_id"])
    claim = state.accounts.get(email_key(fields["email"])) if "email" in fields else None
    return claim.account_id if isinstance(claim, EmailClaim) else None
