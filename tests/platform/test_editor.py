"""The console's editor in a real Chromium loses no text, and changes only the edited lines."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Dialog, Page, expect

from tests.kit import chromium
from tests.kit.wait import wait_for
from tests.platform.line import Line
from tests.platform.site import LocalSite, World
from tests.platform.test_console import PATIENCE, browser, context, open_project, page, sign_in

__all__ = ["browser", "context", "page"]

PASSWORD = "a password for writing"  # noqa: S105


@pytest.fixture(scope="module")
def line(site: LocalSite) -> Iterator[Line]:
    """A line to the site that can hold back the site's data."""
    with Line(urlsplit(site.url).port or 443) as line:
        yield line


@pytest.fixture(scope="module")
def far_browser(browser: Browser, site: LocalSite, line: Line) -> Iterator[Browser]:
    """A browser at the other end of the line. It uses the site's usual address."""
    rules = f"--host-resolver-rules=MAP {urlsplit(site.url).netloc} 127.0.0.1:{line.port}"
    far_browser = browser.browser_type.launch(executable_path=chromium.__file__, args=[rules])
    yield far_browser
    far_browser.close()


@pytest.fixture
def far(far_browser: Browser, line: Line) -> Iterator[Page]:
    context = far_browser.new_context(ignore_https_errors=True)
    context.set_default_timeout(PATIENCE)
    expect.set_options(timeout=PATIENCE)
    yield context.new_page()
    line.release()
    line.delay = 0.0
    context.close()


@pytest.fixture
def home(site: LocalSite, world: World) -> Path:
    """The project's folder, empty."""
    home = site.root / "runner" / "projects" / world.names["p"] / "home"
    site.natskit("exec", world.names["p"], "--", "sh", "-c", "rm -rf ./* ./.[!.]*")
    return home


def write(home: Path, name: str | bytes, content: bytes) -> Path:
    """Write a file of the project without the console's knowledge."""
    path = home / os.fsdecode(name)
    path.write_bytes(content)
    return path


def open_file(page: Page, name: str) -> None:
    page.fill("#file-path", name)
    page.click("#open-button")
    expect(page.locator("#file-status")).to_have_text(f"Opened {name}")


def type_at_the_end(page: Page, text: str) -> None:
    page.focus("#file-text")
    page.press("#file-text", "Control+End")
    page.keyboard.type(text)


def save(page: Page, name: str) -> None:
    page.press("#file-text", "Control+s")
    expect(page.locator("#file-status")).to_have_text(f"Saved {name}")


def new_person(site: LocalSite, email: str, title: str = "Writing") -> str:
    """A new account with a running project. Returns the project's id."""
    site.natskit("account", "add", email, "--password-stdin", stdin=PASSWORD)
    project_id = str(site.natskit_json("project", "create", email, title)["project_id"])
    site.natskit("project", "start", project_id)
    return project_id


def enter(page: Page, site: LocalSite, email: str, project_id: str) -> None:
    sign_in(page, site, email, PASSWORD)
    page.click(f"[data-project-id='{project_id}']")
    expect(page.locator("#project-state")).to_have_text("running")


def test_another_file_is_opened_only_after_a_question(page: Page, site: LocalSite, world: World, home: Path) -> None:
    write(home, "a.txt", b"a")
    write(home, "b.txt", b"b")
    open_project(page, site, world)
    open_file(page, "a.txt")
    type_at_the_end(page, " typed")
    page.click("#files button:text-is('b.txt')")
    expect(page.locator("#unsaved-dialog")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#file-text")).to_have_value("a typed")
    page.fill("#file-path", "b.txt")
    page.click("#open-button")
    page.click("#unsaved-dialog >> text=Keep editing")
    expect(page.locator("#file-text")).to_have_value("a typed")
    page.fill("#file-path", "a.txt")
    page.click("#files button:text-is('b.txt')")
    page.click("#unsaved-save")
    expect(page.locator("#file-text")).to_have_value("b")
    assert (home / "a.txt").read_bytes() == b"a typed"
    type_at_the_end(page, " thrown away")
    page.click("#files button:text-is('a.txt')")
    page.click("#unsaved-discard")
    expect(page.locator("#file-text")).to_have_value("a typed")
    assert (home / "b.txt").read_bytes() == b"b"


def test_another_project_or_a_sign_out_asks_first(page: Page, site: LocalSite) -> None:
    email = f"writer@{site.domain}"
    first = new_person(site, email)
    second = site.natskit_json("project", "create", email, "Another")["project_id"]
    enter(page, site, email, first)
    page.fill("#file-text", "without a name yet")
    for away in (f"[data-project-id='{second}']", "#sign-out"):
        page.click(away)
        page.click("#unsaved-dialog >> text=Keep editing")
        expect(page.locator("#file-text")).to_have_value("without a name yet")
    page.fill("#create-title", "A third")
    page.click("#create-button")
    page.click("#unsaved-dialog >> text=Keep editing")
    expect(page.locator("#file-text")).to_have_value("without a name yet")
    page.click(f"[data-project-id='{second}']")
    page.click("#unsaved-discard")
    expect(page.locator("#project-title")).to_have_value("Another")
    expect(page.locator("#file-text")).to_have_value("")
    page.click("#sign-out")
    expect(page.locator("#email")).to_be_visible()


def test_a_reload_keeps_what_was_not_saved(page: Page, site: LocalSite, world: World, home: Path) -> None:
    write(home, "w.bat", b"a\r\nb\n")
    open_project(page, site, world)
    open_file(page, "w.bat")
    type_at_the_end(page, "typed")
    asked: list[str] = []

    def note(dialog: Dialog) -> None:
        asked.append(dialog.type)
        dialog.accept()

    page.on("dialog", note)
    page.reload()
    assert asked == ["beforeunload"]
    expect(page.locator("#file-text")).to_have_value("a\nb\ntyped")
    expect(page.locator("#file-path")).to_have_value("w.bat")
    save(page, "w.bat")
    assert (home / "w.bat").read_bytes() == b"a\r\nb\ntyped"
    page.reload()
    expect(page.locator("#connection-state")).to_have_text("connected")
    expect(page.locator("#projects button")).not_to_have_count(0)
    expect(page.locator("#project")).to_be_hidden()
    assert asked == ["beforeunload"], "nothing is left to ask for"


def test_a_forced_sign_out_keeps_the_text_for_the_same_person(
    page: Page, site: LocalSite, world: World, home: Path
) -> None:
    write(home, "notes.txt", b"notes")
    open_project(page, site, world)
    open_file(page, "notes.txt")
    type_at_the_end(page, ", private ones")
    site.natskit("account", "sign-out", world.email_a)
    expect(page.locator("#sign-in-error")).to_contain_text("signed out")
    assert "private" not in page.evaluate("[...document.querySelectorAll('textarea')].map(one => one.value).join()")
    sign_in(page, site, world.email_b, world.password)
    page.click(f"[data-project-id='{world.names['q']}']")
    expect(page.locator("#project-state")).to_have_text("running")
    expect(page.locator("#drafts-section")).to_be_hidden()
    expect(page.locator("#file-text")).to_have_value("")
    page.click("#sign-out")
    expect(page.locator("#email")).to_be_visible()
    sign_in(page, site, world.email_a, world.password)
    expect(page.locator("#file-text")).to_have_value("notes, private ones")
    save(page, "notes.txt")
    assert (home / "notes.txt").read_bytes() == b"notes, private ones"


def test_a_project_that_is_taken_away_leaves_its_text(page: Page, site: LocalSite, world: World, home: Path) -> None:
    write(home, "shared.txt", b"shared")
    site.natskit("project", "share", world.names["p"], world.email_b)
    sign_in(page, site, world.email_b, world.password)
    page.click(f"[data-project-id='{world.names['p']}']")
    expect(page.locator("#project-state")).to_have_text("running")
    open_file(page, "shared.txt")
    type_at_the_end(page, ", mine")
    site.natskit("project", "unshare", world.names["p"], world.email_b)
    page.click("#drafts button:text-is('shared.txt')")
    expect(page.locator("#draft-text")).to_have_value("shared, mine")
    page.click("#draft-dialog >> text=Close")
    site.natskit("project", "share", world.names["p"], world.email_b)
    expect(page.locator(f"[data-project-id='{world.names['p']}']")).to_be_visible()
    page.click("#drafts button:text-is('shared.txt')")
    expect(page.locator("#file-text")).to_have_value("shared, mine")
    save(page, "shared.txt")
    expect(page.locator("#drafts-section")).to_be_hidden()
    site.natskit("project", "unshare", world.names["p"], world.email_b)


def test_a_project_that_is_stopped_meanwhile_keeps_the_text(page: Page, site: LocalSite) -> None:
    email = f"stopped@{site.domain}"
    project_id = new_person(site, email)
    enter(page, site, email, project_id)
    page.fill("#file-path", "a.txt")
    page.fill("#file-text", "typed")
    site.natskit("project", "stop", project_id)
    expect(page.locator("#project-state")).to_have_text("stopped")
    page.press("#file-text", "Control+s")
    expect(page.locator("#file-error")).not_to_be_empty()
    expect(page.locator("#file-text")).to_have_value("typed")
    page.click("#start-button")
    expect(page.locator("#project-state")).to_have_text("running")
    save(page, "a.txt")


def test_what_is_typed_while_an_answer_is_on_its_way_stays(
    far: Page, line: Line, site: LocalSite, world: World, home: Path
) -> None:
    write(home, "a.txt", b"a")
    write(home, "b.txt", b"b")
    open_project(far, site, world)
    expect(far.locator("#files button:text-is('b.txt')")).to_be_visible()
    line.hold()
    far.click("#files button:text-is('a.txt')")
    type_at_the_end(far, "typed meanwhile")
    line.release()
    expect(far.locator("#file-error")).to_contain_text("a.txt was not opened")
    expect(far.locator("#file-text")).to_have_value("typed meanwhile")
    far.fill("#file-text", "")
    line.hold()
    far.click("#files button:text-is('a.txt')")
    far.click("#files button:text-is('b.txt')")
    line.release()
    expect(far.locator("#file-status")).to_have_text("Opened b.txt")
    expect(far.locator("#file-text")).to_have_value("b")


def test_saves_that_overlap(far: Page, line: Line, site: LocalSite, world: World, home: Path) -> None:
    write(home, "a.txt", b"a")
    open_project(far, site, world)
    open_file(far, "a.txt")
    line.delay = 0.2
    type_at_the_end(far, "1")
    far.press("#file-text", "Control+s")
    for letter in "23456":
        type_at_the_end(far, letter)
        far.press("#file-text", "Control+s")
    expect(far.locator("#file-status")).to_have_text("Saved a.txt")
    expect(far.locator("#file-error")).to_be_empty()
    assert (home / "a.txt").read_bytes() == b"a123456"
    line.hold()
    type_at_the_end(far, "7")
    far.press("#file-text", "Control+s")
    wait_for(lambda: (home / "a.txt").read_bytes() == b"a1234567", "the project has saved")
    type_at_the_end(far, "8")
    line.release()
    expect(far.locator("#file-status")).to_contain_text("but not the changes you made since")
    assert (home / "a.txt").read_bytes() == b"a1234567"
    save(far, "a.txt")
    assert (home / "a.txt").read_bytes() == b"a12345678"


def test_a_save_whose_answer_was_lost_is_no_conflict(page: Page, site: LocalSite, world: World, home: Path) -> None:
    write(home, "a.txt", b"a")
    open_project(page, site, world)
    open_file(page, "a.txt")
    type_at_the_end(page, "1")
    # As if the answer had not come in time, and the save had been done all the same.
    site.natskit("project", "stop", world.names["p"])
    expect(page.locator("#project-state")).to_have_text("stopped")
    page.press("#file-text", "Control+s")
    expect(page.locator("#file-error")).to_contain_text("started")
    (home / "a.txt").write_bytes(b"a1")
    page.click("#start-button")
    expect(page.locator("#project-state")).to_have_text("running")
    type_at_the_end(page, "2")
    save(page, "a.txt")
    assert (home / "a.txt").read_bytes() == b"a12"


def test_a_conflict_loses_nobodys_text(page: Page, site: LocalSite, world: World, home: Path) -> None:
    path = write(home, "a.txt", b"a")
    open_project(page, site, world)
    open_file(page, "a.txt")
    type_at_the_end(page, " mine")
    path.write_bytes(b"theirs")
    page.press("#file-text", "Control+s")
    expect(page.locator("#file-error")).to_contain_text("changed by somebody else")
    path.write_bytes(b"theirs again")
    page.click("#overwrite-button")
    expect(page.locator("#file-error")).to_contain_text("changed by somebody else")
    expect(page.locator("#file-text")).to_have_value("a mine")
    assert path.read_bytes() == b"theirs again"
    page.click("#overwrite-button")
    expect(page.locator("#file-status")).to_have_text("Saved a.txt")
    assert path.read_bytes() == b"a mine"
    path.unlink()
    type_at_the_end(page, "!")
    page.press("#file-text", "Control+s")
    expect(page.locator("#file-error")).to_contain_text("removed by somebody else")
    page.click("#overwrite-button")
    expect(page.locator("#file-status")).to_have_text("Saved a.txt")
    write(home, "b.txt", b"there already")
    page.fill("#file-path", "b.txt")
    page.press("#file-text", "Control+s")
    expect(page.locator("#file-error")).to_contain_text("exists already")
    assert (home / "b.txt").read_bytes() == b"there already"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"a\r\nb\r\n", b"xa\r\nb\r\n"),
        (b"a\rb\r", b"xa\rb\r"),
        (b"a\nb\r\nc\rd", b"xa\nb\r\nc\rd"),
        ("\ufeffa\r\n".encode(), "\ufeffxa\r\n".encode()),
        (b"no end", b"xno end"),
        (b"\n\n", b"x\n\n"),
        (
            "a\0\1\t\x0b\x0c\x1b\x7f\x85\u2028\u2029\ufeff\u202e \r\n ".encode(),
            "xa\0\1\t\x0b\x0c\x1b\x7f\x85\u2028\u2029\ufeff\u202e \r\n ".encode(),
        ),
    ],
)
def test_only_what_was_edited_changes(
    page: Page, site: LocalSite, world: World, home: Path, before: bytes, after: bytes
) -> None:
    path = write(home, "w.bat", before)
    open_project(page, site, world)
    open_file(page, "w.bat")
    page.press("#file-text", "Control+Home")
    page.keyboard.type("x")
    save(page, "w.bat")
    assert path.read_bytes() == after
    page.press("#file-text", "Control+z")
    save(page, "w.bat")
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "name",
    [
        "a\nb",
        "a\r\nb",
        " blank ",
        "tab\t",
        "..\n",
        "...",
        "-rf",
        "\u2028x",
        "\u202ex",
        b"a\xffb",
        "x" * 255,
        "ü\n" * 60,
    ],
)
def test_what_was_opened_is_what_is_saved(
    page: Page, site: LocalSite, world: World, home: Path, name: str | bytes
) -> None:
    path = write(home, name, b"this one")
    lookalike = os.fsencode(name).decode("utf-8", "replace").replace("\n", "").replace("\r", "").strip()
    if lookalike not in (name, "..", ""):
        write(home, lookalike, b"another")
    names = sorted(os.listdir(os.fsencode(home)))
    open_project(page, site, world)
    rows = page.locator("#files button")
    expect(rows).to_have_count(len(names))
    rows.nth(names.index(os.fsencode(name))).click()
    expect(page.locator("#file-text")).to_have_value("this one")
    type_at_the_end(page, ", changed")
    page.press("#file-text", "Control+s")
    expect(page.locator("#file-status")).to_contain_text("Saved")
    assert path.read_bytes() == b"this one, changed"
    assert sorted(os.listdir(os.fsencode(home))) == names
    page.reload()
    expect(page.locator("#connection-state")).to_have_text("connected")


def test_read_only_files_and_links(page: Page, site: LocalSite, world: World, home: Path) -> None:
    path = write(home, "kept.txt", b"kept")
    path.chmod(0o444)
    (home / "real").mkdir()
    write(home, "real/file", b"real")
    (home / "folder").symlink_to(home / "real")
    (home / "link").symlink_to(home / "folder" / "file")
    open_project(page, site, world)
    open_file(page, "kept.txt")
    type_at_the_end(page, "not")
    page.press("#file-text", "Control+s")
    expect(page.locator("#file-error")).to_contain_text("read-only")
    expect(page.locator("#file-text")).to_have_value("keptnot")
    assert path.read_bytes() == b"kept"
    page.click("#files button:text-is('link')")
    page.click("#unsaved-discard")
    expect(page.locator("#file-text")).to_have_value("real")
    type_at_the_end(page, " one")
    save(page, "link")
    assert (home / "link").is_symlink()
    page.click("#files button:text-is('folder')")
    expect(page.locator("#directory")).to_have_text("~/folder")
    page.click("#files button:text-is('file')")
    expect(page.locator("#file-text")).to_have_value("real one")


def test_a_folder_with_many_files(page: Page, site: LocalSite, world: World, home: Path) -> None:
    (home / "many").mkdir()
    for number in range(20_000):
        os.close(os.open(home / "many" / f"file-{number:05}", os.O_CREAT))
    open_project(page, site, world)
    page.click("#files button:text-is('many/')")
    rows = page.locator("#files li:has(> button:text-is('many/')) > ul button.file")
    expect(rows).to_have_count(1000)
    more = page.locator("#files li.more button")
    more.click()
    expect(rows).to_have_count(2000)
    expect(rows.last).to_have_text("file-01999")
    while more.count():
        shown = rows.count()
        more.click()
        expect(rows).to_have_count(shown + 1000)
    expect(rows).to_have_count(20_000)
    rows.last.click()
    expect(page.locator("#file-status")).to_have_text("Opened many/file-19999")


def test_a_text_that_is_too_long_is_not_lost(page: Page, site: LocalSite, world: World, home: Path) -> None:
    write(home, "large", b"x" * 2_000_000)
    open_project(page, site, world)
    page.fill("#file-path", "large")
    page.click("#open-button")
    expect(page.locator("#file-error")).to_contain_text("fit into one answer")
    page.fill("#file-path", "longer")
    page.evaluate(
        """() => {
            const field = document.getElementById("file-text");
            field.value = "y".repeat(1_500_000);
            field.dispatchEvent(new Event("input", {bubbles: true}));
        }"""
    )
    page.press("#file-text", "Control+s")
    expect(page.locator("#file-error")).to_contain_text(json.dumps(1_500_000)[:2])
    expect(page.locator("#connection-state")).to_have_text("connected")
    assert page.evaluate("document.getElementById('file-text').value.length") == 1_500_000
