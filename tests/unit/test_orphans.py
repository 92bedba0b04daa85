"""natskit ends programs that outlived their supervisord, and nothing else."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

from natskit.ops.orphans import end_orphans, find_orphans

SLEEP = "import time; time.sleep(60)"


def define(folder: Path, command: list[str]) -> None:
    (folder / "program.conf").write_text(f"[program:x]\ncommand = {shlex.join(command).replace('%', '%%')}\n")


def test_a_program_with_a_defined_command_is_ended(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SLEEP, "--settings", f"{tmp_path}/hub.json", "100%"]
    define(tmp_path, command)
    with subprocess.Popen(command) as stray, subprocess.Popen([*command, "other"]) as other:
        try:
            assert end_orphans(tmp_path) == [stray.pid]
            assert stray.wait(5) == -15
            assert other.poll() is None
        finally:
            other.kill()
            stray.kill()


def test_a_program_that_ignores_it_is_killed(tmp_path: Path) -> None:
    script = (
        "import signal, time; [signal.signal(n, signal.SIG_IGN) for n in (2, 15)]; print(1, flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    define(tmp_path, command)
    with subprocess.Popen(command, stdout=subprocess.PIPE) as stray:
        assert stray.stdout is not None
        stray.stdout.readline()
        assert end_orphans(tmp_path, patience=0.2) == [stray.pid]
        assert stray.wait(5) == -9


def test_a_folder_without_programs_has_no_strays(tmp_path: Path) -> None:
    assert list(find_orphans(tmp_path)) == []
    (tmp_path / "empty.conf").write_text("[program:x]\n")
    assert list(find_orphans(tmp_path)) == []
