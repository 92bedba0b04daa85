"""A project that runs, with its files."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from natskit.bus.request_many import request_many
from natskit.client import Client
from tests.keeper.writer import Person
from tests.kit.wait import eventually


@dataclass
class Place:
    """A project that runs, its owner, and its files."""

    client: Client
    owner: Person
    project: str
    home: Path

    async def stop(self) -> None:
        await self.client.call_hub("stop_project", project_id=self.project)

    async def start(self) -> None:
        await self.client.call_hub("start_project", project_id=self.project, wait=60)

    def file(self, path: str) -> Path:
        return self.home / path

    async def reads(self, path: str, wanted: str | bytes) -> None:
        """Wait until a file has this content."""
        data = wanted.encode() if isinstance(wanted, str) else wanted
        await eventually(lambda: self.file(path).read_bytes() == data, f"{path} reads {wanted!r}", 30)

    async def rows(self, document: str) -> list[list[Any]]:
        return list((await self.owner.ask(self.project, document, "history"))["rows"])


def start_runner(folder: Path) -> subprocess.Popen[bytes]:
    with (folder / "runner.log").open("ab") as log:
        command = [sys.executable, "-m", "natskit.runner", "--settings", str(folder / "runner.json")]
        return subprocess.Popen(command, stdout=log, stderr=log)


async def keepers(client: Client) -> dict[str, str]:
    """The names of the keepers by their ids."""
    answers = await request_many(client.connection, "$SRV.INFO.keeper", b"", seconds=5, stall=0.5)
    found = [json.loads(answer.data)["metadata"] for answer in answers]
    return {each["id"]: each["keeper"] for each in found}
