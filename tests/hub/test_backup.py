"""Backups of a running platform lose no acknowledged write, leave nothing incomplete, and serve nothing incomplete."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import resource
import shutil
import stat
import subprocess
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import nats.errors
import pytest
import pytest_asyncio

from natskit.backup import create, restored_stream, sealing, stream_snapshot
from natskit.backup.create import Source
from natskit.backup.manifest import Manifest, Verification
from natskit.backup.platform_streams import Site as RunningSite
from natskit.backup.project_files import Repository
from natskit.backup.record import Record
from natskit.backup.restore import Restoration, restore_control, restore_files
from natskit.backup.runner_files import ROUNDS, RunnerFiles
from natskit.backup.sealing import BackupKey
from natskit.backup.target import Target
from natskit.backup.trial_server import trial_server
from natskit.backup.verify import verify
from natskit.bus.connection import Connection, connect
from natskit.bus.credentials import CredsText
from natskit.bus.jetstream import api
from natskit.bus.permissions import BUCKETS, DOCUMENT_STREAMS, RESTORE_BACKUP, STREAMS, TAKE_BACKUP
from natskit.bus.servers import NatsServers
from natskit.errors import BackupError, ConnectionLostError, IdentityError
from natskit.identity import passphrase, vault
from natskit.identity.backup import unfinished_restore
from natskit.identity.identity import Identity
from natskit.rpc import RpcError
from natskit.runner import backup_job
from natskit.runner.backup_api import Backups, _size_of
from natskit.runner.removal import remove_tree
from tests.hub.backup_runner import served
from tests.hub.site import Site, call
from tests.kit.commands import run
from tests.kit.wait import eventually

WORD = "a long passphrase"
SECRET = "only in the state"  # noqa: S105
RUNNER, OTHER = (f"{number}0000000-0000-4000-8000-000000000000" for number in "12")
PROJECT = "a0000000-0000-4000-8000-000000000000"
NATSKIT = str(Path(sys.executable).with_name("natskit"))


@pytest.fixture(autouse=True)
def given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(passphrase._given, passphrase.VARIABLE, WORD)
    monkeypatch.setattr(vault, "LEAST_WORK", 1)  # on a busy machine, more takes up to a minute


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Site]:
    """A nats-server whose resolver accepts NATS accounts, a hub, and a deploy's record of them."""
    site = Site(tmp_path_factory.mktemp("backup"))
    site.resolver = site.root / "resolver"
    try:
        site.start_server()
        site.start_hub("hub-1")
        await site.healthy("hub-1")
        describe(site)
        yield site
    finally:
        await site.close()
        print(site.log("hub-1"), site.server.log()[-4000:])


def describe(site: Site) -> None:
    """``platform.json``, as ``roles/platform.py`` writes it."""
    inventory = site.root / "inventory.py"
    inventory.write_text('nats = hub = proxy = runner = ["@local"]\n')
    identity = site.identity
    content = {
        "url": "https://localhost:4043",
        "nats_urls": [f"nats://127.0.0.1:{site.nats_port}"],
        "nats_ca_file": None,
        "identity": str(identity.directory),
        "creds": {
            "platform_admin": str(identity.creds_path("PLATFORM", "admin")),
            "state_admin": str(identity.creds_path("STATE", "admin")),
            "sys_admin": str(identity.creds_path("SYS", "admin")),
        },
        "nats": ["test"],
        "first_account": "admin@localhost",
        "resolvers": {"test": "full"},
        "deploy": {"arguments": [str(inventory), "deploy.py"], "directory": str(site.root), "environment": {}},
        "local_files": [],
    }
    (site.root / "platform.json").write_text(json.dumps(content))


def running(site: Site) -> RunningSite:
    servers = NatsServers(urls=[f"nats://127.0.0.1:{site.nats_port}"])
    return RunningSite(site.identity.directory, servers, ("test",), ())


def source(site: Site) -> Source:
    return Source(running(site), "https://localhost:4043", (site.root / "inventory.py",), None)


def command(site: Site, target: Path, *words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    own = {"NATSKIT_BACKUP_TARGET": str(target), passphrase.VARIABLE: WORD}
    environment = options.pop("env", os.environ) | own
    return run([NATSKIT, "--platform", str(site.root), "backup", *words], env=environment, **options)


async def taken(site: Site, target: Target) -> Manifest:
    return await create.create(source(site), target, lambda _: None)


async def emails(site: Site) -> set[str]:
    """The e-mails of the accounts, from the hub."""
    return {one["email"] for one in await call(await site.admin(), "hub.admin", "account_list")}


async def add(site: Site, email: str) -> None:
    await call(await site.admin(), "hub.admin", "account_add", email=email)


async def states(site: Site) -> dict[str, dict[str, Any]]:
    """The state of each stream, from the server."""
    admin = await site.streams_admin()
    return {name: (await api(admin, f"STREAM.INFO.{name}", {}))["state"] for name in STREAMS}


def left(target: Target) -> list[str]:
    """The names in a target, except its lock."""
    return sorted(path.name for path in target.directory.iterdir() if path.name != ".backup.lock")


async def test_all_that_was_acknowledged_before_it_is_in_a_backup(site: Site, tmp_path: Path) -> None:
    hub = await site.state()
    acknowledged, stop = [0], asyncio.Event()

    async def write() -> None:
        while not stop.is_set():
            answer = await hub.request(f"audit.test.{acknowledged[0]}", SECRET.encode(), timeout=10)
            acknowledged[0] = json.loads(answer.data)["seq"]

    writing = asyncio.ensure_future(write())
    await eventually(lambda: acknowledged[0] > 50, "writes")
    target = Target(tmp_path / "target")
    before = acknowledged[0]
    manifest = await taken(site, target)
    await eventually(lambda: acknowledged[0] > before + 10, "writes went on")
    stop.set()
    await writing
    streams = {stream.name: stream for stream in manifest.streams}
    assert streams.keys() == {*STREAMS, *DOCUMENT_STREAMS}
    assert before <= streams["AUDIT"].state["last_seq"] < acknowledged[0]
    found = await verify(target, None, site.identity.directory, lambda _: None)
    assert found.messages == sum(stream.messages for stream in manifest.streams)
    assert Verification.read(target.folder(None)) == found

    # The messages themselves, on another server.
    folder, key = target.folder(None), BackupKey.load(site.identity.directory)
    place = tmp_path / "nats"
    place.mkdir(mode=0o700)
    async with trial_server(place, ["STATE"], 0) as connections:
        there, audit = connections["STATE"], streams["AUDIT"]
        await restored_stream.restore(there, folder, audit, key, restored_stream.on_its_own(audit.config))
        for sequence in (1, before):
            message = (await api(there, "STREAM.MSG.GET.AUDIT", {"seq": sequence}))["message"]
            assert message["seq"] == sequence


async def test_a_backup_is_private_and_says_nothing(site: Site, tmp_path: Path) -> None:
    await add(site, "grace@example.org")
    target = Target(tmp_path / "target")
    manifest = await taken(site, target)
    everything = [target.directory, *target.directory.rglob("*")]
    assert all(stat.S_IMODE(path.stat().st_mode) & 0o077 == 0 for path in everything)
    content = b"".join(path.read_bytes() for path in everything if path.is_file())
    seed = site.identity.signing_seed("PLATFORM", "hub")
    for secret in (b"grace@example.org", seed.encode(), SECRET.encode(), b"argon2"):
        assert secret not in content
    order = [stream.name for stream in manifest.streams if stream.name.startswith("KV_")]
    assert order.index("KV_memberships") < order.index("KV_projects") < order.index("KV_accounts")
    assert set(order) > {f"KV_{bucket}" for bucket in BUCKETS}
    listed = run([NATSKIT, "--platform", str(site.root), "identity", "list", "--json"]).stdout
    (entry,) = (one for one in json.loads(listed) if one["name"] == "backups")
    assert (site.identity.directory / entry["file"]).read_text().startswith("AGE-SECRET-KEY-1")
    target.directory.chmod(0o755)
    with pytest.raises(BackupError, match=r"must be private: .*chmod go="):
        Target(target.directory)


async def test_damage_is_one_clear_error_and_changes_nothing(site: Site, tmp_path: Path) -> None:
    target = Target(tmp_path / "target")
    manifest = await taken(site, target)
    before, folder = await states(site), target.folder(None)
    broken = folder / "streams" / "STATE" / "KV_accounts.age"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:-20] + bytes([whole[-20] ^ 1]) + whole[-19:])
    with pytest.raises(BackupError, match=r"KV_accounts\.age is damaged: its SHA-256"):
        await verify(target, None, site.identity.directory, lambda _: None)
    with pytest.raises(BackupError, match=r"KV_accounts\.age is damaged: its SHA-256"):
        await Restoration(running(site), target, None, None).run(None, lambda _: None)
    assert await states(site) == before
    said = command(site, target.directory, "verify", check=False)
    assert said.returncode == 1
    assert said.stderr == f"natskit: {broken} is damaged: its SHA-256 is not that of the manifest; use another backup\n"
    broken.unlink()
    with pytest.raises(BackupError, match=r"KV_accounts\.age: No such file"):
        await verify(target, None, site.identity.directory, lambda _: None)
    # A manifest that says something else is not believed.
    broken.write_bytes(whole)
    text = (folder / "manifest.json").read_text()
    (folder / "manifest.json").write_text(text.replace('"last_seq": ', '"last_seq": 1'))
    with pytest.raises(BackupError, match=r"manifest\.json was changed"):
        await verify(target, None, site.identity.directory, lambda _: None)
    (folder / "manifest.json").write_text(text[:-100])
    with pytest.raises(BackupError, match=r"manifest\.json is damaged"):
        await verify(target, None, site.identity.directory, lambda _: None)
    assert manifest.name in command(site, target.directory, "list").stdout


async def test_a_full_disk_leaves_nothing_half(site: Site, tmp_path: Path) -> None:
    target = Target(tmp_path / "target")
    hub = await site.state()
    for number in range(60):
        await hub.request("$KV.runners.large", os.urandom(60_000), timeout=5)
        await hub.request(f"audit.test.{number}", os.urandom(8000), timeout=5)

    def limit() -> None:  # a file may not be larger: as on a full disk, a write fails in the middle
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))

    said = command(site, target.directory, "create", "--without-files", check=False, preexec_fn=limit)
    assert said.returncode == 1
    assert "the backup was not finished, and nothing of it is left: " in said.stderr
    assert "File too large" in said.stderr
    assert "Traceback" not in said.stderr
    assert left(target) == []
    assert command(site, target.directory, "list").stdout.startswith("There is no backup")
    command(site, target.directory, "create", "--without-files")
    assert len(left(target)) == 1


async def test_space_is_looked_at_first(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = Target(tmp_path / "target")
    usage = shutil.disk_usage(tmp_path)._replace(free=create.RESERVE_BYTES)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(BackupError, match=r"has 64 MiB free, and the backup may need \d+ MiB"):
        await taken(site, target)
    assert left(target) == []


async def test_a_run_that_fails_after_the_files_leaves_no_snapshot(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = Target(tmp_path / "target")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "manifest.json")

    async with served(site, RUNNER, "one", tmp_path / "runner") as one:
        one.write(PROJECT, "file", "content")
        with_files = dataclasses.replace(source(site), client=one.client, runners=(one.runner,))
        repository = Repository(target, BackupKey.ensure(site.identity.directory), RUNNER)
        with monkeypatch.context() as patched:
            patched.setattr(Manifest, "write", full)
            with pytest.raises(BackupError, match="No space left"):
                await create.create(with_files, target, lambda _: None)
        assert json.loads(repository._run("snapshots")) == []
        await create.create(with_files, target, lambda _: None)
    assert len(json.loads(repository._run("snapshots"))) == 1


async def test_a_host_that_fails_is_named_and_leaves_nothing(site: Site, tmp_path: Path) -> None:
    target = Target(tmp_path / "target")
    key = BackupKey.ensure(site.identity.directory)
    async with (
        served(site, RUNNER, "one", tmp_path / "runner") as one,
        served(site, OTHER, "two", tmp_path / "other") as two,
    ):
        one.write(PROJECT, "file", "content")
        with_files = dataclasses.replace(source(site), client=one.client, runners=(one.runner, two.runner))
        far = two.write(PROJECT.replace("a", "b"), "file", "content")
        in_the_way = tmp_path / "other" / "backup"
        in_the_way.write_text("")
        with pytest.raises(BackupError, match=r"^runner two: restic cannot be started"):
            await create.create(with_files, target, lambda _: None)
        assert left(target) == ["files"]
        assert json.loads(Repository(target, key, RUNNER)._run("snapshots")) == [], "the other host's part is gone, too"
        in_the_way.unlink()
        manifest = await create.create(with_files, target, lambda _: None)
        assert [(entry.name, entry.files) for entry in manifest.files or ()] == [("one", 1), ("two", 1)]
        shutil.rmtree(far.parents[1])
        manifest = await create.create(with_files, target, lambda _: None)
        assert [(entry.name, entry.files) for entry in manifest.files or ()] == [("one", 1), ("two", 0)]
        two.projects.rmdir()
        with pytest.raises(BackupError, match=r"^runner two: .*projects is not there"):
            await create.create(with_files, target, lambda _: None)
        assert len(target.names()) == 2


async def test_a_host_reaches_no_repository_but_its_own_and_removes_nothing(site: Site, tmp_path: Path) -> None:
    """restic on a host that somebody has taken over, with all that the runner is given."""
    target = Target(tmp_path / "target")
    key = BackupKey.ensure(site.identity.directory)
    assert key.repository_password(RUNNER) != key.repository_password(OTHER)
    async with served(site, RUNNER, "one", tmp_path / "runner") as one:
        one.write(PROJECT, "file", "content")
        with_files = dataclasses.replace(source(site), client=one.client, runners=(one.runner,))
        manifest = await create.create(with_files, target, lambda _: None)
        (entry,) = manifest.files or []
        begin = Backups.begin

        async def hostile(self: Backups, job_id: str, password: str, _: list[str], cwd: Path) -> None:
            await begin(self, job_id, password, ["forget", entry.snapshot], cwd)

        files = RunnerFiles(one.client, target, key, one.runner)
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(Backups, "begin", hostile)
            with pytest.raises(BackupError, match="runner one: restic ended with 1"):
                await files.take("again")
    assert len(json.loads(files.repository._run("snapshots"))) == 1


@pytest.mark.parametrize("answer", ["a snapshot of before", "always another folder"])
async def test_a_host_that_lies_gets_no_older_backup_forgotten(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    target = Target(tmp_path / "target")
    key = BackupKey.ensure(site.identity.directory)
    async with served(site, RUNNER, "one", tmp_path / "runner") as one:
        one.write(PROJECT, "file", "content")
        with_files = dataclasses.replace(source(site), client=one.client, runners=(one.runner,))
        manifest = await create.create(with_files, target, lambda _: None)
        (entry,) = manifest.files or []
        honest, asked = vars(Backups)["found"].fget, list[str]()

        def lie(self: Backups) -> dict[str, Any]:
            asked.append(f"p{len(asked)}")
            if answer == "a snapshot of before":
                return {"snapshot": entry.snapshot, "strange": [PROJECT]}
            return {**honest(self), **({"strange": asked[-1:]} if len(asked) < 4 * ROUNDS else {})}

        said: BackupError | None = None
        with monkeypatch.context() as patched:
            patched.setattr(Backups, "found", property(lie))
            try:
                await create.create(with_files, target, lambda _: None)
            except BackupError as error:
                said = error
        kept = [one["id"] for one in json.loads(Repository(target, key, RUNNER)._run("snapshots"))]
    assert any(known.startswith(entry.snapshot) for known in kept), "the first backup keeps its files"
    assert len(asked) <= 2 * ROUNDS, "the control machine does not ask for ever"
    assert str(said).startswith("runner one ")
    assert target.names() == [manifest.name]


@pytest.mark.parametrize(
    "answer",
    [{"snapshot": "--help"}, {"snapshot": ""}, {"files": -1}, {"torn": "one"}, {"strange": ["../other"]}],
    ids=lambda answer: next(iter(answer)),
)
async def test_an_answer_that_no_runner_gives_ends_the_backup(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: dict[str, Any]
) -> None:
    target = Target(tmp_path / "target")
    async with served(site, RUNNER, "one", tmp_path / "runner") as one:
        one.write(PROJECT, "file", "content")
        with_files = dataclasses.replace(source(site), client=one.client, runners=(one.runner,))
        monkeypatch.setattr(Backups, "found", property(lambda _: {"snapshot": "0" * 64} | answer))
        with pytest.raises(
            BackupError, match=r"runner one(: restic made no snapshot| gives an impossible answer: \w+)"
        ):
            await create.create(with_files, target, lambda _: None)
        assert target.names() == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files to others")
async def test_a_project_with_files_of_another_user_is_left_out(site: Site, tmp_path: Path) -> None:
    target, said = Target(tmp_path / "target"), list[str]()
    second = PROJECT.replace("a", "b")
    async with served(site, RUNNER, "one", tmp_path / "runner") as one:
        one.write(PROJECT, "mine", "content")
        os.chown(one.write(PROJECT, "folder/not mine", "content"), 12_345, 12_345)
        one.write(second, "file", "content")
        with_files = dataclasses.replace(source(site), client=one.client, runners=(one.runner,))
        manifest = await create.create(with_files, target, said.append)
        (entry,) = manifest.files or []
        assert (entry.left_out, entry.files) == ([PROJECT], 1)
        assert any(f"{PROJECT} is NOT in the backup" in line for line in said)
        shutil.rmtree(one.projects / second)
        manifest = await create.create(with_files, target, said.append)
        (entry,) = manifest.files or []
        assert (entry.left_out, entry.snapshot) == ([PROJECT], "")


async def test_folders_in_folders_without_end_have_a_size(tmp_path: Path) -> None:
    path = str(tmp_path / "top")
    for _ in range(1500):
        os.mkdir(path)
        path += "/a"
    (tmp_path / "top" / "file").write_bytes(b"x" * 4096)
    with (tmp_path / "top" / "holes").open("wb") as file:
        file.truncate(1024**4)
    assert _size_of(tmp_path / "top") == 4096
    await remove_tree(tmp_path / "top")


async def test_restic_ends_when_the_control_machine_is_gone(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = BackupKey.ensure(site.identity.directory).repository_password(RUNNER)
    async with served(site, RUNNER, "one", tmp_path / "runner") as one:
        one.write(PROJECT, "file", "content")

        async def begin(job_id: str) -> None:
            asked = {"job_id": job_id, "password": key, "runner_id": RUNNER, "name": "n", "rate": 0}
            await one.client.call_runner(RUNNER, "take", asked, service="backup")

        await begin(PROJECT)
        with pytest.raises(RpcError, match="another command backs up or restores"):
            await begin(RUNNER)
        monkeypatch.setattr(backup_job, "IDLE_SECONDS", 0.5)
        await begin(PROJECT)  # the same command may begin again
        await eventually(lambda: not one.backups.job(PROJECT).is_running, "the end of restic")
        await begin(RUNNER)


async def test_only_what_has_changed_is_sent_again(site: Site, tmp_path: Path) -> None:
    target = Target(tmp_path / "target")
    async with served(site, RUNNER, "one", tmp_path / "runner") as one:
        for number in range(4):
            one.write(PROJECT, f"file{number}", os.urandom(400_000).hex())
        sent = 0
        call = one.client.call_runner

        async def counted(runner: str, method: str, *words: Any, **options: Any) -> tuple[Any, memoryview]:
            nonlocal sent
            answer, data = await call(runner, method, *words, **options)
            sent += len(data)
            return answer, data

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(one.client, "call_runner", counted)
            with_files = dataclasses.replace(source(site), client=one.client, runners=(one.runner,))
            await create.create(with_files, target, lambda _: None)
            first, sent = sent, 0
            one.write(PROJECT, "file1", "new")
            manifest = await create.create(with_files, target, lambda _: None)
    assert first > 1_600_000
    assert sent < 100_000
    assert [entry.files for entry in manifest.files or ()] == [4]


async def test_files_come_back_all_or_none(site: Site, tmp_path: Path) -> None:
    target, key = Target(tmp_path / "target"), BackupKey.ensure(site.identity.directory)
    async with (
        served(site, RUNNER, "one", tmp_path / "runner") as one,
        served(site, OTHER, "two", tmp_path / "other") as two,
    ):
        second = PROJECT.replace("a", "b")
        kept, also = one.write(PROJECT, "deep/file", "old"), one.write(second, "file", "old")
        far = two.write(PROJECT.replace("a", "c"), "file", "old")
        with_files = dataclasses.replace(source(site), client=one.client, runners=(one.runner, two.runner))
        entries = (await create.create(with_files, target, lambda _: None)).files or []
        for path in (kept, also, far):
            path.write_text("new")
        usage = shutil.disk_usage

        def full(path: Path) -> Any:
            return usage(path)._replace(free=0) if path == two.projects else usage(path)

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(shutil, "disk_usage", full)  # the second host has no room
            with pytest.raises(BackupError, match="runner two: the restored files need"):
                await restore_files(one.client, target, key, entries, lambda _: None)
        assert [path.read_text() for path in (kept, also, far)] == ["new"] * 3
        assert not staged(tmp_path)

        await restore_files(one.client, target, key, entries, lambda _: None, project_id=PROJECT)
        assert [path.read_text() for path in (kept, also, far)] == ["old", "new", "new"]
        one.backups.project(second).state = "running"
        with pytest.raises(BackupError, match=f"natskit project stop {second}"):
            await restore_files(one.client, target, key, entries, lambda _: None)
        one.backups.project(second).state = "stopped"
        await restore_files(one.client, target, key, entries, lambda _: None)
        assert [path.read_text() for path in (kept, also, far)] == ["old"] * 3
        nobody = "f0000000-0000-4000-8000-000000000000"
        with pytest.raises(BackupError, match=f"no files of project {nobody}"):
            await restore_files(one.client, target, key, entries, lambda _: None, project_id=nobody)
    assert not staged(tmp_path)


def staged(folder: Path) -> list[Path]:
    """Restored files that wait to be put in their places."""
    return list(folder.glob("*/projects/.restored"))


def test_a_target_within_the_platform_is_refused(site: Site) -> None:
    said = command(site, site.root / "backups", "create", "--without-files", check=False)
    assert said.stderr.startswith(f"natskit: {site.root / 'backups'} is in {site.root}, the platform's own folder")
    assert not (site.root / "backups").exists()


async def test_what_is_remembered_of_backups(site: Site, tmp_path: Path) -> None:
    target, metrics = tmp_path / "target", tmp_path / "metrics"
    metrics.mkdir()
    environment = os.environ | {"NATSKIT_METRICS": str(metrics)}
    command(site, target, "create", "--without-files", env=environment)
    found = Record.read(site.root)
    assert found is not None
    assert (found.target, found.backups, found.verified) == (str(target), 1, None)
    assert found.words(datetime.now(UTC) + timedelta(days=3)).endswith(f"in {target}, never verified")
    assert f"natskit_backup_begun_seconds {found.begun.timestamp()!r}\n" in (metrics / "backup.prom").read_text()
    command(site, target, "verify", env=environment)
    verified = Record.read(site.root)
    assert verified is not None
    assert verified.verified is not None
    assert f"natskit_backup_verified_seconds {verified.verified.timestamp()!r}" in (metrics / "backup.prom").read_text()


async def test_two_at_once_and_one_that_was_killed(site: Site, tmp_path: Path) -> None:
    target = Target(tmp_path / "target")
    target.create()
    with target.locked():
        said = command(site, target.directory, "create", "--without-files", check=False)
        assert said.stderr == (
            f"natskit: another backup, verification or prune uses {target.directory}: wait until it has ended\n"
        )
    half = target.directory / ".unfinished-2026-01-01T000000Z"
    half.mkdir()
    (half / "identity.age").touch()
    assert target.names() == []
    manifest = await taken(site, target)
    assert left(target) == [manifest.name]


async def test_a_server_that_dies_meanwhile_leaves_nothing_half(tmp_path: Path) -> None:
    async with Site.without_hubs(tmp_path / "site") as site:
        hub = await site.state()
        for number in range(200):  # more than the server sends ahead of acknowledgements
            await hub.request(f"$KV.accounts.{number}", os.urandom(60_000), timeout=5)
        target = Target(tmp_path / "target")
        target.create()
        async with running(site).as_user("STATE", site.identity, TAKE_BACKUP) as connection:
            got = 0

            async def write(data: bytes) -> None:
                nonlocal got
                got += len(data)
                site.server.kill()

            with pytest.raises(
                BackupError, match=r"stream KV_accounts: (its snapshot stopped|the connection was lost)"
            ):
                await stream_snapshot.take(connection, "KV_accounts", write)
            assert got < 12_000_000
        with pytest.raises(ConnectionLostError):
            await taken(site, target)
        assert left(target) == []


async def test_everything_is_restored_and_hubs_serve_it(site: Site, tmp_path: Path) -> None:
    await add(site, "kept@example.org")
    target = Target(tmp_path / "target")
    manifest = await taken(site, target)
    wanted = {stream.name: stream.state for stream in manifest.streams}
    configs = {stream.name: stream.config for stream in manifest.streams}
    await add(site, "later@example.org")
    said = command(site, target.directory, "restore", check=False)
    assert "restore into an empty one, or add --overwrite, which replaces them" in said.stderr
    assert "later@example.org" in await emails(site)
    command(site, target.directory, "restore", "--overwrite")
    await site.healthy("hub-1")
    found = await emails(site)
    assert "kept@example.org" in found
    assert "later@example.org" not in found
    now, admin = await states(site), await site.streams_admin()
    documents = await site.connect("admin", site.identity.creds("DOCS", "admin"))
    for bucket in ("KV_accounts", "KV_projects", "KV_runners"):
        assert (now[bucket]["messages"], now[bucket]["last_seq"]) == (
            wanted[bucket]["messages"],
            wanted[bucket]["last_seq"],
        )
    for name, config in configs.items():
        reader = documents if name in DOCUMENT_STREAMS else admin
        found_config = (await api(reader, f"STREAM.INFO.{name}", {}))["config"]
        assert found_config | {"metadata": None} == config | {"metadata": None}
    await add(site, "after@example.org")
    assert "after@example.org" in await emails(site)


async def test_one_bucket_is_restored_and_the_others_stay(site: Site, tmp_path: Path) -> None:
    target = Target(tmp_path / "target")
    await taken(site, target)
    await add(site, "gone@example.org")
    audited = (await states(site))["AUDIT"]["last_seq"]
    said = command(site, target.directory, "restore", "--stream", "STATE/KV_accounts", check=False)
    assert "STATE/KV_accounts would be replaced: add --overwrite" in said.stderr
    said = command(site, target.directory, "restore", "--stream", "KV_accounts", "--overwrite", check=False)
    assert (
        "has no stream KV_accounts: it has DOCS/DOC_0, DOCS/DOC_1, DOCS/DOC_2, DOCS/DOC_3, STATE/KV_memberships, "
        in said.stderr
    )
    command(site, target.directory, "restore", "--stream", "STATE/KV_accounts", "--overwrite")
    await site.healthy("hub-1")
    assert "gone@example.org" not in await emails(site)
    assert (await states(site))["AUDIT"]["last_seq"] >= audited


async def test_nobody_is_served_what_is_half_restored(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await add(site, "half@example.org")
    target = Target(tmp_path / "target")
    await taken(site, target)
    hub, creds = await site.state(), site.identity.creds("STATE", "admin")
    broken = target.folder(None) / "streams" / "STATE" / "KV_memberships.age"
    whole = broken.read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(sealing, "check", lambda *_: None)
        broken.write_bytes(whole[:-1])
        with pytest.raises(BackupError, match="cannot be decrypted") as caught:
            await Restoration(running(site), target, None, None).run(None, lambda _: None)
    assert "The platform is closed" in str(caught.value)
    assert f"--overwrite {target.folder(None).name}" in str(caught.value)
    for subject in ("$KV.accounts.x", "info.accounts", "find.accounts", "read.accounts", "audit.x.-"):
        with pytest.raises(nats.errors.NoRespondersError):
            await hub.request(subject, b"{}", timeout=2)
    assert (await site.http("hub-1", "GET", "/healthz")).status_code == 503
    assert unfinished_restore(site.identity.directory) == target.folder(None).name
    with pytest.raises(BackupError, match="STATE is closed, because a restore has not ended"):
        await taken(site, target)
    servers = NatsServers(urls=[f"nats://127.0.0.1:{site.nats_port}"])
    # nats-server may close the connection before its reason is read.
    with pytest.raises(ConnectionLostError, match=r"Authorization Violation|Connection reset by peer"):
        await connect(servers, name="admin", inbox_prefix="_INBOX.admin", creds=CredsText(creds), timeout=2)
    async with running(site).as_user("STATE", site.identity, RESTORE_BACKUP) as connection:
        names = {one["config"]["name"] for one in await stream_snapshot.streams(connection)}
    assert names == set(STREAMS) - {"KV_memberships"}, "no part of a stream is left"
    broken.write_bytes(whole)
    await Restoration(running(site), target, None, None).run(None, lambda _: None)
    assert unfinished_restore(site.identity.directory) is None
    await site.healthy("hub-1")
    assert "half@example.org" in await emails(site)


async def test_a_bare_control_machine_gets_its_keys_and_inventory(site: Site, tmp_path: Path) -> None:
    target = Target(tmp_path / "target")
    await taken(site, target)
    platform = tmp_path / "new"
    inventory = await restore_control(target, None, platform)
    restored = Identity.load(platform / "identity")
    assert restored.operator_public_key == site.identity.operator_public_key
    assert BackupKey.load(platform / "identity").repository_password(RUNNER) == BackupKey.load(
        site.identity.directory
    ).repository_password(RUNNER)
    original = site.root / "inventory.py"
    assert (inventory / original.relative_to("/")).read_text() == original.read_text()
    with pytest.raises(IdentityError, match="is not empty"):
        await restore_control(target, None, platform)


async def test_another_platforms_backup_is_refused(site: Site, tmp_path: Path) -> None:
    async with Site.without_hubs(tmp_path / "other") as other:
        describe(other)
        target = Target(tmp_path / "target")
        await taken(other, target)
    with pytest.raises(BackupError, match=r"was changed, or belongs to a platform with another key"):
        Restoration(running(site), target, None, None)


async def test_messages_whose_time_is_over_are_restored(tmp_path: Path) -> None:
    async with trial_server(tmp_path, ["STATE"], 0) as connections:
        there = connections["STATE"]
        config = {"name": "OLD", "subjects": ["old.>"], "storage": "file", "max_age": 1_000_000_000}
        short = {"duplicate_window": 1_000_000_000}
        await api(there, "STREAM.CREATE.OLD", config | short)
        for number in range(10):
            await there.request(f"old.{number}", b"x", timeout=5)
        entry, key = await snapshot_of(there, "OLD", tmp_path)

        async def is_empty(name: str) -> bool:
            return bool((await api(there, f"STREAM.INFO.{name}", {}))["state"]["messages"] == 0)

        await eventually(lambda: is_empty("OLD"), "the messages are too old")
        await restored_stream.delete(there, "OLD")
        await restored_stream.restore(there, tmp_path, entry, key, restored_stream.lifted(entry.config))
        # Longer than nats-server takes to remove what is too old.
        await api(there, "STREAM.CREATE.NEW", config | {"name": "NEW", "subjects": ["new"]} | short)
        await there.request("new", b"x", timeout=5)
        await eventually(lambda: is_empty("NEW"), "a later message is too old")
        assert (await api(there, "STREAM.INFO.OLD", {}))["state"]["messages"] == 10
        await restored_stream.delete(there, "NEW")
        # What differs is noticed, and nothing is left.
        await restored_stream.delete(there, "OLD")
        wrong = entry.model_copy(update={"state": entry.state | {"messages": 11}})
        with pytest.raises(BackupError, match="messages is 10, and the backup says 11"):
            await restored_stream.restore(there, tmp_path, wrong, key, restored_stream.lifted(entry.config))
        assert await stream_snapshot.streams(there) == []


async def snapshot_of(connection: Connection, name: str, folder: Path) -> tuple[Any, BackupKey]:
    """A stream's entry in a manifest, and the key of its content in ``folder``."""
    from natskit.backup.manifest import StreamEntry

    key = BackupKey.ensure(folder / "identity")
    async with sealing.writing(folder, "content.age", key) as writer:
        found = await stream_snapshot.take(connection, name, writer.write)
    now = datetime.now(UTC)
    return StreamEntry(
        account="STATE",
        name=name,
        taken=now,
        created="",
        config=found.config,
        state=found.state,
        content=writer.sealed(),
    ), key


async def test_who_takes_a_backup_can_change_nothing(site: Site) -> None:
    refused: dict[str, list[str]] = {
        "take": ["STREAM.DELETE.AUDIT", "STREAM.PURGE.AUDIT", "STREAM.RESTORE.X", "STREAM.UPDATE.AUDIT"],
        "restore": ["STREAM.PURGE.AUDIT", "STREAM.CREATE.X", "STREAM.MSG.DELETE.AUDIT", "CONSUMER.CREATE.AUDIT"],
    }
    for name, rights in (("take", TAKE_BACKUP), ("restore", RESTORE_BACKUP)):
        async with running(site).as_user("STATE", site.identity, rights) as connection:
            for subject in [*(f"$JS.API.{verb}" for verb in refused[name]), "$KV.accounts.x", "hub.admin", "audit.x.y"]:
                said: list[Exception] = []
                forget = connection.on_refused(subject, said.append)
                with contextlib.suppress(nats.errors.Error):
                    await connection.publish(subject, b"{}")
                await eventually(lambda said=said: said, f"{name}: {subject} is refused")  # type: ignore[misc]
                forget()


def test_which_backups_are_kept() -> None:
    from natskit.backup.prune import surplus

    now = datetime(2026, 1, 31, tzinfo=UTC)
    ages = (30, 20, 10, 5, 1)
    found = [Manifest.model_construct(name=str(days), started=now - timedelta(days=days)) for days in ages]
    assert [one.name for one in surplus(found, keep=2, keep_days=0, now=now)] == ["30", "20", "10"]
    assert [one.name for one in surplus(found, keep=1, keep_days=10, now=now)] == ["30", "20"]
    assert surplus(found, keep=9, keep_days=0, now=now) == []
    assert [one.name for one in surplus(found[:1], keep=1, keep_days=0, now=now)] == []


async def test_old_backups_are_removed(site: Site, tmp_path: Path) -> None:
    target = Target(tmp_path / "target")
    made = [(await taken(site, target)).name for _ in range(3)]
    assert target.names() == made
    said = command(site, target.directory, "prune", "--keep", "1").stdout
    assert said == f"{made[0]} is removed.\n{made[1]} is removed.\n"
    assert left(target) == [made[2]]
