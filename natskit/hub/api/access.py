"""Who may call a method: the rules that methods name where they are defined (``access=``).

The dispatcher enforces them before a method runs (:mod:`natskit.hub.api.dispatch`). Each kind of caller has a table of
methods of its own, which nobody else reaches: nats-server lets only an account publish to ``hub.api.{account_id}``,
only a project's agent to ``hub.project.{project_id}``, and so on (natskit/bus/permissions.py).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from natskit.errors import SettingsError
from natskit.hub.caller import Caller, Kind
from natskit.rpc import Declaration, Methods, RpcError
from natskit.validation.names import address_form

PROJECT = "project_id"
"""The parameter that names the project which a rule is about."""


async def _anybody(_caller: Caller, _declaration: Declaration) -> None:
    pass


@dataclass(frozen=True)
class Rule:
    """An access rule. Both checks raise :class:`RpcError` for a caller that may not call the method."""

    meaning: str
    caller: Callable[[Caller, Declaration], Awaitable[None]] = _anybody
    """Checked before the parameters are read."""
    project: Callable[[Caller, str], Awaitable[None]] | None = None
    """Checked for the project that the parameter :data:`PROJECT` names."""


async def _account(caller: Caller, declaration: Declaration) -> None:
    if caller.hub.state.account(caller.id) is None:
        await caller.hub.state.accounts.find(caller.id)  # another hub may have made it a moment ago
    if caller.account.one_time and not declaration.one_time_password:
        raise RpcError(
            "must_change_password", "you signed in with a one-time password: change it first (change_password)"
        )


async def _administrator(caller: Caller, declaration: Declaration) -> None:
    await _account(caller, declaration)
    if not is_administrator(caller):
        raise RpcError("forbidden", "only an administrator of the platform may do that")


def is_administrator(caller: Caller) -> bool:
    """Whether the settings name the e-mail of the calling account (``hub_administrators``). An address that only looks
    the same is not enough."""
    named = {address_form(email) for email in caller.hub.program.administrators}
    return address_form(caller.account.email) in named


async def _member(caller: Caller, project_id: str) -> None:
    await caller.hub.projects.require(caller.id, project_id)


async def _owner(caller: Caller, project_id: str) -> None:
    await caller.hub.projects.require(caller.id, project_id, owner=True)


async def _project(caller: Caller, _declaration: Declaration) -> None:
    caller.hub.projects.get(caller.id)


async def _runner(caller: Caller, _declaration: Declaration) -> None:
    if caller.hub.state.runner_key(caller.id) is None:
        raise RpcError("forbidden", "the runner is not known to this platform, or was revoked")


async def _assigned(caller: Caller, project_id: str) -> None:
    project = await caller.hub.projects.find(project_id)
    if project.runner_id != caller.id:
        raise RpcError("forbidden", "the project belongs to another runner")


_CONNECTED = Rule("every caller that nats-server has let in")

RULES: Mapping[Kind, Mapping[str, Rule]] = {
    "account": {
        "connected": _CONNECTED,
        "account": Rule("every account that is not disabled", _account),
        "administrator": Rule("the accounts that hub_administrators names", _administrator),
        "member": Rule("the accounts that may use the project", _account, _member),
        "owner": Rule("the account that owns the project", _account, _owner),
    },
    "project": {
        "connected": _CONNECTED,
        "project": Rule("the agent of a project that exists", _project),
    },
    "runner": {
        "runner": Rule("a runner that the deploy knows and nobody has revoked", _runner),
        "assigned_runner": Rule("the runner that has the project", _runner, _assigned),
    },
    "admin": {"admin": Rule("the control machine")},
}
DEFAULTS: Mapping[Kind, str] = {"account": "account", "project": "project", "runner": "runner", "admin": "admin"}
"""The rule of a method that names none, such as one of a platform's own."""


def check_declarations(kind: Kind, methods: Methods[Caller]) -> None:
    """Raises :class:`SettingsError` for a method whose access rule does not exist, or cannot be enforced for it."""
    for name, declaration in methods.declarations().items():
        access = declaration.access or DEFAULTS[kind]
        rule = RULES[kind].get(access)
        if rule is None:
            known = ", ".join(sorted(RULES[kind]))
            raise SettingsError(f"method {name!r}: there is no access rule {access!r}; the rules are: {known}")
        if rule.project is not None and PROJECT not in methods.parameters(name):
            raise SettingsError(f"method {name!r}: the access rule {access!r} needs a parameter {PROJECT!r}")
        if rule.project is not None and declaration.immediate:
            raise SettingsError(f"method {name!r}: it cannot be immediate: the access rule {access!r} may wait")


async def check_caller(caller: Caller, declaration: Declaration) -> None:
    """Raises :class:`RpcError` if the caller may not call the method, whatever the parameters are."""
    await _rule(caller, declaration).caller(caller, declaration)


async def check_parameters(caller: Caller, declaration: Declaration, parameters: Mapping[str, Any]) -> None:
    """Raises :class:`RpcError` if the caller may not call the method for this project."""
    rule = _rule(caller, declaration)
    if rule.project is not None:
        await rule.project(caller, parameters[PROJECT])


def _rule(caller: Caller, declaration: Declaration) -> Rule:
    return RULES[caller.kind][declaration.access or DEFAULTS[caller.kind]]
