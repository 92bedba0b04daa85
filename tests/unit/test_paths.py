"""Paths never leave the home, by the kernel's confinement and by our own walk, whatever the tree looks like."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from natskit.project.home import ABSENT, Home, has_openat2, version_of
from natskit.rpc import RpcError

SECRET = "outside"  # noqa: S105 - not one


@pytest.fixture(params=[True, False], ids=["openat2", "walk"])
def home(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Home]:
    if request.param and not has_openat2():
        pytest.skip("this kernel has no openat2")
    (tmp_path / "secret").write_text(SECRET)
    (tmp_path / "home").mkdir()
    home = Home(tmp_path / "home", kernel_confines=request.param)
    yield home
    home.close()


def kind_of(call: object, *arguments: object) -> str:
    assert callable(call)
    with pytest.raises(RpcError) as caught:
        call(*arguments)
    return caught.value.kind


def test_write_read_list(home: Home) -> None:
    version = home.write("a.txt", b"one")
    assert home.read("a.txt", 100) == b"one"
    assert version == version_of(b"one")
    (home.path / "sub").mkdir()
    home.write("sub/b", b"")
    (home.path / "link").symlink_to("a.txt")
    os.mkfifo(home.path / "pipe")
    assert [(e["name"], e["type"], e["size"]) for e in home.list() if e["type"] == "file"] == [("a.txt", "file", 3)]
    assert {e["name"]: e["type"] for e in home.list()} == {
        "a.txt": "file",
        "sub": "directory",
        "link": "symlink",
        "pipe": "other",
    }
    assert home.list("sub")[0]["name"] == "b"


@pytest.mark.parametrize(
    "path",
    ["..", "../secret", "a/../../secret", "./../secret", "sub/../../secret", "out", "out/secret", "sub/up/secret"],
)
def test_ways_out_are_forbidden(home: Home, path: str) -> None:
    (home.path / "sub").mkdir()
    (home.path / "a").mkdir()
    (home.path / "out").symlink_to("..")
    (home.path / "sub" / "up").symlink_to("../..")
    assert kind_of(home.read, path, 100) == "forbidden"
    assert kind_of(home.list, path) == "forbidden"
    assert kind_of(home.write, path + "/new", b"x") in ("forbidden", "invalid_params")
    assert os.listdir(home.path.parent) == ["home", "secret"] or set(os.listdir(home.path.parent)) == {"home", "secret"}


def test_absolute_links_and_paths_are_refused(home: Home) -> None:
    (home.path / "etc").symlink_to("/etc")
    (home.path / "file").symlink_to(home.path.parent / "secret")
    (home.path / "own").symlink_to(home.path)
    for path in ("etc/passwd", "file", "own/etc/passwd"):
        assert kind_of(home.read, path, 10**6) == "forbidden"
    assert kind_of(home.read, "/etc/passwd", 10**6) == "invalid_params"
    assert kind_of(home.read, "a\0b", 10) == "invalid_params"
    assert kind_of(home.read, "", 10) == "invalid_params"
    assert kind_of(home.read, "\ud800", 10) == "invalid_params"


def test_proc_links_are_refused(home: Home) -> None:
    (home.path / "root").symlink_to("/proc/self/root")
    assert kind_of(home.read, "root/etc/passwd", 10**6) == "forbidden"


def test_a_link_is_not_written_through(home: Home) -> None:
    secret = home.path.parent / "secret"
    (home.path / "link").symlink_to("../secret")
    (home.path / "dangling").symlink_to("../new")
    assert kind_of(home.write, "link", b"x") == "forbidden"
    assert kind_of(home.write, "dangling", b"x") == "forbidden"
    assert secret.read_text() == SECRET
    assert not (home.path.parent / "new").exists()


def test_a_link_inside_the_home_reads_where_the_kernel_confines(home: Home) -> None:
    home.write("a", b"x")
    (home.path / "link").symlink_to("a")
    if home._kernel_confines:
        assert home.read("link", 10) == b"x"
    else:
        assert kind_of(home.read, "link", 10) == "forbidden"


def test_special_files_do_not_block(home: Home) -> None:
    os.mkfifo(home.path / "pipe")
    assert kind_of(home.read, "pipe", 10) == "invalid_params"
    assert kind_of(home.write, "pipe", b"x") == "invalid_params"
    assert kind_of(home.read, ".", 10) == "invalid_params"
    (home.path / "directory").mkdir()
    assert kind_of(home.write, "directory", b"x") == "invalid_params"
    assert kind_of(home.write, "directory/", b"x") == "invalid_params"
    assert kind_of(home.write, "missing/a", b"x") == "not_found"
    assert kind_of(home.read, "x" * 300, 10) == "invalid_params"


def test_limits(home: Home) -> None:
    home.write("a", b"12345")
    assert home.read("a", 5) == b"12345"
    assert kind_of(home.read, "a", 4) == "limit"


def test_two_writers(home: Home) -> None:
    first = home.write("a", b"1", ABSENT)
    assert kind_of(home.write, "a", b"2", ABSENT) == "conflict"
    second = home.write("a", b"2", first)
    assert home.write("a", b"2", first) == second, "asked twice, since the answer was lost"
    assert kind_of(home.write, "a", b"3", first) == "conflict"
    assert home.read("a", 10) == b"2"
    (home.path / "a").unlink()
    assert kind_of(home.write, "a", b"3", second) == "conflict"
    assert home.list() == [], "no temporary file is left"


def test_mode_is_kept(home: Home) -> None:
    script = home.path / "run"
    script.write_text("old")
    script.chmod(0o750)
    home.write("run", b"new")
    assert script.stat().st_mode & 0o7777 == 0o750


def test_readers_see_the_old_or_the_new(home: Home) -> None:
    contents = [bytes([65 + i]) * 200_000 for i in range(4)]
    home.write("a", contents[0])
    stop = threading.Event()
    bad: list[bytes] = []

    def read() -> None:
        while not stop.is_set():
            if (data := home.read("a", 10**6)) not in contents:
                bad.append(data[:10])

    reader = threading.Thread(target=read)
    reader.start()
    for round_ in range(20):
        home.write("a", contents[round_ % 4])
    stop.set()
    reader.join()
    assert not bad


def test_a_tree_that_changes_during_the_walk(home: Home) -> None:
    """The classic race: a directory is swapped for a link to the outside while it is being opened."""
    inside, outside = home.path / "d", home.path / "evil"
    inside.mkdir()
    (inside / "secret").write_text("inside")
    outside.symlink_to("..")
    stop = threading.Event()

    def swap() -> None:
        while not stop.is_set():
            os.rename(inside, home.path / "tmp")
            os.rename(outside, inside)
            os.rename(inside, outside)
            os.rename(home.path / "tmp", inside)

    swapper = threading.Thread(target=swap)
    swapper.start()
    try:
        for _ in range(3000):
            try:
                assert home.read("d/secret", 100) == b"inside"
            except RpcError:
                continue
    finally:
        stop.set()
        swapper.join()


NAMES = st.sampled_from(["a", "b", "..", ".", "", "up", "abs", "file", "loop", "evil"])


@pytest.mark.parametrize("kernel", [True, False])
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(parts=st.lists(NAMES, min_size=1, max_size=6), tail=st.sampled_from(["", "/", "/secret", "/home/file"]))
def test_whatever_is_opened_is_inside(kernel: bool, parts: list[str], tail: str) -> None:
    if kernel and not has_openat2():
        pytest.skip("this kernel has no openat2")
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory).resolve()
        (root / "secret").write_text(SECRET)
        tree = root / "home"
        (tree / "a" / "b" / "a").mkdir(parents=True)
        (tree / "a" / "file").write_text("inside")
        (tree / "file").write_text("inside")
        (tree / "a" / "up").symlink_to("../..")
        (tree / "up").symlink_to("a/up")
        (tree / "abs").symlink_to(root)
        (tree / "loop").symlink_to("loop")
        (tree / "evil").symlink_to("a/../../secret")
        (tree / "a" / "b" / "evil").symlink_to("/proc/self/cwd")
        home = Home(tree, kernel_confines=kernel)
        path = "/".join(parts) + tail
        try:
            try:
                fd = home.open(path, os.O_RDONLY)
            except RpcError:
                return
            opened = Path(os.readlink(f"/proc/self/fd/{fd}"))
            os.close(fd)
            assert opened == tree or tree in opened.parents
        finally:
            home.close()


@settings(max_examples=200, deadline=None)
@given(path=st.text(max_size=40))
def test_any_text_is_answered_or_refused(path: str) -> None:
    with tempfile.TemporaryDirectory() as directory:
        home = Home(Path(directory))
        for call in (lambda: home.read(path, 10), lambda: home.list(path), lambda: home.write(path, b"x")):
            try:
                call()
            except RpcError:
                continue
        home.close()
