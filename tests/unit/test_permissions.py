"""The permission matrix: the subjects that templates make of tags, and subjects that no template may contain."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from natskit.bus.permissions import (
    BUCKETS,
    MAX_PROJECTS_PER_ACCOUNT,
    PROBE_BUCKET,
    SCOPES,
    STATE_SCOPES,
    Permissions,
    check_id,
    expand,
    inbox_prefix,
)
from natskit.errors import NatskitError

SERVER_LIMIT = 4096
DYNAMIC = ("browser", "project", "runner")

uuids = st.uuids().map(str)


@given(account=uuids, projects=st.lists(uuids, max_size=5, unique=True))
def test_a_browsers_subjects_are_its_own(account: str, projects: list[str]) -> None:
    tags = [f"account:{account}", *(f"project:{project}" for project in projects)]
    mine = {account, *projects}
    for subject in [*expand(SCOPES["browser"].publish, tags), *expand(SCOPES["browser"].subscribe, tags)]:
        assert set(re.findall(r"[0-9a-f-]{36}", subject)) <= mine
        assert not subject.startswith((">", "*"))
        assert "{{" not in subject


@pytest.mark.parametrize("role", DYNAMIC)
def test_without_tags_there_are_no_rights(role: str) -> None:
    scope: Permissions = SCOPES[role]  # type: ignore[index]
    assert expand(scope.publish, []) == expand(scope.subscribe, []) == []


@pytest.mark.parametrize("role", DYNAMIC)
def test_no_right_of_a_guest_has_a_wildcard_before_its_id(role: str) -> None:
    scope: Permissions = SCOPES[role]  # type: ignore[index]
    # Answers go to any account's inbox, to the part of it where only this project may answer.
    answers = {"_INBOX.account.*.{{tag(project)}}.>"} if role == "project" else set()
    # One word, so that a project cannot say what keepers say of its documents, and asks only of its own.
    own = {f"{words}.*" for words in ("events.project.ID", "events.project.ID.doc", "docs.disk.ID", "docs.disk.ID.*")}
    answers |= {subject.replace("ID", "{{tag(project)}}") for subject in own} if role == "project" else set()
    for subject in {*scope.publish, *scope.subscribe} - answers:
        assert "*" not in subject
        assert subject.find(">") in {-1, len(subject) - 1}
        assert "{{tag(" in subject


def test_the_probe_writes_nothing_but_its_own_bucket() -> None:
    scope = STATE_SCOPES["probe"]
    about_the_state = {f"$JS.API.STREAM.INFO.KV_{bucket}" for bucket in BUCKETS}
    for subject in set(scope.publish) - about_the_state:
        assert subject.startswith("$KV.probe.") or re.fullmatch(r"\$JS\.API\.[A-Z.]+\.KV_probe(\.>)?", subject)
    assert PROBE_BUCKET not in BUCKETS
    assert scope.subscribe == ("_INBOX.probe.>",)


def test_the_limit_of_projects_stays_below_the_servers() -> None:
    tags = ["account:a", *(f"project:{n}" for n in range(MAX_PROJECTS_PER_ACCOUNT))]
    for subjects in (SCOPES["browser"].publish, SCOPES["browser"].subscribe):
        assert len(expand(subjects, tags)) < SERVER_LIMIT


@given(uuids)
def test_lower_case_uuids_are_ids(value: str) -> None:
    assert check_id(value, "id") == value


@given(
    st.text(max_size=40) | uuids.map(str.upper).filter(lambda value: value != value.lower()) | uuids.map("{}\n".format)
)
def test_nothing_else_is_an_id(value: str) -> None:
    with pytest.raises(NatskitError, match="lower-case UUID"):
        check_id(value, "project id")


def test_every_role_may_listen_on_its_inbox() -> None:
    tags = ["account:x", "project:x", "runner:x"]
    for role, scope in SCOPES.items():
        identifier = "x" if role in DYNAMIC else ""
        assert f"{inbox_prefix(role, identifier)}.>" in expand(scope.subscribe, tags)
