"""The JWTs of NATS accounts on running nats-servers: read, push with verification, delete.

    python -m natskit.ops.account_resolver [--check] [--ca FILE] --server NAME NATS_URL[,NATS_URL…] JWT_FILE…
    <SYS_ADMIN_CREDS

Pushes the JWTs that ``--server`` does not use yet. ``--check`` changes nothing and exits 1 if a push is needed. The
URLs must belong to one cluster; one that answers is enough. ``--ca`` is the CA of ``tls://`` URLs (PEM). The creds of
``SYS/admin`` are read from standard input, because they must not be in a file.

nats-server acknowledges a JWT when it has stored it, before it checks the signer (``accounts.go``,
``accClaimsReqSubj``), and a lookup returns the stored JWT. ``ACCOUNTZ`` shows the JWTs that a server uses, so this
module checks those, on every server.
"""

from __future__ import annotations

import natskit.bus.nats_without_aiohttp  # noqa: F401 - must come first

# isort: split
import argparse
import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Collection, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nats.errors
from nats.aio.msg import Msg

from natskit.bus.connection import Connection, connect
from natskit.bus.credentials import Creds, CredsText
from natskit.bus.permissions import inbox_prefix
from natskit.bus.request_many import request_many
from natskit.bus.servers import NatsServers
from natskit.errors import NatskitError
from natskit.identity import claims, nkey

TIMEOUT = 5.0
ANSWER_SECONDS = 5.0
"""Maximum time for one answer of a server. After a restore, a slow disk can hold a server up for seconds."""
STORED_SECONDS = 2.0
"""Maximum time for the answers of the resolvers that store NATS accounts. Others are silent."""
MOST_ACCOUNTS = 4096
"""How many NATS accounts a server describes in one answer."""


@dataclass
class Server:
    """The state of one nats-server: the JWTs it uses, by NATS account, and the NATS accounts it stores."""

    name: str
    used: dict[str, str] = field(default_factory=dict)
    kept: set[str] | None = None
    """``None`` if the resolver is ``memory`` or ``cache``, which store nothing."""
    operator_keys: tuple[str, ...] = ()
    """The operator keys it trusts to sign NATS accounts: the identity key and the signing keys."""


class Servers:
    """All nats-servers of a platform, through a connection as ``SYS/admin``."""

    def __init__(self, connection: Connection, names: Collection[str], lazy: Collection[str] = ()) -> None:
        """``names``: the servers that must answer. ``lazy``: those that fetch a NATS account at its first use."""
        self._connection = connection
        self._names = set(names)
        self._lazy = set(lazy)

    @property
    def names(self) -> list[str]:
        """The servers that must answer."""
        return sorted(self._names)

    async def inspect(self, accounts: Iterable[str]) -> list[Server]:
        """The state of each server. Raises :class:`NatskitError` if one does not answer."""
        found = {name: Server(name) for name in sorted(self._names)}
        for name, answer in (await self._ask_all("$SYS.REQ.SERVER.PING.VARZ")).items():
            operators = answer.get("data", {}).get("trusted_operators_claim") or []
            found[name].operator_keys = tuple(
                key for o in operators for key in (o["sub"], *(o.get("nats", {}).get("signing_keys") or ()))
            )
        listed = await self._ask("$SYS.REQ.CLAIMS.LIST", b"", STORED_SECONDS)
        for name, answer in listed.items():
            found[name].kept = None if name in self._lazy else set(answer.get("data") or [])
        kept = {account for server in found.values() for account in server.kept or ()}
        for account in sorted({*accounts, *kept}):
            body = json.dumps({"account": account}).encode()
            for name, answer in (await self._ask_all("$SYS.REQ.SERVER.PING.ACCOUNTZ", body)).items():
                jwt = (answer.get("data") or {}).get("account_detail", {}).get("jwt")
                if jwt:
                    found[name].used[account] = jwt
        return list(found.values())

    async def stored(self, account: str) -> list[str]:
        """The JWTs of a NATS account in the servers' resolvers, in no order; an empty string for a missing one."""
        subject = f"$SYS.REQ.ACCOUNT.{account}.CLAIMS.LOOKUP"
        answers = await self._request(subject, b"", STORED_SECONDS, max_messages=max(1, len(self._names)))
        return [message.data.decode() for message in answers]

    async def push(self, tokens: Iterable[str]) -> None:
        """Push missing JWTs to the servers, and wait until each server stores and uses them.

        Raises :class:`NatskitError` if a server refuses a JWT, keeps using another one, or does not answer.
        """
        wanted = {str(claims.decode(token)["sub"]): token for token in tokens}
        before = await self.inspect(wanted)
        for account, token in wanted.items():
            if await self._lacking(before, account, token):
                self._check_signer(before, token)
                await self._update(account, token)
        deadline = time.monotonic() + TIMEOUT
        while True:
            after = await self.inspect(wanted)
            lacking = {account: await self._lacking(after, account, token) for account, token in wanted.items()}
            if not any(lacking.values()):
                return
            if time.monotonic() > deadline:
                old = [
                    f"{', '.join(who)} uses an old NATS account {name_in(wanted[a])}"
                    for a, who in lacking.items()
                    if who
                ]
                raise NatskitError(f"{'; '.join(old)}: see its log, and compare with `natskit identity diff`")
            await asyncio.sleep(0.1)

    async def delete(self, account: str, operator_seed: str) -> None:
        """Delete a NATS account on every server with a request signed by the operator (``handleDeleteRequest``).

        Raises :class:`NatskitError` if a server refuses, or does not answer: that server would restore the account.
        """
        await self.inspect([])
        signer = nkey.key_pair(operator_seed)
        subject = signer.public_key.decode()
        token = claims.encode(
            {"iat": int(time.time()), "sub": subject, "nats": {"accounts": [account]}}, signer
        ).encode()
        answers = await self._ask_all("$SYS.REQ.CLAIMS.DELETE", token)
        for name, answer in answers.items():
            if "error" in answer:
                said = answer["error"].get("description", "refused")
                hint = " (nats_resolver_allow_delete = True, then a deploy)" if "delete must be enabled" in said else ""
                raise NatskitError(f"{name} refuses to delete NATS account {account}: {said}{hint}")
        kept = [server.name for server in await self.inspect([]) if account in (server.kept or ())]
        if kept:
            raise NatskitError(f"{', '.join(kept)} still has NATS account {account}")

    async def connections(self, account: str) -> list[dict[str, Any]]:
        """Every client of a NATS account: its ``server``, ``name``, ``authorized_user`` and ``issuer_key``."""
        found: list[dict[str, Any]] = []
        offset, more = 0, True
        while more:
            more = False
            question = {"acc": account, "auth": True, "limit": 1024, "offset": offset}
            answers = await self._ask_all("$SYS.REQ.SERVER.PING.CONNZ", json.dumps(question).encode())
            for name, answer in answers.items():
                data = answer.get("data") or {}
                found += [{"server": name, **each} for each in data.get("connections") or []]
                more |= int(data.get("total", 0)) > offset + 1024
            offset += 1024
        return found

    async def accounts_with_streams(self) -> set[str]:
        """The public keys of the NATS accounts that have a stream on any server."""
        question = json.dumps({"accounts": True, "streams": True, "limit": MOST_ACCOUNTS}).encode()
        found: set[str] = set()
        for answer in (await self._ask_all("$SYS.REQ.SERVER.PING.JSZ", question)).values():
            details = (answer.get("data") or {}).get("account_details") or []
            found |= {detail["id"] for detail in details if detail.get("stream_detail")}
        return found

    async def storage(self) -> dict[str, tuple[int, int]]:
        """Bytes that the streams on files take on each server with JetStream, and how many they may take at most."""
        answers = await self._ask_all("$SYS.REQ.SERVER.PING.JSZ", b"{}")
        data = {name: answer.get("data") or {} for name, answer in answers.items()}
        return {
            name: (int(said["storage"]), int(said["config"]["max_storage"]))
            for name, said in data.items()
            if said.get("config")
        }

    async def streams(self, account: str) -> set[str]:
        """The JetStream streams of a NATS account, on any server."""
        question = json.dumps({"account": account, "streams": True}).encode()
        found: set[str] = set()
        for answer in (await self._ask_all("$SYS.REQ.SERVER.PING.JSZ", question)).values():
            for detail in (answer.get("data") or {}).get("account_details") or []:
                found |= {stream["name"] for stream in detail.get("stream_detail") or []}
        return found

    # ----

    def _check_signer(self, servers: Iterable[Server], token: str) -> None:
        """Check the signer before the push: nats-server would acknowledge the JWT but not use it until a restart."""
        issuer = claims.decode(token)["iss"]
        for server in servers:
            if server.operator_keys and issuer not in server.operator_keys:
                raise NatskitError(
                    f"{server.name} does not trust the operator's key {issuer[:12]}… that signed NATS account "
                    f"{name_in(token)}: deploy first, which restarts the server with that key"
                )

    async def _update(self, account: str, token: str) -> None:
        answers = await self._ask_all("$SYS.REQ.CLAIMS.UPDATE", token.encode())
        for name, answer in answers.items():
            if "error" in answer:
                said = answer["error"].get("description", "refused")
                raise NatskitError(f"{name} refuses NATS account {name_in(token) or account}: {said}")

    async def _lacking(self, servers: Iterable[Server], account: str, token: str) -> list[str]:
        """The servers that use another JWT, or would after a restart. The answers may not name the latter."""
        found = [server.name for server in servers if server.used.get(account, token) != token]
        if not found and any(kept != token for kept in await self.stored(account)):
            return ["one of " + ", ".join(server.name for server in servers)]
        missing = [s.name for s in servers if s.kept is not None and account not in s.kept and account not in s.used]
        return found or missing

    async def _ask_all(self, subject: str, body: bytes = b"") -> dict[str, dict[str, Any]]:
        """The answers by server name. Raises :class:`NatskitError` if a server does not answer."""
        answers = await self._ask(subject, body, ANSWER_SECONDS)
        if missing := sorted(self._names - set(answers)):
            raise NatskitError(
                f"{', '.join(missing)} does not answer {subject}: start it, or remove it from the inventory and "
                "deploy; otherwise it could restore old NATS accounts later"
            )
        return answers

    async def _ask(self, subject: str, body: bytes, seconds: float) -> dict[str, dict[str, Any]]:
        answers: dict[str, dict[str, Any]] = {}

        def is_last(message: Msg) -> bool:
            answer = json.loads(message.data) if message.data else {}
            name = answer.get("server", {}).get("name", "")
            if name in self._names:
                answers[name] = answer
            return len(answers) == len(self._names)

        await self._request(subject, body, seconds, is_last=is_last)
        return answers

    async def _request(self, subject: str, body: bytes, seconds: float, **end: Any) -> list[Msg]:
        try:
            return await request_many(self._connection, subject, body, seconds=seconds, **end)
        except nats.errors.NoRespondersError:
            return []


@asynccontextmanager
async def open_servers(
    servers: NatsServers,
    creds: Creds,
    names: Collection[str],
    lazy: Collection[str] = (),
    timeout: float = TIMEOUT,  # noqa: ASYNC109
) -> AsyncIterator[Servers]:
    """Connect as ``SYS/admin``."""
    connection = await connect(
        servers, name="natskit resolver", inbox_prefix=inbox_prefix("admin"), creds=creds, timeout=timeout
    )
    try:
        yield Servers(connection, names, lazy)
    finally:
        await connection.close()


def name_in(token: str) -> str:
    """The name in a JWT; empty for an invalid JWT."""
    try:
        return str(claims.decode(token).get("name", "")) if token else ""
    except NatskitError:
        return ""


async def _main(asked: argparse.Namespace) -> int:
    tokens = [path.read_text().strip() for path in asked.jwts]
    servers = NatsServers(urls=asked.nats_urls, ca_file=asked.ca)
    async with open_servers(servers, CredsText(sys.stdin.read()), [asked.server]) as there:
        if not asked.check:
            await there.push(tokens)
            return 0
        wanted = {str(claims.decode(token)["sub"]): token for token in tokens}
        (server,) = await there.inspect(wanted)
        return int(any(server.used.get(account, token) != token for account, token in wanted.items()))


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(prog="python -m natskit.ops.account_resolver", allow_abbrev=False)
    parser.add_argument("--ca", type=Path)
    parser.add_argument("--server", required=True, metavar="NAME")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("nats_urls", type=lambda text: text.split(","))
    parser.add_argument("jwts", type=Path, nargs="+")
    asked = parser.parse_args()
    try:
        sys.exit(asyncio.run(_main(asked)))
    except (NatskitError, nats.errors.Error, OSError, TimeoutError) as error:
        sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
