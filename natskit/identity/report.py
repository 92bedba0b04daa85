"""List every key, JWT and certificate of an identity with its expiry date. Reads no secret."""

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
from natskit.identity import claims, rotation
from natskit.identity.backup import BACKUP_KEY
from natskit.identity.files import check_private
from natskit.identity.identity import INDEX, OPERATOR, seed_path
from natskit.identity.tls import PROXY, RENEW_DAYS, ROUTES
from natskit.identity.vault import Vault

DAY = 86_400
LOOK_SECONDS = 3.0

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
    """Expiry in Unix seconds; ``None`` if it never expires or the date is unknown."""
    problem: State | None = None

    def state(self, now: int, warn_days: int) -> State:
        """The state at ``now``; ``near`` if it expires within ``warn_days``."""
        if self.problem or self.expires is None:
            return self.problem or "good"
        return "expired" if self.expires <= now else "near" if self.expires <= now + warn_days * DAY else "good"

    @property
    def until(self) -> str:
        """The expiry date as text."""
        if self.expires is None:
            return self.problem or "never"
        return f"{datetime.fromtimestamp(self.expires, UTC):%Y-%m-%d}" + (f" ({self.problem})" if self.problem else "")


@dataclass(frozen=True)
class Named:
    """A file with a certificate or JWT that a setting refers to."""

    setting: str
    host: str
    path: str
    on_host: bool
    """Whether the file is on the host instead of this machine."""
    served: str | None = None
    """``host:port`` of a server that presents the certificate."""


@dataclass(frozen=True)
class InUse:
    """The last deploy's record in ``platform.json``."""

    certificates: frozenset[str]
    """Certificates of the platform's CA: paths within the identity, without ``.crt``."""
    named: tuple[Named, ...] = ()


def entries(directory: Path, in_use: InUse | None = None) -> list[Entry]:
    """All entries of the identity, and files outside it that settings name.

    Raises :class:`IdentityError`. Without ``in_use``, unneeded certificates and files outside are unknown.
    """
    if not (directory / INDEX).exists():
        raise IdentityError(f"{directory} contains no identity: deploy to create one")
    check_private(directory)
    try:
        index = json.loads((directory / INDEX).read_bytes())
        return [
            *_operator(directory, index),
            *(entry for name in index["accounts"] for entry in _account(directory, index, name)),
            *_users(directory, index),
            *_under_rotation(directory, index),
            *_backups(directory),
            *_certificates(directory, in_use),
            *(_named(named) for named in (in_use.named if in_use else ())),
        ]
    except (ValueError, KeyError, AttributeError, TypeError):
        raise IdentityError(f"{directory / INDEX} is damaged: restore {directory} from a backup") from None


def _operator(directory: Path, index: dict[str, Any]) -> Iterator[Entry]:
    operator = index["operator"]
    yield _key(directory, "operator", operator["identity"], "the operator's JWT", "back it up: nothing replaces it")
    remedy = _rotate("operator-signing-key")
    yield _key(directory, "operator, signing", operator["signing"], "a deploy, for NATS accounts", remedy)
    yield _jwt(directory, "operator", f"{OPERATOR}.jwt", "each nats-server")


def _account(directory: Path, index: dict[str, Any], name: str) -> Iterator[Entry]:
    account = index["accounts"][name]
    remedy = "back it up: nothing replaces it"
    yield _key(directory, f"NATS account {name}", account["identity"], "each nats-server, as its name", remedy)
    by_hubs = rotation.signing_keys("hub-keys", index)
    for role, key in sorted(account["signing"].items()):
        kind: rotation.Kind = "hub-keys" if (name, role) in by_hubs else "nats-account"
        used_by = "each hub" if kind == "hub-keys" else "a deploy, for creds"
        yield _key(directory, f"{name}, signing {role}", key, used_by, _rotate(kind))
    yield _jwt(directory, f"NATS account {name}", f"accounts/{name}/{name}.jwt", "each nats-server")


def _users(directory: Path, index: dict[str, Any]) -> Iterator[Entry]:
    known = {
        "hub": "each hub",
        "keeper": "each keeper",
        "admin": "natskit on this machine",
        "probe": "hosts of nats, in a deploy",
    }
    for name, key in sorted(index["users"].items()):
        account, user = name.split("/", 1)
        kind: rotation.Kind = "hub-keys" if name in rotation.users("hub-keys", index) else "nats-account"
        used_by = known.get(user, user)
        yield _key(directory, f"user {name}", key, used_by, _rotate(kind))
        yield _jwt(directory, f"user {name}", f"accounts/{account}/users/{user}.jwt", used_by)
    for runner, key in sorted(index["runners"].items()):
        yield _key(directory, f"runner {runner}", key, "that runner", _rotate("project-keys"))
        yield _jwt(directory, f"runner {runner}", f"accounts/AUTH/users/runner-{runner}.jwt", "that runner")


def _under_rotation(directory: Path, index: dict[str, Any]) -> Iterator[Entry]:
    """The new and retiring keys of a rotation. A key that no longer signs may have no seed."""
    found = [("operator, next", key) for key in [index.get("operator_next")] if key]
    found += [("operator, retiring", key) for key in index.get("operator_retiring", [])]
    for name, account in index["accounts"].items():
        found += [(f"{name}, next {role}", key) for role, key in account.get("next", {}).items()]
        found += [(f"{name}, retiring {old['role']}", old["key"]) for old in account.get("retiring", [])]
    found += [(f"user {user}, next", key) for user, key in index.get("next_users", {}).items()]
    found += [(f"user {old['user']}, retiring", old["key"]) for old in index.get("retiring_users", [])]
    for which in ("next", "retiring"):
        found += [(f"runner {runner}, {which}", key) for runner, key in index.get(f"{which}_runners", {}).items()]
    kind = index.get("rotation", {}).get("kind", "")
    for name, key in found:
        file = str(seed_path(directory, key).relative_to(directory))
        yield Entry("key", name, "a rotation under way", f"complete it: natskit identity rotate {kind}".rstrip(), file)


def _backups(directory: Path) -> Iterator[Entry]:
    if Vault(directory).exists(directory / BACKUP_KEY):
        yield Entry("key", "backups", "natskit backup", "keep it: it opens all backups", str(BACKUP_KEY))


def _rotate(kind: rotation.Kind) -> str:
    return f"if it leaked: natskit identity rotate {kind}"


def _key(directory: Path, name: str, public: str, used_by: str, to_do: str) -> Entry:
    path = seed_path(directory, public)
    file = str(path.relative_to(directory))
    if Vault(directory).exists(path):
        return Entry("key", name, used_by, to_do, file)
    return Entry("key", name, used_by, "restore it from a backup", file, problem="missing")


def _jwt(directory: Path, name: str, file: str, used_by: str) -> Entry:
    path = directory / "stores" / OPERATOR / file
    return _token(name, path, used_by, "deploy, which signs it again", str(path.relative_to(directory)))


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


def _certificates(directory: Path, in_use: InUse | None) -> Iterator[Entry]:
    authorities = {
        "": "browsers, programs, natskit",
        ROUTES: "nats-servers, of each other",
        PROXY: "hubs, of the proxy",
    }
    for folder, who in authorities.items():
        place, suffix = directory / folder / "tls", f" of {folder}" if folder else ""
        for path in sorted([*place.glob("*.crt"), *place.glob("hosts/*.crt")]):
            file = str(path.relative_to(directory))
            if path.name == "ca.crt":
                yield _certificate(f"CA{suffix}", path, file, who, "nothing renews it: docs/how-to/own-ca.md")
                continue
            what = f"host {path.stem}{suffix}" if path.parent.name == "hosts" else f"site ({path.stem})"
            used_by = "nginx" if path.stem == "proxy" else "a program on that host"
            to_do = f"deploy: it is renewed when {RENEW_DAYS} days are left"
            left_over = in_use is not None and file.removesuffix(".crt") not in in_use.certificates
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
    """The expiry of the certificate that the server presents; ``None`` if it presents none."""
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
    """The entries that need an action."""
    return [entry for entry in found if entry.state(now, warn_days) in ("near", "expired", "missing", "damaged")]
