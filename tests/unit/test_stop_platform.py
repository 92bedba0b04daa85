"""`make down` stops the programs of a folder, and names another user's platform instead of waiting for it."""

from __future__ import annotations

import os
import pwd
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from natskit.errors import SettingsError
from natskit.ops import stop_platform
from natskit.ops.orphans import command_of
from roles import preflight
from tests.kit.wait import wait_for
from tests.platform.site import REPOSITORY

NOBODY = pwd.getpwnam("nobody")
AS_NOBODY = ["setpriv", f"--reuid={NOBODY.pw_uid}", f"--regid={NOBODY.pw_gid}", "--clear-groups"]
SLEEP = "import time; time.sleep(600)"
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="two users take root")


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that every user can enter, with the parts of a checkout that ``scripts/down`` needs."""
    folder = Path(tempfile.mkdtemp(prefix="natskit down ü "))
    folder.chmod(0o755)
    shutil.copytree(REPOSITORY / "natskit", folder / "natskit", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(REPOSITORY / "scripts", folder / "scripts")
    yield folder
    shutil.rmtree(folder)


def run_down(place: Path, root: Path, before: list[str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*(before or []), str(place / "scripts" / "down"), str(root)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={"PATH": "/usr/bin:/bin"},
    )


def make_platform(root: Path) -> Path:
    """The configuration of a platform with one program, which sleeps: as a deploy writes it, except for the names."""
    (root / "supervisor" / "programs").mkdir(parents=True)
    command = shlex.join([sys.executable, "-c", SLEEP, str(root)]).replace("%", "%%")
    (root / "supervisor" / "programs" / "a.conf").write_text(f"[program:a]\ncommand = {command}\n")
    configuration = root / "supervisor" / "supervisord.conf"
    configuration.write_text(
        "[supervisord]\ndirectory = %(here)s/..\nlogfile = %(here)s/log\npidfile = %(here)s/supervisord.pid\n"
        "user = root\n[include]\nfiles = programs/*.conf\n"
    )
    return configuration


@pytest.fixture
def running(place: Path) -> Iterator[Path]:
    """The folder of a platform that a real supervisord, started by this user, keeps running."""
    root = place / "platform"
    configuration = make_platform(root)
    supervisord = Path(sys.executable).with_name("supervisord")
    subprocess.run([supervisord, "-c", configuration], check=True, capture_output=True)
    pid_file = root / "supervisor" / "supervisord.pid"
    pid = int(wait_for(lambda: pid_file.exists() and pid_file.read_text(), "supervisord to run"))
    wait_for(lambda: program_of(root), "its program to run")
    yield root
    if command_of(pid):
        os.kill(pid, signal.SIGTERM)
        wait_for(lambda: not command_of(pid), "supervisord to end")


def program_of(root: Path) -> list[int]:
    """The process of a platform's program, by its folder. Found in another way than by the code under test."""
    found = subprocess.run(["pgrep", "-f", f"^{sys.executable} -c .*sleep.600.* {root}$"], capture_output=True)
    return [int(pid) for pid in found.stdout.split()]


@needs_root
def test_what_runs_is_stopped_and_a_second_time_there_is_nothing(place: Path, running: Path) -> None:
    done = run_down(place, running)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"natskit is down; its data is in {running}\n", "")
    assert program_of(running) == []
    done = run_down(place, running)
    assert (done.returncode, done.stdout, done.stderr) == (0, "natskit is not running\n", "")


@needs_root
def test_a_folder_that_was_moved_while_it_ran_is_stopped(place: Path, running: Path) -> None:
    moved = running.rename(place / "moved")
    done = run_down(place, moved)
    assert done.stdout == f"natskit is down; its data is in {moved}\n"
    assert program_of(running) == []


@needs_root
def test_a_copy_does_not_stop_what_it_was_copied_from(place: Path, running: Path) -> None:
    """The copy has the same supervisord.pid, and its programs have the same command lines."""
    before = program_of(running)
    shutil.copytree(running, place / "copy", ignore=lambda _, names: {name for name in names if "sock" in name})
    assert run_down(place, place / "copy").stdout == "natskit is not running\n"
    assert program_of(running) == before != []


@needs_root
def test_a_platform_at_the_same_place_of_a_container_goes_on(place: Path) -> None:
    """In the container, another folder has the same path."""
    inside, root = place / "inside", place / "platform"
    make_platform(root)
    shutil.copytree(root, inside)
    supervisord = [sys.executable, Path(sys.executable).with_name("supervisord"), "-n", "-c"]
    words = shlex.join(map(str, [*supervisord, root / "supervisor" / "supervisord.conf"]))
    mounted = f"mount --bind {shlex.quote(str(inside))} {shlex.quote(str(root))}"
    container = subprocess.Popen(["unshare", "-m", "sh", "-c", f"{mounted} && exec {words}"], stdout=subprocess.DEVNULL)
    try:
        pid_file = inside / "supervisor" / "supervisord.pid"
        wait_for(lambda: pid_file.exists() or container.poll() is not None, "supervisord to run")
        if container.poll() is not None:
            pytest.skip("this machine lets nobody mount")
        before = wait_for(lambda: program_of(root), "its program to run")
        assert run_down(place, root).stdout == "natskit is not running\n"
        assert container.poll() is None
        assert program_of(root) == before
    finally:
        container.terminate()
        container.wait(20)


@needs_root
@pytest.mark.parametrize("owner", ["root", "nobody"])
def test_a_platform_of_root_is_named_to_another_user(place: Path, running: Path, owner: str) -> None:
    """Even if root started it in that user's folder."""
    if owner == "nobody":
        subprocess.run(["chown", "-R", "nobody:", running], check=True)
    else:
        running.chmod(0o700)
    done = run_down(place, running, AS_NOBODY)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (1, "", 1)
    assert "root" in done.stderr
    assert "you are nobody" in done.stderr
    assert str(running) in done.stderr
    assert len(program_of(running)) == 1


@needs_root
def test_programs_of_root_without_their_supervisord_are_not_waited_for(place: Path) -> None:
    root = place / "platform"
    make_platform(root)
    subprocess.run(["chown", "-R", "nobody:", root], check=True)
    with subprocess.Popen([sys.executable, "-c", SLEEP, str(root)]) as stray:
        try:
            done = run_down(place, root, AS_NOBODY)
            assert done.stderr == (
                f"natskit: root started the platform in {root}, and you are nobody: run make down as root\n"
            )
            assert stray.poll() is None
        finally:
            stray.kill()


def test_processes_that_end_meanwhile_are_not_mentioned(place: Path) -> None:
    """Many processes end while it reads ``/proc`` again and again, among them the platform's."""
    root = place / "platform"
    make_platform(root)
    ended = subprocess.Popen(["true"])
    ended.wait()
    (root / "supervisor" / "supervisord.pid").write_text(f"{ended.pid}\n")
    churn = "import subprocess\nwhile True: subprocess.run(['true'])"
    with subprocess.Popen([sys.executable, "-c", churn]) as a, subprocess.Popen([sys.executable, "-c", churn]) as b:
        try:
            for _ in range(10):
                done = run_down(place, root)
                assert (done.returncode, done.stdout, done.stderr) == (0, "natskit is not running\n", "")
        finally:
            a.kill()
            b.kill()


def test_it_needs_nothing_of_a_virtual_environment(place: Path) -> None:
    """It works even if there is one whose Python is gone."""
    (place / ".venv" / "bin").mkdir(parents=True)
    (place / ".venv" / "bin" / "python").symlink_to("/no/such/python")
    done = run_down(place, place / "nowhere")
    assert (done.returncode, done.stdout, done.stderr) == (0, "natskit is not running\n", "")


@needs_root
def test_a_deploy_into_the_folder_of_another_user_is_refused_in_one_sentence(place: Path) -> None:
    root = place / "platform"
    make_platform(root)
    subprocess.run(["chown", "-R", "nobody:", root], check=True)
    with pytest.raises(SettingsError, match=r"is nobody's platform, and you are root: deploy as nobody"):
        preflight.check_owner(root)


@needs_root
def test_a_command_in_the_folder_of_another_user_says_whose_it_is(place: Path) -> None:
    """The command itself, as another user, with the system's Python."""
    root = place / "platform"
    root.mkdir(mode=0o700)
    script = (
        "import os, sys; from pathlib import Path; from natskit.ops import stop_platform\n"
        "try: stop_platform.check_owner(Path(sys.argv[1], 'identity', 'key'))\n"
        "except stop_platform.NotOursError as error: print(error)"
    )
    done = subprocess.run(
        [*AS_NOBODY, "/usr/bin/python3", "-c", script, root], cwd=place, capture_output=True, text=True, check=True
    )
    assert done.stdout == f"{root} belongs to root, and you are nobody: do this as root\n"


def test_the_wait_for_an_end_is_bounded(monkeypatch: pytest.MonkeyPatch, place: Path) -> None:
    monkeypatch.setattr(stop_platform, "STOP_SECONDS", 0.2)
    began = time.monotonic()
    with pytest.raises(TimeoutError, match=r"supervisord \(process \d+\) has not ended in 0.2 s"):
        stop_platform.wait_for_end(os.getpid(), place)
    assert time.monotonic() - began < 10
