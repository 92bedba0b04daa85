"""What the control machine remembers of its backups: where they are, and when the last good ones were taken and
verified.

``last-backup.json`` in the platform's folder, for ``natskit status``; and the same as metrics, where an exporter or
node_exporter passes them on.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from natskit.backup.manifest import Manifest, Verification, age_of
from natskit.backup.target import Target
from natskit.errors import BackupError
from natskit.identity.files import write_private
from natskit.process.metrics_file import Gauge, write

FILE = "last-backup.json"
METRICS = "backup.prom"


class Record(BaseModel):
    """The newest complete backup of a target, and the newest verification there."""

    model_config = ConfigDict(extra="forbid")

    target: str
    backups: int
    begun: AwareDatetime
    """Of the newest one: what was written since is not in it."""
    verified: AwareDatetime | None

    @classmethod
    def of(cls, target: Target) -> Record | None:
        """What a target holds; ``None`` without a backup whose manifest can be read."""
        begun, verified = [], []
        for name in target.names():
            folder = target.directory / name
            try:
                begun.append(Manifest.read(folder).started)
            except BackupError:
                continue
            if found := Verification.read(folder):
                verified.append(found.finished)
        if not begun:
            return None
        return cls(target=target.place, backups=len(begun), begun=max(begun), verified=max(verified, default=None))

    @classmethod
    def read(cls, platform: Path) -> Record | None:
        """The one in a platform's folder; ``None`` if there is none that can be read."""
        try:
            return cls.model_validate_json((platform / FILE).read_bytes())
        except (OSError, ValidationError):
            return None

    def keep(self, platform: Path, metrics: Path | None) -> None:
        """Write it into the platform's folder, and as metrics into a folder that an exporter reads. Raises
        :class:`OSError`."""
        write_private(platform / FILE, self.model_dump_json(indent=2) + "\n")
        if metrics is not None:
            write(metrics / METRICS, self.metrics())

    def metrics(self) -> list[Gauge]:
        """For Prometheus."""
        found = [
            Gauge.of(
                "natskit_backup_begun_seconds",
                "When the newest good backup was begun, in Unix seconds",
                self.begun.timestamp(),
            ),
            Gauge.of("natskit_backups", "Good backups in the target", float(self.backups)),
        ]
        verified = Gauge.of(
            "natskit_backup_verified_seconds",
            "When a verification has last found nothing wrong, in Unix seconds; 0 for never",
            self.verified.timestamp() if self.verified else 0.0,
        )
        return [*found, verified]

    def words(self, now: datetime) -> str:
        """For people."""
        verified = f"verified {age_of(self.verified, now)} ago" if self.verified else "never verified"
        return f"last backup: {age_of(self.begun, now)} ago in {self.target}, {verified}"
