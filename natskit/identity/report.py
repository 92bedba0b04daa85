"""What an identity holds, and until when it is good: every key, JWT and certificate. No secret is read for that."""

from __future__ import annotations

import json
import ssl
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from cryptography import x509

from natskit.errors import ClaimsError, IdentityError
from natskit.identity import INDEX, NATS_ACCOUNTS, OPERATOR, claims, seed_path
from natskit.identity.files import check_private
from natskit.identity.tls import RENEW_DAYS
from natskit.identity.vault import Vault

DAY = 86_400
LOOK_SECONDS = 3.0
HUB_ROLES = ("browser", "project", "runner")
"""Roles whose scoped signing keys the hubs hold."""

Kind = Literal["key", "JWT", "certificate"]
State = Literal["good", "near", "expired", "unknown", "missing", "damaged", "left over"]


@dataclass(frozen=True)
class Entry:
    """One key, JWT or certificate."""

    kind: Kind
    name: str
    used_by: str
    to_do: str
    file: str
    expires: int | None = None
    """Unix seconds; ``None`` for what never does, or where that is not known."""
    problem: State | None = None

    def state(self, now: int, warn_days: int) -> State:
        """How it is at ``now``; ``near`` if it ends within so many days."""
        if self.problem or self.expires is None:
            return self.problem or "good"
        return "expired" if self.expires <= now else "near" if self.expires <= now + warn_days * DAY else "good"

    @property
    def until(self) -> str:
        """The end, for a person."""
        if self.expires is None:
            return self.problem or "never"
        return f"{datetime.fromtimestamp(self.expires, UTC):%Y-%m-%d}" + (f" ({self.problem})" if self.problem else "")


@dataclass(frozen=True)
class Named:
    """A file with a certificate or a JWT that a setting names."""

    setting: str
    host: str
    path: str
    on_host: bool
    """It is there and not here."""
    served: str | None = None
    """``host:port`` where the certificate can be seen all the same."""


@dataclass(frozen=True)
class InUse:
    """What ``platform.json`` says of the last deploy."""

    certificates: frozenset[str]
    """Of the platform's CA: their paths within the identity, without ``.crt``."""
    named: tuple[Named, ...] = ()


def entries(directory: Path, in_use: InUse | None = None) -> list[Entry]:
    """Everything in the identity, and what settings name beside it. Raises :class:`IdentityError`.

    Without ``in_use`` nothing is known of which certificates are still needed, and of those outside.
    """
    if not (directory / INDEX).exists():
        raise IdentityError(f"{directory} holds no identity: a deploy makes one")
    check_private(directory)
    try:
        index = json.loads((directory / INDEX).read_bytes())
        return [
            *_operator(directory, index),
            *(entry for name in NATS_ACCOUNTS for entry in _account(directory, name, index["accounts"][name])),
            *_users(directory, index),
            *_certificates(directory, in_use),
            *(_named(named) for named in (in_use.named if in_use else ())),
        ]
    except (ValueError, KeyError, AttributeError, TypeError):
        raise IdentityError(f"{directory / INDEX} is damaged: restore {directory} from a backup") from None


def _operator(directory: Path, index: dict[str, Any]) -> Iterator[Entry]:
    operator = index["operator"]
    yield _key(directory, "operator", operator["identity"], "the operator's JWT", "back it up: nothing replaces it")
    yield _key(
        directory,
        "operator, signing",
        operator["signing"],
        "NATS accounts",
        "if it leaked: natskit identity rotate operator-signing-key",
    )
    yield from _rotated(directory, "operator, next signing", [index.get("operator_next")])
    yield from _rotated(directory, "operator, retiring", index.get("operator_retiring", []))
    yield _jwt(directory, "operator", f"{OPERATOR}.jwt", "each nats-server", "deploy again")


def _account(directory: Path, name: str, account: dict[str, Any]) -> Iterator[Entry]:
    path = f"accounts/{name}/{name}.jwt"
    yield _key(
        directory,
        f"NATS account {name}",
        account["identity"],
        "its name on each nats-server",
        "back it up: it signs nothing",
    )
    for role, key in sorted(account["signing"].items()):
        held = name == "AUTH" or (name == "PLATFORM" and role in HUB_ROLES)
        command = "hub-keys" if held else "nats-account"
        used_by = f"the hubs, for each {role}" if held and name != "AUTH" else "the hubs" if held else "a deploy"
        yield _key(
            directory, f"{name}, signing {role}", key, used_by, f"if it leaked: natskit identity rotate {command}"
        )
    for role, key in account.get("next", {}).items():
        yield from _rotated(directory, f"{name}, next signing {role}", [key])
    for old in account.get("retiring", []):
        yield from _rotated(directory, f"{name}, retiring {old['role']}", [old["key"]])
    yield _jwt(directory, f"NATS account {name}", path, "each nats-server", "deploy again")


def _users(directory: Path, index: dict[str, Any]) -> Iterator[Entry]:
    users = [(*name.split("/", 1), key) for name, key in sorted(index["users"].items())]
    for account, user, key in users:
        used_by = {"hub": "each hub", "admin": "natskit on this machine", "probe": "deploys, on hosts of nats"}
        yield _key(directory, f"user {account}/{user}", key, used_by.get(user, user), "")
        yield _jwt(
            directory,
            f"user {account}/{user}",
            f"accounts/{account}/users/{user}.jwt",
            used_by.get(user, user),
            "deploy",
        )
    for runner, key in sorted(index["runners"].items()):
        yield _key(directory, f"runner {runner}", key, "that runner", "")
        yield _jwt(directory, f"runner {runner}", f"accounts/AUTH/users/runner-{runner}.jwt", "that runner", "deploy")

    for user, key in index.get("next_users", {}).items():
        yield from _rotated(directory, f"user {user}, next", [key])
    for old in index.get("retiring_users", []):
        yield from _rotated(directory, f"user {old['user']}, retiring", [old["key"]])
    for runner, key in index.get("next_runners", {}).items():
        yield from _rotated(directory, f"runner {runner}, next", [key])
    for runner, key in index.get("retiring_runners", {}).items():
        yield from _rotated(directory, f"runner {runner}, retiring", [key])


def _rotated(directory: Path, name: str, keys: Iterable[str | None]) -> Iterator[Entry]:
    """Keys that a rotation brings in, or takes out; the seed of one that no longer signs need not be there."""
    for key in filter(None, keys):
        file = str(seed_path(directory, key).relative_to(directory))
        yield Entry("key", name, "a rotation that is under way", "complete it: natskit identity rotate", file)


def _key(directory: Path, name: str, public: str, used_by: str, to_do: str) -> Entry:
    path = seed_path(directory, public)
    there = Vault(directory).exists(path)
    return Entry(
        "key",
        name,
        used_by,
        to_do if there else "restore it from a backup",
        str(path.relative_to(directory)),
        problem=None if there else "missing",
    )


def _jwt(directory: Path, name: str, file: str, used_by: str, to_do: str) -> Entry:
    path = directory / "stores" / OPERATOR / file
    return _token(name, path, used_by, to_do, str(path.relative_to(directory)))


def _token(name: str, path: Path, used_by: str, to_do: str, file: str) -> Entry:
    try:
        text = path.read_text()
        if "BEGIN NATS USER JWT" in text:
            text = text.split("-----\n", 2)[1].split("\n", 1)[0]
        expires = claims.decode(text.strip()).get("exp")
    except FileNotFoundError:
        return Entry("JWT", name, used_by, to_do, file, problem="missing")
    except (OSError, UnicodeDecodeError, IndexError, ClaimsError):
        return Entry("JWT", name, used_by, to_do, file, problem="damaged")
    return Entry("JWT", name, used_by, to_do if expires else "", file, expires)


_AUTHORITIES = (
    ("", "", "browsers, hosts, and natskit on this machine"),
    ("routes/", " of routes", "nats-servers, of each other"),
    ("proxy/", " of the proxy", "hubs and nats-servers, of the proxy"),
)
"""The CAs: their folders in the identity, what they are for, and who knows whom by them."""


def _certificates(directory: Path, in_use: InUse | None) -> Iterator[Entry]:
    for folder, whose, who in _AUTHORITIES:
        place = directory / f"{folder}tls"
        for path in sorted([*place.glob("*.crt"), *place.glob("hosts/*.crt")]):
            file = str(path.relative_to(directory))
            name = file.removesuffix(".crt")
            if path.name == "ca.crt":
                yield _certificate(f"CA{whose}", path, file, who, "see README, Keys at rest")
                continue
            what = f"host {path.stem}{whose}" if "/hosts/" in file else f"site ({path.stem})"
            used_by = "nginx" if path.stem == "proxy" else "programs on that host"
            to_do = f"deploy: it is renewed when {RENEW_DAYS} days are left"
            left_over = in_use is not None and name not in in_use.certificates
            yield _certificate(what, path, file, used_by, to_do, left_over)


def _named(named: Named) -> Entry:
    name = f"{named.setting} of {named.host}"
    if named.on_host:
        to_do, file = "renew it on the host; nothing here does", f"{named.host}:{named.path}"
        expires = _served(named.served) if named.served else None
        return Entry("certificate", name, named.host, to_do, file, expires, None if expires else "unknown")
    path = Path(named.path).expanduser()
    if named.setting == "nats_leafnode_remotes":
        return _token(name, path, "its leafnode connection", "get new creds from who gave them, and deploy", named.path)
    return _certificate(name, path, named.path, "nginx", "renew it, and deploy")


def _served(address: str) -> int | None:
    """When the certificate that is shown there ends; nothing if nobody shows one."""
    host, _, port = address.rpartition(":")
    try:
        pem = ssl.get_server_certificate((host.strip("[]"), int(port)), timeout=LOOK_SECONDS)
        return int(x509.load_pem_x509_certificate(pem.encode()).not_valid_after_utc.timestamp())
    except (OSError, ValueError):
        return None


def _certificate(name: str, path: Path, file: str, used_by: str, to_do: str, left_over: bool = False) -> Entry:
    try:
        chain = x509.load_pem_x509_certificates(path.read_bytes())
        expires = min(int(certificate.not_valid_after_utc.timestamp()) for certificate in chain)
    except FileNotFoundError:
        return Entry("certificate", name, used_by, to_do, file, problem="missing")
    except (OSError, ValueError):
        return Entry("certificate", name, used_by, to_do, file, problem="damaged")
    if left_over:
        return Entry("certificate", name, "nobody since the last deploy", f"remove {file}", file, expires, "left over")
    return Entry("certificate", name, used_by, to_do, file, expires)


def due(found: Iterable[Entry], now: int, warn_days: int) -> list[Entry]:
    """Those that somebody has to do something about."""
    return [entry for entry in found if entry.state(now, warn_days) in ("near", "expired", "missing", "damaged")]
