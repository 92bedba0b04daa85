"""An identity as nsc keeps it, and back: an nsc store, its keystore and creds files, none of it encrypted.

Checked against the sources of nsc v2 (``cmd/store/store.go``, ``cmd/store/keys.go``), jwt v2 (``creds_utils.go``) and
nkeys, as of June 2026:

- ``stores/{operator}/.nsc`` says what the store is (``Info``); ``{operator}.jwt`` and ``accounts/{name}/{name}.jwt``
  are named as the claims are, and so are ``accounts/{name}/users/{user}.jwt`` (``StoreRaw``);
- ``keys/keys/{kind}/{shard}/{public key}.nk`` holds a seed: the kind is the first character of the public key, the
  shard are the next two (``GetKeyPath``); signing keys are kept like the others;
- ``keys/creds/{operator}/{account}/{user}.creds`` is what ``FormatUserConfig`` writes and ``userConfigRE`` finds.

nsc reads it with ``nsc --data-dir DIR/stores --keystore-dir DIR/keys --config-dir ANOTHER list accounts``. It has no
place for certificates: the CA and what it has signed are beside it, in ``tls``, ``routes`` and ``proxy``.

Only what natskit has made can be imported. An operator of somebody else's cannot be shared: its JWT names one system
account, and natskit's servers need it to be theirs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from natskit.errors import ClaimsError, IdentityError
from natskit.identity import INDEX, NATS_ACCOUNTS, OPERATOR, STATIC_USERS, Identity, claims, seed_path
from natskit.identity.backup import arising
from natskit.identity.files import write_private
from natskit.identity.tls import PROXY, ROUTES
from natskit.identity.vault import SEALED, Vault

_INFO = {"managed": False, "name": OPERATOR, "kind": "operator", "version": "1"}
_CERTIFICATES = ("tls", ROUTES, PROXY)


def export(directory: Path, target: Path) -> None:
    """Write the identity to ``target``, which must be missing or empty. Raises :class:`IdentityError`."""
    Identity.load(directory)
    files = Vault(directory)
    index = json.loads(files.read(directory / INDEX))

    def check(made: Path) -> None:
        if not _same_keys(_index(made), index):
            raise IdentityError(
                f"a rotation of {directory} is under way, which nsc has no place for: complete it first"
            )

    with arising(target, check) as made:
        write_private(made / "stores" / OPERATOR / ".nsc", json.dumps(_INFO))
        for path in _contents(directory, "keys/keys", *_CERTIFICATES):
            write_private(made / path, files.read(directory / path))
        for path in _contents(directory, "stores"):
            token = files.read(directory / path).decode().strip()
            body = claims.decode(token)
            write_private(made / path.with_name(f"{body['name']}.jwt"), token)
            if path.parent.name == "users":
                seed = files.read(seed_path(directory, body["sub"])).decode().strip()
                creds = Path("keys", "creds", OPERATOR, path.parent.parent.name, f"{body['name']}.creds")
                write_private(made / creds, claims.format_creds(token, seed))


def import_(source: Path, directory: Path) -> None:
    """Make the identity in ``directory``, which must be missing or empty, of what :func:`export` wrote.

    Raises :class:`IdentityError`, in particular for what nsc made itself.
    """
    index = _index(source)
    with arising(directory, lambda made: _check(made)) as made:
        for path in _contents(source, "keys/keys", *_CERTIFICATES):
            write_private(made / path, (source / path).read_bytes())
        for path in _contents(source, "stores"):
            token = (source / path).read_text().strip()
            body = claims.decode(token)
            runner = body["sub"] in index["runners"].values()
            write_private(made / (path.with_name(f"runner-{path.name}") if runner else path), token)
        write_private(made / INDEX, json.dumps(index, indent=2, sort_keys=True) + "\n")
        identity = Identity.load(made)
        for account, user in STATIC_USERS:
            if f"{account}/{user}" in index["users"]:
                write_private(identity.creds_path(account, user), identity.creds(account, user))


def _check(made: Path) -> None:
    Identity.load(made)


def _contents(directory: Path, *folders: str) -> Iterator[Path]:
    """The files that are exchanged, relative to ``directory``, by their names when they are not sealed."""
    wanted = (".nk", ".jwt", ".crt", ".key")
    for folder in folders:
        for path in sorted((directory / folder).rglob("*")):
            plain = path.with_name(path.name.removesuffix(SEALED))
            if path.is_file() and plain.name.endswith(wanted) and not plain.name.startswith("."):
                yield plain.relative_to(directory)


def _index(source: Path) -> dict[str, Any]:
    """Which key plays which role, by the JWTs alone."""
    store = source / "stores" / OPERATOR
    known = sorted(path.name for path in (source / "stores").glob("*") if path.is_dir())
    if OPERATOR not in known:
        found = f"the operator {known[0]}" if known else "no operator"
        raise IdentityError(
            f"{source}/stores has {found}, not {OPERATOR}: an operator that natskit has not made cannot be used, since "
            "its JWT names another system account than that of natskit's servers; a deploy makes one"
        )
    operator = _claims(store / f"{OPERATOR}.jwt")
    index: dict[str, Any] = {
        "version": 1,
        "operator": {"identity": operator["sub"], "signing": _only(operator, store)},
        "accounts": {},
        "users": {},
        "runners": {},
    }
    for name in NATS_ACCOUNTS:
        body = _claims(store / "accounts" / name / f"{name}.jwt")
        signing = {_role(key): _key(key) for key in body["nats"].get("signing_keys", [])}
        if len(signing) != len(body["nats"].get("signing_keys", [])):
            raise IdentityError(
                f"NATS account {name} of {source} has two signing keys of one role: complete its rotation"
            )
        index["accounts"][name] = {"identity": body["sub"], "signing": signing}
        if revoked := body["nats"].get("revocations"):
            index["accounts"][name]["revoked"] = revoked
        for path in sorted((store / "accounts" / name / "users").glob("*.jwt")):
            user = _claims(path)
            if claims.tag(user, "kind") == "runner":
                index["runners"][user["name"]] = user["sub"]
            else:
                index["users"][f"{name}/{user['name']}"] = user["sub"]
    return index


def _claims(path: Path) -> claims.Claims:
    try:
        body = claims.decode(path.read_text().strip())
        if not isinstance(body.get("nats"), dict) or body.get("name") != path.stem:
            raise ClaimsError("its name is not that of the file")
        return body
    except FileNotFoundError:
        raise IdentityError(f"{path} is missing: natskit has not made this, or not whole") from None
    except (OSError, UnicodeDecodeError, ClaimsError) as error:
        raise IdentityError(f"{path}: {error}") from None


def _only(operator: claims.Claims, store: Path) -> str:
    keys = operator["nats"].get("signing_keys", [])
    if len(keys) != 1:
        raise IdentityError(f"the operator of {store} has {len(keys)} signing keys, not one: complete its rotation")
    return str(keys[0])


def _role(key: Any) -> str:
    """AUTH has the only key without a scope: that of the hubs."""
    return str(key["role"]) if isinstance(key, dict) else "hub"


def _key(key: Any) -> str:
    return str(key["key"]) if isinstance(key, dict) else str(key)


def _same_keys(found: dict[str, Any], index: dict[str, Any]) -> bool:
    return all(found[part] == index.get(part) for part in ("operator", "users", "runners")) and all(
        found["accounts"][name].get(part) == index["accounts"][name].get(part)
        for name in NATS_ACCOUNTS
        for part in ("identity", "signing", "revoked")
    )
