"""The runner's connection to the platform: registers with the hubs, takes orders, reports."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import Any, TypedDict

import nats.errors
from nats.aio.msg import Msg

from natskit import __version__, rpc
from natskit.connection import Connection, connect, log_status, request
from natskit.errors import NatskitError
from natskit.permissions import check_id, inbox_prefix
from natskit.program import cancel
from natskit.project.program import Id
from natskit.rpc import Methods, RpcError
from natskit.runner.agent_process import AgentProcess
from natskit.runner.agent_unit import PRIVATE, AgentUnit, units
from natskit.runner.disk import Disk
from natskit.runner.program import RunnerProgram
from natskit.runner.project_agent import ProjectAgent, State, Switch
from natskit.runner.systemd import GONE

log = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 5.0
HUB_SECONDS = 5.0
WATCH_SECONDS = 1.0
"""Between two looks at the units: less than ``RestartSec`` of theirs, so that no crash is missed."""
FIRST_PAUSE, LONGEST_PAUSE = 0.25, 5.0
JWT_ATTEMPTS = 4
STARTS_AT_ONCE = 4
"""After a restart: Python's start is mostly CPU, and more at once only makes each of them late."""
YOUNG_SECONDS = 30.0
"""A project started this recently is not stopped because a register's answer does not know it yet."""


class ProjectState(TypedDict):
    """One project of this runner."""

    project_id: str
    state: State
    detail: str


class Runner:
    """One host's runner, from connect to close."""

    def __init__(self, program: RunnerProgram) -> None:
        self.program = program
        self._projects: dict[str, ProjectAgent] = {}
        self._kind: type[ProjectAgent] = AgentUnit if program.manager == "systemd" else AgentProcess
        place = PRIVATE if program.manager == "systemd" else program.directory
        self._disk = Disk(program, self._running, self._hold, place)
        self._connection: Connection | None = None
        self._hub = f"hub.runner.{program.runner_id}"
        self._register = asyncio.Event()
        self._reports: dict[str, tuple[State, str]] = {}
        self._reported = asyncio.Event()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._starts = asyncio.Semaphore(STARTS_AT_ONCE)

    async def start(self) -> None:
        """Connect, take orders, and keep the hubs informed."""
        runner_id = self.program.runner_id
        (self.program.directory / "projects").mkdir(mode=0o700, parents=True, exist_ok=True)
        if self.program.manager == "systemd":
            await self._adopt()
            self._spawn(self._watch_units())
        self._spawn(self._disk.watch())
        self._connection = await connect(
            self.program.nats,
            name=f"runner {self.program.name}",
            inbox_prefix=inbox_prefix("runner", runner_id),
            creds=self.program.creds,
            on_status=log_status,
        )
        self._connection.on_reconnect(self._register.set)
        await self._connection.subscribe(f"runners.{runner_id}.api", cb=self._on_request)
        await self._connection.flush()
        self._register.set()
        for work in (self._keep_registered(), self._beat(), self._send_reports()):
            self._spawn(work)

    async def close(self) -> None:
        """Leave the agents: systemd keeps its units; processes end, and come back with the next start."""
        await cancel(self._tasks)
        await asyncio.gather(*(project.leave() for project in self._projects.values()))
        if self._connection is not None:
            await self._connection.close()

    def project(self, project_id: str) -> ProjectAgent:
        """The agent of a project, made when it is first asked for."""
        if project_id not in self._projects:
            self._projects[project_id] = self._kind(self.program, project_id, self._ask_for_jwt, self._report)
        return self._projects[project_id]

    def forget(self, project_id: str) -> None:
        """A project that was deleted."""
        self._projects.pop(project_id, None)
        self._reports.pop(project_id, None)
        self._disk.forget(project_id)

    def states(self) -> list[ProjectState]:
        """All projects this runner knows."""
        return [
            {"project_id": one.project_id, "state": one.state, "detail": one.detail} for one in self._projects.values()
        ]

    def _running(self) -> list[ProjectAgent]:
        return [one for one in self._projects.values() if one.state == "running"]

    async def _hold(self, project: ProjectAgent, reason: str) -> None:
        async with project.lock:
            if project.state == "running":
                await project.hold(reason)

    async def _adopt(self) -> None:
        """Go on with the units that an earlier runner has started."""
        for project_id, seen in (await units()).items():
            if seen.runs or seen.is_starting:
                project = self.project(project_id)
                assert isinstance(project, AgentUnit)
                project.adopt(seen)
        if self._projects:
            log.info("adopted %d projects that run", len(self._projects))

    async def _watch_units(self) -> None:
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            try:
                seen = await units()
            except NatskitError as error:
                log.warning("%s", error)
                continue
            for project in self._projects.values():
                if isinstance(project, AgentUnit):
                    project.observe(seen.get(project.project_id, GONE))

    async def _keep_registered(self) -> None:
        while True:
            await self._register.wait()
            self._register.clear()
            pause = FIRST_PAUSE
            while True:
                try:
                    answer = await self._call_hub("register", version=self.program.version or __version__)
                    break
                except NatskitError as error:
                    log.info("register: %s", error)
                    await asyncio.sleep(pause)
                    pause = min(pause * 2, LONGEST_PAUSE)
            wanted = {check_id(project_id, "project_id") for project_id in answer["projects"]}
            log.info("registered; %d projects should run here", len(wanted))
            self._follow(wanted, set(answer.get("need_keys", ())))

    def _follow(self, wanted: set[str], need_keys: set[str]) -> None:
        """Start what should run here and stop what should not, whatever happened while no hub was there."""
        for project_id in wanted:
            self._spawn(self._bring_back(self.project(project_id), needs_key=project_id in need_keys))
        for project in list(self._projects.values()):
            old = time.monotonic() - project.since > YOUNG_SECONDS
            if project.project_id not in wanted and project.state != "stopped" and old:
                self._spawn(self._stop_unwanted(project))

    async def _bring_back(self, project: ProjectAgent, *, needs_key: bool) -> None:
        async with self._starts, project.lock:
            if needs_key and project.state == "running":
                try:
                    await project.rotate(self.switch)
                except (NatskitError, OSError) as error:
                    log.warning("project %s is started anew, since it got no new key: %s", project.project_id, error)
                    await project.stop()
            if not project.held:
                with contextlib.suppress(RpcError):  # reported, and tried again
                    await project.start()
        self._report(project.project_id, project.state, project.detail)

    def _renew(self, need_keys: set[str]) -> None:
        """Give new keys to agents whose own are refused, unless that is being done."""
        for project in self._running():
            if project.project_id in need_keys and not project.lock.locked():
                self._spawn(self._bring_back(project, needs_key=True))

    async def _stop_unwanted(self, project: ProjectAgent) -> None:
        async with project.lock:
            await project.stop()

    async def _beat(self) -> None:
        while True:
            running = [one.project_id for one in self._running()]
            try:
                answer = await self._call_hub("heartbeat", running=running)
                self._renew(set(answer.get("need_keys", ())))
            except RpcError as error:
                log.info("heartbeat: %s", error)
                self._register.set()
            except NatskitError as error:
                log.info("heartbeat: %s", error)
            await asyncio.sleep(HEARTBEAT_SECONDS)

    def _report(self, project_id: str, state: State, detail: str) -> None:
        self._reports[project_id] = (state, detail)
        self._reported.set()

    async def _send_reports(self) -> None:
        """Tell the hubs each project's newest state, until one of them has heard it."""
        while True:
            await self._reported.wait()
            self._reported.clear()
            for project_id, report in list(self._reports.items()):
                state, detail = report
                try:
                    await self._call_hub("project_state", project_id=project_id, state=state, detail=detail)
                except RpcError as error:
                    log.info("project_state %s: %s", project_id, error)
                    if error.kind in ("unavailable", "timeout", "conflict"):
                        self._spawn(self._report_later())
                        continue
                except NatskitError as error:
                    log.info("project_state %s: %s", project_id, error)
                    self._spawn(self._report_later())
                    break
                if self._reports.get(project_id) == report:
                    del self._reports[project_id]

    async def _report_later(self) -> None:
        await asyncio.sleep(1)
        self._reported.set()

    @property
    def switch(self) -> Switch:
        """What a change of a project's key asks of the hubs."""
        return Switch(self._ask_for_next_jwt, self._use_next_key)

    async def _ask_for_jwt(self, project_id: str, public_key: str) -> str:
        answer = await self._insist("project_credentials", project_id, public_key)
        return str(answer["jwt"])

    async def _ask_for_next_jwt(self, project_id: str, public_key: str) -> str:
        answer = await self._insist("next_project_credentials", project_id, public_key)
        return str(answer["jwt"])

    async def _use_next_key(self, project_id: str, public_key: str) -> None:
        await self._insist("project_uses_next_key", project_id, public_key)

    async def end_if_locked_out(self, project: ProjectAgent) -> None:
        """End an agent that runs with a key that is good for nothing: it was stopped while this runner was away."""
        key = project.public_key()
        if project.state == "running" and key:
            with contextlib.suppress(NatskitError):
                if await self._call_hub("is_let_in", project_id=project.project_id, public_key=key) is False:
                    await project.stop()

    async def _insist(self, method: str, project_id: str, public_key: str) -> Any:
        """Ask again: the hub that answers may be another one than the hub that gave the order, and not know of it."""
        for attempt in range(1, JWT_ATTEMPTS + 1):
            try:
                return await self._call_hub(method, project_id=project_id, public_key=public_key)
            except NatskitError as error:
                if attempt == JWT_ATTEMPTS:
                    raise
                log.info("%s %s: %s", method, project_id, error)
            await asyncio.sleep(FIRST_PAUSE * attempt)
        raise AssertionError("unreachable")

    async def _call_hub(self, method: str, **params: Any) -> Any:
        assert self._connection is not None
        body = rpc.encode_request(method, params)
        return rpc.decode_response(await request(self._connection, self._hub, body, HUB_SECONDS))

    async def _on_request(self, message: Msg) -> None:
        self._spawn(self._answer(message))

    async def _answer(self, message: Msg) -> None:
        body = await runner_methods.answer(self, message.data)
        if body is not None and message.reply and self._connection is not None:
            with contextlib.suppress(nats.errors.Error):
                await self._connection.publish(message.reply, body)

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


runner_methods: Methods[Runner] = Methods()
"""What a hub may ask of a runner, on ``runners.{runner_id}.api``."""


@runner_methods.method()
async def ping(runner: Runner) -> dict[str, Any]:
    """Prove that the runner answers."""
    return {"pong": True, "runner_id": runner.program.runner_id}


@runner_methods.method()
async def list_projects(runner: Runner) -> list[ProjectState]:
    """The projects this runner has started, and their state."""
    return runner.states()


@runner_methods.method()
async def start_project(runner: Runner, project_id: Id) -> dict[str, str]:
    """Start a project's agent and wait until it answers."""
    project = runner.project(project_id)
    async with project.lock:
        await runner.end_if_locked_out(project)
        await project.start()
    return {"state": project.state}


@runner_methods.method()
async def stop_project(runner: Runner, project_id: Id) -> dict[str, str]:
    """Stop a project's agent and everything it started."""
    project = runner.project(project_id)
    await project.interrupt()
    async with project.lock:
        await project.stop()
    return {"state": project.state}


@runner_methods.method()
async def restart_project(runner: Runner, project_id: Id) -> dict[str, str]:
    """Stop and start."""
    project = runner.project(project_id)
    await project.interrupt()
    async with project.lock:
        await project.stop()
        await project.start()
    return {"state": project.state}


@runner_methods.method()
async def rotate_project_keys(runner: Runner, project_id: Id) -> dict[str, str]:
    """Give a running project's agent a new key, without stopping anything."""
    project = runner.project(project_id)
    async with project.lock:
        try:
            await project.rotate(runner.switch)
        except RpcError:
            raise
        except (NatskitError, OSError) as error:
            raise RpcError("unavailable", f"the project keeps the key it has: {error}") from None
    return {"state": project.state}


@runner_methods.method()
async def delete_project(runner: Runner, project_id: Id) -> dict[str, str]:
    """Stop a project and remove its files."""
    project = runner.project(project_id)
    await project.interrupt()
    async with project.lock:
        await project.delete()
    runner.forget(project_id)
    return {"state": "deleted"}
