"""A document while the platform's programs die in turn: people type in Chromium and with the Python client, programs
write its file, it gets other paths, and browsers are offline for a while."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import subprocess
import threading
from base64 import b64decode
from collections import Counter
from collections.abc import Coroutine, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest
from playwright.sync_api import Browser, expect
from pycrdt import Doc, Text

from natskit.bus.permissions import DISK
from natskit.client import Client
from natskit.document import Document
from natskit.project.bound.text_merge import MINE
from tests.kit.wait import wait_for
from tests.platform.site import LocalSite, World
from tests.platform.test_console import browser, sign_in
from tests.platform.test_files import agent_of
from tests.platform.test_resilience import admin, pid_of
from tests.platform.test_shared_documents import LINES, PASSWORD, Seat, problems, take_seat

__all__ = ["browser", "problems"]

T = TypeVar("T")

SEED, STEPS = int(os.environ.get("NATSKIT_TEST_SEED", "1")), int(os.environ.get("NATSKIT_TEST_STEPS", "70"))
VICTIMS = ("keeper-1", "nats", "agent", "hub-1", "proxy", "keeper-2", "hub-2")
BETWEEN_KILLS = 7
"""Steps."""
LATELY = 10
"""Words that may still be on their way."""


@dataclass
class Apart:
    """An event loop in a thread of its own: Playwright's runs in that of the test."""

    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.new_event_loop)

    def __post_init__(self) -> None:
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(120)

    def stop(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()


@pytest.fixture
def apart() -> Iterator[Apart]:
    made = Apart()
    yield made
    made.stop()


@dataclass
class Story:
    """What was done to the document, and by whom."""

    apart: Apart
    site: LocalSite
    world: World
    chance: random.Random
    home: Path
    path: str
    words: dict[str, str] = field(default_factory=dict)
    """The author of each word."""
    removed: dict[str, str] = field(default_factory=dict)
    """Those that somebody removed again."""
    done: Counter[str] = field(default_factory=Counter)

    def word(self, author: str) -> str:
        """A new word, like no other."""
        made = f"<{hashlib.sha256(str(len(self.words) + len(self.removed)).encode()).hexdigest()[:10]}>"
        self.words[made] = author
        return made

    def type(self, doc: Document, author: str) -> None:
        word = self.word(author)

        async def edit() -> None:
            lines = str(doc.text).split("\n")
            lines[self.chance.randrange(len(lines))] += word
            doc.edit("\n".join(lines))

        self.apart.run(edit())
        self.done["edits with Python"] += 1

    def remove(self, doc: Document) -> None:
        """Remove a word that everybody has had for a while."""

        async def edit() -> str | None:
            text = str(doc.text)
            for word in list(self.words)[:-LATELY]:
                if text.count(word) == 1 and MINE not in text:
                    doc.edit(text.replace(word, ""))
                    return word
            return None

        if (word := self.apart.run(edit())) is not None:
            self.removed[word] = self.words.pop(word)
            self.done["words removed"] += 1

    def sed(self) -> None:
        """Change the file, unless it is just being renamed."""
        file = self.home / self.path
        if file.exists():
            script = f"{self.chance.randrange(1, 20)}s/$/{self.word(DISK)}/"
            subprocess.run(["sed", "-i", script, str(file)], check=True)
            self.done["edits by sed"] += 1

    def kill(self, victim: str) -> None:
        def pid() -> int:
            return agent_of(self.world) if victim == "agent" else pid_of(self.site, victim)

        os.kill(wait_for(pid, f"{victim} runs", 60), 9)
        self.done[f"kills of {victim}"] += 1


def test_nothing_that_was_typed_is_lost(
    browser: Browser, site: LocalSite, world: World, apart: Apart, problems: list[str]
) -> None:
    """In the end all copies, the file and a replay of the history agree. The history has every word, by its author,
    and each update once."""
    (home,) = (site.root / "runner" / "projects").rglob(f"{world.names['p']}/home")
    story = Story(apart, site, world, random.Random(SEED), home, "under-fire.md")
    email = f"eve-under-fire@{site.domain}"
    site.natskit("account", "add", email, "--password-stdin", stdin=PASSWORD)
    site.natskit("project", "share", world.names["p"], email)
    stack = AsyncExitStack()
    text = "".join(f"line {number}\n" for number in range(20))

    async def open_all() -> tuple[Client, list[Document]]:
        operator = await stack.enter_async_context(await admin(site))
        person = await Client.sign_in(site.url, world.email_a, world.password, ca_file=site.ca_file)
        await stack.enter_async_context(person)
        documents = [
            operator.document(world.names["p"], story.path, create=True, text=text),
            person.document(world.names["p"], story.path),
        ]
        return operator, [await stack.enter_async_context(document) for document in documents]

    operator, documents = apart.run(open_all())
    seat = take_seat(browser, problems, email)
    try:
        sign_in(seat.page, site, email, PASSWORD)
        account = seat.page.evaluate("(async () => (await (await fetch('/api/session')).json()).account_id)()")
        seat.page.click(f"[data-project-id='{world.names['p']}']")
        seat.open(story.path)
        wait_for(lambda: (home / story.path).read_text() == text, "the file is there", 60)
        _let_it_happen(story, seat, account, operator, documents)
        _check(story, seat, operator, documents)
        print(dict(sorted(story.done.items())))
    finally:
        seat.context.close()
        apart.run(stack.aclose())


def _let_it_happen(story: Story, seat: Seat, account: str, operator: Client, documents: list[Document]) -> None:
    authors, chance, is_offline = ("admin", story.world.names["a"]), story.chance, False
    for step in range(STEPS):
        if step % BETWEEN_KILLS == BETWEEN_KILLS - 1:
            story.kill(VICTIMS[step // BETWEEN_KILLS % len(VICTIMS)])
        match chance.randrange(9):
            case 0 | 1 | 2:
                number = chance.randrange(2)
                story.type(documents[number], authors[number])
            case 3 | 4:
                seat.type_at("Control+End", story.word(account))
                story.done["edits in Chromium"] += 1
            case 5 | 6:
                story.sed()
            case 7:
                story.remove(documents[0])
            case _:
                is_offline = not is_offline
                seat.context.set_offline(is_offline)
                story.done["times offline"] += is_offline
        if step % 20 == 10:
            _rename(story, operator, documents[0])
    seat.context.set_offline(False)


def _rename(story: Story, operator: Client, document: Document) -> None:
    """Give the document another path, and wait for its file: ``sed`` would else make another file at the old one."""
    old, story.path = story.path, f"under-fire-{story.done['renames']}.md"

    async def rename() -> None:
        await document.saved(60)
        await operator.call_documents(
            document.project_id, "rename", document=document.document_id, path=story.path, wait=60
        )

    story.apart.run(rename())
    wait_for(lambda: (story.home / story.path).exists() and not (story.home / old).exists(), "the file follows", 60)
    story.done["renames"] += 1


def _check(story: Story, seat: Seat, operator: Client, documents: list[Document]) -> None:
    wait_for(lambda: story.site.natskit("status", check=False).returncode == 0, "the platform is whole", 120)
    for document in documents:
        story.apart.run(document.saved(60))
    expect(seat.state).to_have_text("saved", timeout=60_000)
    project, document_id = documents[0].project_id, documents[0].document_id

    async def look() -> tuple[list[str], str]:
        check = await operator.call_documents(project, "check", document=document_id)
        return [str(document.text) for document in documents], check["sha256"]

    def agree() -> bool:
        texts, digest = story.apart.run(look())
        texts += ["\n".join(seat.page.evaluate(LINES)), (story.home / story.path).read_text()]
        return len(set(texts)) == 1 and hashlib.sha256(texts[0].encode()).hexdigest() == digest

    wait_for(agree, "all copies and the file agree", 60)
    text = (story.home / story.path).read_text()
    assert [word for word in story.words if word not in text] == [], text
    # Where programs and people changed the same lines while no agent ran, both are there, with marks around them, also
    # what one of them had removed; each time again if the agent is killed again.
    if MINE not in text:
        assert [word for word in (*story.words, *story.removed) if text.count(word) != (word in story.words)] == [], (
            text
        )

    async def history() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        while True:
            after = found[-1]["sequence"] if found else 0
            page = await operator.call_documents(project, "updates", document=document_id, after=after)
            found += page["updates"]
            if not page["more"]:
                return found

    updates = story.apart.run(history())
    assert max(Counter((each["author"], each["client"], each["number"]) for each in updates).values()) == 1
    replayed: Doc[Any] = Doc()
    first: dict[str, str] = {}
    for update in updates:
        replayed.apply_update(b64decode(update["update"]))
        shown = str(replayed.get("text", type=Text))
        for word in (*story.words, *story.removed):
            if word in shown:
                first.setdefault(word, update["author"])
    assert str(replayed.get("text", type=Text)) == text
    assert first == story.words | story.removed, "each word is the author's own"
    story.done["updates"] += len(updates)
    logs = "".join(log.read_text() for log in (story.site.root / "log").glob("keeper-*.log"))
    assert "is ready" in logs
    assert "internal error" not in logs, logs[-4000:]
