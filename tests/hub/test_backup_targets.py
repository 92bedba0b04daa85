"""Backups on another host over SSH, and in S3-compatible storage: real servers, reached by rclone."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
import pytest_asyncio

from natskit.backup.create import create
from natskit.backup.manifest import Manifest
from natskit.backup.project_files import Repository, extract
from natskit.backup.prune import prune
from natskit.backup.remote_target import RemoteTarget, target_of
from natskit.backup.restore import restore_control, restore_files
from natskit.backup.sealing import BackupKey
from natskit.backup.verify import verify
from natskit.errors import BackupError
from tests.hub.backup_runner import served
from tests.hub.site import Site
from tests.hub.test_backup import PROJECT, RUNNER, describe, given, source
from tests.kit.nats_tools import needs, tool_path
from tests.kit.ports import free_port
from tests.kit.wait import wait_for

__all__ = ["given"]

USER, SECRET = "backup-user", "a secret of the storage"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Site]:
    async with Site.without_hubs(tmp_path_factory.mktemp("targets")) as site:
        describe(site)
        yield site


@contextmanager
def running(*command: str | Path, port: int, **environment: str) -> Iterator[None]:
    process = subprocess.Popen(
        command, env=os.environ | environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )

    def answers() -> bool:
        assert process.poll() is None, command
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    try:
        wait_for(answers, f"{command[0]}")
        yield
    finally:
        process.kill()
        process.wait(20)


def configured(folder: Path, monkeypatch: pytest.MonkeyPatch, **options: str) -> None:
    """rclone's configuration file with the remote ``vault``."""
    path = folder / "rclone.conf"
    path.touch(mode=0o600)
    path.write_text("[vault]\n" + "".join(f"{name} = {value}\n" for name, value in options.items()))
    monkeypatch.setenv("RCLONE_CONFIG", str(path))
    monkeypatch.delenv("AWS_CA_BUNDLE", raising=False)  # rclone 1.60 cannot use one
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))


@pytest.fixture(params=["ssh", pytest.param("s3", marks=needs("versitygw"))])
def storage(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder in which the server keeps what it is given."""
    folder, port = tmp_path / "storage", free_port()
    folder.mkdir()
    if request.param == "ssh":
        (folder / "bucket").mkdir()
        hidden = subprocess.run(["rclone", "obscure", "-"], input=SECRET, capture_output=True, text=True, check=True)
        command = ["rclone", "serve", "sftp", str(folder), "--addr", f"127.0.0.1:{port}", "--user", USER]
        command += ["--dir-cache-time", "1ms"]  # a test puts something there behind its back
        with running(*command, port=port, RCLONE_PASS=SECRET, HOME=str(tmp_path), XDG_CACHE_HOME=str(tmp_path / "c")):
            password = hidden.stdout.strip()
            configured(
                tmp_path,
                monkeypatch,
                type="sftp",
                host="127.0.0.1",
                port=str(port),
                user=USER,
                shell_type="none",
                **{"pass": password},
            )
            yield folder / "bucket"
        return
    command = [str(tool_path("versitygw")), "--port", f"127.0.0.1:{port}", "posix", str(folder)]
    with running(*command, port=port, ROOT_ACCESS_KEY=USER, ROOT_SECRET_KEY=SECRET):
        configured(
            tmp_path,
            monkeypatch,
            type="s3",
            provider="Other",
            access_key_id=USER,
            secret_access_key=SECRET,
            endpoint=f"http://127.0.0.1:{port}",
            region="us-east-1",
        )
        subprocess.run(["rclone", "mkdir", "vault:bucket"], check=True)
        yield folder / "bucket"


async def test_a_backup_is_taken_verified_and_restored(site: Site, tmp_path: Path, storage: Path) -> None:
    target = target_of("rclone:vault:bucket/natskit")
    assert isinstance(target, RemoteTarget)
    key = BackupKey.ensure(site.identity.directory)
    async with served(site, RUNNER, "one", tmp_path / "runner") as one:
        path = one.write(PROJECT, "deep/file", "old")
        whole = dataclasses.replace(source(site), client=one.client, runners=(one.runner,))
        seen = asyncio.ensure_future(asyncio.to_thread(arguments))
        first = await create(whole, target, lambda _: None)
        assert SECRET not in await seen
        names = {path.name for path in (storage / "natskit" / "files" / RUNNER).iterdir()}
        assert len(names) > 3
        assert names.isdisjoint({"config", "data", "index", "keys", "locks", "snapshots"}), "rclone encrypts names"
        path.write_text("new")
        second = await create(whole, target, lambda _: None)
        assert target.names() == [first.name, second.name]
        found = await verify(target, first.name, site.identity.directory, lambda _: None)
        assert found.files == 1
        assert set(os.listdir(target.directory / first.name)) == {"manifest.json", "verification.json"}, (
            "the streams are in the storage alone"
        )

        await restore_files(one.client, target, key, first.files or (), lambda _: None, PROJECT)
        assert path.read_text() == "old"
        extract(target, key, second.files or (), PROJECT, "deep/file", tmp_path / "back")
        assert (tmp_path / "back").read_text() == "new"

        # Another machine knows the storage, and nothing else.
        shutil.rmtree(tmp_path / "cache")
        bare = target_of("rclone:vault:bucket/natskit")
        await restore_control(bare, None, tmp_path / "control")
        assert (tmp_path / "control" / "restored-inventory").is_dir()

        assert prune(target, key, keep=1, keep_days=0, now=datetime.now(UTC)) == [first.name]
        assert bare.names() == [second.name]
        kept = json.loads(Repository(target, key, RUNNER)._run("snapshots"))
        assert [one["tags"] for one in kept] == [[second.name]]


async def test_what_a_failed_or_killed_run_leaves_is_no_backup(
    site: Site, storage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = target_of("rclone:vault:bucket")
    run = RemoteTarget._run

    def failing(self: RemoteTarget, *words: str, if_missing: str | None = None) -> str:
        if words[0] == "copyto":
            raise BackupError("rclone copyto failed: the network is down")
        return run(self, *words, if_missing=if_missing)

    with monkeypatch.context() as patched:
        patched.setattr(RemoteTarget, "_run", failing)
        with pytest.raises(BackupError, match="the network is down"):
            await create(source(site), target, lambda _: None)
    assert target.names() == []
    assert names_in(storage) == [], "what was there is removed"
    half_made(storage / "2026-01-01T000000Z")
    assert target.names() == []
    made = await create(source(site), target, lambda _: None)
    assert target.names() == [made.name]
    assert names_in(storage) == [made.name]
    assert Manifest.read(target.directory / made.name).name == made.name


def names_in(storage: Path) -> list[str]:
    return sorted(path.name for path in storage.glob("*Z*"))


def half_made(folder: Path) -> None:
    """What a killed run leaves."""
    folder.mkdir()
    (folder / "identity.age").write_text("killed")


def test_a_configuration_that_others_may_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configured(tmp_path, monkeypatch, type="alias", remote=str(tmp_path))
    with pytest.raises(BackupError, match=r"write rclone:REMOTE:PATH"):
        target_of("rclone:vault")
    with pytest.raises(BackupError, match=r"write rclone:REMOTE:PATH"):
        target_of(f"rclone::s3,secret_access_key={SECRET}:bucket")
    with pytest.raises(BackupError, match=r"has no remote attic"):
        target_of("rclone:attic:natskit")
    (tmp_path / "rclone.conf").chmod(0o640)
    with pytest.raises(BackupError, match=r"must be private.*chmod go="):
        target_of("rclone:vault:natskit")
    (tmp_path / "rclone.conf").unlink()
    with pytest.raises(BackupError, match=r"^there is no .*rclone.conf: `rclone config` makes it, .* remote vault$"):
        target_of("rclone:vault:natskit")


def arguments() -> str:
    """The command lines of all processes, as any user of the machine sees them for a while."""
    found = set[str]()
    for _ in range(200):
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                found.add(path.read_text(errors="replace"))
            except OSError:
                continue
        if any("serve\0restic" in line for line in found) and any("restic\0--repo" in line for line in found):
            break
    return "\n".join(found)
