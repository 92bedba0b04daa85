"""The checks behind ``natskit status``: each part is asked something that only a working part can answer."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
import time
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import httpx
from nats.aio.msg import Msg

from natskit.cli.platform import Platform
from natskit.cli.supervisor import Process, processes
from natskit.client import Client
from natskit.connection import connect
from natskit.errors import NatskitError
from natskit.permissions import inbox_prefix

State = Literal["ok", "warning", "failed"]
TIMEOUT = 3.0
QUESTIONS = ("VARZ", "HEALTHZ")


@dataclass
class Part:
    """One part of the platform and what became of asking it."""

    name: str
    state: State
    detail: str
    version: str = ""


@dataclass
class Report:
    """All parts; the platform works if its state is not ``failed``."""

    parts: list[Part]
    running: list[Process] = field(default_factory=list)

    @property
    def state(self) -> State:
        """The worst state of a part, except that one hub or server of several only warns."""
        states = {part.state for part in self.parts}
        return "failed" if "failed" in states else "warning" if "warning" in states else "ok"

    @property
    def summary(self) -> str:
        """One line that names what is wrong; empty if nothing is."""
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
    """Ask every part: what does not answer is ``failed``.

    Raises :class:`IdentityError` when there are no creds to ask with, as after a wrong passphrase.
    """
    platform.creds("sys_admin")
    running: list[Process] = []
    if socket := platform.content.get("supervisor_socket"):
        try:
            running = processes(socket)
        except NatskitError as error:
            return Report([Part("supervisor", "failed", str(error))])
    return asyncio.run(_inspect(platform, running))


async def _inspect(platform: Platform, running: list[Process]) -> Report:
    try:
        context = ssl.create_default_context(cafile=platform["ca_file"])
    except OSError as error:
        return Report([Part("proxy", "failed", f"the CA {platform['ca_file']} cannot be read ({error})")], running)
    # On this machine each hub is asked itself; on others only the proxy may, and they are asked over the bus.
    hub_urls = dict(zip(platform["hubs"], platform.content.get("hub_urls", []), strict=False))
    async with (
        httpx.AsyncClient(timeout=TIMEOUT, trust_env=False) as inside,
        httpx.AsyncClient(timeout=TIMEOUT, trust_env=False, verify=context) as outside,
    ):
        single = asyncio.gather(
            *(_http(inside, name, f"{url}/healthz") for name, url in hub_urls.items()),
            _http(outside, "proxy", f"{platform['url']}/healthz"),
        )
        servers, bus, others = await asyncio.gather(_servers(platform), _bus(platform, not hub_urls), single)
    parts = [*servers, *others, *bus]
    compare(parts, running, platform.content.get("programs", []))
    some_are_enough(parts, platform["hubs"], 1)
    some_are_enough(parts, [part.name for part in servers], len(servers) // 2 + 1)
    return Report(parts, running)


async def _servers(platform: Platform) -> list[Part]:
    """Each nats-server, asked over the bus by the operator's user of the NATS account SYS."""
    names: list[str] = platform["nats"]
    label = {name: "nats" if len(names) == 1 else name for name in names}
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
    complete = asyncio.Event()

    async def on_answer(message: Msg) -> None:
        answer = json.loads(message.data)
        found.setdefault(answer["server"]["name"], {})[message.subject.rpartition(".")[2]] = answer.get("data", {})
        if all(len(answers) == len(QUESTIONS) for answers in found.values()):
            complete.set()

    inbox = connection.new_inbox()
    await connection.subscribe(f"{inbox}.*", cb=on_answer)
    for question in QUESTIONS:
        await connection.publish(f"$SYS.REQ.SERVER.PING.{question}", b"", reply=f"{inbox}.{question}")
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(TIMEOUT):
            await complete.wait()
    await connection.close()
    return [_server(label.get(name, name), answers) for name, answers in sorted(found.items())]


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
    """What ``/healthz`` of a hub said, itself or through the proxy, which has a page of its own when no hub answers."""
    try:
        body = json.loads(text)
        hub, version = str(body["hub"]), str(body["version"])
    except (ValueError, KeyError, TypeError):
        return Part(name, "failed", f"{url} answers {status}, and not as a hub does")
    served = f", answered by {hub}" if name == "proxy" else ""
    version = "" if name == "proxy" else version
    if status != httpx.codes.OK:
        return Part(name, "failed", f"unavailable{served}: {', '.join(body.get('problems', ()))}", version)
    return Part(name, "ok", f"healthy{served}", version)


async def _bus(platform: Platform, ask_hubs: bool) -> list[Part]:
    """A round trip over NATS to a hub, what that hub knows of the runners, and, if asked for, which hubs listen."""
    try:
        async with asyncio.timeout(TIMEOUT + 1), await platform.client("status", TIMEOUT) as client:
            started = time.monotonic()
            status = await client.call_hub("status", wait=TIMEOUT)
            milliseconds = (time.monotonic() - started) * 1000
            hubs = await _hubs(client, platform["hubs"]) if ask_hubs else []
    except (NatskitError, TimeoutError) as error:
        return [Part("bus", "failed", f"no hub answers over NATS ({str(error) or f'not within {TIMEOUT:g} s'})")]
    detail = (
        f"{status['hub']} answered in {milliseconds:.1f} ms: {status['accounts']} accounts, "
        f"{status['projects']} projects, {status['sessions']} sessions"
    )
    return [*hubs, Part("bus", "ok", detail), *(_runner(runner) for runner in status["runners"])]


async def _hubs(client: Client, names: list[str]) -> list[Part]:
    """The hubs that listen, by the micro framework's discovery (ADR-32)."""
    found: dict[str, str] = {}
    complete = asyncio.Event()

    async def on_answer(message: Msg) -> None:
        info = json.loads(message.data)
        found[info.get("metadata", {}).get("hub", "")] = info["version"]
        if found.keys() >= set(names):
            complete.set()

    inbox = client.connection.new_inbox()
    await client.subscribe(inbox, on_answer)
    await client.connection.publish("$SRV.PING.hub", b"", reply=inbox)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(TIMEOUT / 2):
            await complete.wait()
    return [
        Part(name, "ok", "listens", found[name])
        if name in found
        else Part(name, "failed", f"does not answer within {TIMEOUT / 2:g} s")
        for name in names
    ]


def _runner(runner: dict[str, Any]) -> Part:
    if not runner["alive"]:
        return Part("runner", "failed", f"{runner['name']} ({runner['runner_id']}): {_heartbeat(runner)}")
    detail = f"{runner['name']}, {runner['running']} projects running, {_heartbeat(runner)}"
    return Part("runner", "ok", detail, runner["version"] or "")


def _heartbeat(runner: dict[str, Any]) -> str:
    age = runner.get("heartbeat_age")
    return "no heartbeat yet" if age is None else f"last heartbeat {age:.0f} s ago"


def compare(parts: list[Part], running: list[Process], programs: list[str]) -> None:
    """A part that answers although its program does not run answers from elsewhere: say what the manager says."""
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
    """While so many of these work, another one that does not is a warning."""
    mine = [part for part in parts if part.name in names]
    if sum(part.state == "ok" for part in mine) >= enough:
        for part in mine:
            if part.state == "failed":
                part.state = "warning"
