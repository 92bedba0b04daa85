"""The JWTs of NATS accounts on running nats-servers: look, push and see them applied, delete.

    python -m natskit.resolver [--ca FILE] --server NAME NATS_URL[,NATS_URL…] JWT_FILE… <SYS_ADMIN_CREDS

Pushes what ``--server`` does not use yet; ``--check`` only looks, and exits 1 where something is to be done. Of several
URLs, which are those of one cluster, any that answers will do. ``--ca`` is the CA of ``tls://`` URLs (PEM). The creds
of ``SYS/admin`` come as input, since they may be in no file.

nats-server acknowledges a JWT when it has stored it, before it has looked who signed it (``accounts.go``,
``accClaimsReqSubj``), and a lookup answers with what is stored. What a server really uses is in ``ACCOUNTZ``: that is
what counts here, of every server by its name.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nats.errors
from nats.aio.msg import Msg

from natskit.connection import Connection, Creds, CredsText, NatsServers, connect
from natskit.errors import NatskitError
from natskit.identity import claims, nkey
from natskit.permissions import inbox_prefix

TIMEOUT = 5.0
ANSWER_SECONDS = 2.0
"""How long a server may take for one answer."""


@dataclass
class Server:
    """What one nats-server has: the JWTs it uses, by NATS account, and which NATS accounts it keeps."""

    name: str
    used: dict[str, str] = field(default_factory=dict)
    kept: set[str] | None = None
    """``None`` where that is no matter: the resolver is ``memory`` or ``cache``."""
    operator_keys: tuple[str, ...] = ()
    """By which keys it believes a NATS account: the operator's own, and its signing keys."""


class Servers:
    """All nats-servers of a platform, asked as ``SYS/admin``."""

    def __init__(self, connection: Connection, names: Collection[str], lazy: Collection[str] = ()) -> None:
        """``names``: those that have to answer; ``lazy``: those of them that fetch a NATS account when it is used."""
        self._connection = connection
        self._names = set(names)
        self._lazy = set(lazy)

    @property
    def names(self) -> list[str]:
        """The servers that have to answer."""
        return sorted(self._names)

    async def look(self, accounts: Iterable[str]) -> list[Server]:
        """What each server has. Raises :class:`NatskitError` while one does not answer."""
        found = {name: Server(name) for name in sorted(self._names)}
        for name, answer in (await self._ask_all("$SYS.REQ.SERVER.PING.VARZ")).items():
            operators = answer.get("data", {}).get("trusted_operators_claim") or []
            found[name].operator_keys = tuple(
                key for o in operators for key in (o["sub"], *(o.get("nats", {}).get("signing_keys") or ()))
            )
        listed = await self._ask("$SYS.REQ.CLAIMS.LIST", b"", 1.0 if self._names else ANSWER_SECONDS)
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
        """The JWT of a NATS account as each server's resolver keeps it, in no order; empty where it has none."""
        answers: list[str] = []

        def on_answer(message: Msg) -> bool:
            answers.append(message.data.decode())
            return len(answers) >= len(self._names)

        await self._gather(f"$SYS.REQ.ACCOUNT.{account}.CLAIMS.LOOKUP", b"", ANSWER_SECONDS, on_answer)
        return answers

    async def push(self, tokens: Iterable[str]) -> None:
        """Give the servers JWTs they do not have yet, and wait until each keeps them and uses them.

        Raises :class:`NatskitError` if one refuses, still uses another afterwards, or does not answer.
        """
        wanted = {str(claims.decode(token)["sub"]): token for token in tokens}
        before = await self.look(wanted)
        for account, token in wanted.items():
            if await self._lacking(before, account, token):
                self._check_signer(before, token)
                await self._update(account, token)
        deadline = time.monotonic() + TIMEOUT
        while True:
            after = await self.look(wanted)
            lacking = {account: await self._lacking(after, account, token) for account, token in wanted.items()}
            if not any(lacking.values()):
                return
            if time.monotonic() > deadline:
                said = [f"{', '.join(who)} has another NATS account {name_in(wanted[a])}" for a, who in lacking.items()]
                raise NatskitError(f"{'; '.join(said)}: its log says why, `natskit identity diff` shows where")
            await asyncio.sleep(0.1)

    async def delete(self, account: str, operator_seed: str) -> None:
        """Delete a NATS account on every server, with a request that the operator signs (``handleDeleteRequest``).

        Raises :class:`NatskitError` when one refuses, or does not answer: it would bring the account back.
        """
        await self.look([])
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
                raise NatskitError(f"{name} does not delete NATS account {account}: {said}{hint}")
        kept = [server.name for server in await self.look([]) if account in (server.kept or ())]
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
        """Before it is stored: nats-server would store it, say yes, and go on with the old one until it restarts."""
        issuer = claims.decode(token)["iss"]
        for server in servers:
            if server.operator_keys and issuer not in server.operator_keys:
                raise NatskitError(
                    f"{server.name} does not know the operator's key {issuer[:12]}… that signed NATS account "
                    f"{name_in(token)}: deploy first, it reads that key when it starts"
                )

    async def _update(self, account: str, token: str) -> None:
        answers = await self._ask_all("$SYS.REQ.CLAIMS.UPDATE", token.encode())
        for name, answer in answers.items():
            if "error" in answer:
                said = answer["error"].get("description", "refused")
                raise NatskitError(f"{name} refuses NATS account {name_in(token) or account}: {said}")

    async def _lacking(self, servers: Iterable[Server], account: str, token: str) -> list[str]:
        """The servers that use another JWT, or would after a restart. Which one keeps it is not told."""
        found = [server.name for server in servers if server.used.get(account, token) != token]
        if not found and any(kept != token for kept in await self.stored(account)):
            return ["one of " + ", ".join(server.name for server in servers)]
        missing = [s.name for s in servers if s.kept is not None and account not in s.kept and account not in s.used]
        return found or missing

    async def _ask_all(self, subject: str, body: bytes = b"") -> dict[str, dict[str, Any]]:
        """Every server's answer by its name. Raises :class:`NatskitError` when one is missing."""
        answers = await self._ask(subject, body, ANSWER_SECONDS)
        if missing := sorted(self._names - set(answers)):
            raise NatskitError(
                f"{', '.join(missing)} does not answer {subject}: bring it up, or take it out of the inventory and "
                "deploy; it would come back with what it had"
            )
        return answers

    async def _ask(self, subject: str, body: bytes, seconds: float) -> dict[str, dict[str, Any]]:
        answers: dict[str, dict[str, Any]] = {}

        def on_answer(message: Msg) -> bool:
            answer = json.loads(message.data) if message.data else {}
            name = answer.get("server", {}).get("name", "")
            if name in self._names:
                answers[name] = answer
            return len(answers) == len(self._names)

        await self._gather(subject, body, seconds, on_answer)
        return answers

    async def _gather(self, subject: str, body: bytes, seconds: float, on_answer: Callable[[Msg], bool]) -> None:
        """Hand answers to ``on_answer`` until it has all, or the time is over."""
        complete = asyncio.Event()

        async def arrived(message: Msg) -> None:
            if (message.headers or {}).get("Status") == "503" or on_answer(message):
                complete.set()

        inbox = self._connection.new_inbox()
        subscription = await self._connection.subscribe(inbox, cb=arrived)
        await self._connection.publish(subject, body, reply=inbox)
        try:
            async with asyncio.timeout(seconds):
                await complete.wait()
        except TimeoutError:
            pass
        finally:
            await subscription.unsubscribe()


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
    """What a JWT calls its subject; nothing for what is none."""
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
        (server,) = await there.look(wanted)
        return int(any(server.used.get(account, token) != token for account, token in wanted.items()))


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(prog="python -m natskit.resolver", allow_abbrev=False)
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
