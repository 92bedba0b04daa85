"""Backups: whether the last good one is old, gone, or was never tried."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

from natskit.backup.manifest import age_of
from natskit.backup.record import FILE, Record
from natskit.backup.remote_target import PREFIX
from natskit.doctor.finding import Finding

OLD, UNVERIFIED = timedelta(hours=36), timedelta(days=9)


def old(platform: Path, now: datetime) -> Iterator[Finding]:
    """What is wrong with the backups that were taken from this machine. Where none was, nothing is said: they may be
    taken from another one."""
    if not (platform / FILE).exists():
        return
    found = Record.read(platform)
    if found is None:
        yield Finding(
            "untidy",
            "it is not known when the last backup was taken",
            f"{platform / FILE} is damaged",
            "natskit backup create, which writes it again",
        )
        return
    target = shlex.quote(found.target)
    if not found.target.startswith(PREFIX) and not Path(found.target).is_dir():
        yield Finding(
            "broken",
            "the folder with all backups is gone",
            f"{found.target}, where the last one was taken {age_of(found.begun, now)} ago, is not there",
            f"mount the disk of {target}, or take a backup elsewhere",
        )
    if now - found.begun > OLD:
        yield Finding(
            "soon",
            "the last backup is old",
            f"it was begun {age_of(found.begun, now)} ago: what was written since would be lost",
            f"natskit backup create --target {target}",
        )
    if found.lacks:
        yield Finding(
            "soon",
            "the last backup is not complete",
            f"it lacks {found.lacks}",
            f"natskit backup create --target {target}, when all runners answer; it names what it cannot read",
        )
    if found.verified is None or now - found.verified > UNVERIFIED:
        ago = f"{age_of(found.verified, now)} ago" if found.verified else "never"
        yield Finding(
            "soon",
            "the backups are not tried",
            f"the last verification that found nothing wrong was {ago}",
            f"natskit backup verify --target {target}",
        )
