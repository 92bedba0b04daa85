"""What a project's files may do to its documents, and to the keepers."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from natskit.keeper.deleted_projects import LATE_SECONDS
from natskit.keeper.dispatch import METHOD_SECONDS
from natskit.keeper.documents import SNAPSHOT_SECONDS
from natskit.project.bound.pace import DOUBLINGS, FREE, Pace, again
from natskit.rpc import RpcError
from tests.hub.site import Site, call
from tests.keeper.running import Place
from tests.keeper.test_limits import restarted
from tests.keeper.writer import opened
from tests.kit.wait import eventually

MOST = 3


@pytest.fixture(scope="module")
def project_settings() -> dict[str, Any]:
    return {"max_documents": MOST}


async def agent_of(site: Site, place: Place) -> Any:
    creds = (place.home.parent / "project.creds").read_text()
    return await site.connect("project", creds, place.project)


async def test_documents_beyond_the_limit_of_files(place: Place) -> None:
    """They are said to be left out where people list and open them; and one is taken in when there is room."""
    names = [f"{number}.md" for number in range(MOST + 2)]
    copies = [await opened(place.owner, place.project, name, "text\n") for name in names]

    async def left_out() -> list[str]:
        rows = await place.owner.ask(place.project, "-", "list")
        return sorted(row["path"] for row in rows if row["left_out"])

    both = await eventually(lambda: _when(left_out, 2), "two are left out", 30)
    assert both is not None
    (found,) = both
    out = next(copy for copy, name in zip(copies, names, strict=True) if name == found[0])
    assert (await place.owner.ask(place.project, out.document, "open"))["left_out"]
    async with place.client.document(place.project, found[0]) as doc:
        assert "runner_project_documents" in doc.file_problem
        assert not place.file(found[0]).exists()
        for copy, name in zip(copies, names, strict=True):
            if name not in found:
                await place.owner.ask(place.project, copy.document, "delete")
        await place.reads(found[0], "text\n")
        await eventually(lambda: not doc.file_problem, "and that is told", 30)
    await eventually(lambda: _when(left_out, 0), "none is left out", 30)
    for name in found:
        copy = copies[names.index(name)]
        await place.owner.ask(place.project, copy.document, "delete")


async def _when(left_out: Any, count: int) -> list[list[str]] | None:
    found: list[str] = await left_out()
    return [found] if len(found) == count else None


async def test_folders_of_no_document_are_watched_no_more(place: Place) -> None:
    agents, folder = _agents(place), place.home / "folder/of/its"

    def is_watched() -> bool:
        number = f" ino:{folder.stat().st_ino:x} "
        return any(number in info.read_text() for agent in agents for info in (agent / "fdinfo").iterdir())

    copy = await opened(place.owner, place.project, "folder/of/its/own.md", "text\n")
    await eventually(is_watched, "its folder is watched", 30)
    await place.owner.ask(place.project, copy.document, "delete")
    await eventually(lambda: not is_watched(), "its folder is watched no more", 30)


def _agents(place: Place) -> list[Path]:
    """The folders of the project's agent's processes in /proc."""
    return [folder for folder in Path("/proc").iterdir() if folder.name.isdecimal() and _is_agent(folder, place)]


def _is_agent(folder: Path, place: Place) -> bool:
    try:
        words = (folder / "cmdline").read_bytes()
    except OSError:
        return False
    return b"natskit.project" in words and place.project.encode() in words


async def test_a_file_that_a_program_writes_without_end(place: Place) -> None:
    """Its changes come in ever less often, people are told, and they still come."""
    async with place.client.document(place.project, "endless.log", create=True, text="0\n") as doc:
        await place.reads("endless.log", "0\n")
        number = 0

        async def is_told() -> bool:
            nonlocal number
            number += 1
            place.file("endless.log").write_text("".join(f"{number} {line}\n" * 300 for line in range(40)))
            return "again and again" in doc.file_problem

        await eventually(is_told, "it is told", 120)
        rows = [row for row in await place.rows(doc.document_id) if row[2] == "disk"]
        assert len(rows) <= FREE + 3


def test_the_pause_grows_and_ends() -> None:
    """A file that is written each second for a day comes in some 1,500 times; one that rests then, at once."""
    pace, taken = Pace(), 0
    for second in range(86_400):
        if not pace.wait(float(second)):
            pace.took(float(second), 10)
            taken += 1
    assert FREE < taken < 86_400 / 60 + FREE + 20
    assert pace.wait(86_400.0) <= 2**DOUBLINGS
    assert pace.wait(86_400.0 + 3600) == 0
    large = Pace()
    sizes = 0
    for second in range(86_400):
        if not large.wait(float(second)):
            large.took(float(second), 500_000)
            sizes += 500_000
            assert large.wait(float(second)) <= 2**DOUBLINGS, "nor does what is typed wait longer"
    assert sizes < 90_000_000


def test_the_pause_after_which_keepers_are_asked_again_grows() -> None:
    pauses = [again(failures) for failures in range(1, 12)]
    assert 1 <= pauses[0] <= 2
    assert 15 <= pauses[-1] <= 30
    assert again(1, asked=90) == 90


def test_a_second_purge_comes_after_all_that_was_on_its_way() -> None:
    assert LATE_SECONDS >= METHOD_SECONDS + SNAPSHOT_SECONDS


async def test_an_agent_is_charged_for_large_documents(site: Site, place: Place) -> None:
    """Requests of 200 bytes about a document in many pieces have to wait soon: what they cost is charged.

    A small part of the keepers' time is theirs here, so that the load of the machine makes no difference.
    """
    large = await opened(place.owner, place.project, "large.txt")
    for _ in range(2):
        before = large.doc.get_state()
        with large.doc.transaction():
            for number in range(20_000):
                large.text.insert(0, "ab"[number % 2])
                large.text.insert(1, "c")
        await large.send(large.doc.get_update(before))
    await restarted(site, caller_share=0.01)
    agent = await agent_of(site, place)
    subject = f"docs.disk.{place.project}.{large.document}"
    found = await eventually(lambda: _text(agent, subject), "the keepers have it", 30)
    edit = {"sequence": found["sequence"], "sha256": hashlib.sha256(found["text"].encode()).hexdigest(), "client": 77}
    done = 0
    refusal = ""
    while "rate limit exceeded" not in refusal and done < 60:
        done += 1
        try:
            await call(agent, subject, "edit", **edit, changes=[[0, 1, "A"]], number=done)
        except RpcError as error:
            refusal = str(error)
    assert "rate limit exceeded" in refusal, done
    await restarted(site)


async def _text(agent: Any, subject: str) -> Any:
    found = await call(agent, subject, "text")
    return found if len(found["text"]) == 80_000 else None
