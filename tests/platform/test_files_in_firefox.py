"""Hostile files of a project in a real Firefox; ``test_files_over_http.py`` and ``test_console_files.py`` have them in
Chromium."""

# ruff: noqa: F811 - fixtures of another module

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.kit import firefox
from tests.kit.firefox import Firefox
from tests.kit.pdfs import pdf
from tests.kit.wait import wait_for
from tests.platform.site import LocalSite, World
from tests.platform.test_files_over_http import HOSTILE, home, http, url  # noqa: F401

pytestmark = [pytest.mark.browser, firefox.NEEDED]
FILES = HOSTILE | {"paper.pdf": pdf("Hostile", script="app.alert(1); app.launchURL('/api/session')")}
KINDS = {"html": "text/html", "xhtml": "application/xhtml+xml", "svg": "image/svg+xml", "xml": "text/xml"}


@pytest.fixture(scope="module")
def fox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Firefox]:
    with firefox.running(tmp_path_factory.mktemp("firefox")) as fox:
        yield fox


@pytest.fixture
def page(fox: Firefox, site: LocalSite, world: World) -> Firefox:
    """The console, signed in."""
    fox.go(site.url)
    if fox.evaluate("document.querySelector('#console').hidden"):
        fox.evaluate(
            f"""(() => {{
              document.querySelector('#email').value = {world.email_a!r};
              document.querySelector('#password').value = {world.password!r};
              document.querySelector('#sign-in-button').click();
            }})()"""
        )
    wait_for(
        lambda: "connected" in str(fox.evaluate("document.querySelector('#connection-state').textContent")),
        "the console is connected",
    )
    return fox


@pytest.mark.parametrize("name", FILES)
def test_a_hostile_file_is_saved_and_does_nothing(
    page: Firefox, site: LocalSite, world: World, home: Path, name: str
) -> None:
    (home / name).write_bytes(FILES[name])
    address = site.url + url(world, name)
    page.go(address)
    saved = page.downloads / name
    wait_for(lambda: saved.exists() and saved.read_bytes() == FILES[name], f"{name} is saved", 60)
    assert page.evaluate("location.href") == f"{site.url}/", "it is saved, and not shown"
    outcome = page.evaluate(
        f"""(async (address) => {{
          const settled = (make) => new Promise((resolve) => {{
            const element = make();
            element.onload = () => resolve("loaded");
            element.onerror = () => resolve("refused");
            setTimeout(() => resolve("nothing"), 1500);
            document.body.append(element);
          }});
          const made = (tag, more) => Object.assign(document.createElement(tag), more);
          const script = await settled(() => made("script", {{ src: address }}));
          const style = await settled(() => made("link", {{ rel: "stylesheet", href: address }}));
          const object = await settled(() => made("object", {{ data: address }}));
          const embed = await settled(() => made("embed", {{ src: address }}));
          const frame = made("iframe", {{ src: address }});
          await settled(() => frame);
          let framed = "";
          try {{ framed = frame.contentDocument?.documentElement?.outerHTML ?? ""; }} catch {{}}
          const worker = await navigator.serviceWorker.register(address).then(() => "loaded", () => "refused");
          return {{ script, style, object, embed, worker, framed, ran: window.hostile === true, title: document.title,
                    kept: localStorage.getItem("hostile"),
                    background: getComputedStyle(document.body).backgroundColor }};
        }})({address!r})"""
    )
    assert {outcome[tag] for tag in ("script", "style", "object", "embed", "worker")} <= {"refused", "nothing"}, outcome
    assert "hostile" not in outcome["framed"]
    assert (outcome["ran"], outcome["kept"]) == (False, None)
    assert outcome["background"] != "rgb(1, 2, 3)"
    assert not outcome["title"].startswith(("read", "cookie"))


@pytest.mark.parametrize("name", [name for name in HOSTILE if name.startswith(("page.", "image."))])
def test_a_hostile_page_that_is_shown_all_the_same_is_in_a_sandbox(
    page: Firefox, site: LocalSite, http: httpx.Client, world: World, home: Path, name: str
) -> None:
    """As if the browser ignored the headers and showed the file as a page."""
    (home / name).write_bytes(HOSTILE[name])
    answer = http.get(url(world, name))
    assert answer.content == HOSTILE[name]
    kept = {
        key: value
        for key, value in answer.headers.items()
        if key not in ("content-disposition", "content-type", "content-length", "content-encoding")
    }
    kept["content-type"] = KINDS.get(name.rpartition(".")[2], "text/html")
    page.show_instead(site.url + url(world, name), kept, answer.content)
    assert page.evaluate("self.origin") == "null"
    assert page.evaluate("document.documentElement.outerHTML.includes('hostile')"), "the page is there"
    assert not str(page.evaluate("document.title ?? ''")).startswith(("read", "cookie"))
    page.go(site.url)
    assert page.evaluate("localStorage.getItem('hostile')") is None


def test_a_hostile_pdf_is_drawn_in_the_console_and_does_nothing(page: Firefox, site: LocalSite, home: Path) -> None:
    (home / "paper.pdf").write_bytes(FILES["paper.pdf"])
    project = "document.querySelector('#projects button')"
    wait_for(lambda: page.evaluate(f"Boolean({project})"), "the project is listed")
    page.evaluate(f"{project}.click()")
    row = """[...document.querySelectorAll("#files button")].find((one) => one.textContent === "paper.pdf")"""
    wait_for(lambda: page.evaluate(f"Boolean({row})"), "the file is listed")
    page.evaluate(f"{row}.click()")
    drawn = "document.querySelector('#preview canvas')?.textContent"
    wait_for(lambda: page.evaluate(drawn) == "Hostile", "the page is drawn")
    assert page.evaluate("document.querySelector('#preview-error').textContent") == ""
    assert page.evaluate("location.href") == f"{site.url}/"
    assert page.evaluate("fetch('/api/session').then((answer) => answer.status)") == 200
