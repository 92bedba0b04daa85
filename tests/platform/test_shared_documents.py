"""Documents in the console, in real Chromium: two people type and click, are cut off, come back, and travel in time."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Locator, Page, expect

from tests.documents import REPOSITORY, block
from tests.keeper.running import keepers
from tests.kit.wait import wait_for
from tests.platform.site import LocalSite, World
from tests.platform.test_console import PATIENCE, browser, open_project, sign_in
from tests.platform.test_resilience import admin, pid_of
from tests.platform.test_terminals import focus, prompts, shows

__all__ = ["browser"]

PASSWORD = "a password for writing together"  # noqa: S105
SCREENSHOT = os.environ.get("NATSKIT_DOCUMENT_SCREENSHOT")
"""Where to put the picture for the documentation."""
LINES = """() => {
  const lines = [...document.querySelector("#document-text").shadowRoot.querySelectorAll(".cm-line")];
  return lines.map((line) => {
    const copy = line.cloneNode(true);
    for (const cursor of copy.querySelectorAll(".cm-ySelectionCaret")) cursor.remove();
    return copy.textContent;
  });
}"""

COLORS = """() => {
  const words = document.querySelector("#document-text").shadowRoot.querySelectorAll(".cm-line, .cm-line span");
  return new Set([...words].map((word) => getComputedStyle(word).color)).size;
}"""
KEPT = """() => new Promise((resolve) => {
  const opening = indexedDB.open("natskit-documents");
  opening.onsuccess = () => {
    const asked = opening.result.transaction("unsent").objectStore("unsent").getAll();
    asked.onsuccess = () => {
      opening.result.close();
      resolve(asked.result.map(({ text }) => text));
    };
  };
})"""


@dataclass
class Seat:
    """A person at a browser."""

    page: Page
    context: BrowserContext
    email: str

    @property
    def text(self) -> Locator:
        return self.page.locator("#document-text .cm-content")

    @property
    def state(self) -> Locator:
        return self.page.locator("#document-state")

    def shows(self, text: str) -> None:
        """Wait until the editor shows this text, whatever names stand at cursors."""
        wait_for(lambda: self.page.evaluate(LINES) == text.split("\n"), f"{self.email} sees {text!r}")

    def open(self, path: str) -> None:
        self.page.click(f"#documents button:text-is('{path}')")
        expect(self.page.locator("#document-path")).to_have_value(path)
        expect(self.state).to_have_text("saved")

    def create(self, path: str) -> None:
        self.page.fill("#new-document", path)
        self.page.press("#new-document", "Enter")
        expect(self.page.locator("#document-path")).to_have_value(path)
        expect(self.state).to_have_text("saved")

    def type_at(self, key: str, text: str) -> None:
        """Go to the start or the end of the text, and type."""
        self.text.click()
        self.page.keyboard.press(key)
        self.page.keyboard.type(text)


def take_seat(browser: Browser, problems: list[str], email: str) -> Seat:
    context = browser.new_context(ignore_https_errors=True)
    context.set_default_timeout(PATIENCE)
    expect.set_options(timeout=PATIENCE)
    page = context.new_page()
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda message: problems.append(message.text) if "Content Security" in message.text else None)
    return Seat(page, context, email)


@pytest.fixture
def problems() -> Iterator[list[str]]:
    """What the pages complain of."""
    problems: list[str] = []
    yield problems
    assert problems == []


@pytest.fixture
def ann(browser: Browser, site: LocalSite, world: World, problems: list[str]) -> Iterator[Seat]:
    """The owner of the project, who looks at it."""
    seat = take_seat(browser, problems, world.email_a)
    open_project(seat.page, site, world)
    yield seat
    seat.context.close()


@pytest.fixture(scope="module")
def bobs_email(site: LocalSite, world: World) -> str:
    email = f"bob-who-writes@{site.domain}"
    site.natskit("account", "add", email, "--password-stdin", stdin=PASSWORD)
    site.natskit("project", "share", world.names["p"], email)
    return email


@pytest.fixture
def bob(browser: Browser, site: LocalSite, world: World, problems: list[str], bobs_email: str) -> Iterator[Seat]:
    """Somebody with whom the project is shared, who looks at it too."""
    seat = take_seat(browser, problems, bobs_email)
    sign_in(seat.page, site, seat.email, PASSWORD)
    seat.page.click(f"[data-project-id='{world.names['p']}']")
    yield seat
    seat.context.close()


def test_two_people_write_one_text(ann: Seat, bob: Seat) -> None:
    """Each sees at once what the other types, where the other is, and undoes only what is one's own."""
    ann.create("together.md")
    ann.type_at("Control+Home", "Hello from Ann.")
    bob.open("together.md")
    bob.shows("Hello from Ann.")
    bob.type_at("Control+End", " And from Bob.")
    ann.shows("Hello from Ann. And from Bob.")
    expect(ann.page.locator("#document-people li")).to_have_text(["you", bob.email])
    expect(ann.page.locator(".cm-ySelectionInfo")).to_have_text(bob.email)
    expect(ann.state).to_have_text("saved")
    ann.text.click()
    ann.page.keyboard.press("Control+z")
    bob.shows(" And from Bob.")
    ann.page.keyboard.press("Control+y")
    bob.shows("Hello from Ann. And from Bob.")
    bob.page.click("#document-close")
    expect(ann.page.locator("#document-people li")).to_have_text(["you"])


def test_a_page_asks_the_keeper_that_answers_name(
    browser: Browser, site: LocalSite, world: World, problems: list[str]
) -> None:
    """And another one when that one is gone."""
    seat = take_seat(browser, problems, world.email_a)
    frames: list[str] = []
    seat.page.on("websocket", lambda socket: socket.on("framesent", lambda frame: frames.append(_text_of(frame))))
    open_project(seat.page, site, world)
    seat.create("asked.md")

    def asked() -> set[str]:
        """The keepers that were asked by name."""
        return set(re.findall(r"PUB docs\.[^.\s]+\.[^.\s]+\.[^.\s]+\.(\w+) ", "".join(frames)))

    seat.type_at("Control+End", "one ")
    expect(seat.state).to_have_text("saved")
    wait_for(lambda: len(asked()) == 1, "a keeper is asked by name")
    (first,) = asked()
    os.kill(pid_of(site, _keepers(site)[first]), signal.SIGKILL)
    seat.type_at("Control+End", "two ")
    seat.shows("one two ")
    expect(seat.state).to_have_text("saved")

    def another_is_asked() -> bool:
        """Answers name the one that is gone until the other keeper misses it."""
        seat.type_at("Control+End", "more ")
        expect(seat.state).to_have_text("saved")
        return len(asked()) > 1

    wait_for(another_is_asked, "another keeper is asked by name", 60)
    seat.context.close()
    wait_for(lambda: len(_keepers(site)) == 2, "the keeper is back", 60)


def _keepers(site: LocalSite) -> dict[str, str]:
    """The names of the keepers by their ids."""

    async def ask() -> dict[str, str]:
        async with await admin(site) as client:
            return await keepers(client)

    with ThreadPoolExecutor() as apart:  # Playwright's event loop runs in this thread
        return apart.submit(asyncio.run, ask()).result()


def _text_of(frame: bytes | str) -> str:
    return frame if isinstance(frame, str) else frame.decode("utf-8", "replace")


def test_a_reload_brings_back_the_text(ann: Seat, world: World) -> None:
    ann.create("reload.py")
    ann.type_at("Control+Home", "def f():")
    expect(ann.state).to_have_text("saved")
    ann.page.reload()
    ann.page.click(f"[data-project-id='{world.names['p']}']")
    ann.open("reload.py")
    ann.shows("def f():")
    wait_for(lambda: ann.page.evaluate(COLORS) > 1, "Python has colours")


def test_what_is_typed_offline_is_sent_later(ann: Seat, bob: Seat) -> None:
    """Both go on while one is cut off, and then both have all of it."""
    ann.create("offline.txt")
    ann.type_at("Control+Home", "start")
    bob.open("offline.txt")
    bob.shows("start")
    ann.context.set_offline(True)
    ann.type_at("Control+End", " ann")
    expect(ann.state).to_have_text(re.compile(r"offline: \d+ changes not sent"))
    bob.type_at("Control+Home", "bob ")
    bob.shows("bob start")
    ann.context.set_offline(False)
    ann.shows("bob start ann")
    bob.shows("bob start ann")
    expect(ann.state).to_have_text("saved")


def test_what_was_not_sent_survives_a_reload(ann: Seat, bob: Seat, world: World) -> None:
    """The browser keeps it, and sends it when the page is back, also if nobody opens the document."""
    ann.create("kept.txt")
    ann.type_at("Control+Home", "sent")
    expect(ann.state).to_have_text("saved")
    bob.open("kept.txt")
    ann.context.set_offline(True)
    ann.type_at("Control+End", ", not sent")
    expect(ann.state).to_have_text(re.compile("offline: "))
    bob.shows("sent")
    wait_for(lambda: ann.page.evaluate(KEPT) == ["sent, not sent"], "the browser keeps it")
    page = ann.context.new_page()  # the tab is closed, with the network away
    ann.page.close()
    ann.context.set_offline(False)
    page.goto(bob.page.url)
    bob.shows("sent, not sent")
    page.click(f"[data-project-id='{world.names['p']}']")
    wait_for(lambda: page.evaluate(KEPT) == [], "the browser forgets what was sent")


def test_travel_in_time(ann: Seat, bob: Seat) -> None:
    """The slider goes through the whole history; changes have authors; a moment is named, and brought back."""
    ann.create("travel.txt")
    ann.type_at("Control+Home", "one two three")
    expect(ann.state).to_have_text("saved")
    bob.open("travel.txt")
    bob.shows("one two three")
    bob.type_at("Control+Home", "zero ")
    expect(bob.state).to_have_text("saved")
    ann.shows("zero one two three")
    ann.text.click()
    ann.page.keyboard.press("Control+a")
    ann.page.keyboard.press("Delete")
    expect(ann.state).to_have_text("saved")
    ann.page.click("#document-history")
    shown = ann.page.locator("#history-text")
    expect(shown).to_have_text("")
    slider = ann.page.locator("#history-at")
    expect(slider).to_be_focused()
    ann.page.keyboard.press("ArrowLeft")
    expect(shown).to_have_text("zero one two three")
    expect(slider).to_have_attribute("aria-valuetext", re.compile(f"by {bob.email}$"))
    ann.page.fill("#history-name", "before it was deleted")
    ann.page.click("#history-name-button")
    expect(ann.page.locator("#history-versions button").first).to_have_text("before it was deleted")
    box = slider.bounding_box()
    assert box
    middle = box["y"] + box["height"] / 2
    ann.page.mouse.move(box["x"] + box["width"] - 8, middle)
    ann.page.mouse.down()
    ann.page.mouse.move(box["x"] + 1, middle, steps=8)
    ann.page.mouse.up()
    expect(ann.page.locator("#history-when")).to_have_text("before the first change")
    expect(shown).to_have_text("")
    ann.page.click("#history-versions button >> nth=0")
    expect(shown).to_have_text("zero one two three")
    ann.page.check("#history-compare")
    expect(ann.page.locator("#history-text ins")).to_have_count(2)
    expect(ann.page.locator("#history-text ins").first).to_have_text("zero ")
    expect(ann.page.locator("#history-text ins").first).to_have_attribute("title", f"inserted by {bob.email}")
    ann.page.click("#history-restore")
    ann.shows("zero one two three")
    bob.shows("zero one two three")


def test_a_file_in_two_windows_and_a_terminal(ann: Seat, bob: Seat, site: LocalSite, world: World) -> None:
    """Two type into one file, with a `sed -i` in a terminal in between; then the slider, and a restore."""
    page, project = ann.page, world.names["p"]
    text = "shopping\n- apples\n- pears\n"
    site.natskit("exec", project, "--", "sh", "-c", f"printf '%s' '{text}' > shopping.txt")
    page.set_viewport_size({"width": 1200, "height": 1000})
    ann.create("shopping.txt")
    ann.shows(text)
    bob.open("shopping.txt")
    bob.shows(text)
    page.click("#new-terminal")
    prompts(page)
    bob.type_at("Control+End", "- bread\n")
    ann.shows(text + "- bread\n")
    bob.page.keyboard.type("- plu")
    focus(page)
    page.keyboard.type("sed -i s/pears/cherries/ shopping.txt\n")
    text = text.replace("pears", "cherries") + "- bread\n- plu"
    ann.shows(text)
    bob.shows(text)
    bob.page.keyboard.type("ms")  # where the cursor was
    ann.type_at("Control+Home", "Our ")
    text = f"Our {text}ms"
    ann.shows(text)
    bob.shows(text)
    expect(ann.state).to_have_text("saved")
    expect(bob.state).to_have_text("saved")
    focus(page)
    page.keyboard.type(
        "until grep -q Our shopping.txt && grep -q plums shopping.txt; do sleep 0.1; done; cat shopping.txt\n"
    )
    shows(page, "- plums")
    shows(page, "- cherries")
    page.click("#document-history")
    slider = page.locator("#history-at")
    expect(slider).to_be_focused()
    steps = int(slider.get_attribute("max") or 0)
    by_disk = re.compile("by the project’s disk$")
    for _ in range(steps):
        if by_disk.search(slider.get_attribute("aria-valuetext") or ""):
            break
        page.keyboard.press("ArrowLeft")
    expect(slider).to_have_attribute("aria-valuetext", by_disk)
    expect(page.locator("#history-text")).to_contain_text("cherries")
    page.check("#history-compare")
    page.locator("#history-from").fill(str(int(slider.input_value()) - 1))
    expect(page.locator("#history-text ins")).to_have_text(["cherrie"])
    expect(page.locator("#history-text ins")).to_have_attribute("title", "inserted by the project’s disk")
    if SCREENSHOT:
        place = page.locator("article:has(#document)")
        place.scroll_into_view_if_needed()
        place.screenshot(path=SCREENSHOT)
    page.uncheck("#history-compare")
    slider.focus()
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#history-text")).to_contain_text("pears")
    restored = page.locator("#history-text").text_content() or ""
    page.click("#history-restore")
    ann.shows(restored)
    bob.shows(restored)
    focus(page)
    page.keyboard.type("clear; until grep pears shopping.txt; do sleep 0.1; done; exit\n")
    expect(page.locator("#terminal-status")).to_have_text("ended with exit code 0")
    for terminal in site.natskit_json("terminal", project, "--list"):
        site.natskit("terminal", project, terminal["terminal"], "--end")


def test_play(ann: Seat) -> None:
    ann.create("play.txt")
    ann.type_at("Control+Home", "played")
    expect(ann.state).to_have_text("saved")
    ann.page.click("#document-history")
    expect(ann.page.locator("#history-text")).to_have_text("played")
    ann.page.evaluate(
        "window.seen = new Set(); new MutationObserver(() => seen.add(document.querySelector('#history-text')"
        ".textContent)).observe(document.querySelector('#history-text'), { childList: true })"
    )
    ann.page.click("#history-play")
    expect(ann.page.locator("#history-play")).to_have_text("Pause")
    expect(ann.page.locator("#history-play")).to_have_text("Play")
    expect(ann.page.locator("#history-text")).to_have_text("played")
    assert ann.page.evaluate("seen.size") >= 2


def test_names_and_removal(ann: Seat, bob: Seat) -> None:
    ann.create("old-name.txt")
    bob.open("old-name.txt")
    ann.page.fill("#document-path", "new-name.txt")
    ann.page.click("#document-rename")
    expect(bob.page.locator("#document-path")).to_have_value("new-name.txt")
    expect(bob.page.locator("#documents button:text-is('new-name.txt')")).to_be_visible()
    ann.page.click("#document-delete")
    ann.page.click("#delete-document-confirm")
    expect(ann.page.locator("#documents button:text-is('new-name.txt')")).to_have_count(0)
    expect(bob.state).to_have_text("not in step")
    expect(bob.page.locator("#document-error")).to_have_text("the document was deleted")
    expect(bob.text).to_have_attribute("aria-readonly", "true")


def test_a_preview_acts_as_nobody(ann: Seat) -> None:
    """Markdown is shown, and nothing that others write into it becomes more than text."""
    ann.create("page.md")
    ann.type_at(
        "Control+Home", "# Title\n\nSome *text*, [a link](https://example.org/) and [a trap](javascript:alert(1)).\n"
    )
    ann.page.keyboard.insert_text(
        "\n<img src=x onerror=alert(1)><form action=/api/sign-out><button id=sign-out>x</button></form>\n"
        "\n![picture](/api/session)\n\n<style>body { display: none }</style>\n"
    )
    asked: list[str] = []
    ann.page.on("request", lambda request: asked.append(request.url))
    ann.page.click("#document-preview")
    preview = ann.page.locator("#document-preview-text")
    expect(preview.locator("h1")).to_have_text("Title")
    expect(preview.locator("em")).to_have_text("text")
    expect(preview.locator("a[href]")).to_have_attribute("href", "https://example.org/")
    expect(preview.locator("a[href]")).to_have_attribute("rel", "noopener noreferrer")
    expect(preview).to_contain_text("<img src=x onerror=alert(1)>")
    for element in ("img", "form", "button", "style", "script", "[id]", "[class]", "[style]"):
        expect(preview.locator(element)).to_have_count(0)
    assert [url for url in asked if "/api/" in url] == []
    expect(ann.page.locator("#who")).to_be_visible()


def test_the_keyboard_is_enough(ann: Seat) -> None:
    """Tab leaves the editor after Escape; search opens with Ctrl+F."""
    ann.create("keys.txt")
    ann.type_at("Control+Home", "needle in the hay")
    ann.page.keyboard.press("Control+f")
    ann.page.keyboard.type("hay")
    expect(ann.page.locator("#document-text .cm-searchMatch")).to_have_text("hay")
    ann.page.keyboard.press("Escape")
    expect(ann.text).to_be_focused()
    ann.page.keyboard.press("Escape")
    ann.page.keyboard.press("Tab")
    expect(ann.text).not_to_be_focused()


def test_a_sign_out_leaves_nothing_unsent(ann: Seat, bob: Seat, site: LocalSite, world: World) -> None:
    """What was typed in the moment of a sign-out is sent, at the latest when the person signs in again."""
    ann.create("sign-out.txt")
    bob.open("sign-out.txt")
    ann.type_at("Control+Home", "the last words")
    ann.page.click("#sign-out")
    expect(ann.page.locator("#email")).to_be_visible()
    open_project(ann.page, site, world)
    bob.shows("the last words")


def bundled(source: Path, target: Path) -> str:
    """A script with the modules it imports, in one file."""
    script = '. scripts/node && cd web && exec node_modules/.bin/esbuild "$@"'
    bundle = ("--bundle", "--format=esm", "--log-level=warning", f"--outfile={target}")
    command = ["bash", "-euc", script, "bash", str(source), *bundle]
    subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, timeout=300)
    return target.read_text()


def test_random_edits_with_gaps_and_cuts(ann: Seat, world: World, tmp_path: Path) -> None:
    """Three copies that lose a quarter of all events, and are cut off now and then, end with what the history says."""
    source = REPOSITORY / "web" / "random_edits.test-run.js"  # where the imports are found
    source.write_text((Path(__file__).with_name("random_edits.js")).read_text())
    try:
        script = bundled(source, tmp_path / "random_edits.js")
    finally:
        source.unlink()
    ann.context.route("**/random_edits.js", lambda route: route.fulfill(body=script, content_type="text/javascript"))
    for seed in range(3):
        found = ann.page.evaluate(
            "async ([project, seed]) => (await import('/random_edits.js')).edits(project, seed, 150)",
            [world.names["p"], seed],
        )
        assert found["cuts"] > 0
        assert found["updates"] == found["rows"] > 10
        assert found["isWhole"]
        assert [state["kind"] for state in found["states"]] == ["saved"] * 3
        assert len(found["replayed"]) > 50
        assert {*found["texts"], found["then"]} == {found["replayed"]}


def test_the_page_of_the_tutorial(browser: Browser, site: LocalSite, tmp_path: Path) -> None:
    """The page and the script as printed, with two people who share their only project."""
    name, section = "docs/tutorial/shared-document.md", "Write the page"
    html, script = block(name, section, "html"), block(name, section, "js")
    assert len([line for line in script.splitlines() if line]) <= 21
    source = REPOSITORY / "web" / "notes.test-run.js"
    source.write_text(script)
    try:
        notes = bundled(source, tmp_path / "notes.js")
    finally:
        source.unlink()
    emails = [f"{name}-of-the-tutorial@{site.domain}" for name in ("ann", "bob")]
    for email in emails:
        site.natskit("account", "add", email, "--password-stdin", stdin=PASSWORD)
    project = site.natskit_json("project", "create", emails[0], "Notes")["project_id"]
    site.natskit("project", "share", project, emails[1])
    pages = []
    for email in emails:
        # Chromium takes a page that Playwright answers for one from the internet.
        context = browser.new_context(ignore_https_errors=True, permissions=["local-network-access"])
        context.route("**/notes.html", lambda route: route.fulfill(body=html, content_type="text/html"))
        context.route("**/notes.js", lambda route: route.fulfill(body=notes, content_type="text/javascript"))
        page = context.new_page()
        sign_in(page, site, email, PASSWORD)
        page.goto(f"{site.url}/notes.html")
        expect(page.locator(".cm-line")).to_have_text([""])
        pages.append(page)
    first, second = pages
    first.locator(".cm-content").click()
    first.keyboard.type("Hello")
    expect(second.locator(".cm-line")).to_contain_text(["Hello"])  # and whose cursor is there
    second.locator(".cm-content").click()
    second.keyboard.press("Control+End")
    second.keyboard.type(", Ann")
    expect(first.locator(".cm-line")).to_contain_text(["Hello, Ann"])
    expect(first).to_have_title("Notes: saved")
    for page in pages:
        page.context.close()


def test_a_file_is_edited_together_from_the_tree(ann: Seat, bob: Seat, site: LocalSite, world: World) -> None:
    """The button makes the document of the selected file, and opens the one that is there."""
    site.natskit("exec", world.names["p"], "--", "sh", "-c", "echo from the tree > tree.txt")
    for seat in (ann, bob):
        together = seat.page.locator("#edit-together")
        expect(together).to_be_disabled()
        seat.page.click("#refresh-files")
        seat.page.click("#files button:text-is('tree.txt')")
        expect(together).to_be_enabled()
        together.click()
        expect(seat.page.locator("#document-path")).to_have_value("tree.txt")
        seat.shows("from the tree\n")
    ann.type_at("Control+End", "by ann")
    bob.shows("from the tree\nby ann")


NOTEBOOK = """{
 "cells": [
  {"cell_type": "code", "execution_count": 3, "id": "one", "metadata": {"big": 12345678901234567890},
   "outputs": [{"name": "stdout", "output_type": "stream", "text": ["42\\\\n"]}], "source": ["print(42)"]},
  {"cell_type": "markdown", "id": "two", "metadata": {}, "source": ["# Title"]}
 ],
 "metadata": {"kernelspec": {"name": "python3", "display_name": "Python"}}, "nbformat": 4, "nbformat_minor": 5
}
"""
SOURCES = """() => [...document.querySelectorAll(".cell-source")].map((place) =>
  [...place.shadowRoot.querySelectorAll(".cm-line")].map((line) => {
    const copy = line.cloneNode(true);
    for (const cursor of copy.querySelectorAll(".cm-ySelectionCaret")) cursor.remove();
    return copy.textContent;
  }).join("\\n"))"""


def test_a_notebook_is_shown_as_cells(ann: Seat, bob: Seat, site: LocalSite, world: World) -> None:
    """Two edit the sources of its cells, outputs are text, a cell is added, and the history brings back the first."""
    project = world.names["p"]
    site.natskit("exec", project, "--", "sh", "-c", f"printf '%b' '{NOTEBOOK}' > cells.ipynb")

    def shows(*sources: str) -> None:
        both = ann.page, bob.page
        wait_for(lambda: all(page.evaluate(SOURCES) == list(sources) for page in both), f"both see {sources}")

    ann.create("cells.ipynb")
    bob.open("cells.ipynb")
    shows("print(42)", "# Title")
    expect(ann.page.locator(".cell-outputs").first).to_have_text("42\n")
    expect(ann.page.locator(".cells h4")).to_have_text(["Cell 1 (code) [3]", "Cell 2 (text)"])
    ann.page.click(".cell-source >> nth=0 >> .cm-content")
    ann.page.keyboard.press("Control+End")
    ann.page.keyboard.type("\nprint(43)")
    bob.page.click(".cell-source >> nth=1 >> .cm-content")
    bob.page.keyboard.press("Control+End")
    bob.page.keyboard.type("!")
    shows("print(42)\nprint(43)", "# Title!")
    ann.page.click("text=Add a text cell")
    ann.page.keyboard.type("new")
    shows("print(42)\nprint(43)", "# Title!", "new")
    wait_for(lambda: "new" in site.natskit("exec", project, "--", "cat", "cells.ipynb").stdout, "the file has the cell")
    file = site.natskit("exec", project, "--", "cat", "cells.ipynb").stdout
    assert '"metadata": {"big": 12345678901234567890},\n   "outputs"' in file
    ann.page.locator(".cells li").nth(2).get_by_role("button", name="Remove").click()
    shows("print(42)\nprint(43)", "# Title!")
    ann.page.click("#document-history")
    slider = ann.page.locator("#history-at")
    expect(slider).to_be_focused()
    slider.fill("2")  # the first is the empty document, the second the file
    expect(ann.page.locator("#history-text")).to_contain_text("# Cell 1 (code) [3]\nprint(42)\n# Output\n42")
    expect(ann.page.locator("#history-text")).not_to_contain_text("print(43)")
    ann.page.click("#history-restore")
    shows("print(42)", "# Title")
