"""What is copied when a project moves, and lists of its files in pages."""

from __future__ import annotations

import hashlib
import itertools
import os
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from natskit.bus.project_move import Entry, Piece, Written, from_path, to_path
from natskit.cli import move
from natskit.cli.move import SMALL_BYTES, Move, difference, plan
from natskit.client import Client
from natskit.errors import NatskitError
from natskit.rpc import RpcError
from natskit.runner import moved_tree
from natskit.runner.moved_tree import Tree

LONG = Entry("x" * 6000, "directory", 0o700, 1, 0, 0, 1, 0, "")
TOP = Entry("", "directory", 0o700, 1, 0, 0, 1, 0, "")


def folder(path: str, mode: int = 0o755) -> Entry:
    return Entry(path, "directory", mode, 5, 0, 0, 6, 0, "")


def file(path: str, size: int = 10, mtime: int = 5, inode: int = 0, mode: int = 0o644) -> Entry:
    return Entry(path, "file", mode, mtime, size, 4096, 6, inode, "")


def link(path: str, target: str) -> Entry:
    return Entry(path, "symlink", 0o777, 5, 0, 0, 6, 0, target)


def test_what_has_arrived_is_not_copied_again() -> None:
    source = [TOP, folder("a"), file("a/b"), link("l", "a/b"), file("new")]
    found = plan(source, [TOP, folder("a", 0o700), file("a/b"), link("l", "a/b")])
    assert [entry.path for entry, _ in found.files] == ["new"]
    assert (found.others, found.discard, found.arrived) == ([], [], 4096)
    assert [entry.path for entry in found.folders] == ["a"], "made writable again"


@pytest.mark.parametrize("other", [file("f", size=9), file("f", mtime=6), file("f", mode=0o600)])
def test_a_file_that_differs_is_copied(other: Entry) -> None:
    assert plan([TOP, file("f")], [TOP, other]).files == [(file("f"), 0)]


def test_a_large_file_continues_and_a_longer_one_begins_again() -> None:
    large = file("f", size=SMALL_BYTES * 4)
    assert plan([TOP, large], [TOP, file("f", size=SMALL_BYTES * 2, mtime=99)]).files == [(large, SMALL_BYTES * 2)]
    assert plan([TOP, large], [TOP, file("f", size=SMALL_BYTES * 5, mtime=99)]).files == [(large, 0)]


def test_what_the_source_has_not_is_discarded_with_its_folder() -> None:
    target = [TOP, folder("a"), file("a/b"), folder("a/c"), file("a/c/d"), file("ab"), file("x")]
    found = plan([TOP, file("a"), file("x")], target)
    assert found.discard == ["a", "ab"]
    assert [entry.path for entry, _ in found.files] == ["a"]


def test_names_of_one_file_stay_names_of_one_file() -> None:
    source = [TOP, file("a", inode=7), file("b", inode=7), file("c", inode=8), file("d", inode=8)]
    found = plan(source, [TOP])
    assert [entry.path for entry, _ in found.files] == ["a", "c"]
    assert found.links == [("b", "a"), ("d", "c")]
    there = [TOP, file("a", inode=70), file("b", inode=70), file("c", inode=80), file("d", inode=80)]
    assert (plan(source, there).files, plan(source, there).links) == ([], [])
    apart = plan([TOP, file("a"), file("b")], there[:3])
    assert apart.discard == ["a", "b"], "a write to one would change the other"


def test_a_difference_is_named() -> None:
    source = [TOP, file("a"), link("l", "a"), Entry("s", "other", 0, 1, 0, 0, 1, 0, "")]
    assert difference(source, source[:3]) is None
    assert difference(source, [TOP, file("a", mode=0o600), link("l", "a")]) == "a"
    assert difference(source, [TOP, file("a")]) == "l"
    assert difference(source, [*source[:3], file("more")]) == "more"
    assert difference(source, [TOP, file("a"), link("l", "b")]) == "l"


@given(st.binary(min_size=1, max_size=40).filter(lambda name: not {0, 47} & set(name) and name not in (b".", b"..")))
def test_a_path_is_its_bytes(name: bytes) -> None:
    assert from_path(to_path(name)) == name


@pytest.mark.parametrize("path", ["..", ".", "/a", "a/", "a//b", "a/../b", "a\0b", "a/."])
def test_a_path_stays_below_the_home(path: str) -> None:
    with pytest.raises(ValueError, match="no path below a home"):
        from_path(path)


names = st.sampled_from([b"a", b"b", b"a-", b"\xff", b"z\n", b"-"])
paths = st.lists(st.lists(names, min_size=1, max_size=4).map(b"/".join), max_size=25)


@settings(deadline=None, max_examples=60)
@given(paths, st.integers(min_value=1, max_value=1500))
def test_pages_of_any_size_have_every_name_once_and_in_order(made: list[bytes], room: int) -> None:
    with tempfile.TemporaryDirectory() as top:
        for path in made:
            os.makedirs(os.path.join(os.fsencode(top), path), exist_ok=True)
        expected = {b""}
        for path in made:
            parts = path.split(b"/")
            expected |= {b"/".join(parts[: count + 1]) for count in range(len(parts))}
        found: list[Entry] = []
        after: str | None = None
        while True:
            with Tree(Path(top)) as tree:
                page, after = tree.page(after, room)
            found += page
            if after is None:
                break
        assert [from_path(entry.path) for entry in found] == sorted(expected, key=lambda path: path.split(b"/"))


def test_a_page_has_no_more_than_so_many_entries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A message may have 64 MiB."""
    monkeypatch.setattr(moved_tree, "MOST_ENTRIES", 3)
    for name in "abcd":
        (tmp_path / name).touch()
    with Tree(tmp_path) as tree:
        first, after = tree.page(None, 1 << 26)
        rest, end = tree.page(after, 1 << 26)
    assert ([entry.path for entry in first], after) == (["", "a", "b"], "b")
    assert ([entry.path for entry in rest], end) == (["c", "d"], None)


def test_a_page_goes_on_after_a_name_that_is_gone(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "in").touch()
    (tmp_path / "b" / "in").unlink()
    (tmp_path / "b").rmdir()
    with Tree(tmp_path) as tree:
        page, more = tree.page("b/in", 10_000)
    assert ([entry.path for entry in page], more) == (["c", "c/in"], None)


def test_a_file_with_another_name_outside_is_not_written_through(tmp_path: Path) -> None:
    """A whole file replaces what is there."""
    outside, top = tmp_path / "outside", tmp_path / "top"
    top.mkdir()
    outside.write_text("kept")
    (top / "f").hardlink_to(outside)
    (top / "l").symlink_to(outside)
    with Tree(top) as tree:
        for name in ("f", "l"):
            tree.write([Written(name, 0, 3, True, 3, 0o640, 77)], memoryview(b"new"))
    assert outside.read_text() == "kept"
    assert [(top / name).read_text() for name in ("f", "l")] == ["new", "new"]
    assert (top / "l").stat().st_mtime_ns == 77


def test_a_link_is_neither_read_nor_followed(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    top = tmp_path / "top"
    top.mkdir()
    (top / "l").symlink_to(tmp_path / "secret")
    (top / "d").symlink_to(tmp_path)
    os.mkfifo(top / "pipe")
    with Tree(top) as tree:
        for path in ("l", "d/secret", "pipe"):
            with pytest.raises(RpcError):
                tree.read([Piece(path, 0, 10)], 100)
            with pytest.raises(RpcError):
                tree.hashes([Piece(path, 0, 10)])
        with pytest.raises(RpcError):
            tree.write([Written("l", 0, 1, False, 9, 0o600, 1)], memoryview(b"x"))
    assert (tmp_path / "secret").read_text() == "secret"


def test_holes_have_the_hash_of_their_zeros_without_being_read(tmp_path: Path) -> None:
    huge, mib = 1 << 40, 1 << 20
    with (tmp_path / "sparse").open("wb") as sparse:
        sparse.truncate(huge)
        sparse.seek(20 * mib)
        sparse.write(b"data")
    pieces = [
        Piece("sparse", 0, 32 * mib),
        *(Piece("sparse", start, 32 * mib) for start in range(huge - (100 << 30), huge, 32 * mib)),
        Piece("sparse", huge - 1, 1),
        Piece("sparse", huge - 1, 2),
        Piece("sparse", huge, 0),
    ]
    with Tree(tmp_path) as tree:
        first, *holes, last, beyond, nothing = tree.hashes(pieces)
    content = bytearray(32 * mib)
    content[20 * mib : 20 * mib + 4] = b"data"
    assert first == hashlib.sha256(content).hexdigest()
    assert set(holes) == {hashlib.sha256(bytes(32 * mib)).hexdigest()}
    assert last == hashlib.sha256(b"\0").hexdigest()
    assert (beyond, nothing) == ("", hashlib.sha256().hexdigest())


class Hostile:
    """Answers as a runner that somebody has taken over."""

    connection = SimpleNamespace(max_payload=1 << 20)

    def __init__(self, *pages: dict[str, Any]) -> None:
        self._pages = itertools.cycle(pages)

    async def call_runner(self, *_: Any, **__: Any) -> tuple[Any, memoryview]:
        return next(self._pages), memoryview(b"")


@pytest.mark.parametrize(
    ("pages", "said"),
    [
        ([{"entries": [], "next": "a"}], "does not go on"),
        ([{"entries": [TOP], "next": "a"}], "does not go on"),
        ([{"entries": [TOP] * 50, "next": "a"}, {"entries": [TOP] * 50, "next": "b"}], "more than 100 files"),
        ([{"entries": [LONG], "next": "a"}, {"entries": [LONG], "next": "b"}], "paths of more than 10,000 bytes"),
    ],
)
async def test_a_list_that_does_not_end_is_refused(
    pages: list[dict[str, Any]], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(move, "MOST_FILES", 100)
    monkeypatch.setattr(move, "MOST_LIST_BYTES", 10_000)
    moving = Move(cast("Client", Hostile(*pages)), "p", lambda *_: None)
    moving._known({"runner_id": "r", "name": "spare"})
    with pytest.raises(NatskitError, match=said):
        await moving._list("r", target=False)


async def test_what_a_runner_says_does_nothing_to_a_terminal() -> None:
    class Refusing(Hostile):
        async def call_runner(self, *_: Any, **__: Any) -> tuple[Any, memoryview]:
            raise RpcError("invalid_state", "\x1b]0;owned\x07\u202e")

    moving = Move(cast("Client", Refusing()), "p", lambda *_: None)
    moving._known({"runner_id": "r", "name": "spare"})
    with pytest.raises(RpcError) as caught:
        await moving._list("r", target=False)
    assert str(caught.value) == r"runner spare: \x1b]0;owned\x07\u202e"
