"""The identity of a platform: operator, NATS accounts, signing keys, users and their creds, and the local CA.

Everything is in one directory on the control machine, mode 0700, in nsc's layout: ``keys/keys`` (seeds),
``keys/creds``, ``stores``. ``natskit.json`` is the index: it names the public key of each role. It is written last, so
that a directory without it is incomplete. Secrets can be encrypted with age (:mod:`natskit.identity.vault`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from natskit.bus.permissions import (
    CONNECTION_EVENTS,
    EXPORTED_SERVICES,
    EXPORTED_STREAMS,
    HUB_IN_AUTH,
    IMPORTED_SERVICES,
    IMPORTED_STREAMS,
    SCOPES_OF,
    Import,
    NatsAccount,
    Permissions,
    check_id,
    connections_subject,
)
from natskit.errors import ClaimsError, IdentityError
from natskit.identity import claims, nkey, rotation
from natskit.identity.files import check_private, locked
from natskit.identity.vault import Vault, refuse_half_encrypted

__all__ = ["HubKeys", "Identity"]

OPERATOR = "natskit"
NATS_ACCOUNTS: tuple[NatsAccount, ...] = ("SYS", "AUTH", "PLATFORM", "STATE", "DOCS")
STATIC_USERS: tuple[tuple[NatsAccount, str], ...] = (
    ("SYS", "admin"),
    ("AUTH", "hub"),
    ("PLATFORM", "hub"),
    ("PLATFORM", "admin"),
    ("PLATFORM", "keeper"),
    ("STATE", "admin"),
    ("STATE", "probe"),
    ("DOCS", "admin"),
    ("DOCS", "keeper"),
    ("DOCS", "probe"),
)
"""The users whose creds files a deploy creates: the hubs, the keepers of documents, the administrator, and the probe
that a deploy runs before and after the restart of a nats-server."""

INDEX = "natskit.json"
_KIND_FOLDERS: dict[str, nkey.Kind] = {"O": "operator", "A": "account", "U": "user"}


@dataclass(frozen=True)
class HubKeys:
    """The keys of a hub. They can answer auth callouts and sign sessions, but not act outside PLATFORM or create
    hubs."""

    auth_account: str
    auth_signing_seed: str = field(repr=False)
    platform_account: str
    platform_seeds: dict[str, str] = field(repr=False)
    accepted: dict[str, int] = field(default_factory=dict)
    """Other accepted signing keys of AUTH, each with the time (Unix seconds; 0: no end) until which a browser's cookie
    is accepted."""

    def to_json(self) -> str:
        """The content of a hub's ``keys.json``."""
        return json.dumps(asdict(self), indent=2, sort_keys=True) + "\n"

    @classmethod
    def read(cls, path: Path) -> HubKeys:
        """Read a hub's ``keys.json``. Raises :class:`IdentityError`."""
        check_private(path)
        try:
            return cls(**json.loads(path.read_text()))
        except (ValueError, TypeError):
            raise IdentityError(f"{path} is not a hub's key file: run the deploy again") from None


class Identity:
    """The keys and JWTs of one platform. Use :meth:`ensure` to create or load, :meth:`load` to load only."""

    def __init__(self, directory: Path, index: dict[str, Any], seeds: dict[str, str], *, write: bool) -> None:
        self.directory = directory
        self.files = Vault(directory, write=write)
        """The identity's files. The CA's files are beside the others."""
        self._index = index
        self._seeds = seeds
        self._loaded = False
        self._jwts: dict[str, str] = {}

    @classmethod
    def ensure(cls, directory: Path, *, now: int, write: bool = True) -> Identity:
        """Load the identity in ``directory``, or create it there. JWTs are updated to the permission matrix.

        Roles keep removed rights until :meth:`end_earlier_rights`, so that programs of an older version work until a
        deploy has replaced all of them.

        ``now`` is in Unix seconds. With ``write=False``, missing parts are created in memory only.
        Raises :class:`IdentityError` for a directory that is incomplete, owned by another user or readable by others.
        """
        if directory.exists():
            check_private(directory)
        with locked(directory) if write else nullcontext():
            refuse_half_encrypted(directory)
            if (directory / INDEX).exists():
                identity = cls.load(directory, write=write)
                identity._loaded = False
            else:
                _refuse_half_written(directory)
                identity = cls(directory, {}, {}, write=write)
            before = json.dumps(identity._index)
            _note_streams_in_platform(identity._index)
            _forget_unused(identity._index)
            rotation.forget_cookie_keys(identity._index, now)
            if _create_missing(identity._index, identity._seeds) or json.dumps(identity._index) != before:
                identity._save_keys()
            identity._refresh(now, identity._with_earlier_rights)
            return identity

    @classmethod
    def load(cls, directory: Path, *, write: bool = False) -> Identity:
        """Load the identity in ``directory``. Raises :class:`IdentityError` if it is missing or incomplete.

        With ``write=True``, later changes are written to disk.
        """
        path = directory / INDEX
        if not path.exists():
            _refuse_half_written(directory)
            raise IdentityError(f"{directory} contains no identity: deploy to create one")
        check_private(directory)
        identity = cls(directory, *_read_index(Vault(directory), {}), write=write)
        identity._loaded = True
        identity._jwts = {name: _read_optional(path) for name, path in identity._jwt_paths().items()}
        return identity

    @property
    def _write(self) -> bool:
        """Whether changes are written to disk."""
        return self.files.writes

    @_write.setter
    def _write(self, write: bool) -> None:
        self.files.writes = write

    @property
    def operator_jwt(self) -> str:
        """The operator's self-signed JWT, which a nats-server trusts."""
        return self._jwts["operator"]

    @property
    def operator_public_key(self) -> str:
        """The operator's public key (``O…``)."""
        return str(self._index["operator"]["identity"])

    def account_public_key(self, name: str) -> str:
        """The public key (``A…``) of a NATS account, one of :data:`NATS_ACCOUNTS`. Raises :class:`IdentityError`."""
        account = self._index["accounts"].get(name)
        if account is None:
            raise IdentityError(f"{self.directory} has no NATS account {name} yet: deploy to create it")
        return str(account["identity"])

    @property
    def accounts(self) -> list[NatsAccount]:
        """The NATS accounts: all, or in an identity of an older version those that it has."""
        return [name for name in NATS_ACCOUNTS if name in self._index["accounts"]]

    def account_jwt(self, name: str) -> str:
        """The JWT of a NATS account, signed by the operator's signing key."""
        return self._jwts[name]

    def signing_seed(self, account: str, role: str) -> str:
        """The seed of a NATS account's signing key for a role. Raises :class:`IdentityError` if there is none yet."""
        public = self._index["accounts"].get(account, {"signing": {}})["signing"].get(role)
        if public is None:
            raise IdentityError(f"{self.directory} has no signing key for {account}/{role} yet: deploy to create it")
        return self._seeds[public]

    def creds(self, account: str, user: str) -> str:
        """The text of the creds file of a static user, one of :data:`STATIC_USERS`. Raises :class:`IdentityError`."""
        name = f"{account}/{user}"
        if name not in self._index["users"]:
            raise IdentityError(f"{self.directory} has no user {name} yet: deploy to create it")
        return claims.format_creds(self._jwts[name], self._seeds[self._index["users"][name]])

    def creds_path(self, account: str, user: str) -> Path:
        """The creds file's path in nsc's layout."""
        return self.directory / "keys" / "creds" / OPERATOR / account / f"{user}.creds"

    def hub_keys(self) -> HubKeys:
        """The keys of a hub."""
        following = self._index["accounts"]["AUTH"].get("next", {})
        return HubKeys(
            auth_account=self.account_public_key("AUTH"),
            auth_signing_seed=self.signing_seed("AUTH", "hub"),
            platform_account=self.account_public_key("PLATFORM"),
            platform_seeds={role: self.signing_seed("PLATFORM", role) for role in rotation.HUB_ROLES},
            accepted=dict.fromkeys(following.values(), 0)
            | {entry["key"]: int(entry["until"]) for entry in self._index.get("cookie_keys", [])},
        )

    @property
    def state_in_platform(self) -> bool:
        """Whether the streams of the state are in PLATFORM, where an older version has made them: until a deploy moves
        them."""
        return self._index.get("state") == "PLATFORM"

    @property
    def state_can_go_back(self) -> bool:
        """Whether the streams of the state were moved to STATE, and PLATFORM still has those from before."""
        return self._index.get("state") == "moved"

    def note_state(self, state: Literal["PLATFORM", "moved", "confirmed"], *, now: int) -> None:
        """Record where the streams of the state are, and whether there is a way back.

        Keeps the rights of programs of an older version, as :meth:`ensure` does.
        """
        with locked(self.directory):
            self._index, self._seeds = _read_index(self.files, self._seeds)
            self._index["state"] = state
            if state == "confirmed":
                del self._index["state"]
            self._save_keys()
            self._refresh(now, self._with_earlier_rights)

    @property
    def pending_rotation(self) -> dict[str, Any] | None:
        """The unfinished rotation: its ``kind``, its ``step``, and whether it is ``urgent``."""
        found = self._index.get("rotation")
        return dict(found) if found else None

    @property
    def retiring_keys(self) -> set[str]:
        """The signing keys of NATS accounts that are still accepted but no longer sign."""
        return {r["key"] for account in self._index["accounts"].values() for r in account.get("retiring", [])}

    @property
    def retiring_runners(self) -> dict[str, str]:
        """The replaced public keys of runners that are still accepted."""
        return dict(self._index.get("retiring_runners", {}))

    @property
    def operator_keys(self) -> list[str]:
        """The operator's accepted signing keys. The first one signs."""
        return rotation.operator_keys(self._index)

    @property
    def operator_signing_seed(self) -> str:
        """The seed of the operator's current signing key."""
        return self._seeds[self._index["operator"]["signing"]]

    def account_path(self, name: str) -> Path:
        """The path of a NATS account's JWT in nsc's layout."""
        return self._jwt_paths()[name]

    def account_jwts(self) -> dict[str, str]:
        """The JWTs of all NATS accounts, by their public keys."""
        return {self.account_public_key(name): self._jwts[name] for name in self.accounts}

    @property
    def has_earlier_rights(self) -> bool:
        """Whether a role still has rights that the permission matrix no longer grants."""
        return any(self._with_earlier_rights(name, wanted) != wanted for name, (wanted, _) in self._wanted(0).items())

    def end_earlier_rights(self, *, now: int) -> None:
        """Remove all rights that the permission matrix no longer grants."""
        with locked(self.directory):
            self._refresh(now)

    def begin_rotation(self, kind: rotation.Kind, *, now: int, urgent: bool) -> None:
        """Create the new keys and accept them. Raises :class:`IdentityError` while another rotation is unfinished."""
        self._change(
            now,
            lambda index, seeds: rotation.offer(index, seeds, kind, now, urgent=urgent, create=nkey.create_seed),
        )

    def switch_keys(self, *, now: int, cookie_seconds: int) -> None:
        """Sign with the new keys; see :func:`natskit.identity.rotation.switch`."""
        self._change(now, lambda index, _: rotation.switch(index, now, cookie_seconds=cookie_seconds))

    def sign_what_is_missing(self, *, now: int) -> None:
        """Sign the JWTs that follow from the index but were not written, because the process that wrote the index was
        killed."""
        self._change(now, lambda *_: None)

    def hurry_rotation(self, *, now: int) -> None:
        """Make the unfinished rotation urgent: cookies signed by the old key are no longer exchanged."""

        def change(index: dict[str, Any], _: dict[str, str]) -> None:
            index["rotation"]["urgent"] = True
            for entry in index.get("cookie_keys", []):
                entry["until"] = 1

        self._change(now, change)

    def note_moved(self, *, now: int) -> None:
        """Record that all holders of creds signed by the old keys have new ones."""
        self._change(now, lambda index, _: index["rotation"].update(step="move"))

    def drop_old_keys(self, *, now: int) -> None:
        """Stop accepting the old keys."""
        self._change(now, lambda index, _: rotation.drop(index, now))

    def end_rotation(self, *, now: int) -> None:
        """Remove the seeds of the old keys. The servers must refuse these keys already."""
        gone = (self._index.get("rotation") or {}).get("gone", [])
        for key in gone:
            self._seeds.pop(key, None)
            self.files.remove(seed_path(self.directory, key))
        self._change(now, lambda index, _: index.pop("rotation", None))

    def sign_again(self, account: str, *, after: int, now: int) -> None:
        """Sign a NATS account's JWT with a time after ``after`` (Unix seconds), because nats-servers keep the newer of
        two."""
        with locked(self.directory):
            wanted, seed = self._wanted(max(now, after + 1))[account]
            self._jwts[account] = claims.encode(wanted, nkey.key_pair(seed))
            self.files.write(self._jwt_paths()[account], self._jwts[account])

    def temporary_creds(self, account: str, name: str, permissions: Permissions, *, now: int, seconds: int) -> str:
        """The text of a creds file for a user of a NATS account that is in no file and expires after ``seconds``."""
        seed = nkey.create_seed("user")
        wanted = claims.temporary_user_claims(
            subject=nkey.public_key(seed), name=name, permissions=permissions, issued_at=now, expires_at=now + seconds
        )
        signer = nkey.key_pair(self._seeds[self.account_public_key(account)])
        return claims.format_creds(claims.encode(wanted, signer), seed)

    def closed_jwt(self, account: str) -> str:
        """The JWT of a NATS account that admits nobody but users of :meth:`temporary_creds`, and exports nothing.

        It is as old as the account's JWT, so a nats-server replaces one by the other in this order; :meth:`sign_again`
        makes a JWT that replaces this one.
        """
        closed = claims.closed(claims.decode(self._jwts[account]))
        closed.pop("jti")
        return claims.encode(closed, nkey.key_pair(self.operator_signing_seed))

    def is_closed(self, account: str, token: str) -> bool:
        """Whether the JWT of a NATS account on a server admits nobody (:meth:`closed_jwt`)."""
        ours, theirs = (claims.decode(one)["nats"] for one in (self._jwts[account], token))
        return bool(ours.get("signing_keys")) and not theirs.get("signing_keys")

    def _change(self, now: int, change: Callable[[dict[str, Any], dict[str, str]], object]) -> None:
        """Write the index atomically and then the JWTs that follow from it. If they are missing, the next run writes
        them."""
        with locked(self.directory):
            self._index, self._seeds = _read_index(self.files, self._seeds)
            change(self._index, self._seeds)
            self._save_keys()
            self._refresh(now)

    def runner_creds(self, runner_id: str, *, now: int) -> tuple[str, str]:
        """The creds text and the public key of a runner, which are created at the first call.

        Raises :class:`NatskitError` for a bad id, and :class:`IdentityError` for a new runner if the identity was
        loaded read-only.
        """
        check_id(runner_id, "runner id")
        with locked(self.directory) if self._write else nullcontext():
            if self._write:  # another deploy may have added its runner in the meantime
                self._index, self._seeds = _read_index(self.files, self._seeds)
            runners: dict[str, str] = self._index["runners"]
            if runner_id not in runners:
                if self._loaded:
                    raise IdentityError(f"{self.directory} has no runner {runner_id}: deploy to create its keys")
                seed = nkey.create_seed("user")
                runners[runner_id] = nkey.public_key(seed)
                self._seeds[runners[runner_id]] = seed
                self._save_keys()
            public = runners[runner_id]
            wanted = claims.auth_user_claims(
                subject=public,
                name=runner_id,
                tags=["kind:runner"],
                auth_account=self.account_public_key("AUTH"),
                issued_at=now,
            )
            key = f"runner/{runner_id}"
            path = self._user_path("AUTH", f"runner-{runner_id}")
            self._jwts.setdefault(key, _read_optional(path))
            self._sign(key, wanted, self.signing_seed("AUTH", "hub"), path)
        return claims.format_creds(self._jwts[key], self._seeds[public]), public

    def _refresh(
        self, now: int, adapt: Callable[[str, claims.Claims], claims.Claims] = lambda _, wanted: wanted
    ) -> None:
        """Sign every JWT whose claims have changed, and keep the others."""
        for name, (wanted, seed) in self._wanted(now).items():
            self._sign(name, adapt(name, wanted), seed, self._jwt_paths()[name])
        if self._write:
            for account, user in self._static_users:
                self.files.write(self.creds_path(account, user), self.creds(account, user))

    def _with_earlier_rights(self, name: str, wanted: claims.Claims) -> claims.Claims:
        if name not in NATS_ACCOUNTS:
            return wanted
        try:
            return claims.with_rights_of(wanted, claims.decode(self._jwts.get(name, "")))
        except ClaimsError:
            return wanted

    def _sign(self, name: str, wanted: claims.Claims, seed: str, path: Path) -> None:
        signer = nkey.key_pair(seed)
        current = self._jwts.get(name, "")
        if not current or not _same_claims(current, wanted, signer.public_key.decode()):
            # nats-servers keep the newer of two JWTs, and two may be signed within one second.
            wanted = {**wanted, "iat": max(wanted["iat"], _issued_at(current) + 1)}
            self._jwts[name] = claims.encode(wanted, signer)
            if self._write:
                self.files.write(path, self._jwts[name])

    def _wanted(self, now: int) -> dict[str, tuple[claims.Claims, str]]:
        operator, accounts = self._index["operator"], self._index["accounts"]
        out = {
            "operator": (
                claims.operator_claims(
                    name=OPERATOR,
                    subject=operator["identity"],
                    signing_keys=rotation.operator_keys(self._index),
                    system_account=accounts["SYS"]["identity"],
                    issued_at=now,
                ),
                self._seeds[operator["identity"]],
            )
        }
        for name in self.accounts:
            out[name] = (self._wanted_account(name, now), self._seeds[operator["signing"]])
        for account, user in self._static_users:
            out[f"{account}/{user}"] = (
                self._wanted_user(account, user, now),
                self.signing_seed(account, user),
            )
        return out

    @property
    def _static_users(self) -> list[tuple[NatsAccount, str]]:
        """The users with creds files. An identity of an older version does not have all of them yet."""
        return [(account, user) for account, user in STATIC_USERS if f"{account}/{user}" in self._index["users"]]

    def _wanted_account(self, name: NatsAccount, now: int) -> claims.Claims:
        account = self._index["accounts"][name]
        subject = account["identity"]
        services = self._imports(IMPORTED_SERVICES.get(name, ()))
        streams = self._imports(IMPORTED_STREAMS.get(name, ()))
        if name == "AUTH":
            return claims.account_claims(
                name=name,
                subject=subject,
                issued_at=now,
                signing_keys=rotation.accepted(self._index, name),
                imports=services,
                imported_streams=streams,
                callout_users=rotation.keys_of_user(self._index, "AUTH/hub"),
                callout_accounts=[self.account_public_key("PLATFORM")],
            )
        scopes = [
            (role, key, granted)
            for role, granted in SCOPES_OF[name].items()
            for key in rotation.keys_of_role(self._index, name, role)
        ]
        if name == "PLATFORM":
            system = self.account_public_key("SYS")
            streams += [
                (system, f"$SYS.ACCOUNT.{subject}.{event}", connections_subject(here))
                for here, event in CONNECTION_EVENTS.items()
            ]
            if self.state_can_go_back:  # hubs of the older version have events that they could not write
                services += self._imports([Import("STATE", "audit.>", "audit.>")])
        events = CONNECTION_EVENTS.values() if name == "SYS" else ()
        return claims.account_claims(
            name=name,
            subject=subject,
            issued_at=now,
            scopes=scopes,
            jetstream=name in ("STATE", "DOCS") or (name == "PLATFORM" and "state" in self._index),
            exports=EXPORTED_SERVICES.get(name, {}),
            imports=services,
            exported_streams=[f"$SYS.ACCOUNT.*.{event}" for event in events],
            exported_to_all=EXPORTED_STREAMS.get(name, ()),
            imported_streams=streams,
            revoked=account.get("revoked"),
        )

    def _imports(self, imports: Iterable[Import]) -> list[tuple[str, str, str]]:
        """Imports with the key of their NATS account. An identity of an older version may not have that yet."""
        known = self._index["accounts"]
        return [(known[i.account]["identity"], i.subject, i.here) for i in imports if i.account in known]

    def _wanted_user(self, account: str, user: str, now: int) -> claims.Claims:
        subject, issuer = self._index["users"][f"{account}/{user}"], self.account_public_key(account)
        if account == "AUTH":
            return claims.user_claims(
                subject=subject, name=user, issuer_account=issuer, permissions=HUB_IN_AUTH, issued_at=now
            )
        return claims.platform_user_claims(subject=subject, name=user, tags=[], platform_account=issuer, issued_at=now)

    def _jwt_paths(self) -> dict[str, Path]:
        stores = self.directory / "stores" / OPERATOR
        paths = {"operator": stores / f"{OPERATOR}.jwt"}
        paths |= {str(name): stores / "accounts" / name / f"{name}.jwt" for name in NATS_ACCOUNTS}
        return paths | {f"{a}/{u}": self._user_path(a, u) for a, u in STATIC_USERS}

    def _user_path(self, account: str, user: str) -> Path:
        return self.directory / "stores" / OPERATOR / "accounts" / account / "users" / f"{user}.jwt"

    def _save_keys(self) -> None:
        """Write the seeds first and the index last and atomically, so that every seed in the index exists."""
        if not self._write:
            return
        for public, seed in self._seeds.items():
            self.files.write(seed_path(self.directory, public), seed)
        self.files.write(self.directory / INDEX, json.dumps(self._index, indent=2, sort_keys=True) + "\n")


def _create_missing(index: dict[str, Any], seeds: dict[str, str]) -> bool:
    """Create missing keys: all of them at first, later those of new roles and users."""
    before = len(seeds)

    def ensure(keys: dict[str, str], name: str, kind: nkey.Kind) -> None:
        if name not in keys:
            seed = nkey.create_seed(kind)
            keys[name] = nkey.public_key(seed)
            seeds[keys[name]] = seed

    index.setdefault("version", 1)
    operator: dict[str, str] = index.setdefault("operator", {})
    ensure(operator, "identity", "operator")
    ensure(operator, "signing", "operator")
    for name in NATS_ACCOUNTS:
        account: dict[str, Any] = index.setdefault("accounts", {}).setdefault(name, {})
        ensure(account, "identity", "account")
        signing: dict[str, str] = account.setdefault("signing", {})
        for role in SCOPES_OF.get(name, ("hub",)):
            ensure(signing, role, "account")
    users: dict[str, str] = index.setdefault("users", {})
    for account_name, user in STATIC_USERS:
        ensure(users, f"{account_name}/{user}", "user")
    index.setdefault("runners", {})
    return len(seeds) != before


def _note_streams_in_platform(index: dict[str, Any]) -> None:
    """Record that an older version may have made the streams of the state in PLATFORM.

    It has not, if PLATFORM has no signing keys yet: then nsc has made the identity.
    """
    accounts = index.get("accounts", {})
    if "STATE" not in accounts and accounts.get("PLATFORM", {}).get("signing"):
        index["state"] = "PLATFORM"


def _forget_unused(index: dict[str, Any]) -> None:
    """Remove users that only older versions have: the hubs' in SYS, and the probe's in PLATFORM."""
    for account, user in (("SYS", "hub"), ("PLATFORM", "probe")) if index else ():
        index["accounts"][account]["signing"].pop(user, None)
        index["users"].pop(f"{account}/{user}", None)


def _read_index(files: Vault, known: dict[str, str]) -> tuple[dict[str, Any], dict[str, str]]:
    """Read the index and the seed of every key in it. Seeds in ``known`` are not read again."""
    directory = files.directory
    path = directory / INDEX
    try:
        index = json.loads(path.read_text())
        publics = _public_keys(index)
    except FileNotFoundError:
        raise IdentityError(f"{path} is missing: restore {directory} from a backup") from None
    except (ValueError, KeyError, AttributeError, TypeError):
        raise IdentityError(f"{path} is damaged: restore {directory} from a backup") from None
    return index, {public: known.get(public) or _read_seed(files, public) for public in publics}


def _public_keys(index: dict[str, Any]) -> list[str]:
    accounts = index["accounts"].values()
    return [
        *index["operator"].values(),
        *(account["identity"] for account in accounts),
        *(key for account in accounts for key in account["signing"].values()),
        *index["users"].values(),
        *index["runners"].values(),
        *rotation.needed(index),
    ]


def seed_path(directory: Path, public: str) -> Path:
    return directory / "keys" / "keys" / public[0] / public[1:3] / f"{public}.nk"


def _read_seed(files: Vault, public: str) -> str:
    directory = files.directory
    path = seed_path(directory, public)
    if not files.exists(path):
        raise IdentityError(f"{path} is missing, but {directory / INDEX} lists it: restore {directory} from a backup")
    content = files.read(path)
    try:
        seed = content.decode("ascii").strip()
        found = nkey.public_key(seed)
    except (UnicodeDecodeError, IdentityError):
        raise IdentityError(f"{path} is not an nkey seed: restore {directory} from a backup") from None
    if found != public:
        raise IdentityError(f"{path} holds the seed of another key: restore {directory} from a backup")
    return seed


def _read_optional(path: Path) -> str:
    return path.read_bytes().decode(errors="replace").strip() if path.exists() else ""


def _same_claims(token: str, wanted: claims.Claims, issuer: str) -> bool:
    try:
        current = claims.decode(token)
    except ClaimsError:
        return False
    ignored = ("iat", "jti")
    current = {key: value for key, value in current.items() if key not in ignored}
    return current == {key: value for key, value in wanted.items() if key not in ignored} | {"iss": issuer}


def _issued_at(token: str) -> int:
    try:
        return int(claims.decode(token).get("iat", 0))
    except (ClaimsError, ValueError):
        return 0


def _refuse_half_written(directory: Path) -> None:
    """Refuse to create an identity over keys without an index: its creation was interrupted, or the index was lost."""
    leftovers = [name for name in ("keys", "stores") if any((directory / name).rglob("*"))]
    if leftovers:
        raise IdentityError(
            f"{directory} is incomplete: it has {' and '.join(leftovers)} but no {INDEX}. "
            "Restore it from a backup or, if no server was ever deployed with it, remove it and deploy again"
        )
