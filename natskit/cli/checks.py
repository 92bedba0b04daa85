"""The checks behind ``natskit status``: each part is asked something that only a working part can answer."""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import httpx

from natskit.cli.platform import Platform
from natskit.cli.supervisor import Process, processes
from natskit.client import Client
from natskit.errors import NatskitError

State = Literal["ok", "warning", "failed"]
TIMEOUT = 3.0


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
        """The worst state of a part, except that one hub of several only warns."""
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
    """Ask every part. Raises nothing: what does not answer is ``failed``."""
    try:
        running = processes(platform["supervisor_socket"])
    except NatskitError as error:
        return Report([Part("supervisor", "failed", str(error))])
    return asyncio.run(_inspect(platform, running))


async def _inspect(platform: Platform, running: list[Process]) -> Report:
    try:
        context = ssl.create_default_context(cafile=platform["ca_file"])
    except OSError as error:
        return Report([Part("proxy", "failed", f"the CA {platform['ca_file']} cannot be read ({error})")], running)
    async with (
        httpx.AsyncClient(timeout=TIMEOUT, trust_env=False) as inside,
        httpx.AsyncClient(timeout=TIMEOUT, trust_env=False, verify=context) as outside,
    ):
        single = asyncio.gather(
            _nats(inside, platform),
            *(_http(inside, hub["name"], f"{hub['url']}/healthz") for hub in platform["hubs"]),
            _http(outside, "proxy", f"{platform['url']}/healthz"),
        )
        bus, others = await asyncio.gather(_bus(platform), single)
    parts = [*others, *bus]
    compare(parts, running, platform["programs"])
    one_hub_is_enough(parts, [hub["name"] for hub in platform["hubs"]])
    return Report(parts, running)


async def _nats(client: httpx.AsyncClient, platform: Platform) -> Part:
    url = platform["monitor_url"]
    try:
        health = (await client.get(f"{url}/healthz")).json()
        varz = (await client.get(f"{url}/varz")).json()
    except (httpx.HTTPError, ValueError) as error:
        return Part("nats", "failed", f"monitoring at {url} does not answer ({type(error).__name__})")
    if health.get("status") != "ok":
        return Part("nats", "failed", str(health.get("error", health)), varz.get("version", ""))
    detail = f"{varz['connections']} connections, {varz['mem'] // 1024**2} MiB"
    return Part("nats", "ok", detail, varz["version"])


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


async def _bus(platform: Platform) -> list[Part]:
    """A round trip over NATS to a hub, and what that hub knows of the runners."""
    try:
        async with asyncio.timeout(TIMEOUT):
            creds = platform["creds"]["platform_admin"]
            async with await Client.admin(platform["nats_url"], creds, name="status") as client:
                started = time.monotonic()
                status = await client.call_hub("status", wait=TIMEOUT)
                milliseconds = (time.monotonic() - started) * 1000
    except (NatskitError, TimeoutError) as error:
        return [Part("bus", "failed", f"no hub answers over NATS ({str(error) or f'not within {TIMEOUT:g} s'})")]
    detail = (
        f"{status['hub']} answered in {milliseconds:.1f} ms: {status['accounts']} accounts, "
        f"{status['projects']} projects, {status['sessions']} sessions"
    )
    return [Part("bus", "ok", detail), *(_runner(runner) for runner in status["runners"])]


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


def one_hub_is_enough(parts: list[Part], hubs: list[str]) -> None:
    """While one hub works, another that does not is a warning."""
    mine = [part for part in parts if part.name in hubs]
    if any(part.state == "ok" for part in mine):
        for part in mine:
            if part.state == "failed":
                part.state = "warning"
