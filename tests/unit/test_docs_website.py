"""The documentation: its website builds strictly and works offline, and the names in its pages exist."""

from __future__ import annotations

import html.parser
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tests.documents import REPOSITORY, pages

PATH = re.compile(
    r"`((?:natskit|roles|templates|tests|scripts|inventories|docs|web|bench|docker|findings|requirements)/[\w./-]*)"
)
"""A file or folder of the repository, as a page writes it."""
BUILT = ("docs/reference/browser/", "web/dist/", "web/node_modules/")
LOADS = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src"}
"""What a browser fetches when it shows a page."""


class Links(html.parser.HTMLParser):
    """The ids of a page, the targets of its links, and the files that it loads."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if "id" in given:
            self.ids.add(given["id"])
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        if LOADS.get(tag) in given and given.get("rel") != "canonical":
            self.loads.append(given[LOADS[tag]])


@pytest.fixture(scope="module")
def website() -> Path:
    """The folder with the website, built as ``make docs`` builds it. ``make test`` installs the tools for that."""
    done = subprocess.run(["scripts/docs"], cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "No issues found" in done.stderr
    return REPOSITORY / "site"


def test_every_link_of_the_website_leads_to_a_page_and_a_heading(website: Path) -> None:
    found = {path: Links(path) for path in website.rglob("*.html") if path.name != "404.html"}
    assert len(found) > 25
    broken = [f"{path.relative_to(website)}: {link}" for path in found for link in dead(path, found)]
    assert broken == []


def dead(path: Path, found: dict[Path, Links]) -> Iterator[str]:
    """Links and loaded files of a page that do not exist. Does not follow links to other sites."""
    for link in found[path].links + found[path].loads:
        parts = urlsplit(link)
        if parts.scheme or parts.netloc:
            continue
        target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
        target = target / "index.html" if target.is_dir() else target
        if not target.is_file() or (parts.fragment and unquote(parts.fragment) not in found[target].ids):
            yield link


def test_the_website_loads_nothing_from_another_site(website: Path) -> None:
    loads = {load for path in website.rglob("*.html") for load in Links(path).loads}
    assert {load for load in loads if urlsplit(load).netloc} == set()
    styles = "".join(path.read_text() for path in website.rglob("*.css"))
    assert re.findall(r"(?:@import|url\()\s*[\"']?(?:https?:)?//[^)\"']+", styles) == []


def test_the_website_has_every_command_and_the_interfaces(website: Path) -> None:
    commands = (website / "reference" / "cli.html").read_text()
    assert "natskit identity rotate" in commands
    assert "--give-projects-to" in commands
    python = Links(website / "reference" / "python.html").ids
    assert {"natskit.client.Client.exec", "natskit.rpc.RpcError", "natskit.errors.NatskitError"} <= python
    assert "connect" in Links(website / "reference" / "browser" / "index.html").ids


def test_the_readme_is_one_page() -> None:
    assert len(pages()["README.md"].splitlines()) <= 150


def test_every_page_is_in_the_navigation() -> None:
    navigation = (REPOSITORY / "zensical.toml").read_text()
    named = {f"docs/{name}" for name in re.findall(r'"([\w/-]+\.md)"', navigation)}
    assert named == {page for page in pages() if page.startswith("docs/")} | {"docs/reference/browser/index.md"}


@pytest.mark.parametrize("page", [page for page in pages() if page != "CHANGELOG.md"])
def test_every_file_that_a_page_names_is_there(page: str) -> None:
    found = {path for path in PATH.findall(pages()[page]) if not path.startswith(BUILT)}
    assert {path for path in found if not (REPOSITORY / path).exists()} == set()


@pytest.mark.parametrize("page", [page for page in pages() if "/" not in page])
def test_every_link_of_a_page_outside_the_website_leads_somewhere(page: str) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", pages()[page]):
        parts = urlsplit(link)
        if parts.scheme or parts.path.startswith("docs/reference/browser"):
            continue
        target = parts.path or page
        assert (REPOSITORY / target).exists(), link
        assert not parts.fragment or parts.fragment in map(anchor, headings(target)), link


def headings(page: str) -> list[str]:
    text = re.sub(r"^```.*?^```$", "", pages()[page], flags=re.DOTALL | re.MULTILINE)
    return re.findall(r"^#+ (.+)$", text, re.MULTILINE)


def anchor(heading: str) -> str:
    """The id of a heading, as code hosts and the website derive it."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")
