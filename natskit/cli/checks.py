"""The checks of ``natskit status``. Each sends a request that only a working part can answer."""

from __future__ import annotations

# These two must come first.
import natskit.bus.nats_without_aiohttp
import natskit.process.httpx_without_rich  # noqa: F401

# isort: split
import asyncio
import contextlib
import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import httpx
import nats.errors
from nats.aio.msg import Msg

from natskit.bus.connection import Connection, connect
from natskit.bus.permissions import inbox_prefix
from natskit.bus.request_many import request_many
from natskit.bus.tls_trust import client_context
from natskit.cli import proxy_checks
from natskit.cli.platform import Platform
from natskit.client import Client
from natskit.errors import NatskitError
from natskit.ops.supervisor import Process, processes

State = Literal["ok", "warning", "failed"]
TIMEOUT = 3.0
QUESTIONS = ("VARZ", "HEALTHZ")


@dataclass
class Part:
    """One part of the platform and the result of its check."""

    name: str
    state: State
    detail: str
    version: str = ""


@dataclass
class Report:
    """The results of all checks. The platform works unless :attr:`state` is ``failed``."""

    parts: list[Part]
    running: list[Process] = field(default_factory=list)

    @property
    def state(self) -> State:
        """The worst state of any part. One failed hub or server of several is a warning, and so are failed projects."""
        states = {part.state for part in self.parts}
        return "failed" if "failed" in states else "warning" if "warning" in states else "ok"

    @property
    def is_ready(self) -> bool:
        """Whether every part works. Failed projects do not count, because waiting does not repair them."""
        return all(part.state == "ok" or (part.name == "runner" and part.state == "warning") for part in self.parts)

    @property
    def summary(self) -> str:
        """One line that names every part that is not ok; empty if all are."""
        wrong = [f"{part.name}: {part.detail}" for part in self.parts if part.state != "ok"]
        return f"{self.state}: {'; '.join(wrong)}" if wrong else ""

    def to_json(self) -> dict[str, Any]:
        """For scripts."""
        return {
            "state": self.state,
            "parts": [asdict(part) for part in self.parts],
            "processes": [asdict(process) for process in self.running],
        }


def inspect(platform: Platform) -> Report:
    """Check every part. A part that does not answer is ``failed``.

    Raises :class:`IdentityError` when the creds cannot be read, for example after a wrong passphrase.
    """
    platform.creds("sys_admin")
    running: list[Process] = []
    if socket := platform.content.get("supervisor_socket"):
        try:
            running = processes(Path(socket))
        except NatskitError as error:
            return Report([Part("supervisor", "failed", str(error))])
    return asyncio.run(_inspect(platform, running))


async def _inspect(platform: Platform, running: list[Process]) -> Report:
    try:
        context = client_context()  # for a site with a certificate of its own
        context.load_verify_locations(cafile=platform["ca_file"])
    except OSError as error:
        return Report([Part("proxy", "failed", f"the CA {platform['ca_file']} cannot be read ({error})")], running)
    # On this machine, check each hub over HTTP. On other hosts only the proxy may connect: check those over NATS.
    hub_urls = dict(zip(platform["hubs"], platform.content.get("hub_urls", []), strict=False))
    async with (
        httpx.AsyncClient(timeout=TIMEOUT, trust_env=False) as inside,
        httpx.AsyncClient(timeout=TIMEOUT, trust_env=False, verify=context) as outside,
    ):
        single = asyncio.gather(
            *(_http(inside, name, f"{url}/healthz") for name, url in hub_urls.items()),
            _http(outside, "proxy", f"{platform['url']}/healthz"),
            _console(outside, platform["url"]),
            _websocket(outside, platform["url"]),
        )
        names = platform["hubs"], [_server_label(platform, name) for name in platform["nats"]]
        reach = proxy_checks.unreached(outside, platform["url"], *names)
        servers, bus, others, unreached = await asyncio.gather(
            _servers(platform), _bus(platform, not hub_urls), single, reach
        )
    parts = [*servers, *others, *bus]
    blame_proxy(parts, unreached)
    compare(parts, running, platform.content.get("programs", []))
    some_are_enough(parts, platform["hubs"], 1)
    some_are_enough(parts, platform.content.get("keepers", []), 1)
    some_are_enough(parts, [part.name for part in servers], len(servers) // 2 + 1)
    return Report(parts, running)


async def _console(client: httpx.AsyncClient, url: str) -> Part:
    problem = await proxy_checks.console(client, url)
    return Part("console", "failed" if problem else "ok", problem or "a browser gets all of it")


async def _websocket(client: httpx.AsyncClient, url: str) -> Part:
    _, problem = await proxy_checks.websocket(client, url, "/nats")
    return Part("websocket", "failed" if problem else "ok", problem or "a browser gets to nats-server")


def blame_proxy(parts: list[Part], unreached: dict[str, str]) -> None:
    """Warn about each working hub or nats-server that the proxy does not reach: users' requests to it fail."""
    proxy = next(part for part in parts if part.name == "proxy")
    well = {part.name for part in parts if part.state == "ok"}
    for name, why in unreached.items():
        if name in well and proxy.state != "failed":
            proxy.state = "warning"
            proxy.detail += f"; does not reach {name}, which works: {why}"


def _server_label(platform: Platform, name: str) -> str:
    """The name of a nats-server in the report."""
    return "nats" if len(platform["nats"]) == 1 else name


async def _servers(platform: Platform) -> list[Part]:
    """Check each nats-server over NATS, as the operator's user of the NATS account SYS."""
    names: list[str] = platform["nats"]
    label = {name: _server_label(platform, name) for name in names}
    found: dict[str, dict[str, Any]] = {name: {} for name in names}
    try:
        connection = await connect(
            platform.nats_servers,
            name="natskit status",
            inbox_prefix=inbox_prefix("admin"),
            creds=platform.creds("sys_admin"),
            timeout=TIMEOUT,
        )
    except NatskitError as error:
        return [Part(label[name], "failed", str(error)) for name in names]
    try:
        answers = await asyncio.gather(*(_ask_servers(connection, question, names) for question in QUESTIONS))
    except nats.errors.Error as error:
        return [Part(label[name], "failed", str(error)) for name in names]
    finally:
        await connection.close()
    for question, of_servers in zip(QUESTIONS, answers, strict=True):
        for name, data in of_servers.items():
            found.setdefault(name, {})[question] = data
    # A server that the inventory does not name is not waited for.
    known = {name: all_of for name, all_of in found.items() if name in names or len(all_of) == len(QUESTIONS)}
    return [_server(label.get(name, name), all_of) for name, all_of in sorted(known.items())]


async def _ask_servers(connection: Connection, question: str, names: list[str]) -> dict[str, dict[str, Any]]:
    """What each nats-server answers, by its name."""
    found: dict[str, dict[str, Any]] = {}

    def is_last(message: Msg) -> bool:
        answer = json.loads(message.data)
        found[answer["server"]["name"]] = answer.get("data", {})
        return found.keys() >= set(names)

    await request_many(connection, f"$SYS.REQ.SERVER.PING.{question}", b"", seconds=TIMEOUT, is_last=is_last)
    return found


def _server(name: str, answers: dict[str, dict[str, Any]]) -> Part:
    varz, health = answers.get("VARZ"), answers.get("HEALTHZ", {})
    if varz is None:
        return Part(name, "failed", f"does not answer within {TIMEOUT:g} s")
    if health.get("status") != "ok":
        return Part(name, "failed", str(health.get("error", "is not healthy")), varz.get("version", ""))
    detail = f"{varz['connections']} connections, {varz['mem'] // 1024**2} MiB"
    return Part(name, "ok", detail, varz["version"])


async def _http(client: httpx.AsyncClient, name: str, url: str) -> Part:
    try:
        answer = await client.get(url)
    except httpx.HTTPError as error:
        return Part(name, "failed", f"{url} does not answer ({type(error).__name__})")
    return read_health(name, url, answer.status_code, answer.text)


def read_health(name: str, url: str, status: int, text: str) -> Part:
    """Read a hub's answer to ``/healthz``, direct or through the proxy. The proxy has a page of its own for no hub."""
    try:
        body = json.loads(text)
        hub, version = str(body["hub"]), str(body["version"])
    except (ValueError, KeyError, TypeError):
        return Part(name, "failed", f"{url} answers {status}, and the answer is not a hub's")
    served = f", answered by {hub}" if name == "proxy" else ""
    version = "" if name == "proxy" else version
    if status != httpx.codes.OK:
        return Part(name, "failed", f"unavailable{served}: {', '.join(body.get('problems', ()))}", version)
    return Part(name, "ok", f"healthy{served}", version)


async def _bus(platform: Platform, ask_hubs: bool) -> list[Part]:
    """Check a round trip over NATS to a hub, the runners that the hub knows, the keepers and, with ``ask_hubs``, every
    hub."""
    try:
        async with asyncio.timeout(TIMEOUT + 1), await platform.client("status", TIMEOUT) as client:
            started = time.monotonic()
            status = await client.call_hub("status", wait=TIMEOUT)
            milliseconds = (time.monotonic() - started) * 1000
            hubs = await _found(client, "hub", platform["hubs"]) if ask_hubs else []
            # A platform that an older version has deployed has none.
            keepers = await _found(client, "keeper", platform.content.get("keepers", []))
    except (NatskitError, TimeoutError) as error:
        return [Part("bus", "failed", f"no hub answers over NATS ({str(error) or f'not within {TIMEOUT:g} s'})")]
    detail = (
        f"{status['hub']} answered in {milliseconds:.1f} ms: {status['accounts']} accounts, "
        f"{status['projects']} projects, {status['sessions']} sessions"
    )
    return [*hubs, *keepers, Part("bus", "ok", detail), *(read_runner(runner) for runner in status["runners"])]


async def _found(client: Client, service: str, names: list[str]) -> list[Part]:
    """Check each hub or keeper through the discovery of the NATS micro framework (ADR-32)."""
    if not names:
        return []
    found: dict[str, str] = {}

    def is_last(message: Msg) -> bool:
        info = json.loads(message.data)
        found[info.get("metadata", {}).get(service, "")] = info["version"]
        return found.keys() >= set(names)

    with contextlib.suppress(nats.errors.NoRespondersError):
        await request_many(client.connection, f"$SRV.PING.{service}", b"", seconds=TIMEOUT / 2, is_last=is_last)
    return [
        Part(name, "ok", "listens", found[name])
        if name in found
        else Part(name, "failed", f"does not answer within {TIMEOUT / 2:g} s")
        for name in names
    ]


def read_runner(runner: dict[str, Any]) -> Part:
    """The state of a runner, as a hub reports it."""
    if not runner["alive"]:
        return Part("runner", "failed", f"{runner['name']} ({runner['runner_id']}): {_heartbeat(runner)}")
    detail = f"{runner['name']}, {runner['running']} projects running, {_heartbeat(runner)}"
    failed = runner.get("failed", 0)  # hubs of an earlier version do not send it
    # While other projects run, a failed one is its users' concern: it may have used up its disk space.
    none_runs = failed and not runner["running"]
    if failed:
        detail += f"; {failed} that should run failed, one because: {runner['failed_detail'] or 'no reason given'}"
    return Part("runner", "warning" if none_runs else "ok", detail, runner["version"] or "")


def _heartbeat(runner: dict[str, Any]) -> str:
    age = runner.get("heartbeat_age")
    return "no heartbeat yet" if age is None else f"last heartbeat {age:.0f} s ago"


def compare(parts: list[Part], running: list[Process], programs: list[str]) -> None:
    """Mark parts whose program does not run: supervisor's state outweighs an answer from another process."""
    states = {process.name: process for process in running}
    for name in programs:
        process = states.get(name)
        part = next((part for part in parts if part.name == name), None)
        if process is None or process.state not in {"RUNNING", "STARTING"}:
            detail = f"supervisor says {process.state}" if process else "supervisor does not know it: deploy again"
            if process and process.detail:
                detail += f" ({process.detail})"
            if part is None:
                parts.append(Part(name, "failed", detail))
            else:
                part.state, part.detail = "failed", f"{part.detail}; {detail}"
        elif part is not None:
            part.detail += f" (pid {process.pid})"


def some_are_enough(parts: list[Part], names: list[str], enough: int) -> None:
    """Turn failures into warnings while at least ``enough`` of the named parts work."""
    mine = [part for part in parts if part.name in names]
    if sum(part.state == "ok" for part in mine) >= enough:
        for part in mine:
            if part.state == "failed":
                part.state = "warning"
