"""Runners: known from the deploy, and let in unless an administrator has revoked them.

A revocation is a record in the state, so it holds for all hubs at once and needs no deploy. It is of a key, not of a
name: a host that is set up anew under the old name has another key, and is let in.
"""

from __future__ import annotations

import time
from typing import Any

from natskit.hub.records import Runner
from natskit.hub.state import State
from natskit.rpc import RpcError


class Runners:
    """What an administrator may do to runners."""

    def __init__(self, state: State) -> None:
        self._state = state

    def find(self, name: str) -> str:
        """The id of the runner with this name or id. Raises :class:`RpcError`."""
        known = self._state.known_runners
        found = [runner_id for runner_id, entry in known.items() if name in (runner_id, entry.name)]
        if len(found) == 1:
            return found[0]
        if not found:
            names = ", ".join(sorted(entry.name for entry in known.values())) or "none"
            raise RpcError("not_found", f"there is no runner {name[:80]!r}; known are: {names}")
        raise RpcError("conflict", f"{len(found)} runners are called {name[:80]!r}: use an id, {found[0]} is one")

    def list(self) -> list[dict[str, Any]]:
        """Every runner of the deploy, and whether it is let in, and alive."""
        now, rows = time.time(), []
        for runner_id, entry in sorted(self._state.known_runners.items(), key=lambda item: item[1].name):
            seen = self._state.runners.get(runner_id)
            heard = seen is not None and seen.last_seen > 0
            rows.append(
                {
                    "runner_id": runner_id,
                    "name": entry.name,
                    "revoked": self._state.runner_key(runner_id) is None,
                    "alive": self._state.is_alive(runner_id),
                    "heartbeat_age": max(0.0, now - seen.last_seen) if seen and heard else None,
                    "version": seen.version if seen and heard else None,
                    "running": len(seen.running) if seen else 0,
                    "projects": len(self._state.projects_on(runner_id)),
                }
            )
        return rows

    async def revoke(self, runner_id: str) -> None:
        """Refuse the key that the runner has now, cut its connection and those of its projects, and let none back."""
        key = self._state.known_runners[runner_id].public_key

        def mutate(old: Runner | None) -> Runner:
            record = old or Runner(version="", last_seen=0)
            return record.model_copy(update={"revoked_keys": sorted({*record.revoked_keys, key})})

        await self._state.runners.change(runner_id, mutate)

    async def allow(self, runner_id: str) -> None:
        """Let a revoked runner in again."""
        key = self._state.known_runners[runner_id].public_key

        def mutate(old: Runner | None) -> Runner | None:
            if old is None:
                return None
            return old.model_copy(update={"revoked_keys": [other for other in old.revoked_keys if other != key]})

        await self._state.runners.change(runner_id, mutate)
