"""Terminals in the console: Chromium draws with xterm.js what real programs show, and everybody sees the same."""

# ruff: noqa: F811 - fixtures of another module

from __future__ import annotations

import base64
import contextlib
import json
import os
import random
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.kit import chromium
from tests.kit.vt_screens import AFTER, COLUMNS, ROWS, SCREENS
from tests.kit.wait import wait_for
from tests.platform.site import LocalSite, World
from tests.platform.test_console import browser, context, open_project, page, sign_in  # noqa: F401
from tests.platform.test_resilience import pid_of
from tests.platform.test_terminal_command import window

READS = """
import os, tty
tty.setraw(0)
os.write(1, b"\\x1b[?1000h\\x1b[?1006h\\x1b[?2004hready\\r\\n")
seen = b""
while b"q" not in seen:
    seen += os.read(0, 4096)
    os.write(1, ascii(seen).encode() + b"\\r\\n")
os.write(1, b"\\x1b[?1000l\\x1b[?1006l\\x1b[?2004l")
"""
"""Shows what it is sent; asks for the mouse, and for a mark around what is pasted."""
TEXT = "first line\n\ttabbed 日本 é\n" + "".join(f"line {number}\n" for number in range(3, 60))
PRINTS = """
import base64, os, termios, tty
tty.setraw(0, termios.TCSADRAIN)  # keeps what was typed before
for number, piece in enumerate({0!r}):
    os.read(0, 1)
    os.write(1, base64.b64decode(piece))
    termios.tcdrain(1)
    with open("printed.new", "w") as file:
        file.write(str(number + 1))
    os.rename("printed.new", "printed")
os.read(0, 1)
"""
"""Prints the next piece for each key."""
FOUND = 8
"""Lines with the word "line 1" that a screen shows at least, beside the one under the cursor."""
FROZEN_SECONDS = 60.0
BOTH_DRAW = tuple(name for name in SCREENS if name != "margins")
"""In origin mode the live screen is wrong: see findings/xterm-adds-the-margin-twice-in-origin-mode.sh."""
SCREENSHOT = os.environ.get("NATSKIT_TERMINAL_SCREENSHOT")
"""Where to put the picture for the documentation."""
CELLS = """() => [...document.querySelectorAll('.terminal:not([hidden]) .xterm-rows > div')].map((row) =>
    [...row.querySelectorAll('span')].map((span) => {
        const style = getComputedStyle(span);
        return [span.textContent, style.color, style.backgroundColor, style.fontWeight].join('|');
    }))"""
"""What each piece of each row looks like; the cursor's own look depends on which window has the focus."""


def rows(page: Page) -> list[str]:
    """The text of the rows that a page's terminal shows."""
    shown = page.locator(".terminal:not([hidden]) .xterm-rows > div")
    return [row.replace("\xa0", " ").rstrip() for row in shown.all_text_contents()]


def shows(page: Page, text: str) -> None:
    try:
        wait_for(lambda: any(text in row for row in rows(page)), f"the terminal shows {text!r}")
    except AssertionError as error:
        raise AssertionError(f"{error}, but {rows(page)}") from None


def prompts(page: Page) -> None:
    """Wait until the shell has a prompt."""
    wait_for(lambda: "".join(rows(page))[-1:] in ("$", "#"), "the shell has a prompt")


@pytest.fixture(autouse=True)
def ended(site: LocalSite, world: World) -> Iterator[None]:
    """Ends all terminals after each test."""
    yield
    for terminal in site.natskit_json("terminal", world.names["p"], "--list"):
        site.natskit("terminal", world.names["p"], terminal["terminal"], "--end")


def found(page: Page) -> int:
    """How many times the editor highlights what was searched for."""
    pieces = [piece.split("|") for row in page.evaluate(CELLS) for piece in row]
    return sum(text.replace("\xa0", " ") == "line 1" and back != "rgba(0, 0, 0, 0)" for text, _, back, _ in pieces)


def turn(page: Page, switch: str, *, on: bool) -> None:
    """Click a switch that shows what the project says, which comes a moment later."""
    page.click(switch)
    expect(page.locator(switch)).to_be_checked(checked=on)


def focus(page: Page) -> None:
    page.bring_to_front()
    page.locator(".terminal:not([hidden]) textarea").focus()


def same(pages: list[Page], other: list[str] | None = None) -> None:
    """Wait until all show the same; ``other`` are the rows that another kind of viewer draws."""

    def are_same() -> bool:
        first, *rest = [rows(page) for page in pages]
        return all(each == first for each in rest) and (other is None or first == other)

    try:
        wait_for(are_same, "all show the same")
    except AssertionError as error:
        raise AssertionError("\n".join(map(repr, [str(error), *map(rows, pages), other]))) from None


def test_an_editor_through_a_reload_restarts_frost_and_another_person(
    page: Page, browser: Browser, site: LocalSite, world: World
) -> None:
    site.natskit("exec", world.names["p"], "--", "sh", "-c", f"printf '%s' '{TEXT}' > text")
    page.set_viewport_size({"width": 1200, "height": 1000})
    open_project(page, site, world)
    page.click("#new-terminal")
    expect(page.locator("#terminal-tabs [aria-selected=true]")).to_have_text("1")
    prompts(page)
    focus(page)
    page.keyboard.type("vim -u NONE -N text\n")
    shows(page, "line 10")
    page.keyboard.type(":set hlsearch | syntax on\n/line 1\n")
    wait_for(lambda: found(page) >= FOUND, "what was found is highlighted")
    before, looks = rows(page), page.evaluate(CELLS)

    page.reload()
    expect(page.locator("#connection-state")).to_have_text("connected")
    page.click(f"[data-project-id='{world.names['p']}']")
    shows(page, "/line 1")
    wait_for(lambda: rows(page) == before, "the screen is as it was")
    focus(page)
    try:
        wait_for(lambda: page.evaluate(CELLS) == looks, "every cell looks as it did")
    except AssertionError as error:
        pairs = zip(looks, page.evaluate(CELLS), strict=False)
        raise AssertionError(f"{error}: {[pair for pair in pairs if pair[0] != pair[1]]}") from None

    page.evaluate("document.querySelector('#terminal-status').dataset.said = ''")
    page.evaluate(
        "new MutationObserver(([{target}]) => { const status = document.querySelector('#terminal-status');"
        "status.dataset.said += status.textContent; })"
        ".observe(document.querySelector('#terminal-status'), {childList: true, characterData: true, subtree: true})"
    )
    for program, end in (("nats", signal.SIGKILL), ("proxy", signal.SIGTERM), ("hub-1", signal.SIGKILL)):
        restarted_while_typing(page, site, program, end)
    assert "reconnecting" in (page.locator("#terminal-status").get_attribute("data-said") or "")

    with someone_else(browser, site, world) as second:
        shows(second, "typed without nats")
        expect(page.locator("#terminal-status")).to_have_text("2 viewers")
        focus(second)
        second.keyboard.type("Gofrom the other person\x1b")
        shows(page, "from the other person")
        expect(page.locator("#terminal-typist")).to_have_text(f"{world.email_b} types")
        same([page, second])
        frozen(page, second, browser, site, world)
        same([page, second])
        with window(site, "terminal", world.names["p"], "1", "--read-only", columns=200, rows=60) as third:
            third.until("from the other person")
            expect(page.locator("#terminal-status")).to_have_text("3 viewers")
            drawn = [line.rstrip() for line in third.drawn.text().splitlines()]
            same([page, second], drawn + [""] * (len(rows(page)) - len(drawn)))
            third.type("\x1d")
            assert third.code() == 0
        if SCREENSHOT:
            photograph(page)
    focus(page)
    page.keyboard.type(":q!\n")
    prompts(page)  # the editor discards what is typed before it ends
    page.keyboard.type("exit 3\n")
    expect(page.locator("#terminal-status")).to_have_text("ended with exit code 3")
    expect(page.locator("#end-terminal")).to_be_disabled()


def restarted_while_typing(page: Page, site: LocalSite, program: str, end: signal.Signals) -> None:
    """What is typed while a part of the platform is away arrives once."""
    before = pid_of(site, program)
    text = f"typed without {program}"
    focus(page)
    page.keyboard.type("ggO")
    os.kill(before, end)
    page.keyboard.type(f"{text} \x1b")
    wait_for(lambda: pid_of(site, program) not in {0, before}, f"{program} to be started again")
    shows(page, text)
    wait_for(lambda: site.natskit("status", check=False).returncode == 0, "the platform to be whole again")
    assert "\n".join(rows(page)).count(text) == 1


@contextlib.contextmanager
def someone_else(browser: Browser, site: LocalSite, world: World) -> Iterator[Page]:
    """The page of another person, who may use the project meanwhile."""
    project = world.names["p"]
    site.natskit("project", "share", project, world.email_b)
    try:
        # In a browser of its own, which goes on while the first stands still.
        with browser.browser_type.launch(executable_path=chromium.__file__) as another:
            page = another.new_context(ignore_https_errors=True).new_page()
            page.set_viewport_size({"width": 1000, "height": 900})
            sign_in(page, site, world.email_b, world.password)
            page.click(f"[data-project-id='{project}']")
            yield page
    finally:
        site.natskit("project", "unshare", project, world.email_b)


def frozen(page: Page, other: Page, browser: Browser, site: LocalSite, world: World) -> None:
    """A tab that stands still for a minute shows everything afterwards, and what is typed then arrives once.

    Its renderer is stopped: what DevTools call frozen goes on to answer. Not for less than a minute: after 45 s its
    window stops counting for the terminal's size, and only what is silent for longer is away.
    """
    processes = browser.new_browser_cdp_session().send("SystemInfo.getProcessInfo")["processInfo"]
    renderers = [process["id"] for process in processes if process["type"] == "renderer"]
    assert renderers
    begun = time.monotonic()
    for pid in renderers:
        os.kill(pid, signal.SIGSTOP)
    try:
        focus(other)
        other.keyboard.type("Gowhile the first was frozen\x1b")
        shows(other, "while the first was frozen")

        def is_away() -> bool:
            (terminal,) = site.natskit_json("terminal", world.names["p"], "--list")
            return any(viewer["away"] for viewer in terminal["viewers"])

        wait_for(is_away, "the frozen tab is away", 90)
        wait_for(lambda: time.monotonic() - begun >= FROZEN_SECONDS, "a minute is over", 90)
    finally:
        for pid in renderers:
            os.kill(pid, signal.SIGCONT)
    shows(page, "while the first was frozen")
    focus(page)
    page.keyboard.type("Gotyped after the frost\x1b")
    shows(other, "typed after the frost")
    assert "\n".join(rows(other)).count("typed after the frost") == 1


def photograph(page: Page) -> None:
    """The picture in docs/how-to/use-terminals.md."""
    page.bring_to_front()
    place = page.locator("article:has(#terminal-boxes)")
    place.scroll_into_view_if_needed()
    place.screenshot(path=str(SCREENSHOT))


def test_a_viewer_that_comes_in_the_middle_of_a_screen_sees_every_cell(
    page: Page, browser: Browser, site: LocalSite, world: World
) -> None:
    """One window is there all the time. The other comes back at random bytes, and gets what draws the screen."""
    pieces: list[str] = []
    wrong: dict[str, Any] = {}
    for name in BOTH_DRAW:
        whole = b"\x1bc" + SCREENS[name] + AFTER
        cuts = sorted(random.sample(range(len(whole)), 3))
        pieces += [base64.b64encode(whole[a:b]).decode() for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    home = site.root / "runner" / "projects" / world.names["p"] / "home"
    (home / "screens.py").write_text(PRINTS.format(pieces))
    waits = ["sh", "-c", "echo wai''ting; read go; exec python3 screens.py"]
    with window(site, "terminal", world.names["p"], "screens", *waits, columns=COLUMNS, rows=ROWS) as keys:
        keys.until("waiting")
        for each in (page, second := browser.new_context(ignore_https_errors=True).new_page()):
            each.set_viewport_size({"width": 1400, "height": 1000})
            open_project(each, site, world)
            each.click("[data-terminal=screens]")
        keys.type("\n")
        for number in range(len(pieces)):
            keys.type("n")
            wait_for(lambda: printed(home) == number + 1, f"piece {number} is printed")  # noqa: B023
            # It attaches anew, by which it gets the screen as it is.
            second.set_checked("#watch-only", number % 2 == 0)
            focus(page)
            if (number + 1) % 4 == 0 and (differ := differences(page, second)):
                wrong[BOTH_DRAW[number // 4]] = differ
        keys.type("n")
        assert keys.code() == 0
    second.context.close()
    assert wrong == {}


def printed(home: Path) -> int:
    """How many pieces the program has printed."""
    file = home / "printed"
    return int(file.read_text()) if file.exists() else 0


def differences(one: Page, other: Page) -> list[Any]:
    """Rows that look otherwise in the other window, when both have had time to draw; none has the cursor."""
    looks: list[list[list[str]]] = []

    def are_alike() -> bool:
        looks[:] = []
        for each in (one, other):
            each.bring_to_front()
            each.locator("#terminal-search").focus()
            looks.append([without_blanks(row) for row in each.evaluate(CELLS)])
        return looks[0] == looks[1]

    with contextlib.suppress(AssertionError):
        wait_for(are_alike, "both windows look the same", 10)
    return [pair for pair in zip(*looks, strict=False) if pair[0] != pair[1]]


def without_blanks(row: list[str]) -> list[str]:
    """A row without what shows nothing at its end: a cell that was erased looks as one that has a space."""
    pieces = list(row)
    while pieces and pieces[-1].rsplit("|", 3)[2] == "rgba(0, 0, 0, 0)":
        text, *look = pieces[-1].rsplit("|", 3)
        if text := text.replace("\xa0", " ").rstrip():
            pieces[-1] = "|".join([text, *look])
            break
        pieces.pop()
    return pieces


def test_search_screen_reader_recording_and_sharing(
    page: Page, browser: Browser, site: LocalSite, world: World
) -> None:
    project = world.names["p"]
    page.set_viewport_size({"width": 1400, "height": 1000})
    open_project(page, site, world)
    page.click("#new-terminal")
    prompts(page)
    focus(page)
    page.keyboard.type("PS1='ready> '; clear; seq 1 300 | sed s/7/seven/\n")
    shows(page, "300")
    page.keyboard.press("Control+Shift+F")
    expect(page.locator("#terminal-search")).to_be_focused()
    page.keyboard.type("seven")
    expect(page.locator("#search-result")).to_have_text(re.compile(r"\d+ of 57"))
    page.keyboard.press("Shift+Enter")
    shows(page, "seven")
    page.keyboard.press("Escape")
    expect(page.locator(".terminal:not([hidden]) textarea")).to_be_focused()

    page.check("#screen-reader")
    page.keyboard.press("Escape")
    expect(page.locator(".terminal:not([hidden]) .xterm-accessibility-tree")).to_contain_text("300")
    page.uncheck("#screen-reader")
    expect(page.locator(".terminal:not([hidden]) .xterm-accessibility-tree")).to_have_count(0)

    page.check("#beside-files")
    places = [page.locator(f"article:has({part})").bounding_box() for part in ("#terminal-boxes", "#file-form")]
    assert places[0]
    assert places[1]
    assert places[0]["x"] + places[0]["width"] <= places[1]["x"]
    assert places[0]["y"] == places[1]["y"]
    page.uncheck("#beside-files")

    turn(page, "#record-terminal", on=True)
    expect(page.locator("#record-label")).to_have_attribute("title", re.compile(r".+\.cast"))
    recording = page.locator("#record-label").get_attribute("title") or ""
    focus(page)
    page.keyboard.type("echo rec''orded\n")
    shows(page, "recorded")

    with someone_else(browser, site, world) as second:
        shows(second, "recorded")
        expect(second.locator("#record-terminal")).to_be_checked()
        turn(page, "#type-alone", on=True)
        expect(second.locator("#terminal-typist")).to_have_text(f"only {world.email_a} types")
        focus(second)
        second.keyboard.type("not this ")
        expect(second.locator("#type-alone")).not_to_be_checked()
        turn(second, "#type-alone", on=True)
        expect(page.locator("#terminal-typist")).to_have_text(f"only {world.email_b} types")
        focus(second)
        second.keyboard.type("echo fr''om the other\n")
        shows(page, "from the other")
        assert "not this" not in "\n".join(rows(page))
        turn(second, "#type-alone", on=False)
        second.check("#watch-only")
        expect(page.locator("#terminal-status")).to_have_attribute("title", re.compile(rf"{world.email_b} \(watches\)"))
        focus(second)
        second.keyboard.type("nor that ")
        focus(page)
        page.keyboard.type("echo la''st\n")
        shows(second, "last")
        assert "nor that" not in "\n".join(rows(second))
    turn(page, "#record-terminal", on=False)
    expect(page.locator("#record-label")).to_have_attribute("title", "")
    events = site.natskit("exec", project, "--", "cat", recording).stdout.splitlines()
    assert json.loads(events[0])["version"] == 3
    assert "recorded" in "".join(json.loads(event)[2] for event in events[1:])
    focus(page)
    page.keyboard.type("exit\n")
    expect(page.locator("#terminal-status")).to_have_text("ended with exit code 0")
    site.natskit("exec", project, "--", "rm", recording)


def test_mouse_paste_links_font_and_colours(page: Page, site: LocalSite, world: World) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"], origin=site.url)
    (site.root / "runner" / "projects" / world.names["p"] / "home" / "reads.py").write_text(READS)
    open_project(page, site, world)
    page.click("#new-terminal")
    prompts(page)
    focus(page)
    page.keyboard.type("clear; echo see https://example.org/guide\n")
    wait_for(lambda: rows(page)[0] == "see https://example.org/guide", "the link")
    page.context.route("https://example.org/**", lambda route: route.fulfill(body="a guide"))
    link = page.locator(".terminal:not([hidden]) .xterm-rows > div").first
    link.hover(position={"x": 80, "y": 8}, force=True)
    expect(page.locator(".terminal:not([hidden]) .xterm-cursor-pointer")).to_have_count(1)
    with page.context.expect_page() as opened:
        link.click(position={"x": 80, "y": 8}, force=True)
    opened.value.wait_for_url("https://example.org/guide")
    assert opened.value.evaluate("window.opener") is None
    opened.value.close()

    focus(page)
    page.keyboard.type("clear; python3 reads.py\n")
    shows(page, "ready")
    page.locator(".terminal:not([hidden]) .xterm-screen").click(position={"x": 3, "y": 3})
    shows(page, r"\x1b[<0;1;1M\x1b[<0;1;1m")
    page.evaluate("navigator.clipboard.writeText('two\\nlines')")
    focus(page)
    page.keyboard.press("Control+Shift+V")
    shows(page, r"\x1b[200~two\rlines\x1b[201~")
    page.keyboard.type("q")
    prompts(page)

    def look() -> list[str]:
        script = "(box) => { const { fontSize, color } = getComputedStyle(box.querySelector('.xterm-rows'));"
        script += " return [fontSize, color]; }"
        return page.locator("div[data-terminal]:not([hidden])").evaluate(script)  # type: ignore[no-any-return]

    page.emulate_media(color_scheme="light")
    font, light = look()
    page.click("#larger-font")
    wait_for(lambda: look()[0] == f"{int(font[:-2]) + 1}px", "larger letters")
    page.emulate_media(color_scheme="dark")
    wait_for(lambda: look()[1] != light, "other colours")
    page.click("#smaller-font")
    wait_for(lambda: look()[0] == font, "smaller letters again")
    page.click("#end-terminal")
    expect(page.locator("#terminal-status")).to_have_text("ended by SIGHUP")


def test_the_graphics_card_draws_where_there_is_one(page: Page, site: LocalSite, world: World) -> None:
    """Here a program takes the place of the card, for a page that does not mind. Elsewhere elements draw."""
    page.add_init_script(
        "const get = WebGL2RenderingContext.prototype.getParameter;"
        "WebGL2RenderingContext.prototype.getParameter = function (name) {"
        "  const found = get.call(this, name); return /SwiftShader/.test(found) ? 'a card' : found; };"
    )
    open_project(page, site, world)
    page.click("#new-terminal")
    box = page.locator(".terminal:not([hidden])")
    expect(box.locator("canvas:not(.xterm-link-layer)").first).to_be_visible()
    expect(box.locator(".xterm-rows")).to_have_count(0)
    page.check("#screen-reader")
    wait_for(lambda: any(rows(page)), "elements draw")
    page.uncheck("#screen-reader")
    expect(box.locator(".xterm-rows")).to_have_count(0)
    page.click("#end-terminal")
    expect(page.locator("#terminal-status")).to_have_text("ended by SIGHUP")
