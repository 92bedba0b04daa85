"""Projects move with their files between two runners: real hubs, a real nats-server, the command's own code."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import json
import os
import random
import socket
import stat
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from natskit.bus.project_move import Written
from natskit.cli.move import Move
from natskit.client import Client
from natskit.errors import NatskitError
from natskit.rpc import RpcError
from tests.agent.test_with_hub import Platform
from tests.kit.wait import eventually
from tests.mounts import mounted

Report = Any


class TwoRunners(Platform):
    """Two hubs and the runners ``local`` and ``spare``."""

    def __init__(self, root: Path) -> None:
        super().__init__(root, ttl=900)
        self.spare_runner: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        await super().start()
        self.start_spare()

    def start_spare(self) -> None:
        directory = self.site.root / "spare"
        directory.mkdir(mode=0o700, exist_ok=True)
        creds, settings = directory / "runner.creds", directory / "runner.json"
        creds.write_text(self.spare_creds)
        program = {"runner_id": self.spare[0], "name": "spare", "nats": {"urls": [self.nats_url]}}
        settings.write_text(json.dumps(program | {"creds": str(creds), "directory": str(directory)}))
        with (directory / "runner.log").open("ab") as log:
            self.spare_runner = subprocess.Popen(
                [sys.executable, "-m", "natskit.runner", "--settings", str(settings)], stdout=log, stderr=log
            )

    def kill_runner(self, name: str) -> None:
        process = self.runner if name == "local" else self.spare_runner
        assert process is not None
        process.kill()
        process.wait(15)

    def runner_pids(self) -> list[int]:
        return [process.pid for process in (self.runner, self.spare_runner) if process is not None]

    def start_again(self, name: str) -> None:
        (self.start_runner if name == "local" else self.start_spare)()

    def stop(self) -> None:
        for process in (self.runner, self.spare_runner):
            if process is not None and process.poll() is None:
                process.terminate()
                process.wait(15)
        for name in list(self.site.hubs):
            self.site.kill_hub(name)
            print(f"---- {name}\n{self.site.log(name)}")
        self.site.stop_server()
        for folder in ("runner", "spare"):
            print(f"---- {folder}\n" + (self.site.root / folder / "runner.log").read_text()[-4000:])

    def folder(self, runner: str, project_id: str) -> Path:
        return self.site.root / ("runner" if runner == "local" else runner) / "projects" / project_id

    def home(self, runner: str, project_id: str) -> Path:
        return self.folder(runner, project_id) / "home"

    def arriving(self, runner: str, project_id: str) -> Path:
        return self.folder(runner, project_id) / ".home.arriving"


@pytest.fixture(scope="module")
async def platform() -> AsyncIterator[TwoRunners]:
    with tempfile.TemporaryDirectory(prefix="natskit-moves-") as root:
        platform = TwoRunners(Path(root))
        try:
            await platform.start()
            yield platform
        finally:
            platform.stop()


@pytest.fixture(scope="module")
async def admin(platform: TwoRunners) -> AsyncIterator[Client]:
    async with await platform.admin() as admin:
        await admin.call_hub("account_add", email="a@example.org", password="correct horse")  # noqa: S106
        await alive(admin)
        yield admin


async def alive(admin: Client) -> None:
    async def both() -> bool:
        return all(row["alive"] for row in await admin.call_hub("runner_list"))

    await eventually(both, "both runners are alive")


@pytest.fixture
async def project_id(admin: Client) -> str:
    """A stopped project on ``local`` that was started once."""
    made = await admin.call_hub("project_create", email="a@example.org", title=f"Demo {uuid.uuid4()}")
    project_id = str(made["project_id"])
    await admin.call_hub("project_assign", project_id=project_id, runner="local")
    await admin.call_hub("start_project", wait=40, project_id=project_id)
    await admin.call_hub("stop_project", wait=40, project_id=project_id)
    return project_id


def facts(home: Path) -> dict[bytes, tuple[Any, ...]]:
    """Everything about each name below a home that a move has to keep, by os functions on bytes alone."""
    found: dict[bytes, tuple[Any, ...]] = {}
    inodes: dict[int, bytes] = {}
    top = os.fsencode(home)
    status = os.lstat(top)
    found[b""] = "folder", stat.S_IMODE(status.st_mode), status.st_mtime_ns
    for folder, folders, names in os.walk(top):
        for name in sorted([*folders, *names]):
            path = os.path.join(folder, name)
            status = os.lstat(path)
            about: tuple[Any, ...] = stat.S_IFMT(status.st_mode), stat.S_IMODE(status.st_mode), status.st_mtime_ns
            if stat.S_ISLNK(status.st_mode):
                about += (os.readlink(path),)
            if stat.S_ISREG(status.st_mode):
                with open(path, "rb") as file:
                    digest = hashlib.file_digest(file, "sha256").hexdigest()
                about += (status.st_size, digest, inodes.setdefault(status.st_ino, path[len(top) :]))
            found[path[len(top) :]] = about
    return found


def peak(pid: int) -> str:
    """The most memory that a process had."""
    return next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM"))


def mover(admin: Client, project_id: str, report: Report = lambda *_: None, patience: float = 60) -> Move:
    return Move(admin, project_id, report, patience)


async def test_a_project_moves_with_all_of_its_files_and_works_there(
    admin: Client, platform: TwoRunners, project_id: str
) -> None:
    await admin.call_hub("start_project", wait=40, project_id=project_id)
    with pytest.raises(RpcError, match="the project is running: stop it first"):
        await mover(admin, project_id).run("spare")
    async with admin.exec(project_id, command="mkdir -p a/b empty; echo hello > a/b/c; ln -s a/b/c link") as run:
        await run.output()
    await admin.call_project(project_id, "write_text_file", path="gone", text="to the trash")
    await admin.call_project(project_id, "move_to_trash", path="gone")
    await admin.call_hub("stop_project", wait=40, project_id=project_id)
    before = facts(platform.home("local", project_id))
    moving = mover(admin, project_id)
    state = await moving.run("spare")
    assert state["runner"]["name"] == "spare"
    assert (state["moving_to"], state["left_on"]) == (None, [])
    assert facts(platform.home("spare", project_id)) == before
    assert len(moving.outcome.sha256) == 64
    assert not platform.folder("local", project_id).exists(), "the old copy is removed"
    assert not platform.arriving("spare", project_id).exists()
    await admin.call_hub("start_project", wait=40, project_id=project_id)
    assert (await admin.call_project(project_id, "read_text_file", path="link"))["text"] == "hello\n"
    (trashed,) = (await admin.call_project(project_id, "list_trash"))["entries"]
    await admin.call_project(project_id, "restore_from_trash", id=trashed["id"], to="back")
    assert (await admin.call_project(project_id, "read_text_file", path="back"))["text"] == "to the trash"
    await admin.call_hub("stop_project", wait=40, project_id=project_id)
    again = mover(admin, project_id)
    assert (await again.run("spare"))["runner"]["name"] == "spare", "it is there already"
    assert again.outcome.sha256 == ""
    await admin.call_hub("project_delete", wait=60, project_id=project_id)
    assert not platform.folder("spare", project_id).exists()


@pytest.fixture
async def left_behind(admin: Client, project_id: str) -> AsyncIterator[None]:
    """Ends whatever move a test leaves unfinished."""
    yield
    with contextlib.suppress(NatskitError):
        await mover(admin, project_id).cancel()


class Hook:
    """Does something once, at a moment of a move. Runs on the event loop, so nothing else happens meanwhile."""

    def __init__(self, what: str, act: Callable[[], object], *, at_end: bool = False, often: bool = False) -> None:
        self._what, self._act, self._at_end, self._often = what, act, at_end, often
        self.acted = 0
        self.seen: list[tuple[str, int, int]] = []

    def __call__(self, what: str, done: int, total: int) -> None:
        self.seen.append((what, done, total))
        if what == self._what and (done == total or not self._at_end) and (self._often or not self.acted):
            self.acted += 1
            self._act()


def fill(home: Path, files: int, size: int) -> None:
    """Small files in some folders, and a large one."""
    for number in range(files):
        folder = home / f"d{number % 50}" / f"e{number % 7}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"f{number}").write_bytes(b"%d\n" % number * (number % 300))
    block = random.Random(7).randbytes(1 << 20)
    with (home / "large").open("wb") as large:
        for number in range(size >> 20):
            large.write(number.to_bytes(8, "big") + block[8:])


async def test_every_kind_of_name_file_and_link_arrives_as_it_was(
    admin: Client, platform: TwoRunners, project_id: str
) -> None:
    home = platform.home("local", project_id)
    names = [b"\xff\xfe", b"line\nbreak", b" trailing ", b"caf\xc3\xa9", b"-rf", b"\\", b"a" * 255, b"\x01\x7f", b"%s"]
    for name in names:
        folder = home / os.fsdecode(b"d" + name[:254])
        folder.mkdir()
        (folder / os.fsdecode(name)).write_bytes(name * 10)
    (home / "empty").touch()
    (home / "nothing" / "in" / "here").mkdir(parents=True)
    (home / "out").symlink_to("/etc/passwd")
    (home / "dangling").symlink_to(b"\xff/nowhere".decode("utf-8", "surrogateescape"))
    (home / "to-folder").symlink_to("nothing")
    os.mkfifo(home / "pipe", 0o640)
    (home / "one").write_text("shared")
    (home / "nothing" / "two").hardlink_to(home / "one")
    (home / "nothing" / "three").hardlink_to(home / "one")
    with (home / "sparse").open("wb") as sparse:
        sparse.seek(300 << 20)
        sparse.write(b"in the middle" * 100_000)
        sparse.truncate(700 << 20)
    for number, mode in enumerate((0o000, 0o400, 0o640, 0o755, 0o777)):
        (home / f"mode{number}").write_text("x")
        (home / f"mode{number}").chmod(mode)
        (home / f"folder{number}").mkdir()
        (home / f"folder{number}" / "inner").write_text("y")
        (home / f"folder{number}").chmod(mode)
    os.utime(home / "one", ns=(1, 1_234_567_891_234_567_891))
    os.utime(home / "out", ns=(1, 987_654_321_987_654_321), follow_symlinks=False)
    os.utime(home / "mode1", ns=(0, -5_000_000_001))
    os.utime(home / "nothing", ns=(1, 1_000_000_000_000_000_001))
    home.chmod(0o711)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(home / "socket"))
    before = facts(home)
    del before[b"/socket"]
    moving = mover(admin, project_id)
    await moving.run("spare")
    there = platform.home("spare", project_id)
    assert facts(there) == before
    assert (there / "sparse").stat().st_blocks * 512 < 8 << 20, "holes stay holes"
    assert moving.outcome.left == ["socket"]
    assert not platform.folder("local", project_id).exists()


async def test_folders_deeper_than_any_path(admin: Client, platform: TwoRunners, project_id: str) -> None:
    levels, name = 200, "n" * 40

    def deepest(home: Path) -> int:
        here = os.open(home, os.O_DIRECTORY)
        for _ in range(levels):
            inner = os.open(name, os.O_DIRECTORY, dir_fd=here)
            os.close(here)
            here = inner
        return here

    here = os.open(platform.home("local", project_id), os.O_DIRECTORY)
    for _ in range(levels):
        os.mkdir(name, dir_fd=here)
        inner = os.open(name, os.O_DIRECTORY, dir_fd=here)
        os.close(here)
        here = inner
    for number in range(3):
        fd = os.open(f"file{number}", os.O_WRONLY | os.O_CREAT, dir_fd=here)
        os.write(fd, b"deep")
        os.close(fd)
    os.close(here)
    await mover(admin, project_id).run("spare")
    there = deepest(platform.home("spare", project_id))
    try:
        assert sorted(os.listdir(there)) == ["file0", "file1", "file2"]
    finally:
        os.close(there)


@pytest.mark.parametrize("victim", ["local", "spare", "hubs"])
async def test_a_move_goes_on_after_a_kill(admin: Client, platform: TwoRunners, project_id: str, victim: str) -> None:
    fill(platform.home("local", project_id), 400, 24 << 20)
    before = facts(platform.home("local", project_id))

    def kill() -> None:
        if victim == "hubs":
            for name in ("hub-1", "hub-2"):
                platform.site.kill_hub(name)
                platform.start_hub(name)
        else:
            platform.kill_runner(victim)
            platform.start_again(victim)

    hook = Hook("Copying files", kill)
    state = await mover(admin, project_id, hook, patience=120).run("spare")
    assert hook.acted
    assert state["runner"]["name"] == "spare"
    assert facts(platform.home("spare", project_id)) == before
    await alive(admin)


COMMAND = """
import asyncio, sys
from natskit.client import Client
from natskit.bus.project_move import Written
from natskit.cli.move import Move

def report(what, done, total):
    print(what, done, total, flush=True)

async def main():
    async with await Client.admin(sys.argv[1], sys.argv[2]) as client:
        await Move(client, sys.argv[3], report).run("spare")

asyncio.run(main())
"""


async def test_a_killed_command_is_repeated_and_continues(admin: Client, platform: TwoRunners, project_id: str) -> None:
    """Meanwhile nobody can start, delete or assign the project."""
    fill(platform.home("local", project_id), 300, 48 << 20)
    before = facts(platform.home("local", project_id))
    words = [sys.executable, "-c", COMMAND, platform.nats_url, str(platform.site.root / "admin.creds"), project_id]
    command = await asyncio.create_subprocess_exec(*words, stdout=asyncio.subprocess.PIPE)
    assert command.stdout is not None
    done = 0
    async for line in command.stdout:
        what, done = line.decode().rsplit(" ", 2)[0], int(line.split()[-2])
        if what == "Copying files" and done > 24 << 20:
            break
    command.kill()
    await command.wait()
    for method in ("start_project", "project_delete"):
        with pytest.raises(RpcError, match="are being moved to another runner"):
            await admin.call_hub(method, wait=40, project_id=project_id)
    with pytest.raises(RpcError, match="are being moved to another runner"):
        await admin.call_hub("project_assign", project_id=project_id, runner="spare")
    for row in await admin.call_hub("project_list"):
        assert (row["detail"] != "") == (row["project_id"] == project_id)
    assert platform.arriving("spare", project_id).exists()
    assert facts(platform.home("local", project_id)) == before, "the old copy is the truth"
    hook = Hook("", lambda: None)
    moving = mover(admin, project_id, hook)
    await moving.run("spare")
    copied = [entry for entry in hook.seen if entry[0] == "Copying files"]
    assert copied[0][1] > 8 << 20, f"the large file continues: {copied[:2]}"
    assert facts(platform.home("spare", project_id)) == before
    assert not platform.folder("local", project_id).exists()


async def test_a_later_command_takes_over(admin: Client, platform: TwoRunners, project_id: str) -> None:
    fill(platform.home("local", project_id), 10, 1 << 20)
    first = await admin.call_hub("project_move_begin", project_id=project_id, runner="spare")
    spare, local = platform.spare[0], platform.site.runner_id
    mine = {"project_id": project_id, "move_id": first["move_id"]}
    (entries, _) = await admin.call_runner(local, "list", {**mine, "target": False, "after": None})
    assert len(entries["entries"]) > 10
    for runner, target in ((local, True), (spare, False)):
        with pytest.raises(RpcError, match="of the move at this moment"):
            await admin.call_runner(runner, "list", {**mine, "target": target, "after": None})
    with pytest.raises(RpcError, match="of the move at this moment"):
        await admin.call_runner(spare, "settle", mine)
    await mover(admin, project_id).run("spare")
    for call in (
        admin.call_runner(spare, "discard", {**mine, "paths": ["large"]}),
        admin.call_runner(local, "list", {**mine, "target": False, "after": None}),
        admin.call_hub("project_move_switch", **mine),
        admin.call_hub("project_move_end", **mine),
    ):
        with pytest.raises(RpcError, match="another command has taken over"):
            await call
    assert (platform.home("spare", project_id) / "large").stat().st_size == 1 << 20


@pytest.mark.usefixtures("left_behind")
async def test_paths_out_of_the_folder_are_refused(
    admin: Client, platform: TwoRunners, project_id: str, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    began = await admin.call_hub("project_move_begin", project_id=project_id, runner="spare")
    mine = {"project_id": project_id, "move_id": began["move_id"]}
    await admin.call_runner(platform.spare[0], "prepare", {**mine, "size": 0, "files": 0, "arrived": 0})
    outside.mkdir()
    (platform.arriving("spare", project_id) / "link").symlink_to(outside)
    for path in ("../x", "a/../../x", "/x", "a//b", "link/x", "."):
        part = Written(path, 0, 1, True, 1, 0o600, 0)
        with pytest.raises(RpcError, match=r"no path below a home|Not a directory|Too many levels|not there"):
            await admin.call_runner(platform.spare[0], "write", {**mine, "parts": [part]}, b"x")
    assert os.listdir(outside) == []
    assert "x" not in os.listdir("/")
    assert sorted(os.listdir(platform.arriving("spare", project_id))) == ["link"]


async def test_a_damaged_copy_is_found_and_copied_again(admin: Client, platform: TwoRunners, project_id: str) -> None:
    fill(platform.home("local", project_id), 60, 2 << 20)
    before = facts(platform.home("local", project_id))

    def damage() -> None:
        for name in ("large", "d1/e1/f1"):
            path = platform.arriving("spare", project_id) / name
            status = path.stat()
            with path.open("r+b") as file:
                file.write(b"!")
            os.utime(path, ns=(status.st_mtime_ns, status.st_mtime_ns))

    hook = Hook("Copying files", damage, at_end=True)
    await mover(admin, project_id, hook).run("spare")
    assert hook.acted == 1
    assert facts(platform.home("spare", project_id)) == before
    assert sum(what == "Verifying by hash" for what, *_ in hook.seen) >= 2, "verified again"


@pytest.mark.parametrize("keeps_time", [False, True])
async def test_a_file_that_changes_during_the_move_arrives_as_it_became(
    admin: Client, platform: TwoRunners, project_id: str, keeps_time: bool
) -> None:
    home = platform.home("local", project_id)
    fill(home, 20, 2 << 20)

    def change() -> None:
        status = (home / "large").stat()
        with (home / "large").open("r+b") as file:
            file.write(b"changed")
        if keeps_time:
            os.utime(home / "large", ns=(status.st_mtime_ns, status.st_mtime_ns))

    hook = Hook("Copying files", change, at_end=True)
    await mover(admin, project_id, hook).run("spare")
    assert hook.acted == 1
    assert (platform.home("spare", project_id) / "large").read_bytes().startswith(b"changed")


@pytest.mark.usefixtures("left_behind")
async def test_a_file_that_changes_all_the_time_keeps_the_project_where_it_is(
    admin: Client, platform: TwoRunners, project_id: str
) -> None:
    home = platform.home("local", project_id)
    fill(home, 5, 1 << 20)
    count = itertools.count()
    hook = Hook("Verifying by hash", lambda: (home / "busy").write_text(str(next(count))), often=True)
    with pytest.raises(NatskitError, match=r"changed while it was moved|not like its source|another hash"):
        await mover(admin, project_id, hook).run("spare")
    assert hook.acted >= 3
    assert (await mover(admin, project_id).cancel())["runner"]["name"] == "local"
    assert (home / "large").exists()
    assert not platform.folder("spare", project_id).exists(), "what had arrived is removed"
    await admin.call_hub("start_project", wait=40, project_id=project_id)
    await admin.call_hub("stop_project", wait=40, project_id=project_id)


@pytest.mark.usefixtures("left_behind")
async def test_a_disk_without_room_is_noticed_before_and_during_the_move(
    admin: Client, platform: TwoRunners, project_id: str
) -> None:
    fill(platform.home("local", project_id), 10, 6 << 20)
    before = facts(platform.home("local", project_id))
    folder = platform.folder("spare", project_id)
    folder.mkdir(mode=0o700, parents=True)
    with mounted(folder, "size=4m,mode=700"):
        with pytest.raises(RpcError, match=r"runner spare: .* are needed, and the disk of this runner has 4 MiB left"):
            await mover(admin, project_id).run("spare")
        assert os.listdir(folder) == []
    with mounted(folder, "size=10m,mode=700"):
        filler = folder / "filler"
        hook = Hook("Copying files", lambda: filler.write_bytes(b"x" * (6 << 20)))
        with pytest.raises(RpcError, match="make room there, and repeat the command"):
            await mover(admin, project_id, hook).run("spare")
        assert facts(platform.home("local", project_id)) == before
        filler.unlink()
        await mover(admin, project_id).run("spare")
        assert facts(platform.home("spare", project_id)) == before


@pytest.mark.usefixtures("left_behind")
async def test_what_is_there_already_is_not_mixed_in(admin: Client, platform: TwoRunners, project_id: str) -> None:
    fill(platform.home("local", project_id), 5, 1 << 20)
    there = platform.home("spare", project_id)
    there.mkdir(parents=True)
    (there / "old").write_text("who knows")
    with pytest.raises(RpcError, match="has files of the project already"):
        await mover(admin, project_id).run("spare")
    with pytest.raises(RpcError, match="being moved to spare: end that first, with --runner spare"):
        await mover(admin, project_id).run("local")
    await mover(admin, project_id).cancel()
    assert os.listdir(there) == ["old"], "giving up removes what has arrived, and nothing else"
    (there / "old").unlink()
    await mover(admin, project_id).run("spare")
    assert (there / "large").exists()


async def test_the_old_copy_is_removed_later_if_its_runner_died(
    admin: Client, platform: TwoRunners, project_id: str
) -> None:
    fill(platform.home("local", project_id), 5, 1 << 20)
    before = facts(platform.home("local", project_id))
    hook = Hook("Removing the old copy", lambda: platform.kill_runner("local"))
    with pytest.raises(NatskitError, match="does not answer"):
        await mover(admin, project_id, hook, patience=1).run("spare")
    assert hook.acted
    assert facts(platform.home("spare", project_id)) == before
    started = await admin.call_hub("start_project", wait=40, project_id=project_id)
    assert started["state"] == "running", "it need not wait for that"
    platform.start_again("local")
    await alive(admin)
    state = await mover(admin, project_id).run("spare")
    assert state["left_on"] == []
    assert not platform.folder("local", project_id).exists()
    await admin.call_hub("stop_project", wait=40, project_id=project_id)
    assert (await mover(admin, project_id).run("local"))["runner"]["name"] == "local", "and back"
    assert before.keys() <= facts(platform.home("local", project_id)).keys()


async def test_a_project_that_never_ran_moves_too(admin: Client) -> None:
    made = await admin.call_hub("project_create", email="a@example.org", title=f"New {uuid.uuid4()}")
    project_id = str(made["project_id"])
    await admin.call_hub("project_assign", project_id=project_id, runner="local")
    assert (await mover(admin, project_id).run("spare"))["runner"]["name"] == "spare"
    await admin.call_hub("start_project", wait=40, project_id=project_id)
    await admin.call_hub("stop_project", wait=40, project_id=project_id)


@pytest.mark.usefixtures("left_behind")
async def test_a_home_that_is_missing_is_no_empty_home(admin: Client, platform: TwoRunners, project_id: str) -> None:
    platform.home("local", project_id).rename(platform.folder("local", project_id) / "elsewhere")
    with pytest.raises(RpcError, match="is the disk with the homes mounted"):
        await mover(admin, project_id).run("spare")


async def test_many_small_files_and_a_large_one(admin: Client, platform: TwoRunners, project_id: str) -> None:
    """``NATSKIT_TEST_MOVE_FILES=100000 NATSKIT_TEST_MOVE_MIB=2048`` takes minutes; ``-s`` shows the memory it takes."""
    many, mib = (int(os.environ.get(f"NATSKIT_TEST_MOVE_{name}", few)) for name, few in (("FILES", 5000), ("MIB", 200)))
    fill(platform.home("local", project_id), many, mib << 20)
    before = facts(platform.home("local", project_id))
    moving = mover(admin, project_id)
    begun = time.monotonic()
    await moving.run("spare")
    print(f"{time.monotonic() - begun:.0f} s", *map(peak, [os.getpid(), *platform.runner_pids()]), moving.outcome)
    assert moving.outcome.files >= many + 1
    assert facts(platform.home("spare", project_id)) == before


async def test_a_target_that_is_lost_before_the_end_gives_the_old_copy_back(
    admin: Client, platform: TwoRunners, project_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(platform.home("local", project_id), 5, 1 << 20)
    before = facts(platform.home("local", project_id))
    move = mover(admin, project_id)
    ask = move._ask

    async def lost(runner: str, method: str, **params: Any) -> Any:
        if method == "settle":
            raise NatskitError("the host burns")
        return await ask(runner, method, **params)

    monkeypatch.setattr(move, "_ask", lost)
    with pytest.raises(NatskitError, match="the host burns"):
        await move.run("spare")
    with pytest.raises(RpcError, match="repeat the command without --cancel"):
        await mover(admin, project_id).cancel()
    assert (await mover(admin, project_id).clean())["left_on"], "the old copy stays until the end"
    await admin.call_hub("runner_revoke", name="spare")
    try:
        assert (await mover(admin, project_id).cancel())["runner"]["name"] == "local"
        assert facts(platform.home("local", project_id)) == before
        await admin.call_hub("start_project", wait=40, project_id=project_id)
        await admin.call_hub("stop_project", wait=40, project_id=project_id)
    finally:
        await admin.call_hub("runner_allow", name="spare")

    async def is_clean() -> bool:
        return not (await mover(admin, project_id).clean())["left_on"]

    await eventually(is_clean, "the runner removes what has arrived", 60)
