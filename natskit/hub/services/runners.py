"""Runners: the deploy names them, and hubs accept them unless an administrator has revoked them.

A revocation is a record in the state, so it holds for all hubs at once and needs no deploy. It concerns a key, not a
name: a host that is set up again under the old name has a new key, and is accepted.
"""

from __future__ import annotations

import time
from typing import Any

from msgspec.structs import replace

from natskit.hub.state.records import Runner
from natskit.hub.state.view import State
from natskit.rpc import RpcError
from natskit.validation.names import name_key


class Runners:
    """Finds, lists, revokes and allows runners."""

    def __init__(self, state: State) -> None:
        self._state = state

    def find(self, name: str) -> str:
        """The id of the runner with this name or id. Raises :class:`RpcError`."""
        known, key = self._state.known_runners, name_key(name)
        found = [runner_id for runner_id, entry in known.items() if key in (runner_id, name_key(entry.name))]
        if len(found) == 1:
            return found[0]
        if not found:
            names = ", ".join(sorted(entry.name for entry in known.values())) or "none"
            raise RpcError("not_found", f"there is no runner {name[:80]!r}; known are: {names}")
        raise RpcError("conflict", f"{len(found)} runners are called {name[:80]!r}: use an id, {found[0]} is one")

    def list(self) -> list[dict[str, Any]]:
        """All runners of the deploy, whether each is revoked, and whether it is alive."""
        now = time.time()
        rows: list[dict[str, Any]] = []
        for runner_id, entry in sorted(self._state.known_runners.items(), key=lambda item: item[1].name):
            seen = self._state.runner(runner_id)
            heard = seen is not None and seen.last_seen > 0
            projects = [project for project in self._state.projects_on(runner_id).values() if not project.trial]
            # A project that is being restarted has the reason why it ended before.
            failed = [p for p in projects if p.desired == "running" and p.state != "running" and p.detail]
            rows.append(
                {
                    "runner_id": runner_id,
                    "name": entry.name,
                    "revoked": self._state.runner_key(runner_id) is None,
                    "alive": self._state.is_alive(runner_id),
                    "heartbeat_age": max(0.0, now - seen.last_seen) if seen and heard else None,
                    "version": seen.version if seen and heard else None,
                    "running": len(seen.running) if seen else 0,
                    "projects": len(projects),
                    "failed": len(failed),
                    "failed_detail": failed[0].detail if failed else "",
                }
            )
        return rows

    async def revoke(self, runner_id: str) -> None:
        """Refuse the runner's present key, and end its connections and those of its projects."""
        key = self._state.known_runners[runner_id].public_key

        def mutate(old: Runner | None) -> Runner:
            record = old or Runner(version="", last_seen=0)
            return replace(record, revoked_keys=sorted({*record.revoked_keys, key}))

        await self._state.change_runner(runner_id, mutate)

    async def allow(self, runner_id: str) -> None:
        """Accept a revoked runner again."""
        key = self._state.known_runners[runner_id].public_key

        def mutate(old: Runner | None) -> Runner | None:
            if old is None:
                return None
            return replace(old, revoked_keys=[other for other in old.revoked_keys if other != key])

        await self._state.change_runner(runner_id, mutate)
