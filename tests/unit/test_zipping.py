"""Zips that are made while they are sent, read by the standard library and by unzip."""

from __future__ import annotations

import io
import os
import shutil
import stat
import subprocess
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from natskit.hub.web.zipping import Zip

NAMES = st.binary(min_size=1, max_size=40).map(lambda name: name.replace(b"/", b"_").replace(b"\0", b"_"))
FILES = st.dictionaries(NAMES, st.tuples(st.binary(max_size=300), st.integers(0, 2**32)), max_size=20)


def made(files: dict[bytes, tuple[bytes, int]]) -> bytes:
    zipped = Zip()
    parts: list[bytes] = [zipped.folder(b"top", 0o755, 0)]
    for name, (content, mtime) in files.items():
        parts.append(zipped.begin(b"top/" + name, stat.S_IFREG | 0o640, mtime, len(content)))
        parts += [bytes(zipped.content(content[:100])), bytes(zipped.content(content[100:]))]
        parts.append(zipped.finish())
    return b"".join([*parts, zipped.end()])


@given(FILES)
def test_what_is_in_a_zip_comes_out_of_it(files: dict[bytes, tuple[bytes, int]]) -> None:
    with zipfile.ZipFile(io.BytesIO(made(files))) as zipped:
        assert zipped.testzip() is None
        infos = zipped.infolist()
        assert len(infos) == 1 + len(files)
        for info, (name, (content, _)) in zip(infos[1:], files.items(), strict=True):
            raw = info.orig_filename.encode() if info.flag_bits & 1 << 11 else info.orig_filename.encode("cp437")
            assert raw == b"top/" + name
            assert zipped.read(info) == content
            assert stat.S_IMODE(info.external_attr >> 16) == 0o640


@given(FILES, st.booleans())
def test_places_and_sizes_beyond_4_gib(
    tmp_path_factory: pytest.TempPathFactory, files: dict[bytes, tuple[bytes, int]], is_large: bool
) -> None:
    """The zip is at the end of a file with a hole of more than 4 GiB, and says that its files are as large."""
    begin = 2**32 + 7
    zipped = Zip()
    zipped._offset = begin
    path = tmp_path_factory.mktemp("zip") / "a.zip"
    with path.open("wb") as file:
        file.seek(begin)
        for name, (content, mtime) in files.items():
            size = 2**32 if is_large else len(content)
            file.write(zipped.begin(name, stat.S_IFREG | 0o640, mtime, size))
            file.write(zipped.content(content))
            file.write(zipped.finish())
        file.write(zipped.end())
    with zipfile.ZipFile(path) as read:
        assert [read.read(info) for info in read.infolist()] == [content for content, _ in files.values()]
        assert all(info.header_offset >= begin for info in read.infolist())
    path.unlink()


def test_a_zip_of_more_than_65_535_files() -> None:
    with zipfile.ZipFile(io.BytesIO(made({b"%d" % n: (b"", 0) for n in range(70_000)}))) as zipped:
        assert len(zipped.namelist()) == 70_001


def test_unzip_reads_it(tmp_path: Path) -> None:
    unzip = shutil.which("unzip")
    if unzip is None:
        pytest.skip("unzip is not installed")
    name = os.fsdecode("ü \n.txt".encode())
    (tmp_path / "a.zip").write_bytes(made({os.fsencode(name): (b"content", 1_700_000_000)}))
    subprocess.run([unzip, "-q", "a.zip"], cwd=tmp_path, check=True)
    (found,) = (tmp_path / "top").iterdir()
    assert (found.read_bytes(), found.stat().st_mtime) == (b"content", 1_700_000_000)
