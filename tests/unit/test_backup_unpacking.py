"""Files of a backup whose repository somebody else may have written."""

from __future__ import annotations

import io
import os
import stat
import subprocess
import tarfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from natskit.backup.manifest import FilesEntry
from natskit.backup.project_files import Repository
from natskit.backup.sealing import BackupKey
from natskit.backup.target import Target
from natskit.backup.unpacking import Listed, arising, unpack
from natskit.errors import BackupError
from natskit.identity.vault import age

PROJECT = "a0000000-0000-4000-8000-000000000000"
ABOVE = f"{PROJECT}/home"
RUNNER = "10000000-0000-4000-8000-000000000000"


def member(
    name: str, kind: bytes = tarfile.REGTYPE, data: bytes = b"", **more: object
) -> tuple[tarfile.TarInfo, bytes]:
    found = tarfile.TarInfo(name)
    found.type, found.size, found.mode = kind, len(data), 0o644
    for key, value in more.items():
        setattr(found, key, value)
    return found, data


def tar(*members: tuple[tarfile.TarInfo, bytes]) -> io.BytesIO:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        for info, data in members:
            archive.addfile(info, io.BytesIO(data))
    made.seek(0)
    return made


def unpacked(place: Path, *members: tuple[tarfile.TarInfo, bytes], size: int = 1000) -> list[str]:
    with arising(place) as made:
        return unpack(tar(*members), made, ABOVE, Listed(size))


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    link = member(f"{ABOVE}/link", tarfile.SYMTYPE, linkname=str(outside))
    for evil in (
        member(f"{ABOVE}/link/evil", data=b"evil"),
        member(f"{ABOVE}/link/evil", tarfile.DIRTYPE),
        member(f"{ABOVE}/link/evil", tarfile.SYMTYPE, linkname="/etc"),
    ):
        with pytest.raises(BackupError, match="cannot be written"):
            unpacked(tmp_path / "made", link, evil)
    known = outside / "known"
    known.write_text("known")
    unpacked(
        tmp_path / "made",
        member(f"{ABOVE}/x", tarfile.SYMTYPE, linkname=str(known)),
        member(f"{ABOVE}/x", data=b"evil"),
    )
    assert (tmp_path / "made" / "x").read_text() == "evil"
    assert known.read_text() == "known"
    assert os.listdir(outside) == ["known"]
    assert sorted(os.listdir(tmp_path)) == ["made", "outside"], "nothing is left"


@pytest.mark.parametrize(
    "name", [f"{ABOVE}/../evil", "/etc/evil", "evil", f"{ABOVE}/a/../../../evil", f"{ABOVE}2/evil"]
)
def test_names_that_lead_out_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(BackupError, match=r"is no path below a home|which is not in"):
        unpacked(tmp_path / "made", member(name, data=b"evil"))
    assert os.listdir(tmp_path) == []


def test_what_is_no_file_is_left_out_and_bits_are_taken_away(tmp_path: Path) -> None:
    kinds = {"device": tarfile.CHRTYPE, "disk": tarfile.BLKTYPE, "pipe": tarfile.FIFOTYPE}
    left_out = unpacked(
        tmp_path / "made",
        member(f"{ABOVE}/", tarfile.DIRTYPE),
        *(member(f"{ABOVE}/{name}", kind) for name, kind in kinds.items()),
        member(f"{ABOVE}/second", tarfile.LNKTYPE, linkname="/etc/passwd"),
        member(f"{ABOVE}/program", data=b"x", mode=0o7777, uid=12_345, gid=12_345),
        member(f"{ABOVE}/folder", tarfile.DIRTYPE, mode=0o6770, mtime=10),
        member(f"{ABOVE}/folder/inner", data=b"y", mode=0),
    )
    assert left_out == [*kinds, "second"]
    made = tmp_path / "made"
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (made, *made.rglob("*"))}
    assert modes == {"made": 0o700, "program": 0o755, "folder": 0o750, "inner": 0o600}
    assert {path.stat().st_uid for path in made.rglob("*")} == {os.getuid()}
    assert (made / "folder").stat().st_mtime == 10


def test_more_bytes_than_the_list_says_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BackupError, match="more bytes than their list says"):
        unpacked(
            tmp_path / "made", member(f"{ABOVE}/a", data=b"x" * 60), member(f"{ABOVE}/b", data=b"x" * 60), size=100
        )
    assert os.listdir(tmp_path) == []


@pytest.fixture
def backed_up(tmp_path: Path) -> tuple[Repository, Callable[[], FilesEntry]]:
    """A repository, and what takes a snapshot of ``projects``."""
    target = Target(tmp_path / "target")
    target.create()
    key = BackupKey(str(age().x25519.Identity.generate()))
    repository = Repository(target, key, RUNNER)
    repository.ensure()

    def take() -> FilesEntry:
        environment = os.environ | {"RESTIC_PASSWORD": key.repository_password(RUNNER)}
        command = ["restic", "--repo", target.repository(RUNNER), "--no-cache", "backup", "."]
        subprocess.run(command, env=environment, cwd=tmp_path / "projects", check=True, capture_output=True)
        return FilesEntry(runner=RUNNER, name="one", taken=datetime.now(UTC), snapshot=repository.snapshots()[-1])

    return repository, take


def test_a_project_is_taken_out_of_a_repository(
    tmp_path: Path, backed_up: tuple[Repository, Callable[[], FilesEntry]]
) -> None:
    repository, take = backed_up
    home = tmp_path / "projects" / PROJECT / "home"
    (home / "a [b]*").mkdir(parents=True)
    (home / "a [b]*" / "file").write_bytes(os.urandom(3_000_000))
    odd = b"odd\xff\n\xc3\xa4"
    (home / os.fsdecode(odd)).write_text("odd")
    (home / "link").symlink_to("/etc/passwd")
    os.mkfifo(home / os.fsdecode(b"pipe\xff"))
    program = home / "program"
    program.write_text("x")
    program.chmod(0o4755)
    entry = take()
    assert repository.extract(entry, PROJECT, "", tmp_path / "all") == [os.fsdecode(b"pipe\xff")]
    assert (tmp_path / "all" / "a [b]*" / "file").read_bytes() == (home / "a [b]*" / "file").read_bytes()
    assert (tmp_path / "all" / os.fsdecode(odd)).read_text() == "odd"
    assert os.readlink(tmp_path / "all" / "link") == "/etc/passwd"
    assert stat.S_IMODE((tmp_path / "all" / "program").stat().st_mode) == 0o755
    assert repository.extract(entry, PROJECT, "a [b]*", tmp_path / "folder") == []
    assert os.listdir(tmp_path / "folder") == ["file"]
    assert repository.extract(entry, PROJECT, "program", tmp_path / "program") == []
    assert stat.S_IMODE((tmp_path / "program").stat().st_mode) == 0o600
    assert repository.extract(entry, PROJECT, "gone", tmp_path / "gone") is None
    with pytest.raises(BackupError, match="link is a symlink in the backup"):
        repository.extract(entry, PROJECT, "link", tmp_path / "gone")

    # A damaged repository leaves nothing.
    for pack in (tmp_path / "target").glob("files/*/data/*/*"):
        if pack.stat().st_size > 1_000_000:
            content = bytearray(pack.read_bytes())
            content[500_000] ^= 1
            pack.chmod(0o600)
            pack.write_bytes(content)
    for path in ("", "a [b]*", "a [b]*/file"):
        with pytest.raises(BackupError, match=r"restic dump in .* failed"):
            repository.extract(entry, PROJECT, path, tmp_path / "gone")
    assert not list(tmp_path.glob("*gone*"))


def test_folders_in_folders_without_end_are_taken_out(
    tmp_path: Path, backed_up: tuple[Repository, Callable[[], FilesEntry]]
) -> None:
    repository, take = backed_up
    home = tmp_path / "projects" / PROJECT / "home"
    home.mkdir(parents=True)
    depth = 1200
    subprocess.run(["mkdir", "-p", str(home / "/".join("a" * depth))], check=True)
    assert repository.extract(take(), PROJECT, "", tmp_path / "all") == []
    assert (tmp_path / "all" / "/".join("a" * depth)).is_dir()
    for name in ("all", "projects"):
        subprocess.run(["rm", "-r", str(tmp_path / name)], check=True)
