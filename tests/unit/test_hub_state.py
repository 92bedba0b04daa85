"""The view's indexes and rights follow the buckets; every change names the connections it outdates."""

from __future__ import annotations

import time
import uuid
from typing import Any, cast

import pytest
from msgspec.structs import replace

from natskit.bus.connection import Connection
from natskit.hub.config import RunnerEntry
from natskit.hub.limits.rate_limit import RateLimit
from natskit.hub.state.bucket import Bucket, Entry
from natskit.hub.state.records import (
    Account,
    EmailClaim,
    Membership,
    Project,
    Runner,
    Session,
    email_key,
    email_keys,
    has_old_key,
)
from natskit.hub.state.view import Holder, State


class World:
    """A state that is fed by hand."""

    def __init__(self) -> None:
        self.locked_out: set[str] = set()
        self.ended: set[str] = set()
        self.changed: set[str] = set()
        self.runner = str(uuid.uuid4())
        runners = {self.runner: RunnerEntry(name="r", public_key="UKEY")}
        nowhere = cast("Connection", None)
        self.state = State(nowhere, runners, self.locked_out.update, self.ended.update, self.changed.update)
        self.account, self.session, self.project = (str(uuid.uuid4()) for _ in range(3))
        self.put(self.state.accounts, self.account, Account(email="A@b.c", password_hash="", created_at=0))
        self.put(self.state.accounts, email_key("a@B.c"), EmailClaim(account_id=self.account))
        self.put(self.state.sessions, self.session, self.a_session(60))

    def a_session(self, left: float) -> Session:
        now = time.time()
        return Session(account_id=self.account, created_at=now, expires_at=now + left, absolute_expires_at=now + left)

    def put(self, bucket: Bucket[Any], key: str, value: Any) -> None:
        bucket._on_change(key, value)
        if value is None:
            bucket.entries.pop(key, None)
        else:
            bucket.entries[key] = Entry(value, 1)

    @property
    def browser(self) -> Holder:
        return Holder("browser", self.account, self.session)

    def name(self) -> str:
        rights = self.state.rights(self.browser)
        assert rights is not None
        return rights.name


@pytest.fixture
def world() -> World:
    return World()


async def test_a_grant_outdates_the_name_and_adds_the_tag(world: World) -> None:
    before = world.name()
    key = f"{world.account}.{world.project}"
    world.put(world.state.memberships, key, Membership(role="owner", since=0))
    assert world.name() == before, "a membership without its project gives nothing yet"
    world.put(world.state.projects, world.project, Project(title="p", created_at=0))
    rights = world.state.rights(world.browser)
    assert rights is not None
    assert rights.tags == [f"account:{world.account}", f"author:{world.account}", f"project:{world.project}"]
    assert rights.name != before
    assert before in world.changed
    granted = rights.name
    world.put(world.state.memberships, key, None)
    assert granted in world.changed
    assert world.name() == before


async def test_an_unchanged_membership_outdates_nothing(world: World) -> None:
    key = f"{world.account}.{world.project}"
    world.put(world.state.memberships, key, Membership(role="owner", since=0))
    world.changed.clear()
    world.put(world.state.memberships, key, Membership(role="owner", since=1))
    assert not world.changed


async def test_projects_are_sorted_once_until_one_comes_or_goes(world: World) -> None:
    """Who asks for one of many projects again and again does not have all of them sorted each time."""
    state, ids = world.state, [str(uuid.uuid4()) for _ in range(4)]
    for number, project_id in enumerate(ids[:3]):
        world.put(state.memberships, f"{world.account}.{project_id}", Membership(role="owner", since=0))
        world.put(state.projects, project_id, Project(title="p", created_at=10 - number))
    kept = state.projects_in_order(world.account)
    assert kept == ids[2::-1]
    world.put(state.projects, ids[0], Project(title="another", created_at=10))
    assert state.projects_in_order(world.account) is kept
    world.put(state.memberships, f"{world.account}.{ids[3]}", Membership(role="owner", since=0))
    assert state.projects_in_order(world.account) == ids[2::-1], "there is no such project yet"
    world.put(state.projects, ids[3], Project(title="p", created_at=20))
    assert state.projects_in_order(world.account) == [ids[2], ids[1], ids[0], ids[3]]
    world.put(state.projects, ids[1], None)
    assert state.projects_in_order(world.account) == [ids[2], ids[0], ids[3]]
    world.put(state.memberships, f"{world.account}.{ids[2]}", None)
    assert state.projects_in_order(world.account) == [ids[0], ids[3]]


async def test_sessions_end(world: World) -> None:
    name = world.name()
    world.put(world.state.sessions, world.session, None)
    assert world.state.rights(world.browser) is None
    assert name in world.ended
    world.put(world.state.sessions, world.session, world.a_session(-1))
    assert world.state.rights(world.browser) is None


async def test_a_session_is_good_for_its_own_account_only(world: World) -> None:
    other = str(uuid.uuid4())
    world.put(world.state.accounts, other, Account(email="x", password_hash="", created_at=0))
    assert world.state.rights(Holder("browser", other, world.session)) is None


async def test_a_disabled_account_is_locked_out(world: World) -> None:
    name = world.name()
    account = world.state.account(world.account)
    assert account is not None
    world.put(world.state.accounts, world.account, replace(account, disabled=True))
    assert world.state.rights(world.browser) is None
    assert name in world.locked_out


async def test_emails_are_found_in_any_case(world: World) -> None:
    found = world.state.account_by_email(" a@b.C ")
    assert found is not None
    assert found[0] == world.account
    assert world.state.account_by_email("nobody@b.c") is None


async def test_a_project_speaks_with_one_key_only(world: World) -> None:
    holder = Holder("project", world.project)
    project = Project(title="p", created_at=0, runner_id=world.runner)
    world.put(world.state.projects, world.project, project)
    assert world.state.rights(holder) is None
    world.put(world.state.projects, world.project, replace(project, public_key="U1"))
    first = world.state.rights(holder)
    assert first is not None
    assert (first.public_key, first.tags) == ("U1", [f"project:{world.project}"])
    world.put(world.state.projects, world.project, replace(project, public_key="U2"))
    second = world.state.rights(holder)
    assert second is not None
    assert second.name != first.name
    assert first.name in world.locked_out


async def test_both_keys_are_good_while_one_is_replaced(world: World) -> None:
    holder = Holder("project", world.project)
    project = Project(title="p", created_at=0, runner_id=world.runner, public_key="U1", next_key="U2")
    world.put(world.state.projects, world.project, project)
    old, new = (world.state.rights(holder, key) for key in ("U1", "U2"))
    assert old is not None
    assert new is not None
    assert (old.public_key, new.public_key) == ("U1", "U2")
    assert world.state.rights(holder, "U3") == old
    assert all(world.state.is_valid(holder, rights.name) for rights in (old, new))
    assert not world.locked_out
    world.put(world.state.projects, world.project, replace(project, public_key="U2", next_key=""))
    assert world.locked_out == {old.name}
    assert not world.state.is_valid(holder, old.name)
    assert world.state.is_valid(holder, new.name)


async def test_only_known_runners(world: World) -> None:
    assert world.state.rights(Holder("runner", world.runner)) is not None
    assert world.state.rights(Holder("runner", str(uuid.uuid4()))) is None


async def test_a_revoked_runner_takes_its_projects_along(world: World) -> None:
    runner, project = Holder("runner", world.runner), Holder("project", world.project)
    record = Project(title="p", created_at=0, runner_id=world.runner, public_key="U1", runner_key="UKEY")
    world.put(world.state.projects, world.project, record)
    before = [world.state.rights(holder) for holder in (runner, project)]
    seen = Runner(version="1", last_seen=0)
    world.put(world.state.runners, world.runner, seen)
    assert not world.locked_out
    world.put(world.state.runners, world.runner, replace(seen, revoked_keys=["UKEY"]))
    assert world.locked_out == {rights.name for rights in before if rights is not None}
    assert [world.state.rights(holder) for holder in (runner, project)] == [None, None]
    world.put(world.state.runners, world.runner, replace(seen, revoked_keys=["ANOTHER"]))
    assert [world.state.rights(holder) for holder in (runner, project)] == before, "a new key of the same runner"
    world.put(world.state.projects, world.project, replace(record, runner_key="UOLD"))
    assert world.state.rights(project) is None, "its key is the old runner's"


async def test_an_epoch_ends_all_sessions_but_the_kept_one(world: World) -> None:
    name, kept = world.name(), str(uuid.uuid4())
    world.put(world.state.sessions, kept, world.a_session(60))
    account = world.state.account(world.account)
    assert account is not None
    changed = replace(account, session_epoch=1, kept_session=kept)
    world.put(world.state.accounts, world.account, changed)
    assert world.ended == {name}
    assert world.state.rights(world.browser) is None
    assert world.state.rights(Holder("browser", world.account, kept)) is not None
    world.put(world.state.sessions, world.session, replace(world.a_session(60), epoch=1))
    assert world.state.rights(world.browser) is not None


async def test_a_one_time_password_gives_no_projects(world: World) -> None:
    world.put(world.state.projects, world.project, Project(title="p", created_at=0))
    world.put(world.state.memberships, f"{world.account}.{world.project}", Membership(role="owner", since=0))
    account, before = world.state.account(world.account), world.name()
    assert account is not None
    world.put(world.state.accounts, world.account, replace(account, one_time=True))
    assert before in world.changed
    rights = world.state.rights(world.browser)
    assert rights is not None
    assert rights.tags == [f"account:{world.account}"]
    world.changed.clear()
    world.put(world.state.accounts, world.account, account)
    assert rights.name in world.changed
    assert world.name() == before


def test_a_pace_counts_within_a_minute() -> None:
    now = [0.0]
    pace = RateLimit(3, lambda: now[0])
    for _ in range(3):
        assert pace.wait("a") == 0
        pace.note("a")
        now[0] += 10
    assert pace.wait("a") == 30
    assert pace.wait("b") == 0
    now[0] = 60
    assert pace.wait("a") == 0
    pace.note("a")
    assert pace.wait("a") == 10


@pytest.mark.parametrize("email", ["a@b.c", "A@B.c ", "jürgen@b.c", "ｊ@b.c", "a@bücher.de", "ﬁ@b.c", "ß@b.c"])
def test_an_email_has_an_old_key_if_it_has_two(email: str) -> None:
    assert has_old_key(email) == (len(email_keys(email)) > 1)
