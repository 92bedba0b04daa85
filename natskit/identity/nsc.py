"""Convert an identity to nsc's format and back: an nsc store, its keystore and creds files, all unencrypted.

Checked against the sources of nsc v2 (``cmd/store/store.go``, ``cmd/store/keys.go``), jwt v2 (``creds_utils.go``) and
nkeys, as of June 2026:

- ``stores/{operator}/.nsc`` describes the store (``Info``). ``{operator}.jwt``, ``accounts/{name}/{name}.jwt`` and
  ``accounts/{name}/users/{user}.jwt`` have the names in their claims (``StoreRaw``);
- ``keys/keys/{kind}/{shard}/{public key}.nk`` contains a seed. The kind is the first character of the public key, and
  the shard the next two (``GetKeyPath``). The same holds for signing keys;
- ``keys/creds/{operator}/{account}/{user}.creds`` has the format that ``FormatUserConfig`` writes and ``userConfigRE``
  reads.

nsc reads it with ``nsc --data-dir DIR/stores --keystore-dir DIR/keys --config-dir ANOTHER list accounts``. It does not
store certificates: the CA and the certificates that it signed are beside the store, in ``tls``, ``routes`` and
``proxy``.

Three things can be imported: an export, a copy of one that nsc made with its own ``import`` commands (without
certificates), and an operator that nsc made, if its name is natskit, it has one signing key, and its accounts are SYS,
AUTH, PLATFORM and, in newer versions, STATE and DOCS. A deploy adds what natskit needs and is missing there, and signs
the JWTs again with its own claims. An operator of another name cannot be used: its JWT names the system account of
other servers, and natskit's servers need their own. tests/nats/test_nsc.py tries all of this with the real nsc.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from natskit.errors import ClaimsError, IdentityError
from natskit.identity import claims
from natskit.identity.backup import arising
from natskit.identity.files import write_private
from natskit.identity.identity import INDEX, NATS_ACCOUNTS, OPERATOR, STATIC_USERS, Identity, seed_path
from natskit.identity.tls import PROXY, ROUTES
from natskit.identity.vault import SEALED, Vault

_INFO = {"managed": False, "name": OPERATOR, "kind": "operator", "version": "1"}
_LATER = ("STATE", "DOCS")
"""NATS accounts that exports of older versions do not have. A deploy adds them."""
_CERTIFICATES = ("tls", ROUTES, PROXY)


def export(directory: Path, target: Path) -> None:
    """Write the identity to ``target``, which must be missing or empty. Raises :class:`IdentityError`."""
    identity = Identity.load(directory)
    if identity.state_in_platform or identity.state_can_go_back:
        first = "deploy, which moves it forth," if identity.state_in_platform else "run `natskit state confirm`"
        raise IdentityError(f"{directory} has its state in PLATFORM, or can move it back: {first} before an export")
    files = Vault(directory)
    index = json.loads(files.read(directory / INDEX))

    def check(made: Path) -> None:
        if not _same_keys(_index(made), index):
            raise IdentityError(
                f"a rotation of {directory} is not finished, and nsc cannot store its keys: complete it first"
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
    """Make the identity in ``directory``, which must be missing or empty, of an nsc store.

    Raises :class:`IdentityError` for what natskit cannot use: see above.
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
    """The role of each key, from the JWTs alone."""
    store = source / "stores" / OPERATOR
    known = sorted(path.name for path in (source / "stores").glob("*") if path.is_dir())
    if OPERATOR not in known:
        found = f"the operator {known[0]}" if known else "no operator"
        raise IdentityError(
            f"{source}/stores has {found}, not {OPERATOR}: natskit cannot use an operator that it did not make, since "
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
        if name in _LATER and not (store / "accounts" / name).exists():
            continue
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
        _check_users(index, name, store / "accounts" / name / "users")
    return index


def _check_users(index: dict[str, Any], account: str, folder: Path) -> None:
    """Check that each role with a signing key has its user. Without that user's key, a deploy would silently make
    another."""
    for name, user in STATIC_USERS:
        if name == account and user in index["accounts"][name]["signing"] and f"{name}/{user}" not in index["users"]:
            raise IdentityError(f"{folder / user}.jwt is missing: copy the users as well as the NATS accounts")


def _claims(path: Path) -> claims.Claims:
    try:
        body = claims.decode(path.read_text().strip())
        if not isinstance(body.get("nats"), dict) or body.get("name") != path.stem:
            raise ClaimsError("the name in it differs from the file's")
        return body
    except FileNotFoundError:
        raise IdentityError(f"{path} is missing: this is not a complete export of natskit") from None
    except (OSError, UnicodeDecodeError, ClaimsError) as error:
        raise IdentityError(f"{path}: {error}") from None


def _only(operator: claims.Claims, store: Path) -> str:
    keys = operator["nats"].get("signing_keys", [])
    if len(keys) != 1:
        raise IdentityError(f"the operator of {store} has {len(keys)} signing keys, not one: complete its rotation")
    return str(keys[0])


def _role(key: Any) -> str:
    """The role of a signing key. The only key without a scope is that of the hubs, in AUTH."""
    return str(key["role"]) if isinstance(key, dict) else "hub"


def _key(key: Any) -> str:
    return str(key["key"]) if isinstance(key, dict) else str(key)


def _same_keys(found: dict[str, Any], index: dict[str, Any]) -> bool:
    return all(found[part] == index.get(part) for part in ("operator", "users", "runners")) and all(
        found["accounts"].get(name, {}).get(part) == index["accounts"].get(name, {}).get(part)
        for name in NATS_ACCOUNTS
        for part in ("identity", "signing", "revoked")
    )
