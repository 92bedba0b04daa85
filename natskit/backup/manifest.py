"""A backup's description of itself: ``manifest.json``, which contains no secret."""

from __future__ import annotations

import hmac
import json
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from natskit.backup.sealing import BackupKey, Sealed
from natskit.errors import BackupError
from natskit.identity.files import write_private

MANIFEST = "manifest.json"
VERIFICATION = "verification.json"
SNAPSHOT = r"^([0-9a-f]{8,64})?$"
"""restic's id of a snapshot, or its first digits; empty for none. It becomes a word of restic's command line."""


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Lacks(_Model):
    """What a complete backup should have and does not have."""

    runners: list[str] = []
    """Those that did not answer, or were left out on request."""
    projects: int = 0
    """Left out, because files of another user were found in their folders."""
    files: int = 0
    """That could not be read. A runner names a thousand at most."""

    def __bool__(self) -> bool:
        return bool(self.runners or self.projects or self.files)

    def __str__(self) -> str:
        """For people: ``the files of runner two, 1 project, 3 files``; empty if nothing lacks."""
        parts = [f"the files of runner {name}" for name in self.runners]
        for number, word in ((self.projects, "project"), (self.files, "file")):
            parts += [f"{number} {word}{'' if number == 1 else 's'}"] if number else []
        return ", ".join(parts)


class StreamEntry(_Model):
    """A stream at the start of its snapshot."""

    account: str
    """Its NATS account."""
    name: str
    taken: AwareDatetime
    """The time of the request for its snapshot, which contains every write that was acknowledged before."""
    created: str
    """The stream's creation time, as nats-server writes it."""
    config: dict[str, Any]
    state: dict[str, Any]
    content: Sealed

    @property
    def label(self) -> str:
        """``ACCOUNT/STREAM``, as commands name it."""
        return f"{self.account}/{self.name}"

    @property
    def messages(self) -> int:
        """The number of messages."""
        return int(self.state["messages"])


class FilesEntry(_Model):
    """The files of the projects of one runner: a snapshot in the runner's own repository in the target."""

    runner: str
    name: str
    """The runner's name, for people."""
    taken: AwareDatetime
    snapshot: Annotated[str, Field(pattern=SNAPSHOT)] = ""
    """restic's id, or its first digits. Empty if the runner had no projects."""
    files: int = 0
    size: int = 0
    """Bytes of all files."""
    torn: list[str] = []
    """Files that changed each time restic read them: their contents may be mixtures of two states."""
    unread: list[str] = []
    """Files that restic could not read, each time: they are not in the snapshot."""
    left_out: list[str] = []
    """Folders of projects that are not in it, because files of another user were found in them."""


class Manifest(_Model):
    """A complete backup."""

    version: Literal[2] = 2
    name: str
    natskit: str
    platform: str
    """The public key of the platform's operator."""
    url: str
    started: AwareDatetime
    finished: AwareDatetime
    identity: Sealed
    inventory: Sealed
    streams: list[StreamEntry]
    """In the order in which they were taken."""
    files: list[FilesEntry] | None
    """``None`` if the backup was taken without files."""
    absent: list[str] = []
    """The names of runners whose files are not in it: they did not answer, or were left out on request."""
    mac: str = ""

    @property
    def contents(self) -> list[Sealed]:
        """All files of the backup but the manifest."""
        return [self.identity, self.inventory, *(stream.content for stream in self.streams)]

    @property
    def size(self) -> int:
        """Bytes of all these files."""
        return sum(sealed.size for sealed in self.contents)

    @property
    def lacks(self) -> Lacks:
        """What should be in it and is not."""
        entries = self.files or []
        return Lacks(
            runners=sorted(self.absent),
            projects=sum(len(entry.left_out) for entry in entries),
            files=sum(len(entry.unread) for entry in entries),
        )

    def write(self, folder: Path, key: BackupKey) -> None:
        """Write it with its authentication code."""
        complete = self.model_copy(update={"mac": key.mac(self._signed())})
        write_private(folder / MANIFEST, complete.model_dump_json(indent=2) + "\n")

    def authenticate(self, folder: Path, key: BackupKey) -> None:
        """Raises :class:`BackupError` unless a holder of the key wrote this manifest."""
        if not hmac.compare_digest(self.mac, key.mac(self._signed())):
            raise BackupError(
                f"{folder / MANIFEST} was changed, or belongs to a platform with another key: use another backup"
            )

    def _signed(self) -> bytes:
        # Manifests of earlier builds know of no absent runners.
        unsigned = {"mac"} if self.absent else {"mac", "absent"}
        return json.dumps(self.model_dump(mode="json", exclude=unsigned), sort_keys=True).encode()

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """The manifest of a backup. Raises :class:`BackupError`."""
        path = folder / MANIFEST
        try:
            found = cls.model_validate_json(path.read_bytes())
        except OSError as error:
            raise BackupError(f"{path}: {error.strerror}") from None
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            raise BackupError(f"{path} is damaged: {place}: {first['msg']}; use another backup") from None
        if found.name != folder.name.removeprefix(".unfinished-"):
            raise BackupError(f"{path} is of the backup {found.name[:40]!r}: give the folder its name back")
        return found


class Verification(_Model):
    """The result of the last verification of a backup that found nothing wrong."""

    finished: AwareDatetime
    age_seconds: float
    """How old the data was when the verification began (RPO)."""
    seconds: float
    """How long the restore of all streams, their comparison and the check of all files took (RTO, without a deploy)."""
    streams: int
    messages: int
    files: int

    def write(self, folder: Path) -> None:
        """Write it beside the manifest."""
        write_private(folder / VERIFICATION, self.model_dump_json(indent=2) + "\n")

    @classmethod
    def read(cls, folder: Path) -> Verification | None:
        """The last one; ``None`` if the backup was not verified, or its record cannot be read."""
        try:
            return cls.model_validate_json((folder / VERIFICATION).read_bytes())
        except (OSError, ValidationError):
            return None


def age_of(moment: datetime, now: datetime) -> str:
    """An age for people: ``40 s``, ``12 min``, ``7 h``, ``3 d``."""
    seconds = max(0, int((now - moment).total_seconds()))
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"
