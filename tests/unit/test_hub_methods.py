"""The declarations of methods: who may call them, how clients may use them, and which the audit records."""

from __future__ import annotations

from typing import cast, get_args

import pytest

from natskit.errors import SettingsError
from natskit.hub.api.access import DEFAULTS, RULES, check_declarations
from natskit.hub.api.admin import admin_methods
from natskit.hub.api.agents import project_methods, runner_methods
from natskit.hub.api.call_audit import is_audited
from natskit.hub.api.user import natskit_hub
from natskit.hub.caller import Caller, Kind
from natskit.project.api import natskit_project
from natskit.rpc import Declaration, Methods

TABLES: dict[Kind, Methods[Caller]] = {
    "account": natskit_hub,
    "project": project_methods,
    "runner": runner_methods,
    "admin": admin_methods,
}


@pytest.mark.parametrize("kind", get_args(Kind))
def test_every_built_in_method_says_who_may_call_it(kind: str) -> None:
    table = TABLES[cast("Kind", kind)]
    without = [name for name, declared in table.declarations().items() if declared.access is None]
    assert not without, f"say who may call these, access=one of {sorted(RULES[cast('Kind', kind)])}"
    check_declarations(cast("Kind", kind), table)


def test_nats_server_lets_only_members_call_a_project() -> None:
    """The agent does not know the caller: nats-server's permissions enforce the rule."""
    assert {declared.access for declared in natskit_project.declarations().values()} == {"member"}


@pytest.mark.parametrize("kind", get_args(Kind))
def test_a_method_that_says_nothing_gets_a_rule_that_exists(kind: str) -> None:
    assert DEFAULTS[cast("Kind", kind)] in RULES[cast("Kind", kind)]
    assert DEFAULTS["account"] == "account", "documented: any signed-in account"


async def of_anything(_caller: Caller) -> None: ...


async def of_a_project(_caller: Caller, project_id: str) -> None: ...


def test_a_rule_that_does_not_exist_is_an_error() -> None:
    methods: Methods[Caller] = Methods()
    methods.method("greet", access="ownr")(of_a_project)
    with pytest.raises(SettingsError, match="'greet': there is no access rule 'ownr'; the rules are: account"):
        check_declarations("account", methods)


def test_a_rule_about_a_project_needs_the_parameter_that_names_it() -> None:
    methods: Methods[Caller] = Methods()
    methods.method("greet", access="member")(of_anything)
    with pytest.raises(SettingsError, match="'greet': the access rule 'member' needs a parameter 'project_id'"):
        check_declarations("account", methods)


def test_a_method_whose_rule_may_wait_cannot_be_immediate() -> None:
    methods: Methods[Caller] = Methods()
    methods.method("greet", access="owner", immediate=True)(of_a_project)
    with pytest.raises(SettingsError, match="'greet': it cannot be immediate: the access rule 'owner' may wait"):
        check_declarations("account", methods)


def test_a_method_is_audited_unless_it_says_otherwise_or_its_name_says_that_it_reads() -> None:
    nothing_said = Declaration()
    assert is_audited("grant_credits", nothing_said)
    for name in ("list_projects", "get_weather", "account_list"):
        assert not is_audited(name, nothing_said)
        assert is_audited(name, Declaration(audited=True))
    assert not is_audited("grant_credits", Declaration(audited=False))
