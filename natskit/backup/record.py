"""What the control machine remembers of its backups: where they are, and when the last good ones were taken and
verified.

``last-backup.json`` in the platform's folder, for ``natskit status``; and the same as metrics, where an exporter or
node_exporter passes them on.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from natskit.backup.manifest import Lacks, Manifest, Verification, age_of
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
    lacks: Lacks = Lacks()
    """What the newest one should have and does not have."""

    @classmethod
    def of(cls, target: Target) -> Record | None:
        """What a target holds; ``None`` without a backup whose manifest can be read."""
        found, verified = list[Manifest](), []
        for name in target.names():
            folder = target.directory / name
            try:
                found.append(Manifest.read(folder))
            except BackupError:
                continue
            if good := Verification.read(folder):
                verified.append(good.finished)
        if not found:
            return None
        newest = max(found, key=lambda manifest: manifest.started)
        return cls(
            target=target.place,
            backups=len(found),
            begun=newest.started,
            verified=max(verified, default=None),
            lacks=newest.lacks,
        )

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
        lacks = Gauge("natskit_backup_lacks", "What the newest backup should have and does not have")
        lacks.add(float(len(self.lacks.runners)), what="runners")
        lacks.add(float(self.lacks.projects), what="projects")
        lacks.add(float(self.lacks.files), what="files")
        return [*found, verified, lacks]

    def words(self, now: datetime) -> str:
        """For people."""
        verified = f"verified {age_of(self.verified, now)} ago" if self.verified else "never verified"
        lacks = f"; it lacks {self.lacks}" if self.lacks else ""
        return f"last backup: {age_of(self.begun, now)} ago in {self.target}, {verified}{lacks}"
