"""The page Platform of the console in a real Chromium: an administrator clicks and sees what happens to the parts."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Literal

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.kit.wait import wait_for
from tests.platform.conftest import ADMINISTRATOR
from tests.platform.raw import ClosedError, RawClient
from tests.platform.site import LocalSite, World
from tests.platform.test_console import browser, context, page, sign_in

__all__ = ["browser", "context", "page"]
pytestmark = [pytest.mark.platform, pytest.mark.usefixtures("chief", "world")]

PASSWORD = "a password for the chief"  # noqa: S105
SCREENSHOT = os.environ.get("NATSKIT_PLATFORM_SCREENSHOT")
"""Where to put the picture for the documentation."""
LINES = """(canvas) => {
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  const colours = new Set();
  for (let at = 0; at < data.length; at += 4) if (data[at + 3] === 255) colours.add(data.slice(at, at + 3).join());
  return [...colours];
}"""
"""The colours that a plot has drawn."""
LIGHT, DARK = "36,86,214", "122,162,255"
"""``--accent`` of the console."""


@pytest.fixture(scope="module")
def chief(site: LocalSite) -> Iterator[None]:
    site.natskit("account", "add", ADMINISTRATOR, "--password-stdin", stdin=PASSWORD)
    yield
    site.natskit("account", "remove", ADMINISTRATOR, "--yes")


def row(page: Page, kind: str, name: str) -> Locator:
    cells = page.locator("#parts tr").filter(has=page.locator(f"th:text-is('{kind}')"))
    return cells.filter(has=page.locator(f"td:text-is('{name}')"))


def open_platform(page: Page, site: LocalSite) -> None:
    sign_in(page, site, ADMINISTRATOR, PASSWORD)
    page.get_by_role("button", name="Platform", exact=True).click()
    expect(page.get_by_role("heading", name="Platform", exact=True)).to_be_focused()


def sign_out(page: Page) -> None:
    """And wait for it: another page would end the request."""
    page.click("#sign-out")
    expect(page.locator("#email")).to_be_visible()


def test_others_do_not_see_it(page: Page, site: LocalSite, world: World) -> None:
    sign_in(page, site, world.email_a, world.password)
    page.click(f"[data-project-id='{world.names['p']}']")
    expect(page.locator("#platform-button")).to_be_hidden()
    answer = page.request.post(
        f"{site.url}/api/rpc",
        headers={"Origin": site.url},
        data={"jsonrpc": "2.0", "id": 1, "method": "describe_platform"},
    )
    assert answer.json()["error"]["data"]["kind"] == "forbidden"
    sign_out(page)
    open_platform(page, site)
    expect(page.locator("#parts tr").first).to_be_visible()
    sign_out(page)
    sign_in(page, site, world.email_a, world.password)
    expect(page.locator("#platform-button")).to_be_hidden()
    assert page.locator("#parts").inner_text() == "", "nothing is left for the next person"


def test_parts_and_their_health(page: Page, site: LocalSite) -> None:
    open_platform(page, site)
    for name in ("hub-1", "hub-2"):
        expect(row(page, "hub", name)).to_contain_text("well")
        expect(row(page, "hub", name)).to_contain_text(re.compile(r"at \S+ since"))
    expect(row(page, "keeper", "keeper-1")).to_contain_text("connected")
    expect(page.locator("#parts tr", has_text="nats-server")).to_contain_text(
        re.compile(r"CPU \d+ %, memory .*connections")
    )
    expect(page.locator("#parts tr", has_text="runner")).to_contain_text(re.compile(r"alive.*projects running, load"))
    expect(page.locator("#parts tr", has_text="proxy")).to_contain_text("reaches 2 of 2 hubs")
    supervisor(site, "stop", "hub-2")
    try:
        expect(row(page, "hub", "hub-2")).to_contain_text("does not answer")
        expect(page.locator("#parts tr", has_text="proxy")).to_contain_text("reaches 1 of 2 hubs")
        expect(row(page, "hub", "hub-1")).to_contain_text("well")
    finally:
        supervisor(site, "start", "hub-2")
        site.natskit("ready")
    expect(row(page, "hub", "hub-2")).to_contain_text("well")
    supervisor(site, "stop", "keeper-1")
    try:
        expect(row(page, "keeper", "keeper-1")).to_contain_text("not connected")
    finally:
        supervisor(site, "start", "keeper-1")
        site.natskit("ready")
    expect(row(page, "keeper", "keeper-1")).not_to_contain_text("not connected")


def test_the_project_that_uses_most_is_seen(page: Page, site: LocalSite, world: World) -> None:
    open_platform(page, site)
    busy, idle = (page.locator(f"#use [data-project-id='{world.names[name]}']") for name in ("p", "q"))
    expect(busy).to_contain_text(world.email_a)
    burning = subprocess.Popen(
        [Path(sys.executable).with_name("natskit"), "exec", world.names["p"], "--", "sh", "-c", "while :; do :; done"],
        env=site.environment,
        cwd=site.root,
        stdout=subprocess.DEVNULL,
    )
    try:
        page.get_by_role("button", name="CPU", exact=True).focus()
        page.keyboard.press("Enter")
        expect(page.locator("#use-head th[aria-sort=descending]")).to_have_text("CPU")
        expect(page.locator("#use tr").first).to_have_attribute("data-project-id", world.names["p"])
        expect(busy.locator("td").nth(2)).to_have_text(re.compile(r"^[1-9]\d* %$"))
        expect(busy.locator("td").nth(3)).to_have_text(re.compile(r"MB|MiB"))
        expect(busy.locator("td").nth(5)).to_have_text(re.compile(r"^\d+$"))
        expect(idle).to_be_visible()
        if SCREENSHOT:
            photograph(page)
    finally:
        burning.terminate()
        burning.wait(30)


def test_plots_in_light_and_dark(page: Page, site: LocalSite) -> None:
    page.emulate_media(color_scheme="light")
    open_platform(page, site)
    caption = page.locator("#plots figcaption", has_text="Messages a second")
    expect(caption).to_have_text(re.compile(r"Messages a second[\d.K]+$"))
    expect(page.locator("#plots canvas")).to_have_count(4)
    plot = page.locator("#plots figure", has_text="Messages a second").locator("canvas")
    drawn: dict[str, list[str]] = {}
    schemes: tuple[tuple[Literal["light", "dark"], str], ...] = (("light", LIGHT), ("dark", DARK))
    for scheme, accent in schemes:
        page.emulate_media(color_scheme=scheme)
        drawn[scheme] = wait_for(partial(colours, plot, accent), f"the plot is drawn for {scheme}")
    assert LIGHT not in drawn["dark"]
    page.set_viewport_size({"width": 390, "height": 800})
    fits = "document.documentElement.scrollWidth <= document.documentElement.clientWidth"
    wait_for(lambda: page.evaluate(fits), "no part is wider than a telephone")


def test_a_refused_connect_and_a_backup(page: Page, site: LocalSite, tmp_path: Path) -> None:
    open_platform(page, site)
    expect(page.locator("#counters tr")).to_have_count(2)
    before = refused(page)
    cookie = site.sign_in(ADMINISTRATOR, PASSWORD).cookie
    with site.http() as http:
        assert http.post("/api/sign-out", headers={"Cookie": cookie}).is_success
    with pytest.raises(ClosedError):
        RawClient.websocket(site.websocket_url, ca_file=site.ca_file, cookie=cookie, origin=site.url)
    wait_for(lambda: refused(page) > before, "the refused connect is counted")

    alert = page.locator("#alerts li", has_text="NatskitBackupUnknown")
    expect(alert).to_be_visible()
    expect(page.locator("#backup")).to_have_text("No backup is known.")
    secret = tmp_path / "passphrase"
    secret.write_text("correct horse battery staple")
    made = subprocess.run(
        [
            Path(sys.executable).with_name("natskit"),
            "backup",
            "create",
            "--target",
            tmp_path / "backups",
            "--without-files",
        ],
        env=site.environment | {"NATSKIT_IDENTITY_PASSPHRASE_COMMAND": f"cat {secret}"},
        cwd=site.root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stderr
    assert "the console does not know of it" not in made.stderr
    expect(page.locator("#backup")).to_have_text(
        re.compile(r"^The last backup was begun at .+ No backup was ever verified\.$")
    )
    expect(alert).to_have_count(0)
    expect(page.locator("#alerts li")).to_contain_text(["NatskitBackupUnverified"])


def test_by_keyboard(page: Page, site: LocalSite) -> None:
    sign_in(page, site, ADMINISTRATOR, PASSWORD)
    button = page.get_by_role("button", name="Platform", exact=True)
    expect(button).to_be_visible()
    button.focus()
    page.keyboard.press("Enter")
    expect(button).to_have_attribute("aria-pressed", "true")
    expect(page.get_by_role("heading", name="Platform", exact=True)).to_be_focused()
    expect(page.get_by_role("region", name="Parts")).to_be_visible()
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Shift+Tab")
    expect(button).to_be_focused()
    page.keyboard.press("Space")
    expect(page.locator("#work")).to_be_visible()
    expect(page.locator("#platform")).to_be_hidden()


def colours(plot: Locator, wanted: str) -> list[str]:
    """The colours of a plot, if one of them is the wanted one."""
    found: list[str] = plot.evaluate(LINES)
    return found if wanted in found else []


def refused(page: Page) -> int:
    """The connects that the hubs have refused since their start, as the page says."""
    return sum(int(cell.replace(",", "")) for cell in page.locator("#counters tr td:nth-child(3)").all_inner_texts())


def photograph(page: Page) -> None:
    """Once the plots have a few moments to show."""
    page.set_viewport_size({"width": 1280, "height": 1270})
    page.wait_for_timeout(60_000)
    page.evaluate("scrollTo(0, 0)")
    page.screenshot(path=SCREENSHOT)


def supervisor(site: LocalSite, *words: str) -> None:
    """Run supervisorctl."""
    program = Path(sys.executable).with_name("supervisorctl")
    conf = site.root / "supervisor" / "supervisord.conf"
    subprocess.run([program, "--configuration", conf, *words], check=True, capture_output=True, timeout=60)
