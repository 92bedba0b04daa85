"""Files of projects come back on all hosts or on none, and what a host does wrong is named."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import shutil
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from natskit.backup import runner_files
from natskit.backup.create import create
from natskit.backup.manifest import MANIFEST, FilesEntry, Manifest
from natskit.backup.project_files import Repository, extract
from natskit.backup.record import Record
from natskit.backup.restore import restore_files
from natskit.backup.runner_files import RunnerFiles
from natskit.backup.sealing import BackupKey
from natskit.backup.target import Target
from natskit.errors import BackupError
from natskit.process.metrics_file import text
from natskit.runner import backup_job
from natskit.runner.backup_api import SPARE_BYTES
from tests.hub.backup_runner import Served, served
from tests.hub.site import Site
from tests.hub.test_backup import OTHER, PROJECT, RUNNER, describe, given, source, staged

__all__ = ["given"]

SECOND, THIRD = (PROJECT.replace("a", letter) for letter in "bc")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Site]:
    async with Site.without_hubs(tmp_path_factory.mktemp("restores")) as site:
        describe(site)
        yield site


@pytest_asyncio.fixture
async def one(site: Site, tmp_path: Path) -> AsyncIterator[Served]:
    async with served(site, RUNNER, "one", tmp_path / "runner") as one:
        yield one


@pytest.fixture
def target(tmp_path: Path) -> Target:
    return Target(tmp_path / "target")


@pytest.fixture
def key(site: Site, given: None) -> BackupKey:  # noqa: ARG001 - the passphrase
    return BackupKey.ensure(site.identity.directory)


async def backed_up(site: Site, target: Target, *hosts: Served, **changes: Any) -> Manifest:
    whole = dataclasses.replace(source(site), client=hosts[0].client, runners=tuple(host.runner for host in hosts))
    return await create(dataclasses.replace(whole, **changes), target, lambda _: None)


async def restored(
    one: Served, target: Target, key: BackupKey, manifest: Manifest, project_id: str | None = None
) -> list[str]:
    said: list[str] = []
    missing = await restore_files(one.client, target, key, manifest.files or (), said.append, project_id)
    assert all(any(path[:50] in line and "could NOT be restored" in line for line in said) for path in missing)
    return missing


async def test_a_runner_that_does_not_answer_is_named_and_ends_no_backup(
    site: Site, one: Served, target: Target, key: BackupKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    one.write(PROJECT, "file", "content")
    whole = dataclasses.replace(source(site), client=one.client, absent=("gone",))
    dead = runner_files.Runner(OTHER, "two")
    said: list[str] = []
    monkeypatch.setattr(runner_files, "PATIENCE_SECONDS", 0.0)
    both = dataclasses.replace(whole, runners=(dead, one.runner))
    manifest = await create(both, target, said.append)
    assert any(line.startswith("runner two does not answer") and "NOT in the backup" in line for line in said)
    assert [(entry.name, entry.files) for entry in manifest.files or ()] == [("one", 1)]
    assert str(manifest.lacks) == "the files of runner gone, the files of runner two"
    Manifest.read(target.folder(None)).authenticate(target.folder(None), key)
    found = Record.of(target)
    assert found is not None
    assert found.words(datetime.now(UTC)).endswith("; it lacks the files of runner gone, the files of runner two")
    assert 'natskit_backup_lacks{what="runners"} 2.0\n' in text(found.metrics())

    # A runner that dies while its files are taken.
    take = RunnerFiles.take

    async def dying(self: RunnerFiles, name: str) -> FilesEntry:
        if self.runner.runner_id == RUNNER:
            self.runner = dead
        return await take(self, name)

    monkeypatch.setattr(RunnerFiles, "take", dying)
    manifest = await create(dataclasses.replace(whole, runners=(one.runner,), absent=()), target, said.append)
    assert str(manifest.lacks) == "the files of runner two"
    assert manifest.files == []


async def test_a_manifest_of_an_earlier_build_is_believed(site: Site, target: Target, key: BackupKey) -> None:
    await create(source(site), target, lambda _: None)
    folder = target.folder(None)
    content = (folder / MANIFEST).read_text()
    earlier = json.loads(content)
    del earlier["absent"], earlier["mac"]
    mac = key.mac(json.dumps(earlier, sort_keys=True).encode())
    (folder / MANIFEST).write_text(json.dumps(earlier | {"mac": mac}))
    Manifest.read(folder).authenticate(folder, key)
    (folder / MANIFEST).write_text(content.replace('"absent": [],', '"absent": ["one"],'))
    with pytest.raises(BackupError, match="was changed"):
        Manifest.read(folder).authenticate(folder, key)


async def test_a_host_that_fails_last_leaves_the_others_as_they_were(
    site: Site, one: Served, target: Target, key: BackupKey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with served(site, OTHER, "two", tmp_path / "other") as two:
        near, far = one.write(PROJECT, "file", "old"), two.write(SECOND, "file", "old")
        also = two.write(THIRD, "file", "old")
        manifest = await backed_up(site, target, one, two)
        near.write_text("new")
        far.write_text("new")
        shutil.rmtree(two.projects / THIRD)
        settle = RunnerFiles.settle

        async def starts_meanwhile(self: RunnerFiles) -> list[str]:
            if self.runner.runner_id == OTHER:
                assert near.read_text() == "old"
                two.backups.project(SECOND).state = "running"
            return await settle(self)

        with monkeypatch.context() as patched:
            patched.setattr(RunnerFiles, "settle", starts_meanwhile)
            with pytest.raises(BackupError, match=f"^runner two: the project {SECOND} runs: stop it first$"):
                await restored(one, target, key, manifest)
        assert (near.read_text(), far.read_text(), also.exists()) == ("new", "new", False)
        assert not staged(tmp_path)

        # One project of the host cannot be replaced: its others are as they were.
        two.backups.project(SECOND).state = "stopped"
        place = type(two.backups.project(THIRD)).make_place

        def full(self: Any) -> None:
            if self.project_id == THIRD:
                raise OSError(28, "No space left on device")
            place(self)

        with monkeypatch.context() as patched:
            patched.setattr(type(two.backups.project(THIRD)), "make_place", full)
            with pytest.raises(BackupError, match=r"runner two: .*cannot be replaced: No space left on device"):
                await restored(one, target, key, manifest)
            assert (near.read_text(), far.read_text(), also.exists()) == ("new", "new", False)
            alone = RunnerFiles(one.client, target, key, two.runner)
            entry = next(entry for entry in manifest.files or [] if entry.name == "two")
            await alone.stage(entry, entry.size)
            with pytest.raises(BackupError, match="cannot be replaced"):
                await alone.settle()
            assert (far.read_text(), also.exists()) == ("new", False), "the host needs nobody to tell it"
            await alone.discard()
        assert await restored(one, target, key, manifest) == []
        assert (near.read_text(), far.read_text(), also.read_text()) == ("old", "old", "old")
    assert not staged(tmp_path)


async def test_what_a_killed_restore_left_is_removed_by_the_next_run(
    site: Site, one: Served, target: Target, key: BackupKey, tmp_path: Path
) -> None:
    path = one.write(PROJECT, "file", "old")
    manifest = await backed_up(site, target, one)
    (entry,) = manifest.files or []
    killed = RunnerFiles(one.client, target, key, one.runner)
    await killed.stage(entry, entry.size)
    assert staged(tmp_path)
    path.write_text("new")
    await backed_up(site, target, one)
    assert not staged(tmp_path)
    with pytest.raises(BackupError, match="the restored files are not there any more"):
        await killed.settle()
    assert path.read_text() == "new"

    # Another restore leaves that of a first one alone, once it has put its files in their places.
    await killed.stage(entry, entry.size)
    assert await killed.settle() == [PROJECT]
    assert path.read_text() == "old"
    assert await killed.settle() == [PROJECT], "the answer to a repeated request"
    await killed.undo()
    assert path.read_text() == "new"
    await killed.settle()
    one.backups.settled = {}  # as after a restart of the runner
    with pytest.raises(BackupError, match=f"^runner one was restarted meanwhile, and {PROJECT} stay$"):
        await killed.undo()
    await killed.discard()
    assert not staged(tmp_path)


def long_path(one: Served, project_id: str) -> str:
    """Make a file that can be read by its path, and whose path is too long beside the projects."""
    folder = os.open(one.projects / project_id / "home", os.O_RDONLY)
    room, names = 4095 - len(str(one.projects)) - len(f"/{project_id}/home/") - 20, list[str]()
    while room > 250:
        names.append("d" * 200)
        os.mkdir(names[-1], dir_fd=folder)
        inner = os.open(names[-1], os.O_RDONLY, dir_fd=folder)
        os.close(folder)
        folder, room = inner, room - 201
    names.append("e" * room)
    os.close(os.open(names[-1], os.O_WRONLY | os.O_CREAT, dir_fd=folder))
    os.close(folder)
    return "/".join(names)


async def test_a_path_that_is_too_long_is_named_and_ends_no_restore(
    site: Site, one: Served, target: Target, key: BackupKey, tmp_path: Path
) -> None:
    short, other = one.write(PROJECT, "file", "old"), one.write(SECOND, "file", "old")
    path = long_path(one, PROJECT)
    manifest = await backed_up(site, target, one)
    assert not manifest.lacks
    short.write_text("new")
    other.write_text("new")
    missing = await restored(one, target, key, manifest)
    assert f"{PROJECT}/home/{path}" in missing
    assert (short.read_text(), other.read_text()) == ("new", "old"), "a project keeps the files that it has"
    with pytest.raises(BackupError, match=f"project {PROJECT} keeps the files that it has"):
        await restored(one, target, key, manifest, PROJECT)
    await asyncio.create_subprocess_exec("rm", "-r", str(one.projects / PROJECT))
    await restored(one, target, key, manifest)
    assert short.read_text() == "old", "a host without its files gets what can be restored"
    assert extract(target, key, manifest.files or (), PROJECT, "", tmp_path / "all") == []
    assert (tmp_path / "all" / path[:200]).is_dir()
    assert not staged(tmp_path)


async def test_a_damaged_file_is_named_and_the_others_come_back(
    site: Site, one: Served, target: Target, key: BackupKey
) -> None:
    bad, good = one.write(PROJECT, "folder/bad", os.urandom(2_000_000).hex()), one.write(PROJECT, "good", "old")
    await backed_up(site, target, one)
    for pack in target.directory.glob("files/*/data/*/*"):
        if pack.stat().st_size > 1_000_000:
            content = bytearray(pack.read_bytes())
            content[100_000] ^= 1
            pack.chmod(0o600)
            pack.write_bytes(content)
    other = one.write(SECOND, "file", "old")
    manifest = await backed_up(site, target, one)
    for path in (good, other):
        path.write_text("new")
    assert await restored(one, target, key, manifest) == [f"{PROJECT}/home/folder/bad"]
    assert (good.read_text(), other.read_text()) == ("new", "old")
    shutil.rmtree(one.projects / PROJECT)
    assert await restored(one, target, key, manifest) == [f"{PROJECT}/home/folder/bad"]
    assert good.read_text() == "old"
    assert bad.parent.is_dir()
    assert not bad.exists(), "restic leaves a file with wrong content"


async def test_a_host_may_not_fill_the_target(site: Site, one: Served, target: Target) -> None:
    (one.write(PROJECT, "file", "")).write_bytes(os.urandom(3 * 1024**2))
    limited = dataclasses.replace(one, runner=dataclasses.replace(one.runner, most_bytes=1024**2))
    with pytest.raises(
        BackupError,
        match=r"^runner one has sent more than 1 MiB for one backup: .*raise runner_backup_max_bytes of its",
    ):
        await backed_up(site, target, limited)
    assert target.names() == []
    assert one.backups._job is None, "restic has ended on the host"
    assert not list(target.directory.glob("files/*/snapshots/*"))
    await backed_up(site, target, one)


async def test_the_room_for_one_project_is_looked_at_first(
    site: Site, one: Served, target: Target, key: BackupKey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = one.write(PROJECT, "file", "x" * 3 * 1024**2)
    one.write(SECOND, "file", "x" * 1024)
    manifest = await backed_up(site, target, one)
    path.write_text("new")
    usage = shutil.disk_usage

    def nearly_full(place: Path) -> Any:
        return usage(place)._replace(free=SPARE_BYTES + 1024**2) if place == one.projects else usage(place)

    monkeypatch.setattr(shutil, "disk_usage", nearly_full)
    with pytest.raises(BackupError, match=r"runner one: the restored files need 3 MiB, and .* has 1 MiB free"):
        await restored(one, target, key, manifest, PROJECT)
    assert path.read_text() == "new"
    assert not staged(tmp_path)
    await restored(one, target, key, manifest, SECOND)


async def test_output_that_cannot_be_read_ends_restic(
    site: Site, one: Served, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(500):  # more than a pipe holds
        one.write(PROJECT, f"file{number}{'x' * 200}", "")
    await backed_up(site, target, one)
    monkeypatch.setattr(backup_job, "LINE_BYTES", 300)
    async with asyncio.timeout(60):
        with pytest.raises(BackupError, match=r"runner one: what restic says cannot be read: ValueError: "):
            await backed_up(site, target, one)
    assert one.backups._job is None


async def test_a_listing_is_read_while_restic_writes_it(
    site: Site, one: Served, target: Target, key: BackupKey
) -> None:
    for number in range(500):
        one.write(PROJECT, f"file{number}{'x' * 200}", "")
    manifest = await backed_up(site, target, one)
    (entry,) = manifest.files or []
    repository = Repository(target, key, RUNNER)
    nodes = repository._nodes(entry.snapshot)
    assert next(nodes)["path"] == f"/{PROJECT}"
    assert restics(), "it waits until the rest is read"
    nodes.close()
    assert not restics()
    assert repository.count(entry) == 500


def restics() -> list[bytes]:
    """The command lines of restic among the children of this process."""
    found = []
    for path in Path("/proc/self/task").glob("*/children"):
        for child in path.read_text().split():
            with contextlib.suppress(OSError):
                found.append(Path(f"/proc/{child}/cmdline").read_bytes())
    return [line for line in found if b"restic" in line and b"\0ls\0" in line]
