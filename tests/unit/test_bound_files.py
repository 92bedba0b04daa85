"""The files of documents: what of them is text, what is kept beside it, and how they are replaced."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from natskit.project.bound import record, text_file
from natskit.project.bound.record import Entry
from natskit.project.bound.text_file import MARK, bytes_of, text_of
from natskit.project.files import Home
from natskit.rpc import RpcError

LINES = st.lists(st.tuples(st.sampled_from([b"a", b"b", "ü".encode(), b""]), st.sampled_from([b"\n", b"\r\n"])))
FILES = st.builds(
    lambda mark, lines, end: mark + b"".join(a + b for a, b in lines) + end,
    st.sampled_from([b"", MARK]),
    LINES,
    st.sampled_from([b"", b"end"]),
)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


@given(FILES)
def test_what_is_not_edited_stays(data: bytes) -> None:
    assert bytes_of("f", text_of("f", data), data) == data


@given(FILES, st.text("ab\n", max_size=10))
def test_each_text_comes_back(data: bytes, text: str) -> None:
    assert text_of("f", bytes_of("f", text, data)) == text


def test_line_endings_stay() -> None:
    assert bytes_of("f", "a\nnew\nb\n", b"a\r\nb\r\n") == b"a\r\nnew\r\nb\r\n"
    assert bytes_of("f", "a\nB\nc\nd", MARK + b"a\nb\r\nc\r\n") == MARK + b"a\nB\r\nc\r\nd"
    assert bytes_of("f", "a\n", b"") == b"a\n"


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"\x89PNG\0", "is binary"),
        (b"caf\xe9", r"is not text in UTF-8 \(byte 3\)"),
        (b"x" * (text_file.MOST_BYTES + 1), "has more than 524,288 bytes"),
    ],
)
def test_what_is_no_text_is_refused(home: Home, tmp_path: Path, data: bytes, why: str) -> None:
    (tmp_path / "f").write_bytes(data)
    with pytest.raises(RpcError, match=f"'f' {why}"):
        text_file.read(home, "f")


def test_a_file_keeps_everything_else(home: Home, tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.write_bytes(b"old")
    file.chmod(0o750)
    assert text_file.write(home, "f", b"new", b"old")
    assert (file.read_bytes(), stat.S_IMODE(file.stat().st_mode)) == (b"new", 0o750)
    other = tmp_path / "hard link"
    os.link(file, other)
    assert text_file.write(home, "f", b"newer", b"new")
    assert (file.read_bytes(), other.read_bytes()) == (b"newer", b"newer")
    assert sorted(os.listdir(tmp_path)) == ["f", "hard link"]


def test_a_file_that_was_changed_is_not_replaced(home: Home, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"theirs")
    assert not text_file.write(home, "f", b"mine", b"old")
    assert not text_file.write(home, "f", b"mine", None)
    assert not text_file.write(home, "gone", b"mine", b"old")
    assert (tmp_path / "f").read_bytes() == b"theirs"
    assert text_file.write(home, "new folder/g", b"mine", None)
    assert (tmp_path / "new folder" / "g").read_bytes() == b"mine"


def test_what_is_written_in_the_same_moment_stays(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another program writes after the comparison, and before the file is replaced."""
    file = tmp_path / "f"
    file.write_bytes(b"old")
    fsync = os.fsync

    def written_meanwhile(fd: int) -> None:
        monkeypatch.setattr(os, "fsync", fsync)
        (tmp_path / "other").write_bytes(b"theirs")
        (tmp_path / "other").rename(file)
        fsync(fd)

    monkeypatch.setattr(os, "fsync", written_meanwhile)
    assert not text_file.write(home, "f", b"mine", b"old")
    assert file.read_bytes() == b"theirs"
    assert os.listdir(tmp_path) == ["f"]


def test_the_record(home: Home, tmp_path: Path) -> None:
    assert record.load(home) == {}
    entries = {"id": Entry("notes/a.md", 12, "0" * 64, "f" * 64)}
    record.save(home, entries)
    assert record.load(home) == entries
    for wrong in ("", "[]", '{"id": [1, 2]}', '{"id": ["p", -1, "x", "y"]}', '{"id": ["p", 1, "x", "y"]}', "{"):
        (tmp_path / record.PATH).write_text(wrong)
        assert record.load(home) == {}
