"""``scripts/tests`` runs everything, reports each failure, and passes an interrupt to all its groups."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pytest

from tests.kit.wait import wait_for
from tests.platform.site import REPOSITORY

# Stands for pytest and npm: notes its words, and runs until it is told to end or interrupted.
PROGRAM = """#!/bin/bash
note() { echo "$* # $$ ${NATSKIT_DEBIAN:--}" >>"$FOLDER/notes"; }
trap 'note interrupted "$@"; exit 2' INT
# Notes in pytest's cache which tests failed, and whether the first try is the only one that fails.
failed() {
  while [ $# -gt 0 ] && [[ $1 != cache_dir=* ]]; do shift; done
  [ $# = 0 ] || { mkdir -p "${1#*=}/v/cache" && cp "$FOLDER/lastfailed" "${1#*=}/v/cache/"; }
  exit 1
}
note began "$@"
case " $* " in *"$WAITS"*) sleep 600 ;; esac
case " $* " in *--last-failed*) ! [ -e "$FOLDER/mended" ] || exit 0 ;; esac
case " $* " in *"$FAILS"*) failed "$@" ;; esac
note ended "$@"
"""
GROUPS = ["tests/cluster", "tests/platform", "tests/unit", "tests/hub", "run --silent test"]
"""A word of the first command of each group."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The parts of a checkout that ``scripts/tests`` needs."""
    for name in (".venv/bin/pytest", "bin/npm"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(PROGRAM)
        (tmp_path / name).chmod(0o755)
    (tmp_path / "web").mkdir()
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "tests").write_bytes((REPOSITORY / "scripts" / "tests").read_bytes())
    (tmp_path / "scripts" / "tests").chmod(0o755)
    (tmp_path / "scripts" / "node").write_text('PATH="$PWD/bin:$PATH"\n')
    return tmp_path


class Start(Protocol):
    def __call__(
        self, *words: str, waits: str = "nothing", fails: str = "nothing", second_try: str = ""
    ) -> subprocess.Popen[bytes]: ...


@pytest.fixture
def start(folder: Path) -> Iterator[Start]:
    """Start ``scripts/tests``, with a word of the commands that wait for an interrupt, and of those that fail."""
    runs: list[subprocess.Popen[bytes]] = []

    def start(
        *words: str, waits: str = "nothing", fails: str = "nothing", second_try: str = ""
    ) -> subprocess.Popen[bytes]:
        known = {"PATH": os.environ["PATH"], "FOLDER": str(folder), "WAITS": waits, "FAILS": fails}
        with (folder / "output").open("wb") as output:
            runs.append(
                subprocess.Popen(
                    [folder / "scripts" / "tests", *words], env=known | {"SECOND_TRY": second_try}, stdout=output
                )
            )
        return runs[-1]

    yield start
    for run in runs:
        run.kill()
        run.wait()
    ended = {note.process for kind in ("ended", "interrupted") for note in notes(folder, kind)}
    for note in notes(folder, "began"):
        if note.process not in ended:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(os.getpgid(note.process), signal.SIGKILL)


@dataclass(frozen=True)
class Note:
    """The words of a command, its process, and its Debian release."""

    words: list[str]
    process: int
    release: str


def notes(folder: Path, kind: str) -> list[Note]:
    path = folder / "notes"
    found = []
    for line in path.read_text().splitlines() if path.exists() else []:
        words, _, told = line.partition(" # ")
        process, release = told.split()
        if words.startswith(f"{kind} "):
            found.append(Note(words.split()[1:], int(process), release))
    return found


def test_every_test_is_run_once_and_on_the_older_release_some_again(folder: Path, start: Start) -> None:
    assert start().wait(30) == 0
    began = notes(folder, "began")
    (older,) = (files(note) for note in began if note.release == "12")
    (newer,) = (note for note in began if note.release == "13")
    others = [word for note in began if note.release == "-" for word in note.words if word.startswith("tests/")]
    expected = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]["testpaths"]
    assert sorted([*others, *files(newer)]) == sorted([*expected, "tests/cluster"])
    left_out = [word.removeprefix("--ignore=") for word in newer.words if word.startswith("--ignore=")]
    both = [f"tests/cluster/test_{name}.py" for name in ("machines", "sandbox", "seen")]
    assert older == [*left_out, *both]
    assert all((REPOSITORY / file).exists() for file in older)
    assert [note.words for note in began if "run" in note.words] == [["run", "--silent", "test"]]


def files(note: Note) -> list[str]:
    return [word for word in note.words if word.startswith("tests/")]


@pytest.mark.parametrize("fails", [*GROUPS, "tests/nats", "test_sandbox.py"])
def test_a_failure_counts_and_ends_nothing_else(folder: Path, start: Start, fails: str) -> None:
    assert start(fails=fails).wait(30) == 1
    assert len(notes(folder, "began")) == len(GROUPS) + 2


def again(folder: Path) -> list[list[str]]:
    """The folders of tests of which some were tried again."""
    tried = [note.words for note in notes(folder, "began") if "--last-failed" in note.words]
    return [[word for word in words if word.startswith("tests/")] for words in tried]


FAILED = {f"tests/hub/test_calls.py::test_call_{number}": True for number in range(4)}


@pytest.mark.parametrize("failed", [1, 3])
def test_in_ci_a_race_of_a_test_is_named_and_does_not_count(folder: Path, start: Start, failed: int) -> None:
    names = list(FAILED)[:failed]
    (folder / "lastfailed").write_text(json.dumps(dict.fromkeys(names, True), indent=2))
    (folder / "mended").touch()
    assert start(fails="tests/hub", second_try="1").wait(30) == 0
    assert again(folder) == [["tests/hub", "tests/keeper", "tests/agent"]]
    _, _, after = (folder / "output").read_text().partition("PASSED ONLY AT THE SECOND TRY")
    assert after.split("\n")[1 : failed + 1] == names


def test_in_ci_a_test_that_fails_twice_counts(folder: Path, start: Start) -> None:
    (folder / "lastfailed").write_text(json.dumps({"tests/nats/test_tls.py::test_old": True}, indent=2))
    assert start(fails="tests/nats", second_try="1").wait(30) == 1
    assert again(folder) == [["tests/nats"]]
    assert "PASSED ONLY" not in (folder / "output").read_text()


def test_more_failures_than_races_explain_are_not_tried_again(folder: Path, start: Start) -> None:
    (folder / "lastfailed").write_text(json.dumps(FAILED, indent=2))
    (folder / "mended").touch()
    assert start(fails="tests/hub", second_try="1").wait(30) == 1
    assert again(folder) == []


def test_outside_ci_nothing_is_tried_again(folder: Path, start: Start) -> None:
    (folder / "lastfailed").write_text(json.dumps(dict.fromkeys(list(FAILED)[:1], True), indent=2))
    (folder / "mended").touch()
    assert start(fails="tests/hub").wait(30) == 1
    assert again(folder) == []


def test_some_tests_alone(folder: Path, start: Start) -> None:
    assert start("tests/hub", "-x").wait(30) == 0
    assert [note.words for note in notes(folder, "began")] == [["tests/hub", "-x"]]


def test_the_quick_tests_alone_in_several_processes(folder: Path, start: Start) -> None:
    assert start("--quick", fails="tests/unit").wait(30) == 1
    (note,) = notes(folder, "began")
    assert note.words[-2:] == ["tests/unit", "tests/render"]
    assert note.words[note.words.index("--numprocesses") + 1] == "auto"


def test_an_interrupt_from_a_terminal_ends_all_groups(folder: Path, start: Start) -> None:
    """A terminal sends it only to the foreground group."""
    run = start(waits="test")
    wait_for(lambda: len(notes(folder, "began")) == len(GROUPS), "all to run")
    (in_front,) = [note for note in notes(folder, "began") if "tests/hub" in note.words]
    os.killpg(in_front.process, signal.SIGINT)
    assert run.wait(30) == 2
    assert len(notes(folder, "interrupted")) == len(GROUPS)
    assert len(notes(folder, "began")) == len(GROUPS), "nothing starts after an interrupt"


def test_an_interrupt_ends_the_groups_that_take_longest(folder: Path, start: Start) -> None:
    """When the foreground group has ended, a terminal sends it to the script."""
    run = start(waits="tests/platform")
    wait_for(lambda: len(notes(folder, "ended")) == len(GROUPS) + 1, "the others to end")
    run.send_signal(signal.SIGINT)
    assert run.wait(30) == 2
    assert [note.words[-1] for note in notes(folder, "interrupted")] == ["tests/platform"]
