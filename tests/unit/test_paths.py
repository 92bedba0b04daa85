"""Paths never leave the home, however the tree changes, and writing keeps a file's properties."""

from __future__ import annotations

import os
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from natskit.project.content import ABSENT, version_of
from natskit.project.files import Entry, Home
from natskit.rpc import RpcError, encode_result

SECRET = "outside"  # noqa: S105 - not one


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    (tmp_path / "secret").write_text(SECRET)
    (tmp_path / "home").mkdir()
    home = Home(tmp_path / "home")
    yield home
    home.close()


def listed(home: Home, path: str = ".") -> list[Entry]:
    return home.list(path, 1_000_000)


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
    assert [(e["name"], e["type"], e["size"]) for e in listed(home) if e["type"] == "file"] == [("a.txt", "file", 3)]
    assert {e["name"]: e["type"] for e in listed(home)} == {
        "a.txt": "file",
        "sub": "directory",
        "link": "symlink",
        "pipe": "other",
    }
    assert listed(home, "sub")[0]["name"] == "b"


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
    assert kind_of(home.list, path, 1000) == "forbidden"
    assert kind_of(home.write, path + "/new", b"x") in ("forbidden", "invalid_params")
    assert os.listdir(home.path.parent) == ["home", "secret"] or set(os.listdir(home.path.parent)) == {"home", "secret"}


def test_absolute_links_out_and_absolute_paths_are_refused(home: Home) -> None:
    (home.path / "etc").symlink_to("/etc")
    (home.path / "file").symlink_to(home.path.parent / "secret")
    (home.path / "beside").symlink_to(f"{home.path}/../secret")
    (home.path / "nothing").symlink_to("/no such thing")
    (home.path / "own").symlink_to(home.path)
    for path in ("etc/passwd", "file", "beside", "nothing", "nothing/a", "own/etc/passwd", "own/../secret", "etc"):
        assert kind_of(home.read, path, 10**6) == "forbidden", path
        assert kind_of(home.write, path, b"x") == "forbidden", path
    for path in ("/etc/passwd", "a\0b", "", "\ud800", "x/" * 40_000):
        assert kind_of(home.read, path, 10**6) == "invalid_params"


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


@pytest.mark.parametrize("mode", ["relative", "absolute", "absolute and indirect"])
def test_links_inside_the_home_are_followed(home: Home, mode: str) -> None:
    real = home.path / "real"
    real.mkdir()
    (real / "a").write_bytes(b"x")
    (home.path.parent / "way").symlink_to(home.path)
    at = {"relative": Path(), "absolute": home.path, "absolute and indirect": home.path.parent / "way"}[mode]
    (home.path / "folder").symlink_to(at / "real")
    (home.path / "chain").symlink_to(at / "folder")
    (home.path / "file").symlink_to(at / "chain" / "a")
    (home.path / "new").symlink_to(at / "real" / "new")
    (real / "up").symlink_to(home.path if at.is_absolute() else "..")
    for path in ("folder/a", "chain/a", "file", "chain/up/real/up/file", "folder/../real/a"):
        assert home.read(path, 10) == b"x", path
    for number, path in enumerate(("folder/a", "chain/a", "file", "real/up/chain/up/file")):
        home.write(path, b"%d" % number, version_of(home.read(path, 10)))
        assert (real / "a").read_bytes() == b"%d" % number
    home.write("new", b"made", ABSENT)
    assert (real / "new").read_bytes() == b"made"
    assert all(entry["type"] == "symlink" for entry in listed(home) if entry["name"] != "real")
    assert [entry["name"] for entry in listed(home, "chain/up/folder")] == ["a", "new", "up"]


def test_a_home_that_is_itself_given_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk" / "home").mkdir(parents=True)
    (tmp_path / "link").symlink_to("disk")
    home = Home(tmp_path / "link" / "home")
    for number, path in enumerate((tmp_path / "link" / "home", (tmp_path / "link" / "home").resolve())):
        (home.path / f"to-{number}").symlink_to(path / "a")
        home.write(f"to-{number}", b"%d" % number)
        assert home.read("a", 10) == b"%d" % number
    home.close()


def test_links_in_a_circle(home: Home) -> None:
    (home.path / "loop").symlink_to("loop")
    (home.path / "ping").symlink_to(home.path / "pong")
    (home.path / "pong").symlink_to("ping")
    for path in ("loop", "ping", "pong/a"):
        assert kind_of(home.read, path, 10) == "invalid_params"
        assert kind_of(home.write, path, b"x") == "invalid_params"


def test_folders_in_folders_with_a_path_that_is_longer_than_any_call_takes(home: Home) -> None:
    fd = os.open(home.path, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("folder", dir_fd=fd)
        below = os.open("folder", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)
    deep = "folder/" * 1500
    home.write(f"{deep}file", b"x", ABSENT)
    assert home.read(f"{deep}../folder/file", 10) == b"x"
    assert [entry["name"] for entry in listed(home, deep)] == ["file"]
    subprocess.run(["rm", "-r", home.path / "folder"], check=True)


@pytest.mark.parametrize(
    "name",
    [
        "a\nb",
        "a\r\nb",
        " both ",
        "tab\t",
        "..\n",
        "...",
        "-rf",
        "\u2028",
        "\u202e",
        "é",
        "e\u0301",
        "\udcff",
        "\x1b[31m",
    ],
)
def test_a_file_is_what_it_is_called(home: Home, name: str) -> None:
    """A name in a list opens exactly this file, even if it is not UTF-8."""
    other = name.encode("utf-8", "replace").decode().strip().replace("\n", "").replace("\r", "") or "other"
    (home.path / os.fsencode(name).decode("utf-8", "surrogateescape")).write_bytes(b"this one")
    if other != name and other not in (".", ".."):
        (home.path / other).write_bytes(b"another")
    assert name in [entry["name"] for entry in listed(home)]
    assert home.read(name, 100) == b"this one"
    home.write(name, b"changed", version_of(b"this one"))
    assert (home.path / name).read_bytes() == b"changed"
    assert len(listed(home)) == len(os.listdir(home.path))


def test_a_list_in_parts(home: Home) -> None:
    names = sorted((f"{'ü' * (number % 100)}-{number}\1" for number in range(300)), key=os.fsencode)
    for name in names:
        (home.path / name).touch()
    for limit, room in ((7, 10**6), (100, 10**6), (300, 10**6), (10**9, 10**6), (100, 5000), (1, 1)):
        found: list[str] = []
        after: str | None = ""
        while after is not None:
            page = home.list_page(".", after, limit, room)
            assert len(page["entries"]) <= limit
            assert len(page["entries"]) == 1 or len(encode_result(1, page)) < room + 2048
            found += [entry["name"] for entry in page["entries"]]
            after = page["next"]
        assert found == names
    assert kind_of(home.list, ".", 5000) == "limit"
    assert home.list_page(".", "\U0010ffff", 10, 1000) == {"entries": [], "next": None}


def test_special_files_do_not_block(home: Home) -> None:
    os.mkfifo(home.path / "pipe")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(home.path / "socket"))
        assert kind_of(home.read, "socket", 10) == "invalid_params"
    (home.path / "to pipe").symlink_to("pipe")
    assert kind_of(home.read, "to pipe", 10) == "invalid_params"
    assert kind_of(home.open, "pipe", os.O_RDONLY) == "invalid_params"
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
    assert listed(home) == [], "no temporary file is left"


@pytest.mark.parametrize("mode", [0o750, 0o600, 0o755, 0o666])
def test_mode_and_attributes_are_kept(home: Home, mode: int) -> None:
    script = home.path / "run"
    script.write_text("old")
    script.chmod(mode)
    os.setxattr(script, "user.comment", b"kept")
    home.write("run", b"new")
    assert script.read_text() == "new"
    assert script.stat().st_mode & 0o7777 == mode
    assert os.getxattr(script, "user.comment") == b"kept"


def test_access_lists_are_kept(home: Home) -> None:
    if shutil.which("setfacl") is None:
        pytest.skip("setfacl is missing")
    for name in ("with", "without"):
        (home.path / name).touch()
    subprocess.run(["setfacl", "-m", "u:1234:rw", home.path / "with"], check=True)
    subprocess.run(["setfacl", "-d", "-m", "u:4321:rw", home.path], check=True)
    for name in ("with", "without"):
        before = subprocess.run(["getfacl", "-p", home.path / name], capture_output=True, check=True).stdout
        home.write(name, b"new")
        assert subprocess.run(["getfacl", "-p", home.path / name], capture_output=True, check=True).stdout == before


def test_other_names_of_a_file_stay_its_names(home: Home) -> None:
    (home.path / "a").write_bytes(b"long before")
    os.link(home.path / "a", home.path / "b")
    home.write("a", b"new", version_of(b"long before"))
    assert (home.path / "b").read_bytes() == b"new"
    assert (home.path / "a").samefile(home.path / "b")


def test_no_room_for_what_is_written_into_a_file(home: Home) -> None:
    """A file that cannot be replaced gets its old content back."""
    (home.path / "a").write_bytes(b"before" * 1000)
    os.link(home.path / "a", home.path / "b")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        assert kind_of(home.write, "a", b"x" * 20_000) == "limit"
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert home.read("b", 10_000) == b"before" * 1000


@pytest.mark.parametrize("mode", [0o444, 0o555, 0o400, 0o000])
def test_what_is_read_only_is_not_replaced(home: Home, mode: int) -> None:
    home.write("a", b"kept")
    (home.path / "link").symlink_to("a")
    (home.path / "a").chmod(mode)
    for path in ("a", "link"):
        with pytest.raises(RpcError, match="chmod"):
            home.write(path, b"lost")
    assert (home.path / "a").stat().st_mode & 0o777 == mode
    (home.path / "a").chmod(0o644)
    assert home.read("a", 10) == b"kept"


AS_NOBODY = """
import os, sys
from pathlib import Path
from natskit.project.content import version_of
from natskit.project.files import Home
from natskit.rpc import RpcError
home = Home(Path(sys.argv[1]))
if os.geteuid() == 0:
    os.setresuid(65534, 65534, 65534)
home.write("closed/file", b"new", version_of(b"old"))
for path in ("closed/other", "foreign"):
    try:
        home.write(path, b"x")
    except RpcError as error:
        print(error.kind, error)
"""


def test_a_user_other_than_root() -> None:
    """A file in a read-only folder is written in place; if the file is read-only, too, the write is refused."""
    home = Path(tempfile.mkdtemp(prefix="natskit-home-", dir="/var/tmp"))
    try:
        (home / "closed").mkdir()
        (home / "closed" / "file").write_bytes(b"old")
        (home / "foreign").write_bytes(b"kept")
        if os.geteuid() == 0:
            for path in (home, home / "closed", home / "closed" / "file"):
                os.chown(path, 65534, 65534)
        (home / "closed").chmod(0o555)
        (home / "foreign").chmod(0o444)
        command = [sys.executable, "-c", AS_NOBODY, str(home)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert [line.split()[0] for line in done.stdout.splitlines()] == ["forbidden", "forbidden"]
        assert (home / "closed" / "file").read_bytes() == b"new"
        assert (home / "foreign").read_bytes() == b"kept"
    finally:
        (home / "closed").chmod(0o755)
        shutil.rmtree(home)


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


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(parts=st.lists(NAMES, min_size=1, max_size=6), tail=st.sampled_from(["", "/", "/secret", "/home/file"]))
def test_whatever_is_opened_is_inside(parts: list[str], tail: str) -> None:
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
        home = Home(tree)
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


@settings(max_examples=200)
@given(path=st.text(max_size=40))
def test_any_text_is_answered_or_refused(path: str) -> None:
    with tempfile.TemporaryDirectory() as directory:
        home = Home(Path(directory))
        for call in (lambda: home.read(path, 10), lambda: home.list(path, 1000), lambda: home.write(path, b"x")):
            try:
                call()
            except RpcError:
                continue
        home.close()
