"""Files in the console, in a real Chromium: dropped, uploaded, downloaded, renamed, moved, thrown away and restored."""

# ruff: noqa: F811 - fixtures of another module

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
import wave
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.kit.pdfs import pdf
from tests.kit.wait import wait_for
from tests.platform.site import LocalSite, World
from tests.platform.test_console import browser, context, open_project, page, sign_in  # noqa: F401
from tests.platform.test_files import LARGE_MIB, write_large
from tests.platform.test_files_over_http import PIXEL
from tests.platform.test_resilience import pid_of

MIB = 1024 * 1024


@pytest.fixture
def home(site: LocalSite, world: World) -> Iterator[Path]:
    """The home of the project, which is empty before and after a test."""
    (found,) = (site.root / "runner" / "projects").rglob(f"{world.names['p']}/home")

    def clear() -> None:
        for path in found.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()

    clear()
    yield found
    clear()


def row(page: Page, name: str) -> Locator:
    return page.locator(f"#files button:text-is('{name}')")


def sums(top: Path) -> dict[str, str]:
    """The SHA-256 of each file below a folder, by its path from there."""
    return {
        str(path.relative_to(top)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(top.rglob("*"))
        if path.is_file()
    }


def drop(page: Page, selector: str, paths: list[Path]) -> None:
    """Drag files and folders of this machine into the page, as from a file manager."""
    page.locator(selector).scroll_into_view_if_needed()
    box = page.locator(selector).bounding_box()
    assert box
    session = page.context.new_cdp_session(page)
    data = {"items": [], "files": [str(path) for path in paths], "dragOperationsMask": 1}
    at = {"x": box["x"] + box["width"] / 2, "y": box["y"] + min(box["height"] / 2, 20)}
    for kind in ("dragEnter", "dragOver", "drop"):
        session.send("Input.dispatchDragEvent", {"type": kind, **at, "data": data})
    session.detach()


@pytest.fixture
def dropped_things(tmp_path: Path) -> Path:
    """A folder with 500 files in folders, one of which is empty, and one large file."""
    dice = random.Random(11)
    for number in range(500):
        path = tmp_path / "photos" / f"{number % 7}" / f"ü {number:03}.bin"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(dice.randbytes(dice.choice([0, 10, 5_000, 90_000])))
    (tmp_path / "photos" / "nothing").mkdir()
    write_large(tmp_path / "large.bin", max(200, LARGE_MIB))
    return tmp_path


@pytest.mark.browser
def test_a_dropped_folder_and_a_large_file_arrive_although_the_proxy_restarts(
    page: Page, site: LocalSite, world: World, home: Path, dropped_things: Path
) -> None:
    open_project(page, site, world)
    drop(page, "#listing", [dropped_things / "photos", dropped_things / "large.bin"])
    wait_for(
        lambda: any(path.stat().st_size > 20 * MIB for path in home.glob(".natskit-*.upload")), "some of it has arrived"
    )
    before = pid_of(site, "proxy")
    os.kill(before, signal.SIGKILL)
    wait_for(lambda: pid_of(site, "proxy") not in (0, before), "the proxy is back")
    page.set_default_timeout(60_000)
    expect(page.locator("#upload-status")).not_to_be_empty(timeout=120_000 + 1000 * LARGE_MIB)
    said = page.locator("#upload-status").inner_text()
    assert said == "large.bin and 1 more is uploaded.", page.locator("#uploads").inner_text()
    assert sums(home) == sums(dropped_things)
    assert (home / "photos" / "nothing").is_dir()
    assert list(home.glob(".natskit-*")) == []
    expect(row(page, "photos/")).to_be_visible()
    expect(row(page, "large.bin")).to_be_visible()
    if directory := os.environ.get("NATSKIT_SCREENSHOTS"):
        page.locator("#listing").scroll_into_view_if_needed()
        page.screenshot(path=f"{directory}/upload.png")


@pytest.mark.browser
def test_an_upload_is_paused_and_goes_on_or_is_cancelled(
    page: Page, site: LocalSite, world: World, home: Path, tmp_path: Path
) -> None:
    data = random.Random(12).randbytes(10_000_000) * 6
    (tmp_path / "big").write_bytes(data)
    open_project(page, site, world)

    def arrived() -> int:
        return max((path.stat().st_size for path in home.glob(".natskit-*.upload")), default=0)

    page.set_input_files("#files-input", tmp_path / "big")
    page.click("#uploads button:text-is('Pause')")
    expect(page.locator("#uploads")).to_contain_text("Paused")
    sizes: list[int] = []

    def stands() -> bool:
        sizes.append(arrived())
        return len(sizes) > 20 and len(set(sizes[-20:])) == 1

    wait_for(stands, "nothing more arrives")
    assert not (home / "big").exists()
    page.click("#uploads button:text-is('Resume')")
    expect(page.locator("#upload-status")).to_have_text("big is uploaded.")
    assert (home / "big").read_bytes() == data
    page.click("#uploads button:text-is('Dismiss')")
    expect(page.locator("#uploads-section")).to_be_hidden()
    (tmp_path / "other").write_bytes(data)
    page.set_input_files("#files-input", tmp_path / "other")
    page.click("#uploads button:text-is('Pause')")
    page.click("#uploads button:text-is('Cancel')")
    expect(page.locator("#uploads")).to_contain_text("Ended: cancelled")
    wait_for(lambda: not list(home.glob(".natskit-*")), "what had arrived is gone")
    assert not (home / "other").exists()


@pytest.mark.browser
def test_names_that_are_taken_are_asked_about(
    page: Page, site: LocalSite, world: World, home: Path, tmp_path: Path
) -> None:
    (home / "a.txt").write_text("old")
    (home / "closed").write_text("old")
    (home / "closed").chmod(0o444)
    for name in ("a.txt", "b.txt", "closed"):
        (tmp_path / name).write_text("new")
    open_project(page, site, world)
    both = [tmp_path / "a.txt", tmp_path / "b.txt"]
    page.set_input_files("#files-input", both)
    expect(page.locator("#taken-names")).to_have_text("a.txt")
    page.keyboard.press("Escape")
    expect(page.locator("#taken-dialog")).to_be_hidden()
    assert sorted(os.listdir(home)) == ["a.txt", "closed"]
    page.set_input_files("#files-input", both)
    page.click("#taken-skip")
    expect(row(page, "b.txt")).to_be_visible()
    assert ((home / "a.txt").read_text(), (home / "b.txt").read_text()) == ("old", "new")
    page.set_input_files("#files-input", [tmp_path / "a.txt", tmp_path / "closed"])
    page.click("#taken-replace")
    expect(page.locator("#uploads .error").last).to_contain_text("closed: 'closed' is read-only")
    expect(page.locator("#upload-status")).to_contain_text("without 1 file that was refused")
    assert ((home / "a.txt").read_text(), (home / "closed").read_text()) == ("new", "old")


@pytest.mark.browser
def test_the_tree_with_the_keyboard(page: Page, site: LocalSite, world: World, home: Path) -> None:
    (home / "one" / "inner").mkdir(parents=True)
    (home / "one" / "inner" / "deep.txt").write_text("deep")
    (home / "two.txt").write_text("two")
    open_project(page, site, world)
    row(page, "one/").focus()
    focused = page.locator("#files button:focus")
    assert page.locator("#files").get_attribute("role") == "tree"
    for key, name in (
        ("ArrowDown", "two.txt"),
        ("Home", "one/"),
        ("ArrowRight", "one/"),
        ("ArrowRight", "inner/"),
        ("ArrowRight", "inner/"),
        ("ArrowDown", "deep.txt"),
        ("ArrowLeft", "inner/"),
        ("ArrowLeft", "inner/"),
        ("ArrowLeft", "one/"),
        ("End", "two.txt"),
        ("o", "one/"),
    ):
        if key == "ArrowDown" and name == "deep.txt":
            expect(row(page, "deep.txt")).to_be_visible()
        page.keyboard.press(key)
        expect(focused).to_have_text(name)
        if (key, name) == ("ArrowRight", "one/"):
            expect(row(page, "inner/")).to_be_visible()
    expect(row(page, "inner/")).to_have_attribute("aria-level", "2")
    expect(row(page, "inner/")).to_have_attribute("aria-expanded", "false")
    page.keyboard.press("End")
    page.keyboard.press("Enter")
    expect(page.locator("#file-text")).to_have_value("two")
    page.keyboard.press("F2")
    page.keyboard.type("renamed")
    page.keyboard.press("Enter")
    expect(row(page, "renamed.txt")).to_be_focused()
    assert (home / "renamed.txt").read_text() == "two"
    expect(page.locator("#file-path")).to_have_value("renamed.txt")
    page.keyboard.press("Delete")
    expect(row(page, "renamed.txt")).to_have_count(0)
    assert not (home / "renamed.txt").exists()


@pytest.mark.browser
def test_invisible_characters_of_a_name_stay_when_it_is_renamed(
    page: Page, site: LocalSite, world: World, home: Path
) -> None:
    """The field shows them as escapes, which are not typed as what they look like."""
    (home / "a\u200bb\n.txt").write_text("one")
    open_project(page, site, world)
    row(page, "a\\\\u200bb␊.txt").focus()
    page.keyboard.press("F2")
    page.keyboard.press("Home")
    page.keyboard.type("new ")
    page.keyboard.press("Enter")
    expect(row(page, "new a\\\\u200bb␊.txt")).to_be_focused()
    assert [path.name for path in home.iterdir()] == ["new a\u200bb\n.txt"]


@pytest.mark.browser
def test_folders_moves_and_the_trash(page: Page, site: LocalSite, world: World, home: Path) -> None:
    (home / "notes.txt").write_text("notes")
    open_project(page, site, world)
    expect(row(page, "notes.txt")).to_be_visible()
    page.click("#new-folder")
    page.keyboard.type("a/b")
    page.keyboard.press("Enter")
    expect(page.locator("#folder-error")).to_contain_text("must not contain a slash")
    page.click("#new-folder")
    page.keyboard.type("archive")
    page.keyboard.press("Enter")
    expect(row(page, "archive/")).to_be_focused()
    row(page, "notes.txt").focus()
    page.click("#move-file")
    page.fill("#move-to", "archive")
    page.click("#move-confirm")
    wait_for(lambda: (home / "archive" / "notes.txt").exists(), "it is moved into the folder")
    expect(row(page, "notes.txt")).to_have_count(0)
    row(page, "archive/").click()
    row(page, "notes.txt").focus()
    page.click("#move-file")
    page.fill("#move-to", "../outside")
    page.click("#move-confirm")
    expect(page.locator("#folder-error")).to_contain_text("leads out of the project's home")
    page.click("#trash-file")
    expect(page.locator("#folder-status")).to_have_text("archive/notes.txt is in the trash.")
    (home / "archive" / "notes.txt").write_text("another")
    page.click("#open-trash")
    page.click("#trash button:text-is('Restore')")
    expect(page.locator("#trash-error")).to_contain_text("exists already")
    page.fill("#trash input", "archive/old.txt")
    page.click("#trash button:text-is('Restore here')")
    expect(page.locator("#trash-empty")).to_be_visible()
    page.click("#trash-close")
    assert (home / "archive" / "old.txt").read_text() == "notes"
    assert (home / "archive" / "notes.txt").read_text() == "another"


@pytest.mark.browser
def test_changes_are_shown_at_once(page: Page, site: LocalSite, world: World, home: Path) -> None:
    (home / "folder").mkdir()
    open_project(page, site, world)
    row(page, "folder/").click()
    (home / "folder" / "made").write_text("x")
    expect(row(page, "made")).to_be_visible()
    (home / "folder" / "made").rename(home / "moved")
    expect(row(page, "moved")).to_have_attribute("aria-level", "1")
    expect(row(page, "made")).to_have_count(0)
    for number in range(300):
        (home / "folder" / f"{number}").touch()
    expect(page.locator("#files ul button")).to_have_count(300)
    (home / "folder").rename(home / "elsewhere")
    expect(row(page, "elsewhere/")).to_be_visible()
    expect(row(page, "folder/")).to_have_count(0)


@pytest.mark.browser
def test_downloads_and_pictures(page: Page, site: LocalSite, world: World, home: Path) -> None:
    name = os.fsdecode("ü #?%.bin".encode() + b"\xff")
    (home / name).write_bytes(b"bytes")
    (home / "pixel.png").write_bytes(PIXEL)
    with wave.open(str(home / "second.wav"), "wb") as sound:
        sound.setparams((1, 1, 8000, 8000, "NONE", ""))
        sound.writeframes(bytes(8000))
    (home / "broken.png").write_bytes(b"<script>")
    (home / "results" / "inner").mkdir(parents=True)
    (home / "results" / "inner" / "a").write_text("a")
    open_project(page, site, world)
    page.locator("#files button.file", has_text="ü").focus()
    with page.expect_download() as download:
        page.click("#download-file")
    assert Path(download.value.path()).read_bytes() == b"bytes"
    row(page, "pixel.png").click()
    expect(page.locator("#preview img")).to_have_js_property("naturalWidth", 1)
    page.click("#preview-close")
    row(page, "second.wav").click()
    expect(page.locator("#preview audio")).to_have_js_property("duration", 1)
    page.click("#preview-close")
    row(page, "broken.png").click()
    expect(page.locator("#preview-error")).to_contain_text("cannot be shown")
    page.click("#preview-close")
    row(page, "results/").click()
    with page.expect_download() as download:
        page.click("#download-file")
    assert download.value.suggested_filename == "results.zip"
    with zipfile.ZipFile(download.value.path()) as zipped:
        assert zipped.read("results/inner/a") == b"a"


HOSTILE_SCRIPT = "app.alert('ran'); app.launchURL('/api/session'); this.submitForm('/api/sign-out');"


@pytest.mark.browser
def test_a_pdf_is_shown_and_none_of_its_scripts_runs(page: Page, site: LocalSite, world: World, home: Path) -> None:
    first, second = "Page one (of two)", "The other page"
    (home / "paper.PDF").write_bytes(pdf(first, second, script=HOSTILE_SCRIPT, link="https://elsewhere.example/"))
    (home / "broken.pdf").write_bytes(b"%PDF-1.7\n<script>alert(1)</script>")
    (home / "empty.pdf").touch()
    open_project(page, site, world)
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("request", lambda request: asked.append(request.url.removeprefix(site.url)))
    row(page, "paper.PDF").click()
    canvas = page.locator("#preview canvas")
    expect(canvas).to_have_text(first)
    expect(canvas).to_have_attribute("data-page", "1")
    assert ink(canvas) > 500
    expect(page.locator("#preview [role=status]")).to_have_text("Page 1 of 2")
    expect(page.locator("#preview button:text-is('Previous page')")).to_be_disabled()
    if directory := os.environ.get("NATSKIT_SCREENSHOTS"):
        page.screenshot(path=f"{directory}/pdf.png")
    canvas.click()  # on the link
    page.keyboard.press("PageDown")
    expect(canvas).to_have_attribute("data-page", "2")
    expect(canvas).to_have_text(second)
    page.click("#preview button:text-is('Previous page')")
    expect(canvas).to_have_attribute("data-page", "1")
    assert page.locator("#preview a").count() == 0
    assert page.url == f"{site.url}/"
    assert {address.split("/")[1] for address in asked} == {"pdfjs"}, asked
    assert said == [], "the Content-Security-Policy refuses nothing that PDF.js needs"
    page.click("#preview-close")
    expect(canvas).to_have_count(0)
    for name in ("broken.pdf", "empty.pdf"):
        row(page, name).click()
        expect(page.locator("#preview-error")).to_contain_text("cannot be shown")
        page.click("#preview-close")


def ink(canvas: Locator) -> int:
    """How many pixels are dark."""
    return int(
        canvas.evaluate(
            """(canvas) => {
              const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
              let dark = 0;
              for (let at = 0; at < data.length; at += 4) if (data[at + 3] > 128 && data[at] < 128) dark++;
              return dark;
            }"""
        )
    )


@pytest.mark.browser
def test_a_large_pdf_is_read_in_parts(page: Page, site: LocalSite, world: World, home: Path) -> None:
    """Its tables are at its end, and most of it is one object that no page needs."""
    data = pdf("Small", "Text")
    table = data.index(b"xref\n")
    padding = 300 * MIB
    with (home / "large.pdf").open("wb") as file:
        file.write(data[:table])
        file.seek(table + padding)
        file.write(data[table:].replace(b"startxref\n%d\n" % table, b"startxref\n%d\n" % (table + padding)))
    received: list[int] = []
    page.on("websocket", lambda socket: socket.on("framereceived", lambda payload: received.append(len(payload))))
    open_project(page, site, world)
    row(page, "large.pdf").click()
    expect(page.locator("#preview canvas")).to_have_text("Small")
    assert 1_000_000 < sum(received) < 20 * MIB
