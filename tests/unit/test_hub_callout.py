"""A hub's answer to a callout: the key of a JWT must have signed the server's nonce, unless the JWT is a bearer's."""

from __future__ import annotations

import base64
import time
import uuid
from types import SimpleNamespace
from typing import Any, cast

import pytest

from natskit.bus.connection import Connection
from natskit.hub.audit.events import Audit
from natskit.hub.auth.callout import Callout
from natskit.hub.auth.connection_index import Place
from natskit.hub.auth.tokens import Tokens
from natskit.hub.metrics import Metrics
from natskit.hub.state.records import Session
from natskit.hub.state.view import Rights, State
from natskit.identity import claims, nkey
from natskit.identity.identity import HubKeys

KEYS = HubKeys(
    auth_account=nkey.public_key(nkey.create_seed("account")),
    auth_signing_seed=nkey.create_seed("account"),
    platform_account=nkey.public_key(nkey.create_seed("account")),
    platform_seeds={role: nkey.create_seed("account") for role in ("browser", "project", "runner")},
)
TOKENS = Tokens(KEYS, 900)
PROJECT = nkey.create_seed("user")
NONCE = "Bq7bD4mNHrXk3tE"
SIGNATURE = nkey.key_pair(PROJECT).sign(NONCE.encode())
ID = str(uuid.uuid4())


async def never_called(place: Place) -> None:
    raise AssertionError(place)


def answer(token: str, *, signature: str = "", nonce: str = NONCE, transport: str = "websocket") -> dict[str, Any]:
    """The claims of the answer to a request like nats-server's."""
    rights = Rights([], "name", None, "")
    state = SimpleNamespace(rights=lambda *_: rights, is_blocked=lambda _: False, current=True)
    callout = Callout(Connection(), cast("State", state), TOKENS, Metrics(), Audit("hub", Metrics()), never_called)
    server = nkey.key_pair(nkey.create_seed("account"))
    user = nkey.public_key(nkey.create_seed("user"))
    options = {"jwt": token} | ({"sig": signature} if signature else {})
    client = {"type": transport} | ({"nonce": nonce} if nonce else {})
    nats = {"user_nkey": user, "server_id": {"id": "N"}, "client_info": client, "connect_opts": options}
    answered = callout._answer(claims.encode({"nats": nats}, server).encode())
    assert answered
    return cast("dict[str, Any]", claims.decode(answered.decode())["nats"])


def project_jwt() -> str:
    return TOKENS.project_jwt(ID, nkey.public_key(PROJECT), int(time.time()))


@pytest.mark.parametrize(
    "signature",
    [
        base64.urlsafe_b64encode(SIGNATURE).rstrip(b"=").decode(),
        base64.b64encode(SIGNATURE).decode(),
    ],
    ids=["base64url", "base64"],
)
def test_who_signed_the_nonce_gets_a_jwt(signature: str) -> None:
    assert answer(project_jwt(), signature=signature)["jwt"]
    assert "error" in answer(project_jwt(), signature=signature, nonce="another")
    assert "error" in answer(project_jwt(), signature=signature, nonce="")


@pytest.mark.parametrize(
    "signature",
    [
        "",
        "=",
        "!",
        "\u00e9",
        base64.b64encode(SIGNATURE[:-1]).decode(),
        base64.b64encode(SIGNATURE[:-1] + bytes([SIGNATURE[-1] ^ 1])).decode(),
        base64.b64encode(nkey.key_pair(nkey.create_seed("user")).sign(NONCE.encode())).decode(),
    ],
    ids=["none", "empty", "other letters", "not ASCII", "short", "changed", "another's"],
)
def test_who_did_not_sign_the_nonce_is_refused(signature: str) -> None:
    assert answer(project_jwt(), signature=signature)["error"] == "not authorized"


def test_a_bearer_need_not_sign() -> None:
    now = int(time.time())
    session = Session(account_id=ID, created_at=now, expires_at=now + 60, absolute_expires_at=now + 60)
    assert answer(TOKENS.cookie(ID, session, now))["jwt"]
    assert "error" in answer(TOKENS.cookie(ID, session, now), transport="nats")
