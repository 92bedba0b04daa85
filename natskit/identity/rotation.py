"""The keys that a rotation replaces, and the changes of each step to an identity's index.

A rotation has four steps, each of which writes the index once: *offer* (the new keys are accepted, but do not sign),
*switch* (the new keys sign, the old keys are accepted), *move* (all holders of old creds have new ones) and *drop* (the
old keys are removed). :mod:`natskit.ops.key_rotation` updates the servers between these steps. Nothing here does I/O.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

from natskit.errors import IdentityError
from natskit.identity import nkey

Kind = Literal["hub-keys", "project-keys", "nats-account", "operator-signing-key"]
Step = Literal["offer", "switch", "move", "drop"]
Index = dict[str, Any]
CreateSeed = Callable[[nkey.Kind], str]

KINDS: tuple[Kind, ...] = get_args(Kind)
HUB_ROLES = ("browser", "project", "runner")
"""The roles of PLATFORM that a hub signs for; the others' keys stay with the operator."""


def signing_keys(kind: Kind, index: Index) -> list[tuple[str, str]]:
    """The signing keys that a rotation replaces, as pairs of NATS account and role."""
    held = {("AUTH", "hub"), *(("PLATFORM", role) for role in HUB_ROLES)}
    known = [(account, role) for account, entry in index["accounts"].items() for role in entry["signing"]]
    match kind:
        case "hub-keys":
            return [key for key in known if key in held]
        case "nats-account":
            return [key for key in known if key not in held]
        case _:
            return []


def users(kind: Kind, index: Index) -> list[str]:
    """The users that get new nkeys from a rotation, such as ``PLATFORM/hub``."""
    match kind:
        case "hub-keys":
            return [user for user in index["users"] if user.endswith("/hub")]
        case "nats-account":
            return [user for user in index["users"] if not user.startswith("AUTH/")]
        case _:
            return []


def offer(index: Index, seeds: dict[str, str], kind: Kind, now: int, *, urgent: bool, create: CreateSeed) -> None:
    """Create the new keys. Raises :class:`IdentityError` while another rotation is unfinished."""
    running = index.get("rotation")
    if running is not None:
        raise IdentityError(
            f"a rotation of {running['kind']} is not finished: run `natskit identity rotate {running['kind']}` first"
        )

    def new(of: nkey.Kind) -> str:
        seed = create(of)
        public = nkey.public_key(seed)
        seeds[public] = seed
        return public

    for account, role in signing_keys(kind, index):
        index["accounts"][account].setdefault("next", {})[role] = new("account")
    index["next_users"] = {user: new("user") for user in users(kind, index)}
    if kind == "project-keys":
        index["next_runners"] = {runner: new("user") for runner in index["runners"]}
    if kind == "operator-signing-key":
        index["operator_next"] = new("operator")
    index["rotation"] = {"kind": kind, "step": "offer", "since": now, "urgent": urgent}


def switch(index: Index, now: int, *, cookie_seconds: int) -> None:
    """Make the new keys sign. ``cookie_seconds``: how long hubs exchange cookies signed by the old key."""
    urgent = index["rotation"]["urgent"]
    for account in index["accounts"].values():
        for role, key in account.pop("next", {}).items():
            account.setdefault("retiring", []).append({"key": account["signing"][role], "role": role, "since": now})
            account["signing"][role] = key
    for user, key in index.pop("next_users", {}).items():
        index.setdefault("retiring_users", []).append({"key": index["users"][user], "user": user, "since": now})
        index["users"][user] = key
    for runner, key in index.pop("next_runners", {}).items():
        index.setdefault("retiring_runners", {})[runner] = index["runners"][runner]
        index["runners"][runner] = key
    if key := index.pop("operator_next", None):
        index.setdefault("operator_retiring", []).append(index["operator"]["signing"])
        index["operator"]["signing"] = key
    for entry in index["accounts"]["AUTH"].get("retiring", []):
        until = 1 if urgent else now + cookie_seconds
        index.setdefault("cookie_keys", []).append({"key": entry["key"], "until": until})
    index["rotation"]["step"] = "switch"


def drop(index: Index, now: int) -> None:
    """Remove the old keys, so that everything they signed is refused. Creds that stay valid otherwise are revoked by
    nkey."""
    rotation, gone = index["rotation"], []
    for name, account in index["accounts"].items():
        retired = account.pop("retiring", [])
        gone += [entry["key"] for entry in retired]
        # All revoked creds of this NATS account were signed by keys that are removed now.
        if rotation["kind"] == "nats-account" and retired:
            account.pop("revoked", None)
        for entry in index.get("retiring_users", []):
            if rotation["kind"] == "hub-keys" and entry["user"].startswith(f"{name}/") and name != "AUTH":
                account.setdefault("revoked", {})[entry["key"]] = now
    gone += [entry["key"] for entry in index.pop("retiring_users", [])]
    gone += list(index.pop("retiring_runners", {}).values())
    gone += index.pop("operator_retiring", [])
    rotation |= {"step": "drop", "gone": gone}


def forget_cookie_keys(index: Index, now: int) -> None:
    """Remove keys whose cookies have expired. Until then, creds of projects and runners signed by these keys are valid
    too."""
    known = accepted(index, "AUTH") if index else []
    kept = [entry for entry in index.get("cookie_keys", []) if entry["until"] > now or entry["key"] in known]
    if kept:
        index["cookie_keys"] = kept
    else:
        index.pop("cookie_keys", None)


def accepted(index: Index, account: str) -> list[str]:
    """The accepted signing keys of a NATS account, for all roles."""
    entry = index["accounts"][account]
    return [*entry["signing"].values(), *entry.get("next", {}).values(), *(r["key"] for r in entry.get("retiring", []))]


def keys_of_role(index: Index, account: str, role: str) -> list[str]:
    """The accepted signing keys of a role. The first one signs."""
    entry = index["accounts"][account]
    others = [entry["next"][role]] if role in entry.get("next", {}) else []
    return [entry["signing"][role], *others, *(r["key"] for r in entry.get("retiring", []) if r["role"] == role)]


def keys_of_user(index: Index, user: str) -> list[str]:
    """The accepted nkeys of a user."""
    others = [index["next_users"][user]] if user in index.get("next_users", {}) else []
    return [index["users"][user], *others, *(r["key"] for r in index.get("retiring_users", []) if r["user"] == user)]


def operator_keys(index: Index) -> list[str]:
    """The operator's accepted signing keys."""
    others = [index["operator_next"]] if index.get("operator_next") else []
    return [index["operator"]["signing"], *others, *index.get("operator_retiring", [])]


def needed(index: Index) -> list[str]:
    """The keys whose seeds a rotation needs in addition to the current ones in the index."""
    found = [key for account in index["accounts"].values() for key in account.get("next", {}).values()]
    found += [*index.get("next_users", {}).values(), *index.get("next_runners", {}).values()]
    return found + ([index["operator_next"]] if index.get("operator_next") else [])
