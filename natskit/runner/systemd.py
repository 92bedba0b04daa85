"""systemd as the runner uses it: through ``systemctl``, which needs no library."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from dataclasses import dataclass

from natskit.errors import NatskitError
from natskit.process.signals import signal_name

ASK_SECONDS = 20.0
"""For requests that systemd answers by itself. A start or a stop may take as long as its unit's timeouts."""
SHOWN = ("ActiveState", "SubState", "Result", "ExecMainCode", "ExecMainStatus")
CLD_EXITED = "1"
NEVER_RAN = "0"
"""``ExecMainCode`` of a unit that failed before its main process started."""


@dataclass(frozen=True)
class UnitState:
    """``ActiveState`` and ``SubState`` of a unit (systemctl(1))."""

    active: str
    sub: str

    @property
    def runs(self) -> bool:
        """Its program has said that it is ready."""
        return self.active == "active" or self.active == "reloading"

    @property
    def is_starting(self) -> bool:
        """It is starting, perhaps again after a crash, or because an operator restarts it by hand."""
        return self.active in ("activating", "deactivating")


GONE = UnitState("inactive", "dead")


async def systemctl(*words: str, wait: float | None = ASK_SECONDS) -> str:
    """The output of ``systemctl``. Raises :class:`NatskitError` with its message if it fails or takes too long."""
    process = await asyncio.create_subprocess_exec(
        *("systemctl", "--no-pager", "--no-ask-password", *words),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        out, err = await asyncio.wait_for(process.communicate(), wait)
    except TimeoutError:
        raise NatskitError(f"systemctl {words[0]} did not answer within {wait:g} s") from None
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
    if process.returncode:
        said = err.decode(errors="replace").strip().splitlines() or [f"exit code {process.returncode}"]
        raise NatskitError(f"systemctl {words[0]}: {said[0]}")
    return out.decode(errors="replace")


async def list_units(pattern: str) -> dict[str, UnitState]:
    """The units that systemd has in memory, including failed ones, by name."""
    return parse_list(await systemctl("list-units", "--all", "--full", "--plain", "--no-legend", pattern))


def parse_list(text: str) -> dict[str, UnitState]:
    """The lines of ``systemctl list-units --plain --no-legend``: unit, load, active, sub, description."""
    rows = [line.split(None, 4) for line in text.splitlines()]
    return {row[0]: UnitState(row[2], row[3]) for row in rows if len(row) >= 4}


async def how_it_ended(unit: str) -> str:
    """Why a unit does not run, in words."""
    shown = await systemctl("show", f"--property={','.join(SHOWN)}", unit)
    return explain(parse_properties(shown))


def parse_properties(text: str) -> dict[str, str]:
    """The lines of ``systemctl show``: NAME=VALUE."""
    pairs = [line.partition("=") for line in text.splitlines()]
    return {name: value for name, equals, value in pairs if equals}


def explain(shown: Mapping[str, str]) -> str:
    """``Result`` and the main process's end (systemd.exec(5), "Process Exit Codes") in words."""
    status = shown.get("ExecMainStatus", "")
    match shown.get("Result", ""):
        case "oom-kill":
            return "it was ended because its memory was used up"
        case "signal" | "core-dump":
            name = _signal_name(status)
            # With cgroup v1 the kernel does not tell systemd that it ended a process for its memory.
            return f"the agent ended ({name})" + (": perhaps its memory was used up" if name == "SIGKILL" else "")
        case "exit-code" if shown.get("ExecMainCode") == NEVER_RAN:
            return "its sandbox or its home could not be prepared"
        case "exit-code":
            return f"the agent ended (exit code {status})"
        case "timeout":
            return "the agent did not answer in time"
        case "start-limit-hit":
            return "the agent ended again and again"
        case "success":
            return "the agent ended" if shown.get("ExecMainCode") == CLD_EXITED else "it was stopped"
        case other:
            return f"systemd could not run it ({other or 'without a reason'})"


def _signal_name(status: str) -> str:
    return signal_name(int(status)) if status.isdecimal() else f"signal {status}"
