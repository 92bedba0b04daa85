"""A hub closes a page's connection, as for each change of rights. The page shows nothing like an error."""

from __future__ import annotations

from typing import Any

from playwright.sync_api import Page, expect

from tests.platform.site import LocalSite, World
from tests.platform.test_console import browser, context, page, sign_in  # noqa: F401

CHANGES = 4
WATCH = """
window.states = [];
const pill = document.getElementById("connection");
new MutationObserver(() => window.states.push([pill.dataset.state, pill.title, performance.now()]))
  .observe(pill, { attributeFilter: ["data-state", "title"] });
const Plain = window.WebSocket;
window.closings = [];
window.WebSocket = class extends Plain {
  constructor(...given) {
    super(...given);
    this.addEventListener("close", ({ code, reason }) => window.closings.push([code, reason]));
  }
};
"""


def test_a_page_whose_rights_change_is_back_at_once_without_an_error(
    page: Page,  # noqa: F811
    site: LocalSite,
    world: World,
) -> None:
    """nats-server 2.15 closes the WebSocket with 1011, "internal error" in RFC 6455."""
    said: list[str] = []
    page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
    sign_in(page, site, world.email_b, world.password)
    said.clear()  # before that there was no session yet
    page.evaluate(f"() => {{ {WATCH} }}")
    shared = page.locator(f"[data-project-id='{world.names['p']}']")
    for _ in range(CHANGES):
        site.natskit("project", "share", world.names["p"], world.email_b)
        expect(shared).to_have_count(1)
        site.natskit("project", "unshare", world.names["p"], world.email_b)
        expect(shared).to_have_count(0)
    expect(page.locator("#connection-state")).to_have_text("connected")
    states: list[list[Any]] = page.evaluate("() => window.states")
    assert [1011, "Kicked"] in page.evaluate("() => window.closings"), "this is about what nats-server does"
    assert {title for _, title, _ in states} <= {""}, states
    away = [moment for state, _, moment in states if state == "reconnecting"]
    back = [moment for state, _, moment in states if state == "connected"]
    assert len(away) == len(back) >= CHANGES, states
    assert all(until - since < 1000 for since, until in zip(away, back, strict=True)), states
    assert said == []
