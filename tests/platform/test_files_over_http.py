"""Files of a project over HTTP, through proxy and hub: a session's rights hold, and no file harms a browser."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import io
import os
import random
import re
import shutil
import ssl
import subprocess
import zipfile
from collections.abc import Iterator
from pathlib import Path
from socket import create_connection, socket
from urllib.parse import quote

import httpx
import pytest
from playwright.sync_api import Browser, Error, Page, sync_playwright

from natskit.hub.web.files import MOST_STREAMS_EACH
from tests.documents import block
from tests.kit import chromium
from tests.kit.wait import eventually, wait_for
from tests.platform.site import LocalSite, World

MIB = 1024 * 1024


@pytest.fixture
def home(site: LocalSite, world: World) -> Path:
    (found,) = (site.root / "runner" / "projects").rglob(f"{world.names['p']}/home")
    return found


@contextlib.contextmanager
def signed_in(site: LocalSite, email: str, password: str) -> Iterator[httpx.Client]:
    with site.http() as http:
        answer = http.post("/api/sign-in", json={"email": email, "password": password})
        assert answer.status_code == 200, answer.text
        yield http


@pytest.fixture
def http(site: LocalSite, world: World) -> Iterator[httpx.Client]:
    with signed_in(site, world.email_a, world.password) as http:
        yield http


def url(world: World, path: str, project: str = "p") -> str:
    return f"/api/projects/{world.names[project]}/files/{path}"


def code(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


def test_put_get_and_head(http: httpx.Client, world: World, home: Path) -> None:
    data = random.Random(5).randbytes(5 * MIB + 3)
    answer = http.put(url(world, "data.bin"), content=data)
    assert (answer.status_code, answer.json()) == (200, {"version": hashlib.sha256(data).hexdigest()})
    assert (home / "data.bin").read_bytes() == data
    got = http.get(url(world, "data.bin"))
    assert (got.status_code, got.content) == (200, data)
    assert got.headers["content-length"] == str(len(data))
    head = http.head(url(world, "data.bin"))
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == str(len(data))
    assert head.headers["etag"] == got.headers["etag"]
    assert http.get(url(world, "data.bin"), headers={"If-None-Match": head.headers["etag"]}).status_code == 304
    assert http.put(url(world, "empty"), content=b"").status_code == 200
    assert http.get(url(world, "empty")).content == b""
    assert code(http.put(url(world, "empty"), content=b"x", headers={"If-None-Match": "*"})) == (409, "conflict")
    assert (home / "empty").read_bytes() == b""
    assert http.put(url(world, "streamed"), content=iter([b"a" * MIB, b"b"])).status_code == 200
    assert (home / "streamed").read_bytes() == b"a" * MIB + b"b"
    assert list(home.glob(".natskit-*")) == []


@pytest.mark.parametrize(
    ("said", "status", "begin", "end"),
    [
        ("bytes=0-0", 206, 0, 1),
        ("bytes=2000000-", 206, 2_000_000, 3_000_000),
        ("bytes=-5", 206, 2_999_995, 3_000_000),
        ("bytes=-9999999", 206, 0, 3_000_000),
        ("bytes=1-99999999", 206, 1, 3_000_000),
        ("bytes=0-1,5-6", 200, 0, 3_000_000),
        ("bytes=5-1", 200, 0, 3_000_000),
        ("lines=1-2", 200, 0, 3_000_000),
        ("bytes=3000000-", 416, 0, 0),
        ("bytes=-0", 416, 0, 0),
    ],
)
def test_ranges(http: httpx.Client, world: World, home: Path, said: str, status: int, begin: int, end: int) -> None:
    data = random.Random(6).randbytes(3_000_000)
    (home / "ranges").write_bytes(data)
    answer = http.get(url(world, "ranges"), headers={"Range": said})
    assert (answer.status_code, answer.content) == (status, data[begin:end])
    if status == 206:
        assert answer.headers["content-range"] == f"bytes {begin}-{end - 1}/3000000"
    if status == 416:
        assert answer.headers["content-range"] == "bytes */3000000"
    other = http.get(url(world, "ranges"), headers={"Range": said, "If-Range": '"another state"'})
    assert (other.status_code, len(other.content)) == (200, len(data))


@pytest.mark.parametrize("name", [b"a\xff", b"a\nb", b" x ", "ü%2F".encode(), b"a?b#c", b'quo"te', b"..."])
def test_names_of_every_kind(http: httpx.Client, world: World, home: Path, name: bytes) -> None:
    (home / "names").mkdir(exist_ok=True)
    assert http.put(url(world, "names/" + quote(name, safe="")), content=name).status_code == 200
    assert (home / "names" / os.fsdecode(name)).read_bytes() == name
    answer = http.get(url(world, "names/" + quote(name, safe="")))
    assert answer.content == name
    assert answer.headers["content-disposition"] == f"attachment; filename*=UTF-8''{quote(name, safe='')}"


def test_what_is_refused(site: LocalSite, http: httpx.Client, world: World, home: Path) -> None:
    (home / "file").write_text("x")
    (home / "out").symlink_to("/etc")
    (home / "closed").write_text("x")
    (home / "closed").chmod(0o444)
    assert code(http.get(url(world, "none"))) == (404, "not_found")
    assert code(http.get(url(world, "out/passwd"))) == (403, "forbidden")
    assert code(http.get(url(world, "%2e%2e/%2e%2e/runner.json"))) == (403, "forbidden")
    assert code(http.put(url(world, "out/x"), content=b"x")) == (403, "forbidden")
    assert code(http.put(url(world, "closed"), content=b"x")) == (403, "forbidden")
    (home / "folder").mkdir()
    assert code(http.put(url(world, "folder"), content=b"x")) == (400, "invalid_params")
    assert code(http.put(url(world, "none/x"), content=b"x")) == (404, "not_found")
    assert code(http.put(url(world, "x"), content=b"x", headers={"Content-Range": "bytes 0-0/2"})) == (
        400,
        "invalid_request",
    )
    assert code(http.put(url(world, "x"), content=b"x", headers={"Origin": "https://elsewhere.example"})) == (
        403,
        "forbidden_origin",
    )
    for project in ("q", "r"):
        assert code(http.get(url(world, "file", project))) == (404, "not_found")
        assert code(http.put(url(world, "file", project), content=b"x")) == (404, "not_found")
    with site.http() as stranger:
        assert code(stranger.get(url(world, "file"))) == (401, "signed_out")
        assert code(stranger.put(url(world, "file"), content=b"y")) == (401, "signed_out")
    assert code(http.get(url(world, "file/"))) == (400, "invalid_params")
    assert http.delete(url(world, "file")).status_code == 405
    assert (home / "file").read_text() == "x"
    stopped = site.natskit_json("project", "create", world.email_a, "Stopped")["project_id"]
    assert code(http.get(f"/api/projects/{stopped}/files/x")) == (409, "invalid_state")
    site.natskit("project", "delete", stopped, "--yes")


def test_a_large_file_takes_little_memory(site: LocalSite, http: httpx.Client, world: World, home: Path) -> None:
    block_ = random.Random(7).randbytes(MIB)
    count = 150
    wanted = hashlib.sha256(block_ * count).hexdigest()
    before = peaks(site)
    answer = http.put(url(world, "large"), content=(block_ for _ in range(count)), timeout=120)
    assert answer.json() == {"version": wanted}
    digest = hashlib.sha256()
    with http.stream("GET", url(world, "large"), timeout=120) as got:
        for part in got.iter_bytes():
            digest.update(part)
    assert digest.hexdigest() == wanted
    grown = {name: peak - before[name] for name, peak in peaks(site).items()}
    assert max(grown.values()) < 60 * MIB, grown
    (home / "large").unlink()


def peaks(site: LocalSite) -> dict[str, int]:
    """The peak memory of each hub and each agent of this platform, in bytes."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
            status = (process / "status").read_text()
        except OSError:
            continue
        if str(site.root).encode() in b" ".join(words) and {b"natskit.hub", b"natskit.project"} & set(words):
            peak = re.search(r"VmHWM:\s+(\d+) kB", status)
            assert peak
            found[f"{process.name} {words[2].decode()}"] = int(peak[1]) * 1024
    assert len(found) >= 3
    return found


def test_who_loses_the_project_reads_no_more(site: LocalSite, world: World, home: Path) -> None:
    (home / "secret").write_bytes(os.urandom(MIB) * 60)
    site.natskit("project", "share", world.names["p"], world.email_b)
    with signed_in(site, world.email_b, world.password) as member:
        read: list[int] = []

        def read_all() -> None:
            with member.stream("GET", url(world, "secret")) as answer:
                for part in answer.iter_raw():
                    if not read:
                        site.natskit("project", "unshare", world.names["p"], world.email_b)
                    read.append(len(part))

        said_before = said(site)
        with pytest.raises(httpx.RemoteProtocolError):
            read_all()

        def said_since() -> dict[str, str]:
            return {name: text[len(said_before[name]) :] for name, text in said(site).items()}

        wait_for(lambda: "was not sent to its end" in "".join(said_since().values()), "the hub says so")
        new = said_since()
        assert "Traceback" not in "".join(new.values()), new
        assert 0 < sum(read) < 60 * MIB
        assert code(member.get(url(world, "secret"))) == (404, "not_found")
    (home / "secret").unlink()


def said(site: LocalSite) -> dict[str, str]:
    """The logs of the hubs."""
    return {log.name: log.read_text() for log in (site.root / "log").glob("hub-*.log")}


async def test_an_account_has_six_places_in_each_hub(site: LocalSite, world: World, home: Path) -> None:
    """However many it asks for at once. What a client does not read keeps its place."""
    with (home / "wide").open("wb") as file:
        file.truncate(200 * MIB)
    context = ssl.create_default_context(cafile=site.ca_file)
    limits, timeout = httpx.Limits(max_connections=None), httpx.Timeout(120)
    headers = {"Origin": site.url}
    async with httpx.AsyncClient(
        base_url=site.url, verify=context, limits=limits, timeout=timeout, headers=headers
    ) as client:
        await client.post("/api/sign-in", json={"email": world.email_a, "password": world.password})
        requests = [client.build_request("GET", url(world, "wide")) for _ in range(24)]
        answers = await asyncio.gather(*(client.send(request, stream=True) for request in requests))
        try:
            taken = [answer for answer in answers if answer.status_code == 200]
            assert 6 <= len(taken) <= 2 * MOST_STREAMS_EACH
            refused = [answer for answer in answers if answer.status_code == 503]
            assert refused
            for answer in refused:
                assert "too many files of yours are on their way" in (await answer.aread()).decode()
            assert {answer.status_code for answer in answers} <= {200, 502, 503}, "502 is a hub that is too busy"
        finally:
            await asyncio.gather(*(answer.aclose() for answer in answers))

        async def is_free() -> bool:
            return (await client.head(url(world, "wide"))).status_code == 200

        await eventually(is_free, "the places are free again")
    (home / "wide").unlink()


# ---- folders


def test_a_folder_is_a_zip(http: httpx.Client, world: World, home: Path) -> None:
    top = home / "zipped"
    dice = random.Random(8)
    for number in range(700):
        path = top / f"{number % 5}" / f"{number:03}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(dice.randbytes(dice.choice([0, 1, 3_000, 70_000])))
    (top / "large").write_bytes(dice.randbytes(5 * MIB + 1))
    (top / "large").chmod(0o755)
    (top / "nothing").mkdir()
    wanted = {str(path.relative_to(home)): path.read_bytes() for path in top.rglob("*") if path.is_file()}
    (top / "link").symlink_to("large")
    (top / "closed").write_text("x")
    (top / "closed").chmod(0o000)
    (top / "back\\slash").write_text("x")
    os.mkfifo(top / "pipe")
    os.utime(top / "large", (1, 1_700_000_000))
    answer = http.get(url(world, "zipped"))
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/zip"
    assert answer.headers["content-disposition"] == "attachment; filename*=UTF-8''zipped.zip"
    assert "sandbox" in answer.headers["content-security-policy"]
    with zipfile.ZipFile(io.BytesIO(answer.content)) as zipped:
        assert zipped.testzip() is None
        found = {info.filename: zipped.read(info) for info in zipped.infolist() if not info.is_dir()}
        missing = found.pop("zipped/NOT IN THIS ZIP.txt").decode().splitlines()
        if os.geteuid() == 0:
            assert found.pop("zipped/closed") == b"x"
        else:
            assert any(line.startswith("closed: ") for line in missing)
        assert found == wanted
        assert {line.partition(":")[0] for line in missing} >= {"link", "pipe", "back\\slash"}
        assert "zipped/nothing/" in zipped.namelist()
        info = zipped.getinfo("zipped/large")
        assert (info.external_attr >> 16) & 0o777 == 0o755
        assert info.date_time == (2023, 11, 14, 22, 13, 20)
    head = http.head(url(world, "zipped/"))
    assert (head.status_code, head.content) == (200, b"")
    inner = http.get(url(world, "zipped/1/"), headers={"Range": "bytes=0-1"})
    assert inner.status_code == 200
    with zipfile.ZipFile(io.BytesIO(inner.content)) as zipped:
        assert len(zipped.namelist()) == 140
        assert zipped.namelist()[0] == "1/001"
    shutil.rmtree(top)


def test_a_zip_has_the_rights_of_the_session(site: LocalSite, http: httpx.Client, world: World, home: Path) -> None:
    (home / "own").mkdir()
    (home / "own" / "a").write_text("a")
    (home / "outside").symlink_to("/etc")
    assert code(http.get(url(world, "outside"))) == (403, "forbidden")
    assert code(http.get(url(world, "%2e%2e"))) == (403, "forbidden")
    assert code(http.get(url(world, "own", "q"))) == (404, "not_found")
    with site.http() as stranger:
        assert code(stranger.get(url(world, "own"))) == (401, "signed_out")
    with zipfile.ZipFile(io.BytesIO(http.get(url(world, "")).content)) as zipped:
        assert zipped.read("files/own/a") == b"a"


def test_a_large_zip_takes_little_memory(site: LocalSite, http: httpx.Client, world: World, home: Path) -> None:
    for number in range(3_000):
        path = home / "zipped-wide" / f"{number % 10}" / str(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * 1000)
    with (home / "zipped-wide" / "large").open("wb") as file:
        file.truncate(150 * MIB)
    before = peaks(site)
    size = 0
    with http.stream("GET", url(world, "zipped-wide"), timeout=120) as got:
        for part in got.iter_raw():
            size += len(part)
    assert size > 150 * MIB
    grown = {name: peak - before[name] for name, peak in peaks(site).items()}
    assert max(grown.values()) < 60 * MIB, grown
    shutil.rmtree(home / "zipped-wide")


class BrokenError(Exception):
    """The client gives up."""


def test_an_upload_that_breaks_off_leaves_nothing(http: httpx.Client, world: World, home: Path) -> None:
    def broken() -> Iterator[bytes]:
        yield b"x" * 3 * MIB
        wait_for(lambda: list(home.glob(".natskit-*.upload")), "the upload has begun")
        raise BrokenError

    with pytest.raises(BrokenError):
        http.put(url(world, "broken"), content=broken())
    wait_for(lambda: not list(home.glob(".natskit-*")), "what had arrived is gone")
    assert not (home / "broken").exists()


def break_off(http: httpx.Client, address: str, data: bytes, upload: str, home: Path) -> None:
    """Send a part of a file, and close the connection."""

    def some() -> Iterator[bytes]:
        yield data[: 3 * MIB]
        wait_for(lambda: (home / f".natskit-{upload}.upload").exists(), "the upload has begun")
        wait_for(lambda: (home / f".natskit-{upload}.upload").stat().st_size > MIB, "some of it has arrived")
        raise BrokenError

    with pytest.raises(BrokenError):
        http.put(address, content=some(), headers={"Upload-Id": upload, "Content-Length": str(len(data))})


def arrived(http: httpx.Client, address: str, upload: str) -> int:
    answer = http.head(address, headers={"Upload-Id": upload})
    assert (answer.status_code, answer.content) == (204, b"")
    assert (answer.headers["upload-complete"], answer.headers.get("upload-version")) == ("?0", None)
    return int(answer.headers["upload-offset"])


def test_an_upload_with_an_id_goes_on_where_it_broke_off(http: httpx.Client, world: World, home: Path) -> None:
    data = random.Random(9).randbytes(8 * MIB + 5)
    version, size, address = hashlib.sha256(data).hexdigest(), len(data), url(world, "goes-on")
    for number, sends_all in enumerate((False, True)):
        upload = f"{number:032x}"
        assert http.head(address, headers={"Upload-Id": upload}).status_code == 404
        break_off(http, address, data, upload, home)
        begin = arrived(http, address, upload)
        assert MIB < begin < size
        inode = (home / f".natskit-{upload}.upload").stat().st_ino
        headers = {"Upload-Id": upload}
        beyond = headers | {"Content-Range": f"bytes {size - 5}-{size - 1}/{size}"}
        assert code(http.put(address, content=data[-5:], headers=beyond)) == (409, "conflict")
        if not sends_all:
            headers["Content-Range"] = f"bytes {begin}-{size - 1}/{size}"
        answer = http.put(address, content=data if sends_all else data[begin:], headers=headers)
        assert (answer.status_code, answer.json()) == (200, {"version": version})
        assert (home / "goes-on").stat().st_ino == inode, "it began again"
        assert (home / "goes-on").read_bytes() == data
    assert list(home.glob(".natskit-*")) == []


def put_without_reading(site: LocalSite, http: httpx.Client, path: str, data: bytes, headers: dict[str, str]) -> socket:
    """Send a whole file, and do not read the answer."""
    cookies = "; ".join(f"{name}={value}" for name, value in http.cookies.items())
    headers |= {"Host": site.url.removeprefix("https://"), "Origin": site.url, "Cookie": cookies}
    headers |= {"Content-Length": str(len(data))}
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    host, port = headers["Host"].split(":")
    context = ssl.create_default_context(cafile=site.ca_file)
    plain = create_connection((host, int(port)))
    connection = context.wrap_socket(plain, server_hostname=host)
    connection.sendall(f"PUT {path} HTTP/1.1\r\n{lines}\r\n".encode() + data)
    return connection


def test_an_upload_whose_last_answer_is_lost_is_known_to_be_done(
    site: LocalSite, http: httpx.Client, world: World, home: Path
) -> None:
    data, upload, address = random.Random(10).randbytes(3 * MIB), "cd" * 16, url(world, "lost-answer")
    version, target = hashlib.sha256(data).hexdigest(), home / "lost-answer"
    with put_without_reading(site, http, address, data, {"Upload-Id": upload}):
        wait_for(target.exists, "the file is in its place")
    inode = target.stat().st_ino

    def said() -> tuple[int, str | None, str | None, str | None]:
        answer = http.head(address, headers={"Upload-Id": upload})
        names = "upload-offset", "upload-complete", "upload-version"
        return answer.status_code, *(answer.headers.get(name) for name in names)

    wait_for(lambda: said() == (204, str(len(data)), "?1", version), "the upload is known to be done")
    rest = {"Upload-Id": upload, "Content-Range": f"bytes */{len(data)}"}
    answer = http.put(address, content=b"", headers=rest)
    assert (answer.status_code, answer.json()) == (200, {"version": version})
    assert (target.stat().st_ino, target.read_bytes()) == (inode, data), "it was sent again"
    assert http.head(url(world, "another"), headers={"Upload-Id": upload}).status_code == 404
    assert list(home.glob(".natskit-*")) == []


def test_what_is_refused_of_an_upload_with_an_id(http: httpx.Client, world: World, home: Path) -> None:
    upload = "ab" * 16
    (home / f".natskit-{upload}.upload").write_bytes(b"all")
    for said, status in (
        ({"Upload-Id": "../x"}, 400),
        ({"Upload-Id": upload, "Content-Range": "bytes 0-1/3"}, 400),
        ({"Upload-Id": upload, "Content-Range": "bytes 0-0/2"}, 400),
        ({"Content-Range": "bytes 0-0/1"}, 400),
    ):
        answer = http.put(url(world, "one"), content=b"x", headers=said)
        assert code(answer) == (status, "invalid_request")
    said = {"Upload-Id": upload, "Content-Range": "bytes */3"}
    assert http.put(url(world, "one"), content=b"", headers=said).json() == {
        "version": hashlib.sha256(b"all").hexdigest()
    }
    assert (home / "one").read_bytes() == b"all"
    assert code(http.put(url(world, "one", "q"), content=b"x", headers={"Upload-Id": upload})) == (404, "not_found")
    assert http.head(url(world, "one", "q"), headers={"Upload-Id": upload}).status_code == 404


def test_the_commands_of_the_how_to_guide_run(site: LocalSite, world: World, home: Path, tmp_path: Path) -> None:
    guide = "docs/how-to/copy-files.md"
    text, _, sign_out = block(guide, "Use curl", "sh").rstrip().rpartition("\n")
    text += "\n" + block(guide, "Go on with an upload that broke off", "sh", 0)
    text += f"printf more >> data.bin; id='Upload-Id: {'cd' * 16}'\n"
    text += block(guide, "Go on with an upload that broke off", "sh", 1) + sign_out
    for said, meant in (
        ("https://localhost:4043", site.url),
        ("ada@example.org", world.email_a),
        ("PASSWORD", world.password),
        ("PROJECT", world.names["p"]),
        ("--cacert ca.crt", f"--cacert {site.ca_file}"),
    ):
        assert said in text
        text = text.replace(said, meant)
    data = os.urandom(2 * MIB)
    (tmp_path / "data.bin").write_bytes(data)
    (home / f".natskit-{'cd' * 16}.upload").write_bytes(data[:MIB])
    done = subprocess.run(["sh", "-e"], input=text, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (home / "data.bin").read_bytes() == (tmp_path / "data.bin").read_bytes() == data + b"more"
    assert f'{{"version":"{hashlib.sha256(data + b"more").hexdigest()}"}}' in done.stdout
    assert (tmp_path / "copy.bin").read_bytes() == data
    assert (tmp_path / "part.bin").read_bytes() == data[1_000_000:]


# ---- hostile files in a real browser

SCRIPT = """
  fetch("/api/session", {credentials: "include"}).then((r) => r.text()).then((t) => { document.title = "read " + t; });
  try { document.title = "cookie " + document.cookie; } catch (error) {}
  try { localStorage.setItem("hostile", "1"); } catch (error) {}
  window.opener && (window.opener.hostile = true);
"""
HOSTILE = {
    "page.html": f"<!doctype html><title>quiet</title><script>{SCRIPT}</script>".encode(),
    "page.xhtml": f'<html xmlns="http://www.w3.org/1999/xhtml"><script>{SCRIPT}</script></html>'.encode(),
    "image.svg": f'<svg xmlns="http://www.w3.org/2000/svg"><script>{SCRIPT}</script></svg>'.encode(),
    "page.xml": f'<?xml version="1.0"?><x xmlns:h="http://www.w3.org/1999/xhtml"><h:script>{SCRIPT}</h:script></x>'.encode(),
    "document.pdf": (
        b"%PDF-1.4\n1 0 obj<</Type/Catalog/OpenAction<</S/JavaScript/JS(app.alert\\(1\\))>>/Pages 2 0 R>>endobj\n"
        b"2 0 obj<</Type/Pages/Kids[]/Count 0>>endobj\ntrailer<</Root 1 0 R>>\n"
    ),
    "script.js": b"window.hostile = true;",
    "style.css": b"body { background: rgb(1, 2, 3) }",
    "page.png": f"<!doctype html><script>{SCRIPT}</script>".encode(),
}
PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c49444154789c63f8cfc000000301010018dd8db0"
    "0000000049454e44ae426082"
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium.__file__)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser, site: LocalSite, world: World) -> Iterator[Page]:
    context = browser.new_context(ignore_https_errors=True)
    page = context.new_page()
    page.goto(site.url)
    page.fill("#email", world.email_a)
    page.fill("#password", world.password)
    page.click("#sign-in-button")
    page.wait_for_selector("#connection-state:text('connected')")
    yield page
    context.close()


@pytest.mark.browser
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_does_nothing_in_a_browser(
    page: Page, site: LocalSite, world: World, home: Path, name: str
) -> None:
    (home / name).write_bytes(HOSTILE[name])
    address = site.url + url(world, name)
    with page.expect_download() as download, pytest.raises(Error, match="Download is starting"):
        page.goto(address)
    assert Path(download.value.path()).read_bytes() == HOSTILE[name]
    assert page.url == f"{site.url}/", "it is saved, and not shown"
    assert page.evaluate("localStorage.getItem('hostile')") is None

    outcome = page.evaluate(
        """async (address) => {
          const settled = (make) => new Promise((resolve) => {
            const element = make();
            element.onload = () => resolve("loaded");
            element.onerror = () => resolve("refused");
            setTimeout(() => resolve("nothing"), 1500);
            document.body.append(element);
          });
          const frame = await settled(() => Object.assign(document.createElement("iframe"), { src: address }));
          const script = await settled(() => Object.assign(document.createElement("script"), { src: address }));
          const style = await settled(
            () => Object.assign(document.createElement("link"), { rel: "stylesheet", href: address }),
          );
          const object = await settled(() => Object.assign(document.createElement("object"), { data: address }));
          const worker = await navigator.serviceWorker.register(address).then(() => "loaded", () => "refused");
          return { frame, script, style, object, worker, ran: window.hostile === true, title: document.title,
                   background: getComputedStyle(document.body).backgroundColor, frames: window.length };
        }""",
        address,
    )
    assert outcome["script"] != "loaded"
    assert outcome["style"] != "loaded"
    assert outcome["object"] != "loaded"
    assert outcome["worker"] == "refused"
    assert not outcome["ran"]
    assert outcome["background"] != "rgb(1, 2, 3)"
    assert not outcome["title"].startswith(("read", "cookie"))


@pytest.mark.browser
@pytest.mark.parametrize("name", [name for name in HOSTILE if name.startswith(("page.", "image."))])
def test_a_hostile_page_that_is_shown_all_the_same_is_in_a_sandbox(
    page: Page, site: LocalSite, world: World, home: Path, name: str
) -> None:
    """As if a browser ignored the headers and showed the file as a page."""
    (home / name).write_bytes(HOSTILE[name])
    address = site.url + url(world, name)
    kinds = {"html": "text/html", "xhtml": "application/xhtml+xml", "svg": "image/svg+xml", "xml": "text/xml"}

    def show(route: object) -> None:
        answer = route.fetch()  # type: ignore[attr-defined]
        kept = {k: v for k, v in answer.headers.items() if k not in ("content-disposition", "content-type")}
        kind = kinds.get(name.rpartition(".")[2], "text/html")
        route.fulfill(response=answer, headers={**kept, "content-type": kind})  # type: ignore[attr-defined]

    page.context.route(address, show)
    page.goto(address)
    page.wait_for_load_state("networkidle")
    assert not page.title().startswith(("read", "cookie"))
    assert page.evaluate("self.origin") == "null"


@pytest.mark.browser
def test_a_picture_can_be_shown(page: Page, site: LocalSite, world: World, home: Path) -> None:
    (home / "pixel.png").write_bytes(PIXEL)
    loaded = page.evaluate(
        """(address) => new Promise((resolve) => {
          const image = new Image();
          image.onload = () => resolve(image.naturalWidth);
          image.onerror = () => resolve(0);
          image.src = address;
        })""",
        site.url + url(world, "pixel.png"),
    )
    assert loaded == 1
