"""Remove old backups."""

from __future__ import annotations

from datetime import datetime, timedelta

from natskit.backup.manifest import Manifest
from natskit.backup.project_files import Repository
from natskit.backup.sealing import BackupKey
from natskit.backup.target import Target
from natskit.backup.verify import trusted
from natskit.errors import BackupError


def surplus(manifests: list[Manifest], *, keep: int, keep_days: float, now: datetime) -> list[Manifest]:
    """The backups that are neither among the newest ``keep`` nor younger than ``keep_days``. ``manifests`` are sorted,
    oldest first. The newest one always stays."""
    old = manifests[: -max(1, keep)]
    return [manifest for manifest in old if (now - manifest.started) / timedelta(days=1) > keep_days]


def prune(target: Target, key: BackupKey, *, keep: int, keep_days: float, now: datetime) -> list[str]:
    """Remove what :func:`surplus` says, and the files of projects that only these backups held. Returns their names.

    Raises :class:`BackupError` before anything is removed, if a manifest cannot be read; and at the end, if a
    repository of files cannot be pruned: one that a runner's host has spoilt stops no other.
    """
    with target.locked():
        manifests = [trusted(target.directory / name, key) for name in target.names()]
        removed = [manifest.name for manifest in surplus(manifests, keep=keep, keep_days=keep_days, now=now)]
        for name in removed:
            target.remove(name)
        kept = [manifest for manifest in manifests if manifest.name not in removed]
        failed: list[BackupError] = []
        for runner in target.repositories:
            entries = (entry for manifest in kept for entry in manifest.files or ())
            wanted = {entry.snapshot for entry in entries if entry.runner == runner and entry.snapshot}
            try:
                repository = Repository(target, key, runner)
                repository.ensure()
                repository.keep_only(wanted)
            except BackupError as error:
                failed.append(error)
        if failed:
            raise failed[0]
        return removed
