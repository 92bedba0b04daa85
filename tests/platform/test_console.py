"""The console in a real Chromium, through the proxy. The tests click and type like a person."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Error, Page, Route, expect, sync_playwright

from natskit.identity.claims import cookie_name
from tests.kit import chromium
from tests.platform.site import Site, World

PATIENCE = 20_000
FIREFOX = "Mozilla/5.0 (Windows NT 10.0; Win64; x64; rv:132.0) Gecko/20100101 Firefox/132.0"
SAFARI = (
    "Mozilla/5.0 (iPhone; CPU iPhone OS 17_5 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) "
    "Version/17.5 Mobile/15E148 Safari/604.1"
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if not Path(chromium.CHROMIUM).exists():
        pytest.fail(f"{chromium.CHROMIUM} is missing: make test installs it for root, else apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium.__file__)
        yield browser
        browser.close()


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    context = browser.new_context(ignore_https_errors=True)
    context.set_default_timeout(PATIENCE)
    expect.set_options(timeout=PATIENCE)
    yield context
    context.close()


@pytest.fixture
def page(context: BrowserContext) -> Iterator[Page]:
    page = context.new_page()
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda message: problems.append(message.text) if "Content Security" in message.text else None)
    yield page
    assert problems == []


def sign_in(page: Page, site: Site, email: str, password: str) -> None:
    page.goto(site.url)
    page.fill("#email", email)
    page.fill("#password", password)
    page.click("#sign-in-button")
    expect(page.locator("#connection-state")).to_have_text("connected")


def open_project(page: Page, site: Site, world: World) -> None:
    sign_in(page, site, world.email_a, world.password)
    page.click(f"[data-project-id='{world.names['p']}']")
    expect(page.locator("#project-state")).to_have_text("running")


def run(page: Page, command: str) -> None:
    page.fill("#command", command)
    page.click("#run-button")


def test_long_titles_and_names_stay_in_their_columns(page: Page, site: Site, world: World) -> None:
    """They cover nothing that a user wants to click."""
    word = "W" * 200
    long = site.natskit_json("project", "create", world.email_a, word)["project_id"]
    site.natskit("exec", world.names["p"], "--", "touch", "n" * 255)
    open_project(page, site, world)
    expect(page.locator(f"[data-project-id='{long}']")).to_have_text(word)
    page.click(f"#files button:text-is('{'n' * 255}')")
    expect(page.locator("#file-status")).to_have_text(f"Opened {'n' * 255}")
    page.fill("#file-path", f"{word}/{word}")
    page.click("#open-button")
    expect(page.locator("#file-error")).to_contain_text("does not exist")
    projects, project = (page.locator(part).bounding_box() for part in ("nav", "#project"))
    assert projects
    assert project
    assert projects["x"] + projects["width"] <= project["x"]
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    page.click(f"[data-project-id='{long}']")
    expect(page.locator("#project-title")).to_have_value(word)
    site.natskit("exec", world.names["p"], "--", "rm", "n" * 255)
    site.natskit("project", "delete", long, "--yes")


def test_signing_in_and_out(page: Page, context: BrowserContext, site: Site, world: World) -> None:
    page.goto(site.url)
    page.fill("#email", world.email_a)
    page.fill("#password", "wrong password")
    page.press("#password", "Enter")
    expect(page.locator("#sign-in-error")).to_contain_text(re.compile("wrong|password", re.I))
    sign_in(page, site, world.email_a, world.password)
    expect(page.locator("#who")).to_have_text(world.email_a)
    expect(page.locator("#round-trip")).to_have_text(re.compile(r"\d+\.\d ms"))
    assert page.evaluate("document.cookie") == ""
    assert [cookie["name"] for cookie in context.cookies()] == [cookie_name(site.url)]
    page.reload()
    expect(page.locator("#connection-state")).to_have_text("connected")
    page.click("#sign-out")
    expect(page.locator("#email")).to_be_visible()
    assert context.cookies() == []
    page.reload()
    expect(page.locator("#email")).to_be_visible()


def test_a_one_time_password_is_replaced_before_anything_else(page: Page, site: Site) -> None:
    made = site.natskit_json("account", "add", f"first@{site.domain}")
    page.goto(site.url)
    page.fill("#email", made["email"])
    page.fill("#password", made["password"])
    page.click("#sign-in-button")
    expect(page.locator("#new-password")).to_be_visible()
    page.fill("#chosen-password", "a password of my own")
    page.click("#new-password-button")
    expect(page.locator("#connection-state")).to_have_text("connected")
    page.click("#sign-out")
    page.fill("#email", made["email"])
    page.fill("#password", made["password"])
    page.click("#sign-in-button")
    expect(page.locator("#sign-in-error")).not_to_be_empty()
    sign_in(page, site, made["email"], "a password of my own")


def test_a_project_from_its_creation_to_its_end(page: Page, site: Site, world: World) -> None:
    sign_in(page, site, world.email_a, world.password)
    page.fill("#create-title", "<b>Made</b> in the browser")
    page.click("#create-button")
    expect(page.locator("#project-title")).to_have_value("<b>Made</b> in the browser")
    expect(page.locator("#projects b")).to_have_count(0)
    page.click("#start-button")
    expect(page.locator("#project-state")).to_have_text("running")
    run(page, "echo hello from $HOME; echo oh no >&2; exit 3")
    expect(page.locator("#output")).to_contain_text("hello from /")
    expect(page.locator("#output .stderr")).to_have_text("oh no\n")
    expect(page.locator("#command-status")).to_have_text(re.compile(r"exit code 3"))
    page.fill("#project-title", "Renamed")
    page.click("#rename-button")
    expect(page.locator("#projects")).to_contain_text("Renamed")
    page.click("#stop-button")
    expect(page.locator("#project-state")).to_have_text("stopped")
    run(page, "true")
    expect(page.locator("#command-error")).to_contain_text("started")
    page.click("#delete-button")
    page.click("#delete-confirm")
    expect(page.locator("#projects")).not_to_contain_text("Renamed")


def test_sharing_reaches_the_guests_open_page(page: Page, browser: Browser, site: Site, world: World) -> None:
    guest_context = browser.new_context(ignore_https_errors=True)
    guest_context.set_default_timeout(PATIENCE)
    guest = guest_context.new_page()
    sign_in(guest, site, world.email_b, world.password)
    open_project(page, site, world)
    page.fill("#share-email", "nobody@example.org")
    page.click("#share-button")
    expect(page.locator("#share-error")).to_contain_text("nobody@example.org")
    page.fill("#share-email", world.email_b)
    page.click("#share-button")
    expect(page.locator("#people")).to_contain_text(world.email_b)
    shared = guest.locator(f"[data-project-id='{world.names['p']}']")
    shared.click()
    run(guest, "echo as a guest")
    expect(guest.locator("#output")).to_contain_text("as a guest")
    page.click(f"[aria-label='Remove {world.email_b}']")
    expect(shared).to_have_count(0)
    expect(guest.locator("#connection-state")).to_have_text("connected")
    guest_context.close()


def test_output_streams_while_the_command_runs_and_can_be_cancelled(page: Page, site: Site, world: World) -> None:
    open_project(page, site, world)
    run(page, "echo first; sleep 600; echo never")
    expect(page.locator("#output")).to_contain_text("first")
    expect(page.locator("#command-status")).to_have_text("running")
    page.click("#cancel-button")
    expect(page.locator("#command-status")).to_contain_text("cancelled")
    expect(page.locator("#output")).not_to_contain_text("never")


def test_a_flood_leaves_the_page_alive(page: Page, site: Site, world: World) -> None:
    open_project(page, site, world)
    page.fill("#command", "yes | head -c 50000000; echo; echo the end")
    page.press("#command", "Control+Enter")
    expect(page.locator("#command-status")).to_contain_text("exit code 0")
    expect(page.locator("#output")).to_contain_text("the end")
    expect(page.locator("#output .cut")).to_contain_text("not shown")
    assert int(page.evaluate("document.querySelector('#output').textContent.length")) < 1_500_000


def test_a_command_goes_on_while_another_project_is_looked_at(page: Page, site: Site, world: World) -> None:
    open_project(page, site, world)
    page.fill("#create-title", "The other project")
    page.click("#create-button")
    expect(page.locator("#project-title")).to_have_value("The other project")
    other = page.locator("#projects button", has_text="The other project")
    first = page.locator(f"[data-project-id='{world.names['p']}']")
    page.click("#start-button")
    expect(page.locator("#project-state")).to_have_text("running")
    first.click()
    run(page, "rm -f go went; echo one; while ! test -e go; do sleep 0.1; done; echo two; touch went")
    expect(page.locator("#output")).to_contain_text("one")
    other.click()
    expect(page.locator("#output")).to_have_text("")
    expect(page.locator("#command-status")).to_have_text("")
    expect(page.locator("#cancel-button")).to_be_disabled()
    expect(first).to_contain_text("running a command")
    run(page, "echo of the other; exit 4")
    expect(page.locator("#command-status")).to_contain_text("exit code 4")
    first.click()
    expect(page.locator("#output")).to_have_text("one\n")
    expect(page.locator("#command-status")).to_have_text("running")
    other.click()
    expect(page.locator("#output")).to_have_text("of the other\n")
    expect(page.locator("#command-status")).to_contain_text("exit code 4")
    site.natskit("exec", world.names["p"], "--", "sh", "-c", "touch go; while ! test -e went; do sleep 0.1; done")
    expect(first).not_to_contain_text("running a command")
    first.click()
    expect(page.locator("#output")).to_have_text("one\ntwo\n")
    expect(page.locator("#command-status")).to_contain_text("exit code 0")
    site.natskit("project", "delete", "The other project", "--yes")


def test_a_command_goes_on_while_the_page_is_loaded_again(page: Page, site: Site, world: World) -> None:
    open_project(page, site, world)
    run(page, "rm -f go; echo one; while ! test -e go; do sleep 0.1; done; echo two; exit 6")
    expect(page.locator("#output")).to_contain_text("one")
    page.reload()
    page.click(f"[data-project-id='{world.names['p']}']")
    expect(page.locator("#command-status")).to_have_text("running")
    expect(page.locator("#output")).to_have_text("one\n")
    site.natskit("exec", world.names["p"], "--", "touch", "go")
    expect(page.locator("#command-status")).to_contain_text("exit code 6")
    expect(page.locator("#output")).to_have_text("one\ntwo\n")
    run(page, "echo $$; exec sleep 600")
    expect(page.locator("#output")).to_have_text(re.compile(r"\d+"))
    pid = page.locator("#output").inner_text().strip()
    page.reload()
    page.click(f"[data-project-id='{world.names['p']}']")
    expect(page.locator("#command-status")).to_have_text("running")
    page.click("#cancel-button")
    expect(page.locator("#command-status")).to_contain_text("cancelled")
    assert site.natskit("exec", world.names["p"], "--", "kill", "-0", pid, check=False).returncode != 0


def test_a_tab_that_was_frozen_goes_on_with_its_command(page: Page, browser: Browser, site: Site, world: World) -> None:
    """Its renderer stands still until nats-server has disconnected it, and longer than projects once waited for a
    reader."""
    open_project(page, site, world)
    processes = browser.new_browser_cdp_session().send("SystemInfo.getProcessInfo")["processInfo"]
    renderers = [process["id"] for process in processes if process["type"] == "renderer"]
    assert renderers
    run(page, "rm -f count; n=0; while [ $n -lt 250 ]; do n=$((n+1)); echo $n | tee -a count; sleep 0.1; done; exit 7")
    expect(page.locator("#output")).to_contain_text("1")
    for pid in renderers:
        os.kill(pid, signal.SIGSTOP)
    try:
        site.natskit("exec", world.names["p"], "--", "sh", "-c", "until grep -q 250 count; do sleep 0.2; done")
    finally:
        for pid in renderers:
            os.kill(pid, signal.SIGCONT)
    expect(page.locator("#command-status")).to_contain_text("exit code 7")
    expect(page.locator("#output")).to_have_text("".join(f"{n}\n" for n in range(1, 251)))


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        (r"for i in 1 50 100; do printf '\rdone: %3d %%' $i; done; echo", "done: 100 %\n"),
        (r"printf 'long line\rshort\n'", "shortline\n"),
        (r"printf 'long line\r\033[Kshort\n'", "short\n"),
        (r"printf 'one\r\ntwo\r\n'", "one\ntwo\n"),
        (r"printf 'one\r'; sleep 0.3; printf '\ntwo\n'", "one\ntwo\n"),
        (r"printf 'abc\b\bX\n'", "aXc\n"),
        (r"printf '\033[1;31mred\033[0m \033[38;2;1;2;3mand more\033[m\n'", "red and more\n"),
        (r"printf 'a\033['; sleep 0.3; printf '31mb\033[0m\n'", "ab\n"),
        (r"printf 'a\033]0;title'; sleep 0.3; printf ' of a window\007b\n'", "ab\n"),
        (r"printf '\033]8;;https://example.org\033\\link\033]8;;\033\\\n'", "link\n"),
        (r"printf 'one 0%%\ntwo 0%%\n\033[2A\033[2Kone 9%%\n\033[2Ktwo 7%%\nend\n'", "one 9%\ntwo 7%\nend\n"),
        (r"printf 'gone\n\033[H\033[2Jfresh\n'", "fresh\n"),
        (r"printf 'a\033[3Cb\033[1Gc\n'", "c   b\n"),
        (r"printf '\033[999999999Cx' | wc -c; printf '\033[999999999B\033[999999999Aback\n' | head -c 99", None),
        (r"printf 'bell\007 null\000\n'", "bell null\n"),
        (r"printf 'gr\303'; sleep 0.3; printf '\274n \360\237\232\200 ab\rx\n'", "xrün \N{ROCKET} ab\n"),
        (r"printf '<img src=x onerror=alert(1)>\r<b\n'", "<bmg src=x onerror=alert(1)>\n"),
    ],
)
def test_output_looks_as_in_a_terminal(page: Page, site: Site, world: World, command: str, shown: str | None) -> None:
    open_project(page, site, world)
    run(page, command)
    expect(page.locator("#command-status")).to_contain_text("exit code 0")
    if shown is not None:
        expect(page.locator("#output")).to_have_text(shown)
        assert page.evaluate("document.querySelector('#output').textContent") == shown


def test_a_progress_bar_of_any_length_is_one_line(page: Page, site: Site, world: World) -> None:
    open_project(page, site, world)
    run(page, "for i in $(seq 20000); do printf '\\rstep %6d of 20000' $i >&2; done; echo >&2; echo done")
    expect(page.locator("#command-status")).to_contain_text("exit code 0")
    expect(page.locator("#output .stderr")).to_have_text("step  20000 of 20000\n")
    expect(page.locator("#output .stdout")).to_have_text("done\n")
    expect(page.locator("#output .cut")).to_have_count(0)


@pytest.mark.parametrize(
    "command",
    [
        "head -c 10000000 /dev/zero | tr '\\0' x; echo; echo the end",
        r"for i in $(seq 2000); do printf '\033[9999Cx\033[9999B'; done; echo; echo the end",
        "head -c 1000000 /dev/urandom; echo; echo; echo the end",
    ],
    ids=["one long line", "far away", "random bytes"],
)
def test_odd_output_leaves_the_page_alive(page: Page, site: Site, world: World, command: str) -> None:
    open_project(page, site, world)
    run(page, command)
    expect(page.locator("#command-status")).to_contain_text("exit code 0")
    expect(page.locator("#output")).to_contain_text("the end")
    assert int(page.evaluate("document.querySelector('#output').textContent.length")) < 1_500_000
    run(page, "echo next")
    expect(page.locator("#output")).to_have_text("next\n")


def test_a_signal_that_has_no_name_of_its_own(page: Page, site: Site, world: World) -> None:
    open_project(page, site, world)
    run(page, "kill -35 $$")
    expect(page.locator("#command-status")).to_contain_text("ended by SIGRTMIN+1, exit code 163")


def test_files_are_edited_and_never_silently_overwritten(page: Page, site: Site, world: World) -> None:
    open_project(page, site, world)
    page.fill("#file-path", "notes.txt")
    page.fill("#file-text", "first version")
    page.press("#file-text", "Control+s")
    expect(page.locator("#file-status")).to_have_text("Saved notes.txt")
    expect(page.locator("#files")).to_contain_text("notes.txt")
    site.natskit("exec", world.names["p"], "--", "sh", "-c", "echo somebody else > notes.txt")
    page.fill("#file-text", "second version")
    page.click("#save-button")
    expect(page.locator("#file-error")).to_contain_text("changed by somebody else")
    page.click("#files button:text-is('notes.txt')")
    page.click("#unsaved-discard")
    expect(page.locator("#file-text")).to_have_value("somebody else\n")
    page.fill("#file-text", "third version")
    page.click("#save-button")
    expect(page.locator("#file-status")).to_have_text("Saved notes.txt")
    assert site.natskit("exec", world.names["p"], "--", "cat", "notes.txt").stdout == "third version"
    page.fill("#file-path", "../../etc/passwd")
    page.click("#open-button")
    expect(page.locator("#file-error")).not_to_be_empty()


def test_a_million_messages(page: Page, site: Site, world: World) -> None:
    def taken() -> int:
        return sum(json.loads(answer)["in_msgs"] for answer in site.monitor("varz"))

    open_project(page, site, world)
    before = taken()
    page.click("#bench-button")
    expect(page.locator("#bench-result")).to_contain_text("messages/s", timeout=60_000)
    assert taken() - before >= 1_000_000


def test_the_page_survives_the_end_of_its_session(page: Page, site: Site) -> None:
    password = "a password for a while"  # noqa: S105
    email = f"leaving@{site.domain}"
    site.natskit("account", "add", email, "--password-stdin", stdin=password)
    sign_in(page, site, email, password)
    site.natskit("account", "disable", email)
    expect(page.locator("#sign-in-error")).to_contain_text("signed out")


def test_a_site_that_does_not_answer_shows_the_sign_in_form_and_why(page: Page, site: Site) -> None:
    held: list[Route] = []
    page.route("**/api/session", lambda route: held.append(route))  # taken, and never answered
    page.goto(site.url)
    expect(page.locator("#email")).to_be_visible()
    expect(page.locator("#sign-in-error")).to_contain_text("the site cannot be reached")
    assert len(held) == 2
    for one in held:  # an aborted one answers to nothing any more
        with contextlib.suppress(Error):
            one.abort()


def test_sessions_are_seen_and_ended(page: Page, browser: Browser, site: Site) -> None:
    password = "a password for two machines"  # noqa: S105
    email = f"everywhere@{site.domain}"
    site.natskit("account", "add", email, "--password-stdin", stdin=password)
    contexts = [browser.new_context(ignore_https_errors=True, user_agent=agent) for agent in (FIREFOX, SAFARI)]
    phone, other = (context.new_page() for context in contexts)
    for one in (page, phone, other):
        sign_in(one, site, email, password)
    page.click("#sessions-button")
    rows = page.locator("#sessions li")
    expect(rows).to_have_count(3)
    expect(page.locator("#sessions li", has_text="this browser")).to_contain_text("Chrome")
    page.click("[aria-label='End the session of Firefox 132 on Windows']")
    expect(rows).to_have_count(2)
    expect(phone.locator("#sign-in-error")).to_contain_text("signed out")
    expect(page.locator("#connection-state")).to_have_text("connected")
    assert len(site.natskit_json("account", "sessions", email)) == 2
    page.click("#end-other-sessions")
    expect(rows).to_have_count(1)
    expect(other.locator("#sign-in-error")).to_contain_text("signed out")
    page.click("#sessions-close")
    expect(page.locator("#sessions-dialog")).to_be_hidden()
    sign_in(other, site, email, password)
    page.click("#sessions-button")
    page.click("#end-all-sessions")
    for one in (page, other):
        expect(one.locator("#sign-in-error")).to_contain_text("signed out")
        expect(one.locator("#sessions-dialog")).to_be_hidden()
    sign_in(page, site, email, password)
    site.natskit("account", "sign-out", email)
    expect(page.locator("#sign-in-error")).to_contain_text("signed out")
    assert site.natskit_json("account", "sessions", email) == []
    for context in contexts:
        context.close()


def test_who_is_away_for_a_moment_is_asked_again(page: Page, site: Site, world: World) -> None:
    sign_in(page, site, world.email_a, world.password)
    asked = page.evaluate(
        """async project => {
            const {connect, session} = await import("/natskit.js");
            const client = await connect(await session());
            const stopped = await client.callHub("create_project", {title: "nobody is here"});
            const ask = client.nats.request.bind(client.nats);
            const errors = [];
            client.nats.request = (subject, ...rest) =>
                ask(errors.length ? subject : `projects.${stopped.project_id}.api`, ...rest).catch(error => {
                    errors.push(error.name);
                    throw error;
                });
            const answer = await client.callProject(project, "ping");
            client.nats.request = ask;
            const publish = client.nats.publish.bind(client.nats);
            let absent = true, output = "";
            client.nats.publish = (subject, ...rest) => {
                publish(absent ? `projects.${stopped.project_id}.api` : subject, ...rest);
                absent = false;
            };
            for await (const part of client.exec(project, {command: "printf here"})) {
                output += new TextDecoder().decode(part.data);
            }
            await client.callHub("delete_project", {project_id: stopped.project_id});
            await client.close();
            return [errors.length, Boolean(answer), output];
        }""",
        world.names["p"],
    )
    assert asked == [1, True, "here"]


def test_a_request_that_is_too_large_is_refused_before_it_is_sent(page: Page, site: Site, world: World) -> None:
    sign_in(page, site, world.email_a, world.password)
    refused = page.evaluate(
        """async project => {
            const {connect, session} = await import("/natskit.js");
            const client = await connect(await session());
            const returns = [], kinds = [];
            client.onReturn(() => returns.push(1));
            const long = "x".repeat(client.nats.info.max_payload);
            const kind = error => kinds.push(`${error.kind}: ${error.message.includes("nats-server takes at most")}`);
            await client.callProject(project, "write_text_file", {path: "long", text: long}).catch(kind);
            await client.exec(project, {command: "true", env: {LONG: long}}).done.catch(kind);
            await client.publishMany(`projects.${project}.x`, new TextEncoder().encode(long + "x"), 1).catch(kind);
            const listed = await client.listProjects();
            await client.callProject(project, "ping");
            await client.close();
            return [kinds, returns.length, listed.length > 0];
        }""",
        world.names["p"],
    )
    assert refused == [["limit: true"] * 3, 0, True]


def test_a_page_of_another_origin_gets_nothing(context: BrowserContext, site: Site, world: World) -> None:
    """The visitor is signed in, but a foreign page can neither open the WebSocket nor use the API for them."""
    page = context.new_page()
    sign_in(page, site, world.email_a, world.password)
    foreign = context.new_page()
    foreign.route("https://evil.example/", lambda route: route.fulfill(body="<h1>evil</h1>", content_type="text/html"))
    foreign.goto("https://evil.example/")
    opened = foreign.evaluate(
        """url => new Promise(resolve => {
            const socket = new WebSocket(url);
            socket.onmessage = () => resolve("message");
            socket.onclose = () => resolve("closed");
        })""",
        site.websocket_url,
    )
    assert opened == "closed"
    fetched = foreign.evaluate(
        """url => fetch(url, {method: "POST", credentials: "include", mode: "cors", body: "{}"})
            .then(answer => answer.status, error => error.name)""",
        f"{site.url}/api/rpc",
    )
    assert fetched == "TypeError"
