"""The runner's connection to the platform: registers with the hubs, takes orders, reports."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Coroutine
from typing import Any, TypedDict

import nats.errors
from nats.aio.msg import Msg

from natskit import __version__, rpc
from natskit.bus.connection import Connection, connect, log_status
from natskit.bus.output_stream import HEADER_ROOM
from natskit.bus.payload import json_and_data, with_data
from natskit.bus.permissions import check_id, inbox_prefix
from natskit.bus.request import request
from natskit.errors import NatskitError
from natskit.process.lifecycle import cancel, spawn
from natskit.project.config import Id
from natskit.rpc import Methods, RpcError
from natskit.runner import usage
from natskit.runner.agent_process import AgentProcess
from natskit.runner.agent_unit import AgentUnit, units
from natskit.runner.backup_api import BackupCall, Backups, backup_methods
from natskit.runner.config import RunnerProgram
from natskit.runner.disk import Disk
from natskit.runner.metrics import keep_written
from natskit.runner.mounted_files import Followed
from natskit.runner.move_api import Moves
from natskit.runner.project_agent import ProjectAgent, State, Switch
from natskit.runner.removal import remove_tree
from natskit.runner.sandbox import HOMES
from natskit.runner.systemd import GONE

log = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 5.0
HUB_SECONDS = 5.0
WATCH_SECONDS = 1.0
"""Between two checks of the units: less than their ``RestartSec``, so that the runner misses no crash."""
FIRST_PAUSE, LONGEST_PAUSE = 0.25, 5.0
JWT_ATTEMPTS = 4
STARTS_AT_ONCE = 4
"""The most starts at the same time after a restart. Starting Python is mostly CPU, so more would only delay each."""
YOUNG_SECONDS = 30.0
"""A project that started this recently goes on even if an answer to ``register`` does not name it yet."""


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
        self.place = HOMES if program.manager == "systemd" else program.directory
        """Where the files of its projects are."""
        self._disk = Disk(program, self._running, self._hold, self.place)
        self._followed = Followed(program.directory / "shown")
        self._connection: Connection | None = None
        self._hub = f"hub.runner.{program.runner_id}"
        self._register = asyncio.Event()
        self._reports: dict[str, tuple[State, str]] = {}
        self._reported = asyncio.Event()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._starts = asyncio.Semaphore(STARTS_AT_ONCE)
        self.moves = Moves(self.project, self._call_hub, self._disk.check_room)
        """Gives and takes the files of projects that move."""
        self.backups = Backups(program, self.project)

    async def start(self) -> None:
        """Connect, take orders, and keep the hubs informed."""
        runner_id = self.program.runner_id
        (self.program.directory / "projects").mkdir(mode=0o700, parents=True, exist_ok=True)
        if self.program.manager == "systemd":
            self._follow_host()
            await self._adopt()
            self._spawn(self._watch_units())
        self._spawn(self._disk.watch())
        if self.program.metrics_file is not None:
            self._spawn(keep_written(self.program.metrics_file, self._projects.values, self._disk, self._is_connected))
        self._connection = await connect(
            self.program.nats,
            name=f"runner {self.program.name}",
            inbox_prefix=inbox_prefix("runner", runner_id),
            creds=self.program.creds,
            on_status=log_status,
        )
        self._connection.on_reconnect(self._register.set)
        await self._connection.subscribe(f"runners.{runner_id}.api", cb=self._on_request)
        await self._connection.subscribe(f"runners.{runner_id}.move", cb=self._on_move)
        await self._connection.subscribe(f"runners.{runner_id}.backup", cb=self._on_backup)
        await self._connection.flush()
        self._register.set()
        for work in (self._keep_registered(), self._beat(), self._send_reports()):
            self._spawn(work)

    async def close(self) -> None:
        """Leave the agents: systemd keeps its units running; child processes end, and the next runner starts them."""
        await cancel(self._tasks)
        await self.backups.end()
        await asyncio.gather(*(project.leave() for project in self._projects.values()))
        if self._connection is not None:
            await self._connection.close()

    def project(self, project_id: str) -> ProjectAgent:
        """The agent of a project, created on first use."""
        if project_id not in self._projects:
            self._projects[project_id] = self._kind(self.program, project_id, self._ask_for_jwt, self._report)
        return self._projects[project_id]

    def forget(self, project_id: str) -> None:
        """Forget a deleted project."""
        self._projects.pop(project_id, None)
        self._reports.pop(project_id, None)
        self._disk.forget(project_id)

    def states(self) -> list[ProjectState]:
        """All projects this runner knows."""
        return [
            {"project_id": one.project_id, "state": one.state, "detail": one.detail} for one in self._projects.values()
        ]

    def disk_of(self, project_id: str) -> int | None:
        """Bytes of a project's files at the last measurement; ``None`` before the first one."""
        return self._disk.size(project_id)

    def _is_connected(self) -> bool:
        return self._connection is not None and self._connection.is_connected

    def _running(self) -> list[ProjectAgent]:
        return [one for one in self._projects.values() if one.state == "running"]

    async def _hold(self, project: ProjectAgent, reason: str) -> None:
        async with project.lock:
            if project.state == "running":
                await project.hold(reason)

    async def _adopt(self) -> None:
        """Take over the units that an earlier runner has started."""
        for project_id, seen in (await units()).items():
            if seen.runs or seen.is_starting:
                project = self.project(project_id)
                assert isinstance(project, AgentUnit)
                project.adopt(seen)
        if self._projects:
            log.info("adopted %d running projects", len(self._projects))

    async def _watch_units(self) -> None:
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            self._follow_host()
            try:
                seen = await units()
            except NatskitError as error:
                log.warning("%s", error)
                continue
            for project in self._projects.values():
                if isinstance(project, AgentUnit):
                    project.observe(seen.get(project.project_id, GONE))

    def _follow_host(self) -> None:
        try:
            self._followed.follow()
        except OSError as error:
            log.warning("the host's hosts or resolv.conf could not be copied for projects: %s", error)

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
        """Start the projects that should run here and stop all others, whatever happened while no hub was reachable."""
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
                    log.warning("project %s is restarted, since it got no new key: %s", project.project_id, error)
                    await project.stop()
            if not project.held:
                with contextlib.suppress(RpcError):  # reported, and tried again
                    await project.start()
        self._report(project.project_id, project.state, project.detail)

    def _renew(self, need_keys: set[str]) -> None:
        """Give new keys to agents whose keys the hubs refuse, unless that is in progress."""
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
        """Report each project's newest state to the hubs, until one of them has received it."""
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
        """The requests to the hubs that change a project's key."""
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
        """End an agent whose key the hubs refuse: it was stopped while this runner was disconnected."""
        key = project.public_key()
        if project.state == "running" and key:
            with contextlib.suppress(NatskitError):
                if await self._call_hub("is_let_in", project_id=project.project_id, public_key=key) is False:
                    await project.stop()

    async def left_of_moves(self, project_id: str) -> str:
        """What is here of a project and is to be removed, ``copy`` or ``part``. Raises :class:`RpcError` if it is
        not."""
        try:
            left = await self._call_hub("left_of_moves", project_id=project_id)
        except RpcError:
            raise
        except NatskitError as error:
            raise RpcError("unavailable", f"no hub says what is to be removed: {error}") from None
        if left not in ("copy", "part"):
            raise RpcError("conflict", "what is here of the project is needed")
        return str(left)

    async def _insist(self, method: str, project_id: str, public_key: str) -> Any:
        """Repeat a request: another hub than the one that gave the order may answer, and not know of the order yet."""
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

    async def _on_move(self, message: Msg) -> None:
        self._spawn(self._answer_move(message))

    async def _on_backup(self, message: Msg) -> None:
        self._spawn(self._answer_backup(message))

    async def _answer_move(self, message: Msg) -> None:
        if self._connection is None:
            return
        request, data = json_and_data(message)
        body, more = await self.moves.answer(request, data, self._connection.max_payload - HEADER_ROOM)
        await self._answer_with_data(message, body, more)

    async def _answer_backup(self, message: Msg) -> None:
        if self._connection is None:
            return
        request, data = json_and_data(message)
        call = BackupCall(self.backups, data, self._connection.max_payload - HEADER_ROOM)
        body = await backup_methods.answer(call, request, call.most)
        await self._answer_with_data(message, body, call.answer_data)

    async def _answer_with_data(self, message: Msg, body: bytes | None, data: bytes) -> None:
        if self._connection is not None and body is not None and message.reply:
            payload, headers = with_data(body, data)
            with contextlib.suppress(nats.errors.Error):
                await self._connection.publish(message.reply, payload, headers=headers)

    async def _answer(self, message: Msg) -> None:
        if self._connection is None:
            return
        body = await runner_methods.answer(self, message.data, self._connection.max_payload)
        if body is not None and message.reply:
            with contextlib.suppress(nats.errors.Error):
                await self._connection.publish(message.reply, body)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        spawn(self._tasks, work)


async def _usage(runner: Runner) -> dict[str, Any]:
    disk = {one["project_id"]: runner.disk_of(one["project_id"]) for one in runner.states()}
    look = usage.by_cgroups if runner.program.manager == "systemd" else usage.by_processes
    used = {project_id: one for project_id, one in (await asyncio.to_thread(look)).items() if project_id in disk}
    return {"host": await asyncio.to_thread(usage.host, runner.place), "projects": usage.rows(used, disk)}


runner_methods: Methods[Runner] = Methods()
"""The methods a hub may call on a runner, by ``runners.{runner_id}.api``."""


@runner_methods.method()
async def ping(runner: Runner) -> dict[str, Any]:
    """Prove that the runner answers."""
    return {"pong": True, "runner_id": runner.program.runner_id}


@runner_methods.method()
async def list_projects(runner: Runner) -> list[ProjectState]:
    """The projects this runner has started, and their state."""
    return runner.states()


@runner_methods.method("usage")
async def tell_usage(runner: Runner) -> dict[str, Any]:
    """What the host and its projects use now."""
    return await _usage(runner)


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
async def remove_old_copy(runner: Runner, project_id: Id) -> dict[str, str]:
    """Remove the files of a project that was moved away, or that did not move here after all, if a hub says so."""
    project = runner.project(project_id)
    async with project.lock:
        if await runner.left_of_moves(project_id) == "part" and project.home.exists():
            await remove_tree(project.arriving)
            return {"state": project.state}
        await _delete(project)
    runner.forget(project_id)
    return {"state": "deleted"}


@runner_methods.method()
async def delete_project(runner: Runner, project_id: Id) -> dict[str, str]:
    """Stop a project and remove its files, including those an earlier attempt left behind."""
    project = runner.project(project_id)
    await project.interrupt()
    async with project.lock:
        await _delete(project)
    runner.forget(project_id)
    return {"state": "deleted"}


async def _delete(project: ProjectAgent) -> None:
    try:
        await project.delete()
    except RpcError:
        raise
    except (NatskitError, OSError) as error:
        raise RpcError("invalid_state", f"the project's files are not all removed: {error}") from None
