"""Files and folders of a project: random operations compared with a model, and trees that change during an
operation."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import shutil
import stat
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from natskit.project import batch, transfer, trash, tree
from natskit.project.content import ABSENT, PLAIN, Stamp, version_of
from natskit.project.files import Home
from natskit.project.transfer import MOST_UPLOADS, MOST_UPLOADS_EACH, Uploads, read_part
from natskit.rpc import RpcError
from tests.mounts import mounted

NEVER = threading.Event()
UPLOAD = "0123456789abcdef"
AT_FDCWD, RENAME_EXCHANGE = -100, 2


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    (tmp_path / "home").mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_text("outside")
    home = Home(tmp_path / "home")
    yield home
    home.close()


def kind_of(call: object, *arguments: object, **named: object) -> str:
    assert callable(call)
    with pytest.raises(RpcError) as caught:
        call(*arguments, **named)
    return caught.value.kind


def upload(home: Home, path: str, data: bytes, expected: str | None = None, uploads: Uploads | None = None) -> None:
    uploads = uploads or Uploads()
    uploads.turn(UPLOAD, "me")
    try:
        uploads.start(home, path, UPLOAD, len(data), expected)
        for begin in range(0, len(data), 3):
            uploads.append(home, path, UPLOAD, begin, data[begin : begin + 3])
        sha256 = hashlib.sha256(data).hexdigest()
        if uploads.received(home, path, UPLOAD, len(data), sha256) is not None:
            uploads.finish(home, path, UPLOAD, sha256, expected, PLAIN)
    except RpcError:
        with contextlib.suppress(RpcError):
            uploads.cancel(home, path, UPLOAD)
        raise


# ---- a model

NAMES = st.sampled_from(["a", "ü\n ", "\udcff"])
PATHS = st.lists(NAMES, min_size=1, max_size=3).map("/".join)
Tree = dict[tuple[str, ...], bytes | None]
"""Paths to contents; ``None`` is a folder."""


class Files(RuleBasedStateMachine):
    """The same operations on a real folder and on a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.top = Path(tempfile.mkdtemp(prefix="natskit-model-", dir=os.environ.get("PYTEST_DEBUG_TEMPROOT")))
        (self.top / "home").mkdir()
        self.home = Home(self.top / "home")
        self.model: Tree = {}
        self.trashed: dict[str, tuple[tuple[str, ...], Tree]] = {}

    def teardown(self) -> None:
        self.home.close()
        shutil.rmtree(self.top)

    def below(self, path: tuple[str, ...]) -> Tree:
        return {key: value for key, value in self.model.items() if key[: len(path)] == path}

    def has_folder(self, path: tuple[str, ...]) -> bool:
        return not path or (path in self.model and self.model[path] is None)

    def forget(self, path: tuple[str, ...]) -> None:
        for key in self.below(path):
            del self.model[key]

    def attempt(self, works: bool, call: object, *arguments: object, **named: object) -> object:
        assert callable(call)
        if works:
            result: object = call(*arguments, **named)
            return result
        with pytest.raises(RpcError):
            call(*arguments, **named)
        return None

    @rule(path=PATHS, data=st.binary(max_size=8), in_parts=st.booleans())
    def write(self, path: str, data: bytes, in_parts: bool) -> None:
        key = tuple(path.split("/"))
        works = self.has_folder(key[:-1]) and self.model.get(key, b"") is not None
        self.attempt(works, upload if in_parts else self.home.write, *([self.home] if in_parts else []), path, data)
        if works:
            self.model[key] = data

    @rule(path=PATHS, data=st.binary(max_size=8), expected=st.binary(max_size=1), in_parts=st.booleans())
    def write_a_version(self, path: str, data: bytes, expected: bytes, in_parts: bool) -> None:
        key = tuple(path.split("/"))
        version = version_of(expected) if expected else ABSENT
        now = self.model.get(key, ABSENT)
        if isinstance(now, bytes):
            works = now == data or version_of(now) == version
            if in_parts and version == ABSENT:
                works = False
        else:
            works = now is not None and self.has_folder(key[:-1]) and version == ABSENT
        self.attempt(
            works, upload if in_parts else self.home.write, *([self.home] if in_parts else []), path, data, version
        )
        if works:
            self.model[key] = data

    @rule(path=PATHS)
    def make_directory(self, path: str) -> None:
        key = tuple(path.split("/"))
        above = [key[:length] for length in range(1, len(key) + 1)]
        works = all(self.has_folder(folder) or folder not in self.model for folder in above)
        before = dict(self.model)
        self.attempt(works, tree.make_directory, self.home, path)
        for folder in above:
            if folder in before and before[folder] is not None:
                break
            self.model[folder] = None

    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        path = self.draw(data)
        key = tuple(path.split("/"))
        removed = self.attempt(key in self.model, tree.Removal(NEVER).run, self.home, path)
        assert removed in (None, len(self.below(key)))
        self.forget(key)

    def draw(self, data: st.DataObject) -> str:
        """A path, most often an existing one."""
        existing = sorted("/".join(key) for key in self.model)
        return data.draw(st.one_of(PATHS, st.sampled_from(existing)) if existing else PATHS)

    @rule(data=st.data(), replace=st.booleans())
    def move(self, data: st.DataObject, replace: bool) -> None:
        path, to = self.draw(data), self.draw(data)
        key, goal = tuple(path.split("/")), tuple(to.split("/"))
        works = self.can_place(key, goal, replace) and goal[: len(key)] != key
        works |= replace and key == goal and key in self.model
        self.attempt(works, tree.move, self.home, path, to, replace=replace)
        if works and key != goal:
            moved = self.below(key)
            self.forget(key)
            self.forget(goal)
            self.model |= {goal + name[len(key) :]: value for name, value in moved.items()}

    @rule(data=st.data(), replace=st.booleans())
    def copy(self, data: st.DataObject, replace: bool) -> None:
        path, to = self.draw(data), self.draw(data)
        key, goal = tuple(path.split("/")), tuple(to.split("/"))
        works = self.can_place(key, goal, replace)
        if self.model.get(key, b"") is None:
            works = works and goal[: len(key)] != key
            works |= replace and key == goal and len(self.below(key)) == 1
        self.attempt(works, tree.Copy(NEVER).run, self.home, path, to, replace=replace)
        if works:
            copied = self.below(key)
            self.forget(goal)
            self.model |= {goal + name[len(key) :]: value for name, value in copied.items()}

    def can_place(self, key: tuple[str, ...], goal: tuple[str, ...], replace: bool) -> bool:
        """Whether the node at ``key`` may move to ``goal``."""
        if key not in self.model or not self.has_folder(goal[:-1]):
            return False
        if goal not in self.model:
            return True
        if not replace:
            return False
        is_folder = self.model[key] is None
        return len(self.below(goal)) == 1 and self.model[goal] is None if is_folder else self.model[goal] is not None

    @rule(data=st.data())
    def throw_away(self, data: st.DataObject) -> None:
        path = self.draw(data)
        key = tuple(path.split("/"))
        identifier = self.attempt(key in self.model, trash.throw_away, self.home, path)
        if identifier is not None:
            self.trashed[str(identifier)] = key, self.below(key)
            self.forget(key)

    @rule(number=st.integers(0, 3))
    def restore(self, number: int) -> None:
        if number >= len(self.trashed):
            return
        identifier = sorted(self.trashed)[number]
        key, things = self.trashed[identifier]
        above = [key[:length] for length in range(1, len(key))]
        made = [folder for folder in above if folder not in self.model]
        blocked = any(self.model.get(folder, None) is not None for folder in above)
        works = key not in self.model and not blocked
        self.attempt(works, trash.restore, self.home, identifier, None)
        if works:
            self.model |= dict.fromkeys(made) | things
            del self.trashed[identifier]
        elif not blocked:
            self.model |= dict.fromkeys(made)

    @invariant()
    def is_as_the_model_says(self) -> None:
        found: Tree = {}
        top = os.fsencode(self.top / "home")
        for folder, folders, names in os.walk(top):
            inside = os.path.relpath(folder, top)
            above = () if inside == b"." else tuple(map(_text, inside.split(b"/")))
            if above == () and b".local" in folders:
                folders.remove(b".local")
            found |= {(*above, _text(name)): None for name in folders}
            for name in names:
                with open(os.path.join(folder, name), "rb") as file:
                    found[*above, _text(name)] = file.read()
        assert found == self.model
        listed = trash.contents(self.home, "", 100, 100_000)["entries"]
        assert {entry["id"]: tuple(entry["path"].split("/")) for entry in listed} == {
            identifier: key for identifier, (key, _) in self.trashed.items()
        }


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


Files.TestCase.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
TestFiles = Files.TestCase


# ---- while others change the tree


@contextlib.contextmanager
def swapping(home: Home) -> Iterator[None]:
    """Swap ``d`` between a folder of the home and a link to a folder outside, again and again."""
    inside, link = home.path / "d", home.path / "link"
    libc = ctypes.CDLL(None)
    exchange = partial(libc.renameat2, AT_FDCWD, os.fsencode(inside), AT_FDCWD, os.fsencode(link), RENAME_EXCHANGE)
    inside.mkdir()
    (inside / "secret").write_text("inside")
    link.symlink_to("../outside")
    stop = threading.Event()

    def swap() -> None:
        while not stop.is_set():
            assert exchange() == 0

    swapper = threading.Thread(target=swap)
    swapper.start()
    try:
        yield
    finally:
        stop.set()
        swapper.join()
        if inside.is_symlink():
            exchange()


def test_no_operation_leaves_a_home_whose_folders_turn_into_links(home: Home, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    (outside / "sub").mkdir()
    (outside / "sub" / "file").write_text("kept")
    before = sorted(outside.rglob("*"))
    uploads = Uploads()
    done: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    calls: dict[str, Callable[[], object]] = {
        "read": lambda: read_part(home, "d/secret", 0, 100, None)[1] == b"inside" or pytest.fail("read outside"),
        "write": lambda: home.write("d/new", b"x"),
        "upload": lambda: upload(home, "d/up", b"abcdef", None, uploads),
        "make": lambda: tree.make_directory(home, "d/dir/inner"),
        "remove": lambda: tree.Removal(NEVER).run(home, "d/dir"),
        "remove sub": lambda: tree.Removal(NEVER).run(home, "d/sub"),
        "move": lambda: tree.move(home, "d/new", "d/moved", replace=True),
        "move secret": lambda: tree.move(home, "d/secret", "d/secret", replace=True),
        "copy": lambda: tree.Copy(NEVER).run(home, "d", "copy", replace=False),
        "copy into": lambda: tree.Copy(NEVER).run(home, "moved", "d/copy", replace=True),
        "chmod": lambda: tree.change_mode(home, "d/secret", 0o600),
        "link": lambda: tree.make_link(home, "d/new link", b"x"),
        "trash": lambda: trash.restore(home, trash.throw_away(home, "d/up"), None),
        "list": lambda: home.list("d", 10_000),
        "list tree": lambda: batch.list_tree(home, "d", "", 100, 10_000, NEVER),
        "write many": lambda: batch.write_files(home, *new_files({"d/many/1": b"1", "d/many/2": b"2"})),
        "read many": lambda: batch.read_files(home, ["d/secret"], 100)[1] == b"inside" or pytest.fail("read outside"),
        "hash": lambda: batch.hash_files(home, ["d/secret"], NEVER)[0] != version_of(b"outside") or pytest.fail("read"),
    }
    with swapping(home):
        for _ in range(150):
            uploads.turn(UPLOAD, "me")
            for name, call in calls.items():
                try:
                    call()
                    done[name] += 1
                except RpcError as error:
                    refused[error.kind] += 1
            if (home.path / "copy").exists():
                assert (home.path / "copy" / "secret").read_text() == "inside"
                shutil.rmtree(home.path / "copy")
    assert sorted(outside.rglob("*")) == before
    assert (outside / "secret").read_text() == "outside"
    assert stat.S_IMODE((outside / "secret").stat().st_mode) != 0o600
    assert refused.keys() <= {"forbidden", "not_found", "conflict", "invalid_params", "invalid_state"}
    assert refused["forbidden"] > 0, "the folder was never a link"
    assert {"read", "write", "upload", "make", "copy", "chmod", "list"} <= done.keys()


def test_a_full_disk_leaves_nothing_half_written(home: Home) -> None:
    with mounted(home.path, "size=1m"):
        small = Home(home.path)
        try:
            small.write("kept", b"before" * 1000)
            room = os.statvfs(home.path).f_bavail * os.statvfs(home.path).f_frsize
            assert kind_of(upload, small, "kept", b"x" * (room + 10)) == "limit"
            big = b"y" * (room * 2 // 3)
            small.write("big", big)
            assert kind_of(small.write, "kept", b"x" * (room // 2 + 5000)) == "limit"
            assert kind_of(tree.Copy(NEVER).run, small, "big", "copy", replace=False) == "limit"
            tree.make_directory(small, "folder")
            tree.move(small, "big", "folder/big", replace=False)
            assert kind_of(tree.Copy(NEVER).run, small, "folder", "copy", replace=False) == "limit"
            uploads = Uploads()
            uploads.turn(UPLOAD, "me")
            uploads.start(small, "new", UPLOAD, 10, None)
            (home.path / "filler").write_bytes(b"z" * (os.statvfs(home.path).f_bavail * 4096 - 8192))
            assert kind_of(uploads.append, small, "new", UPLOAD, 0, b"n" * 20_000) == "limit"
            assert uploads.append(small, "new", UPLOAD, 1, b"n") == {"offset": 0}
            uploads.cancel(small, "new", UPLOAD)
            assert sorted(os.listdir(home.path)) == ["filler", "folder", "kept"]
            assert (home.path / "kept").read_bytes() == b"before" * 1000
        finally:
            small.close()


# ---- uploads


def test_an_upload_goes_on_with_another_agent(home: Home) -> None:
    data = bytes(range(256)) * 10
    first = Uploads()
    first.turn(UPLOAD, "me")
    assert first.start(home, "a", UPLOAD, len(data), None) == {"offset": 0}
    assert first.append(home, "a", UPLOAD, 0, data[:1000]) == {"offset": 1000}
    assert not (home.path / "a").exists()
    second = Uploads()
    second.turn(UPLOAD, "me")
    assert second.start(home, "a", UPLOAD, len(data), None) == {"offset": 1000}
    assert second.append(home, "a", UPLOAD, 1500, data[1500:]) == {"offset": 1000}, "there is a gap"
    assert second.append(home, "a", UPLOAD, 500, data[500:1500]) == {"offset": 1500}
    assert second.append(home, "a", UPLOAD, 0, data[:1000]) == {"offset": 1500}, "this part was sent twice"
    assert kind_of(second.received, home, "a", UPLOAD, len(data), version_of(data)) == "invalid_state"
    second.append(home, "a", UPLOAD, 1500, data[1500:])
    assert second.received(home, "a", UPLOAD, len(data), version_of(data))
    second.finish(home, "a", UPLOAD, version_of(data), None, Stamp(0o750, 1234567.0))
    assert (home.path / "a").read_bytes() == data
    status = (home.path / "a").stat()
    assert (stat.S_IMODE(status.st_mode), status.st_mtime) == (0o750, 1234567.0)
    assert os.listdir(home.path) == ["a"]
    assert not second.received(home, "a", UPLOAD, len(data), version_of(data)), "it is at its place already"


def test_a_finished_upload_is_known_for_a_while(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    uploads, now = Uploads(), 1000.0
    monkeypatch.setattr(transfer, "MOST_FINISHED", 2)
    monkeypatch.setattr("time.monotonic", lambda: now)
    done = {"offset": 3, "version": version_of(b"old")}
    upload(home, "a", b"old", uploads=uploads)
    (home.path / "a").write_bytes(b"of somebody else")
    assert uploads.append(home, "a", UPLOAD, 0, b"") == done
    assert kind_of(uploads.append, home, "b", UPLOAD, 0, b"") == "not_found", "that is another file"
    assert not uploads._open, "nothing is open, and takes a place"
    assert uploads.start(home, "a", UPLOAD, 3, None) == {"offset": 0}, "the same id may be used again"
    assert uploads.append(home, "a", UPLOAD, 0, b"") == {"offset": 0}
    uploads.cancel(home, "a", UPLOAD)
    assert kind_of(uploads.append, home, "a", UPLOAD, 0, b"") == "not_found"
    upload(home, "a", b"old", uploads=uploads)
    now += transfer.FINISHED_SECONDS - 1
    assert uploads.append(home, "a", UPLOAD, 0, b"") == done
    now += 1
    assert kind_of(uploads.append, home, "a", UPLOAD, 0, b"") == "not_found", "that was long ago"
    for name in "abc":
        upload(home, name, b"old", uploads=uploads)
    assert kind_of(uploads.append, home, "a", UPLOAD, 0, b"") == "not_found", "there are too many"
    assert uploads.append(home, "b", UPLOAD, 0, b"") == uploads.append(home, "c", UPLOAD, 0, b"") == done


def test_what_arrived_is_what_was_sent(home: Home) -> None:
    uploads = Uploads()
    uploads.turn(UPLOAD, "me")
    uploads.start(home, "a", UPLOAD, 6, None)
    uploads.append(home, "a", UPLOAD, 0, b"abcdef")
    with pytest.raises(RpcError, match="not those that were sent"):
        uploads.received(home, "a", UPLOAD, 6, version_of(b"ABCDEF"))
    assert os.listdir(home.path) == []


def test_an_upload_keeps_what_a_write_keeps(home: Home) -> None:
    (home.path / "a").write_bytes(b"long before")
    (home.path / "a").chmod(0o640)
    os.link(home.path / "a", home.path / "b")
    (home.path / "link").symlink_to("a")
    upload(home, "link", b"new", version_of(b"long before"))
    assert (home.path / "b").read_bytes() == b"new"
    assert (home.path / "a").samefile(home.path / "b")
    (home.path / "b").unlink()
    upload(home, "link", b"newer")
    assert (home.path / "link").is_symlink()
    assert stat.S_IMODE((home.path / "a").stat().st_mode) == 0o640
    assert sorted(os.listdir(home.path)) == ["a", "link"]


def test_an_upload_is_refused_before_it_is_sent(home: Home) -> None:
    (home.path / "folder").mkdir()
    (home.path / "closed").write_bytes(b"kept")
    (home.path / "closed").chmod(0o444)
    os.mkfifo(home.path / "pipe")
    uploads = Uploads()
    uploads.turn(UPLOAD, "me")
    for path, kind in (("folder", "invalid_params"), ("closed", "forbidden"), ("pipe", "invalid_params")):
        assert kind_of(uploads.start, home, path, UPLOAD, 10, None) == kind
    assert kind_of(uploads.start, home, "closed", UPLOAD, 10, ABSENT) in ("conflict", "forbidden")
    assert kind_of(uploads.start, home, "../x", UPLOAD, 10, None) == "forbidden"
    assert kind_of(uploads.start, home, "none/x", UPLOAD, 10, None) == "not_found"
    assert kind_of(uploads.start, home, "large", UPLOAD, 2**60, None) == "limit"
    assert kind_of(uploads.append, home, "new", UPLOAD, 0, b"x") == "not_found"
    assert sorted(os.listdir(home.path)) == ["closed", "folder", "pipe"]


def test_a_link_in_the_place_of_an_upload_is_not_followed(home: Home, tmp_path: Path) -> None:
    (home.path / f".natskit-{UPLOAD}.upload").symlink_to("../outside/secret")
    uploads = Uploads()
    uploads.turn(UPLOAD, "me")
    assert kind_of(uploads.start, home, "a", UPLOAD, 10, None) == "invalid_params"
    assert (tmp_path / "outside" / "secret").read_text() == "outside"


def test_only_so_many_uploads_are_open(home: Home) -> None:
    uploads = Uploads()
    for number in range(MOST_UPLOADS_EACH):
        uploads.turn(f"{number:016x}", "me")
    assert kind_of(uploads.turn, "f" * 16, "me") == "unavailable"
    uploads.turn(f"{0:016x}", "me")
    for number in range(MOST_UPLOADS_EACH, MOST_UPLOADS):
        uploads.turn(f"{number:016x}", f"caller {number % 10}")
    assert kind_of(uploads.turn, "f" * 16, "somebody else") == "unavailable"
    uploads.cancel(home, "a", f"{0:016x}")
    uploads.turn("f" * 16, "somebody else")
    assert kind_of(uploads.turn, "../../../etc/passwd", "me") == "invalid_params"


# ---- many files at once


def test_a_tree_in_pages_of_any_size(home: Home) -> None:
    for path in ("a/b/c", "a.b/c", "a/b.c", "z", "a/ü\n", "b/x/y/z"):
        (home.path / path).parent.mkdir(parents=True, exist_ok=True)
        (home.path / path).write_text(path)
    (home.path / os.fsdecode(b"a/\xff")).write_text("bytes")
    (home.path / "empty").mkdir()
    (home.path / "link").symlink_to("a")
    whole = batch.list_tree(home, ".", "", 100, 100_000, NEVER)
    assert whole["next"] is None
    names = [entry["name"] for entry in whole["entries"]]
    found = {str(path.relative_to(home.path)).encode("utf-8", "surrogateescape") for path in home.path.rglob("*")}
    assert {name.encode("utf-8", "surrogateescape") for name in names} == found
    assert all(name.rpartition("/")[0] in ("", *names[:number]) for number, name in enumerate(names))
    for most in (1, 2, 5):
        pages: list[str] = []
        after: str | None = ""
        while after is not None:
            page = batch.list_tree(home, ".", after, most, 100_000, NEVER)
            pages += [entry["name"] for entry in page["entries"]]
            after = page["next"]
        assert pages == names
    assert batch.list_tree(home, ".", "", 100, 1, NEVER)["next"] == names[0]
    assert kind_of(batch.list_tree, home, "..", "", 1, 1, NEVER) == "forbidden"
    assert [e["name"] for e in batch.list_tree(home, "b", "", 9, 9999, NEVER)["entries"]] == ["x", "x/y", "x/y/z"]


def new_files(files: dict[str, bytes], mode: int | None = None) -> tuple[list[batch.NewFile], memoryview]:
    listed = [batch.NewFile(path=path, size=len(data), mode=mode) for path, data in files.items()]
    return listed, memoryview(b"".join(files.values()))


def test_many_files_are_written_and_read(home: Home) -> None:
    (home.path / "old").write_text("old")
    (home.path / "old").chmod(0o640)
    files = {"old": b"new", "x/y/1": b"", "x/2": b"22"}
    assert batch.write_files(home, *new_files(files)) == 3
    assert {path: (home.path / path).read_bytes() for path in files} == files
    assert stat.S_IMODE((home.path / "old").stat().st_mode) == 0o640
    states, data = batch.read_files(home, list(files), 100)
    assert ([state["size"] for state in states], data) == ([3, 0, 2], b"new22")
    assert batch.read_files(home, ["x/2", "old"], 4)[1] == b"22"
    states, data = batch.read_files(home, ["old", "x/2"], 2)
    assert ([state["size"] for state in states], data) == ([3], b"ne")
    versions = batch.hash_files(home, ["x/2", "x", "none", "../secret"], NEVER)
    assert versions == [version_of(b"22"), None, None, None]


def test_many_files_or_none(home: Home) -> None:
    (home.path / "a").write_text("kept")
    (home.path / "closed").write_text("kept")
    (home.path / "closed").chmod(0o444)
    (home.path / "folder").mkdir()
    for bad, kind in (("closed", "forbidden"), ("folder", "invalid_params"), ("../x", "forbidden"), ("a/", "")):
        files, data = new_files({"a": b"new", "b": b"new", bad: b"new"})
        assert kind_of(batch.write_files, home, files, data) == (kind or "invalid_params")
    assert kind_of(batch.write_files, home, files, data[1:]) == "invalid_params"
    assert (home.path / "a").read_text() == "kept"
    assert sorted(os.listdir(home.path)) == ["a", "closed", "folder"]
    with mounted(home.path, "size=1m"):
        small = Home(home.path)
        try:
            small.write("a", b"kept")
            assert kind_of(batch.write_files, small, *new_files({"a": b"n" * 600_000, "b": b"n" * 600_000})) == "limit"
            assert os.listdir(home.path) == ["a"]
            assert small.read("a", 10) == b"kept"
        finally:
            small.close()


# ---- single operations


def test_parts_of_a_file(home: Home) -> None:
    (home.path / "a").write_bytes(b"0123456789")
    state, data = read_part(home, "a", 3, 4, None)
    assert (data, state["size"]) == (b"3456", 10)
    assert read_part(home, "a", 8, 4, state["tag"])[1] == b"89"
    assert read_part(home, "a", 20, 4, state["tag"])[1] == b""
    with (home.path / "a").open("r+b") as file:
        file.write(b"x")
    assert kind_of(read_part, home, "a", 3, 4, state["tag"]) == "conflict"
    os.mkfifo(home.path / "pipe")
    assert kind_of(read_part, home, "pipe", 0, 4, None) == "invalid_params"
    assert kind_of(read_part, home, ".", 0, 4, None) == "invalid_params"


def test_a_deep_tree_is_removed(home: Home) -> None:
    fd = os.open(home.path, os.O_RDONLY)
    os.mkdir("deep", dir_fd=fd)
    depth = 0
    inner = os.open("deep", os.O_RDONLY, dir_fd=fd)
    while depth < 3000:
        os.mkdir("d", dir_fd=inner)
        deeper = os.open("d", os.O_RDONLY, dir_fd=inner)
        os.close(inner)
        inner, depth = deeper, depth + 1
    os.close(inner)
    os.close(fd)
    descriptors = len(os.listdir("/proc/self/fd"))
    assert tree.Removal(NEVER).run(home, "deep") == 3001
    assert len(os.listdir("/proc/self/fd")) == descriptors
    assert os.listdir(home.path) == []


def test_links_are_named_not_followed(home: Home) -> None:
    (home.path / "folder").mkdir()
    (home.path / "folder" / "file").write_text("kept")
    tree.make_link(home, "link", b"folder")
    assert tree.describe(home, "link")["target"] == "folder"
    assert tree.describe(home, "link/")["type"] == "directory"
    tree.move(home, "link", "moved", replace=False)
    assert (home.path / "moved").is_symlink()
    assert kind_of(tree.make_link, home, "moved", b"x") == "conflict"
    assert tree.Removal(NEVER).run(home, "moved/") == 1
    assert (home.path / "folder" / "file").read_text() == "kept"
    assert kind_of(tree.make_link, home, "x", b"") == "invalid_params"
    tree.make_link(home, "out", b"../outside")
    assert kind_of(tree.Copy(NEVER).run, home, ".", "copy", replace=False) == "invalid_params"
    assert kind_of(tree.Copy(NEVER).run, home, "out", "copy", replace=False) == "forbidden"
    assert kind_of(tree.make_directory, home, "out/new/er") == "forbidden"
    assert os.listdir(home.path.parent / "outside") == ["secret"]


def test_a_copy_keeps_links_modes_and_times(home: Home) -> None:
    (home.path / "a" / "closed").mkdir(parents=True)
    (home.path / "a" / "closed" / "run").write_text("#!/bin/sh")
    (home.path / "a" / "closed" / "run").chmod(0o755)
    os.utime(home.path / "a" / "closed" / "run", (1, 12345))
    (home.path / "a" / "closed").chmod(0o555)
    (home.path / "a" / "link").symlink_to("/etc/passwd")
    os.mkfifo(home.path / "a" / "pipe")
    work = tree.Copy(NEVER)
    work.run(home, "a", "b", replace=False)
    assert (work.copied, work.skipped) == (4, 1)
    assert os.readlink(home.path / "b" / "link") == "/etc/passwd"
    status = (home.path / "b" / "closed" / "run").stat()
    assert (stat.S_IMODE(status.st_mode), status.st_mtime) == (0o755, 12345)
    assert stat.S_IMODE((home.path / "b" / "closed").stat().st_mode) == 0o555
    assert kind_of(tree.Copy(NEVER).run, home, "a", "a/b", replace=False) == "invalid_params"
    for folder in ("a", "b"):
        (home.path / folder / "closed").chmod(0o755)


def test_modes_within_reason(home: Home) -> None:
    (home.path / "a").touch()
    tree.change_mode(home, "a", 0o751)
    assert tree.describe(home, "a")["mode"] == 0o751
    assert kind_of(tree.change_mode, home, ".", 0) == "forbidden"
    assert kind_of(tree.Removal(NEVER).run, home, ".") == "invalid_params"


def test_long_work_ends_with_the_agent(home: Home) -> None:
    (home.path / "a").mkdir()
    for number in range(3):
        (home.path / "a" / str(number)).write_text("x")
    stopping = threading.Event()
    stopping.set()
    assert kind_of(tree.Copy(stopping).run, home, "a", "b", replace=False) == "unavailable"
    assert kind_of(tree.Removal(stopping).run, home, "a") == "unavailable"
    assert os.listdir(home.path) == ["a"]


def test_the_trash_is_that_of_the_desktop(home: Home) -> None:
    """https://specifications.freedesktop.org/trash-spec/1.0/"""
    (home.path / "dir").mkdir()
    name = os.fsdecode(b"dir/a b%\xff")
    for _ in range(2):
        (home.path / name).write_text("x")
        trash.throw_away(home, os.fsencode(name).decode("utf-8", "surrogateescape"))
    info = home.path / ".local" / "share" / "Trash" / "info"
    first = (info / os.fsdecode(b"a b%\xff.trashinfo")).read_text().splitlines()
    assert first[0] == "[Trash Info]"
    assert first[1] == f"Path={home.path}/dir/a%20b%25%FF"
    assert first[2].startswith("DeletionDate=20")
    assert len(os.listdir(info)) == 2
    assert stat.S_IMODE(info.parent.stat().st_mode) == 0o700
    entries = trash.contents(home, "", 10, 10_000)["entries"]
    assert [entry["path"] for entry in entries] == ["dir/a b%\udcff"] * 2
    assert trash.restore(home, entries[0]["id"], "new folder/x") == "new folder/x"
    assert (home.path / "new folder" / "x").read_text() == "x"
    assert trash.empty(home, None, NEVER) == 1
    assert os.listdir(info) == []
    assert kind_of(trash.throw_away, home, ".local") == "invalid_params"
    assert kind_of(trash.restore, home, "../../x", None) == "invalid_params"
    assert kind_of(trash.restore, home, "gone", None) == "not_found"
