"""The platform as one hub sees it, for administrators: its programs, the use of projects, alerts and the last backup.

Everything comes from what a hub may read anyway: its own counters, the state, the answers of runners, and what
nats-servers say of themselves and of the connections of PLATFORM. So no hub knows the counters of another one, and
none can ask Prometheus.
"""

from __future__ import annotations

import asyncio
import heapq
import json
import logging
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

import nats.errors

from natskit.bus.connection import Connection
from natskit.bus.request_many import request_many
from natskit.errors import NatskitError
from natskit.hub.metrics import Metrics
from natskit.hub.services.alerts import alerts
from natskit.hub.services.projects import NO_TITLE, Ask
from natskit.hub.services.runners import Runners
from natskit.hub.state.view import State
from natskit.hub.timestamp import iso
from natskit.rpc import decode_response, encode_request
from natskit.validation.names import is_seen

log = logging.getLogger(__name__)

RUNNER_SECONDS = 2.0
SERVER_SECONDS = 0.5
"""The longest wait for all nats-servers: one that is down cannot say so."""
KEEP_SECONDS = 2.0
"""An answer is good for so long, however many administrators ask."""
MOST_PROJECTS = 200
"""An answer has the projects that use most of anything, and no more than this of each kind of use."""
USES = ("cpu_seconds", "memory_bytes", "disk_bytes", "tasks")

_SERVES = {"hub": "hub.admin", "keeper": "docs.account.project.method"}
"""A subject to which only programs of this role may subscribe. nats-server lists the connections that would get a
message there (monitor.go, ``filter_subject``): no other program is among them, whatever it calls itself, and no
browser has to be listed."""


class Overview:
    """Gathers what an administrator wants to see."""

    def __init__(
        self,
        name: str,
        version: str,
        state: State,
        runners: Runners,
        connection: Connection,
        ask: Ask,
        metrics: Metrics,
        problems: Callable[[], list[str]],
        account: str,
        servers: int,
    ) -> None:
        """``account`` is the public key of PLATFORM, and ``servers`` the number of nats-servers that there should
        be."""
        self._name, self._version, self._account, self._servers = name, version, account, servers
        self._state, self._runners, self._metrics = state, runners, metrics
        self._connection, self._ask, self._problems = connection, ask, problems
        self._lock = asyncio.Lock()
        self._kept: tuple[float, dict[str, Any]] = float("-inf"), {}

    async def describe(self) -> dict[str, Any]:
        """Everything. Parts that do not answer are missing, or say so."""
        async with self._lock:
            kept_at, kept = self._kept
            if time.monotonic() - kept_at < KEEP_SECONDS:
                return kept
            found = await self._describe()
            self._kept = time.monotonic(), found
            return found

    async def _describe(self) -> dict[str, Any]:
        servers, hubs, keepers, used = await asyncio.gather(
            self._nats_servers(), self._connected("hub"), self._connected("keeper"), self._use()
        )
        backup = self._state.backup
        found = {
            "time": iso(time.time()),
            "hub": self._hub(),
            "accounts": len(self._state.all_accounts()),
            "projects": len(self._state.all_projects()),
            "nats_servers": servers,
            "nats_servers_expected": self._servers,
            "connected": hubs + keepers,
            "runners": [
                {**row, "host": used[row["runner_id"]]["host"] if row["runner_id"] in used else None}
                for row in self._runners.list()
            ],
            "use": self._projects(used),
            "backup": {
                "begun": iso(backup.begun) if backup else None,
                "verified": iso(backup.verified) if backup and backup.verified else None,
            },
        }
        return found | {"alerts": alerts(found, backup, time.time())}

    def _hub(self) -> dict[str, Any]:
        return {
            "name": self._name,
            "version": self._version,
            "problems": self._problems(),
            "counters": self._metrics.numbers(),
        }

    async def _nats_servers(self) -> list[dict[str, Any]]:
        return sorted(map(_server, await self._ask_servers("$SYS.REQ.SERVER.PING", {})), key=lambda row: row["name"])

    async def _connected(self, role: str) -> list[dict[str, Any]]:
        """The hubs, or the keepers, that are connected, by the oldest of their connections."""
        question = {"acc": self._account, "filter_subject": _SERVES[role]}
        rows: dict[str, dict[str, Any]] = {}
        for answer in await self._ask_servers("$SYS.REQ.SERVER.PING.CONNZ", question):
            for each in (answer.get("data") or {}).get("connections") or ():
                name = _program_of(each.get("name", ""))
                since = iso(datetime.fromisoformat(each["start"]).timestamp())
                row = {"role": role, "name": name, "nats_server": answer["server"]["name"], "since": since}
                rows[name] = min(row, rows.get(name, row), key=lambda one: one["since"])
        return [rows[name] for name in sorted(rows)]

    async def _ask_servers(self, subject: str, question: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The answers of all nats-servers that give one in time."""
        body = json.dumps(question).encode() if question else b""
        try:
            answers = await request_many(
                self._connection, subject, body, seconds=SERVER_SECONDS, max_messages=self._servers
            )
        except nats.errors.Error as error:
            log.warning("no nats-server answers: %s", error)
            return []
        return [json.loads(message.data) for message in answers]

    async def _use(self) -> dict[str, dict[str, Any]]:
        """What each runner that answers says of its host and its projects."""
        alive = [runner_id for runner_id in self._state.known_runners if self._state.is_alive(runner_id)]
        answers = await asyncio.gather(*map(self._use_of, alive))
        return {runner_id: answer for runner_id, answer in zip(alive, answers, strict=True) if answer is not None}

    async def _use_of(self, runner_id: str) -> dict[str, Any] | None:
        try:
            answer = await self._ask(f"runners.{runner_id}.api", encode_request("usage", {}), RUNNER_SECONDS)
            found: dict[str, Any] = decode_response(answer)
        except NatskitError as error:  # an older runner has no such method
            log.info("runner %s does not say what it uses: %s", runner_id, error)
            return None
        return found

    def _projects(self, used: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The projects that use most, with their titles, owners and runners."""
        rows = [
            {**row, "runner": self._state.known_runners[runner_id].name}
            for runner_id, answer in used.items()
            for row in answer["projects"]
            # A runner may say something of the projects that it has, and of no others.
            if (project := self._state.projects.get(row["project_id"])) and project.runner_id == runner_id
        ]
        most = [heapq.nlargest(MOST_PROJECTS, rows, key=lambda row: row[use] or 0) for use in USES]
        chosen = {row["project_id"]: row for part in most for row in part}
        return [row | self._named(project_id) for project_id, row in chosen.items()]

    def _named(self, project_id: str) -> dict[str, Any]:
        project = self._state.projects.get(project_id)
        title = project.title if project is not None else ""
        owners = [account.email for one in self._state.owners_of(project_id) if (account := self._state.account(one))]
        return {"title": title if is_seen(title) else NO_TITLE, "owner": owners[0] if owners else None}


def _server(answer: dict[str, Any]) -> dict[str, Any]:
    """A nats-server by its answer to PING (events.go, ``ServerStatsMsg``)."""
    server, stats = answer["server"], answer["statsz"]
    jetstream = stats.get("jetstream") or {}
    return {
        "name": server["name"],
        "version": server["ver"],
        "since": iso(datetime.fromisoformat(stats["start"]).timestamp()),
        "cpu_percent": stats["cpu"],
        "processors": stats["cores"],
        "memory_bytes": stats["mem"],
        "connections": stats["connections"],
        "slow_consumers": stats["slow_consumers"],
        "messages": stats["received"]["msgs"] + stats["sent"]["msgs"],
        "storage_bytes": jetstream["stats"]["storage"] if jetstream else None,
        "storage_limit_bytes": jetstream["config"]["max_storage"] if jetstream else None,
        "has_leader": bool(jetstream["meta"].get("leader")) if jetstream.get("meta") else None,
    }


def _program_of(connection: str) -> str:
    """The program that calls its connection this: ``hub-1`` of ``hub-1-services-2``."""
    for part in ("-services-2", "-services", "-platform"):
        if connection.endswith(part):
            return connection.removesuffix(part)
    return connection
