"""Rotations as a state machine: they continue after any interruption, and nobody holds a refused key in between."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest

from natskit.errors import IdentityError, NatskitError
from natskit.identity import claims, nkey
from natskit.identity.files import write_private
from natskit.identity.identity import Identity
from natskit.identity.rotation import KINDS, Kind
from natskit.ops.key_rotation import Rotation

NOW = 1_800_000_000
DAY = 86_400
RUNNER = "5f0c6f0e-7a3e-4c8e-9d5b-0c1f2e3d4a5b"


class InterruptedError(NatskitError):
    """A power cut."""


class World:
    """What servers and hosts hold, by the same rules: an account is used if its signer is believed, creds if their
    signer is in the account. It fails at the call number ``fails_at``, before or after it has done as asked."""

    def __init__(self, directory: Path, fails_at: int = -1, after: bool = False) -> None:
        self.directory = directory
        self.fails_at, self.after = -1, after
        self.calls: list[str] = []
        self.now = NOW + 100
        self.operator: list[str] = []
        self.accounts: dict[str, Any] = {}
        self.hub: dict[str, Any] = {}
        self.projects = ""
        self.deploy()
        self.renew_projects()
        self.calls = []
        self.fails_at = fails_at

    def clock(self) -> float:
        self.now += 1
        return float(self.now)

    def _called(self, what: str, *, done: bool) -> None:
        if not done:
            self.calls.append(what)
        if len(self.calls) - 1 == self.fails_at and done == self.after:
            self.fails_at = -1
            raise InterruptedError(what)

    def push(self, identity: Identity) -> None:
        self._called("push", done=False)
        self._use(identity, identity.creds("SYS", "admin"))
        self._called("push", done=True)

    def deploy(self) -> None:
        self._called("deploy", done=False)
        identity = Identity.ensure(self.directory, now=self.now)
        self.operator = list(claims.decode(identity.operator_jwt)["nats"]["signing_keys"])
        self._use(identity, "" if not self.accounts else identity.creds("SYS", "admin"))
        self.hub = {
            "keys": identity.hub_keys(),
            "creds": [identity.creds(account, "hub") for account in ("AUTH", "PLATFORM")],
            "runner": identity.runner_creds(RUNNER, now=self.now)[0],
            "runners": {identity.runner_creds(RUNNER, now=self.now)[1], *identity.retiring_runners.values()},
        }
        self.check()
        self._called("deploy", done=True)

    def operator_keys(self, identity: Identity) -> dict[str, Collection[str]]:
        assert identity.pending_rotation
        return {"nats-1": self.operator}

    def holders(self, identity: Identity) -> dict[str, int]:
        self._called("holders", done=False)
        self.check()
        self._called("holders", done=True)
        hub = {"hub hub-1": 1} if {issuer(c) for c in self.hub["creds"]} & identity.retiring_keys else {}
        return hub | ({"projects": 1} if issuer(self.projects) in identity.retiring_keys else {})

    def renew_projects(self) -> None:
        self._called("renew", done=False)
        subject = nkey.public_key(nkey.create_seed("user"))
        keys = self.hub["keys"]
        body = claims.auth_user_claims(
            subject=subject, name=RUNNER, tags=["kind:project"], auth_account=keys.auth_account, issued_at=self.now
        )
        self.projects = claims.encode(body, nkey.key_pair(keys.auth_signing_seed))
        self._called("renew", done=True)

    def wait(self, seconds: float) -> None:
        self.now += int(seconds)

    def _use(self, identity: Identity, administrator: str) -> None:
        if administrator:
            assert self.accepts("SYS", administrator), "pushed with creds that are refused"
        for name in ("SYS", "AUTH", "PLATFORM"):
            body = claims.decode(identity.account_jwt(name))
            assert body["iss"] in self.operator, f"{name} is signed by a key that is not believed"
            self.accounts[name] = body["nats"] | {"sub": body["sub"]}

    def accepts(self, account: str, creds: str) -> bool:
        body = claims.decode(creds.splitlines()[1] if "\n" in creds else creds)
        keys = [k if isinstance(k, str) else k["key"] for k in self.accounts[account]["signing_keys"]]
        revoked = self.accounts[account].get("revocations", {})
        return body["iss"] in keys and revoked.get(body["sub"], 0) < body["iat"]

    def check(self) -> None:
        """Check that every client's keys work."""
        for account, creds in zip(("AUTH", "PLATFORM"), self.hub["creds"], strict=True):
            assert self.accepts(account, creds), f"the hub's creds in {account} are refused"
        auth = claims.decode(self.hub["creds"][0].splitlines()[1])["sub"]
        assert auth in self.accounts["AUTH"]["authorization"]["auth_users"]
        keys = self.hub["keys"]
        assert nkey.public_key(keys.auth_signing_seed) in self.accounts["AUTH"]["signing_keys"]
        scopes = {k["key"]: k["role"] for k in self.accounts["PLATFORM"]["signing_keys"]}
        for role, seed in keys.platform_seeds.items():
            assert scopes[nkey.public_key(seed)] == role
        assert self.accepts("AUTH", self.hub["runner"])
        assert claims.decode(self.hub["runner"].splitlines()[1])["sub"] in self.hub["runners"]
        if self.projects:
            assert self.accepts("AUTH", self.projects), "projects are locked out"


def issuer(creds: str) -> str:
    return str(claims.decode(creds.splitlines()[1] if "\n" in creds else creds)["iss"])


def run(world: World, kind: Kind, *, urgent: bool = False) -> list[str]:
    said: list[str] = []
    identity = Identity.load(world.directory, write=True)
    rotation = Rotation(identity, world, said.append, cookie_seconds=7 * DAY, patience=5, clock=world.clock)
    rotation.run(kind, urgent=urgent)
    return said


def keys(directory: Path) -> dict[str, str]:
    """The keys of the index that sign or identify somebody, by place. Fails if the index has other keys."""
    index: dict[str, Any] = json.loads((directory / "natskit.json").read_text())
    found: dict[str, str] = {"operator": index["operator"]["signing"]} | index["users"] | index["runners"]
    for name, account in index["accounts"].items():
        found |= {f"{name}: {role}": key for role, key in account["signing"].items()}
        found[name] = account["identity"]
        assert set(account) <= {"identity", "signing", "revoked"}
    assert set(index) <= {"version", "operator", "accounts", "users", "runners", "cookie_keys"}
    return found


EXCHANGED = {
    "hub-keys": {"AUTH: hub", "PLATFORM: browser", "PLATFORM: project", "PLATFORM: runner", "AUTH/hub",
                 "PLATFORM/hub"},
    "nats-account": {"PLATFORM: hub", "PLATFORM: keeper", "PLATFORM: admin", "STATE: admin", "STATE: probe",
                     "SYS: admin", "DOCS: keeper", "DOCS: admin", "DOCS: probe", "SYS/admin", "PLATFORM/hub",
                     "PLATFORM/keeper", "PLATFORM/admin", "STATE/admin", "STATE/probe", "DOCS/keeper", "DOCS/admin",
                     "DOCS/probe"},
    "project-keys": {RUNNER},
    "operator-signing-key": {"operator"},
}  # fmt: skip


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    Identity.ensure(tmp_path / "identity", now=NOW).runner_creds(RUNNER, now=NOW)
    return tmp_path / "identity"


@pytest.mark.parametrize("kind", KINDS)
def test_exactly_its_keys_are_exchanged_and_the_old_ones_are_refused(directory: Path, kind: Kind) -> None:
    world, before = World(directory), keys(directory)
    old_hub, old_project, old_admin = world.hub, world.projects, Identity.load(directory).creds("SYS", "admin")
    old_seeds = {path.stem for path in (directory / "keys" / "keys").rglob("*.nk")}
    run(world, kind)
    after = keys(directory)
    assert {place for place in after if after[place] != before[place]} == EXCHANGED[kind]
    world.check()
    seeds = {path.stem for path in (directory / "keys" / "keys").rglob("*.nk")}
    assert seeds == set(after.values()) | {Identity.load(directory).operator_public_key}
    assert old_seeds - seeds == {before[place] for place in EXCHANGED[kind]}
    hub_creds = [world.accepts(a, c) for a, c in zip(("AUTH", "PLATFORM"), old_hub["creds"], strict=True)]
    assert hub_creds == {"hub-keys": [False] * 2, "nats-account": [True, False]}.get(kind, [True] * 2)
    assert world.accepts("SYS", old_admin) == (kind != "nats-account")
    assert world.accepts("AUTH", old_project) == (kind != "hub-keys")
    assert (before["operator"] in world.operator) == (kind != "operator-signing-key")
    assert (before[RUNNER] in world.hub["runners"]) == (kind != "project-keys")


@pytest.mark.parametrize("after", [False, True], ids=["before it", "after it"])
@pytest.mark.parametrize("kind", KINDS)
def test_interrupted_at_any_step_it_goes_on(directory: Path, kind: Kind, after: bool) -> None:
    reference = World(directory)
    run(reference, kind)
    for number in range(len(reference.calls)):
        world = World(directory, fails_at=number, after=after)
        before = keys(directory)
        with pytest.raises(InterruptedError):
            run(world, kind)
        world.check()
        world.deploy()  # which anybody may run at any time
        assert run(world, kind)[0].startswith("continuing"), number
        now = keys(directory)
        assert {place for place in now if now[place] != before[place]} == EXCHANGED[kind], number
        world.check()
        assert Identity.load(directory).pending_rotation is None


@pytest.mark.parametrize("kind", ["nats-account"])
def test_interrupted_while_it_writes_it_goes_on(directory: Path, kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power cut at each file that it writes: later files do not exist."""
    write, count, fails_at = write_private, 0, 0

    def writes(path: Path, content: bytes) -> None:
        nonlocal count
        if not path.exists() or path.read_bytes() != content:
            count += 1
            if count == fails_at:
                raise InterruptedError(str(path))
        write(path, content)

    monkeypatch.setattr("natskit.identity.vault.write_private", writes)
    number = 0
    while True:
        number += 1
        world, before = World(directory), keys(directory)
        count, fails_at = 0, number
        try:
            run(world, kind)
            break
        except InterruptedError:
            fails_at = 0
        run(world, kind)
        world.check()
        now = keys(directory)
        assert {place for place in now if now[place] != before[place]} == EXCHANGED[kind], number
    assert number > 5


def test_one_rotation_at_a_time(directory: Path) -> None:
    world = World(directory, fails_at=0)
    with pytest.raises(InterruptedError):
        run(world, "hub-keys")
    with pytest.raises(
        IdentityError, match=r"a rotation of hub-keys is not finished: run `natskit identity rotate hub"
    ):
        run(world, "nats-account")


@pytest.mark.parametrize("urgent", [False, True])
def test_a_cookie_by_the_old_key_is_exchanged_unless_that_is_stolen(directory: Path, urgent: bool) -> None:
    world = World(directory)
    old = nkey.public_key(world.hub["keys"].auth_signing_seed)
    run(world, "hub-keys", urgent=urgent)
    world.deploy()
    until = world.hub["keys"].accepted.get(old)
    assert until is None if urgent else until > world.now + 6 * DAY
    world.now += 8 * DAY
    world.deploy()
    assert world.hub["keys"].accepted == {}


def test_what_is_begun_in_peace_can_become_urgent(directory: Path) -> None:
    world = World(directory, fails_at=3)
    old = nkey.public_key(world.hub["keys"].auth_signing_seed)
    with pytest.raises(InterruptedError):
        run(world, "hub-keys")
    assert world.hub["keys"].accepted[old] > world.now
    run(world, "hub-keys", urgent=True)
    world.deploy()
    assert old not in world.hub["keys"].accepted


@pytest.mark.parametrize("kind", ["hub-keys", "nats-account"])
def test_a_deploy_that_does_not_reach_a_hub_stops_the_rotation(directory: Path, kind: Kind) -> None:
    """Otherwise the hub would continue with refused creds, and nobody could connect."""
    world = World(directory)
    deploy, world.deploy = world.deploy, lambda: None  # type: ignore[method-assign]
    with pytest.raises(NatskitError, match="hub hub-1 still uses old creds"):
        run(world, kind)
    pending = Identity.load(directory).pending_rotation
    assert pending
    assert pending["step"] == "switch"
    world.check()
    world.deploy = deploy  # type: ignore[method-assign]
    run(world, kind)
    world.check()


def test_a_server_that_was_not_restarted_stops_the_rotation(directory: Path) -> None:
    world = World(directory)
    world.operator_keys = lambda identity: {"nats-1": ["O-ELSE"]}  # type: ignore[method-assign]  # noqa: ARG005
    with pytest.raises(NatskitError, match="nats-1 does not trust the new key yet"):
        run(world, "operator-signing-key")
    pending = Identity.load(directory).pending_rotation
    assert pending
    assert pending["step"] == "offer"
