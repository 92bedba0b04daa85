"""What a project and an account may store in documents, with two keepers that count together."""

from __future__ import annotations

import asyncio
import itertools
import random
from typing import Any

import pytest

from natskit.keeper.paths import FIRST_BYTES, Limits, Paths
from natskit.keeper.rate import HOUR, Rate
from natskit.rpc import RpcError
from tests.hub.site import Site
from tests.keeper.writer import Copy, opened, person, project_of

PROJECT_BYTES = 512 * 1024
ACCOUNT_BYTES = 256 * 1024
PART = 20_000


async def restarted(site: Site, **settings: Any) -> None:
    """Let both keepers begin anew with other settings."""
    for name in ("keeper-1", "keeper-2"):
        site.kill_keeper(name)
        site.start_keeper(name, **settings)
    for name in ("keeper-1", "keeper-2"):
        await site.keeper_ready(name)


async def until_refused(*copies: Copy) -> tuple[int, RpcError]:
    """Write into each in turn until a keeper refuses; how many bytes it took, and the error."""
    written = 0
    for copy in itertools.cycle(copies):
        try:
            await copy.type(0, random.Random(written).randbytes(PART // 2).hex())
        except RpcError as error:
            return written, error
        written += PART
        assert written < 3 * PROJECT_BYTES
    raise AssertionError


async def test_a_project_cannot_fill_the_streams(site: Site) -> None:
    """Both keepers count together, also after a restart; deleting makes room; other projects go on."""
    await restarted(site, max_project_bytes=PROJECT_BYTES)
    alice = await person(site)
    project, other = await project_of(alice), await project_of(alice)
    copies = [await opened(alice, project, f"{number}.md") for number in range(3)]
    results = await asyncio.gather(*map(until_refused, copies))
    assert PROJECT_BYTES * 0.4 < sum(written for written, _ in results) <= PROJECT_BYTES
    for _, refusal in results:
        assert refusal.kind == "limit"
        assert refusal.data["limit"] == PROJECT_BYTES
        assert PROJECT_BYTES * 0.6 < refusal.data["used"] <= PROJECT_BYTES
        assert "keeper_max_project_bytes): delete documents" in refusal.message
    await restarted(site, max_project_bytes=PROJECT_BYTES)
    with pytest.raises(RpcError, match="keeper_max_project_bytes"):
        await opened(alice, project, "new.md", "x" * 100_000)
    assert len(await alice.ask(project, "-", "list")) == 3
    await (await opened(alice, other, "free.md")).type(0, "x" * 1000)
    largest = max(range(3), key=lambda number: results[number][0])
    await alice.ask(project, copies[largest].document, "delete")
    assert (await until_refused(await opened(alice, project, f"{(largest + 1) % 3}.md")))[0] > PART


async def test_a_project_has_so_many_documents(site: Site) -> None:
    await restarted(site, max_documents=4)
    alice = await person(site)
    project = await project_of(alice)
    for number in range(4):
        await opened(alice, project, f"{number}.md")
    with pytest.raises(RpcError, match=r"has 4 documents, and a project has at most 4 \(keeper_max_documents\)"):
        await opened(alice, project, "more.md")


async def test_an_account_stores_so_much_an_hour(site: Site) -> None:
    """In all of its projects; it is told when to go on, and others notice nothing."""
    await restarted(site, account_bytes=ACCOUNT_BYTES)
    alice, bob = await person(site), await person(site)
    copies = [await opened(alice, await project_of(alice), "a.md") for _ in range(2)]
    written, refusal = await until_refused(*copies)
    assert ACCOUNT_BYTES * 0.8 < written < ACCOUNT_BYTES * 2 + 2 * PART  # each of the two keepers takes as much
    assert (refusal.kind, refusal.data["limit"]) == ("unavailable", ACCOUNT_BYTES)
    assert 0 < refusal.data["retry_after"] < HOUR
    assert f"stored {ACCOUNT_BYTES} bytes in documents within an hour" in refusal.message
    await (await opened(bob, await project_of(bob), "b.md")).type(0, "x")


def test_what_a_documents_names_take_counts() -> None:
    paths, limits = Paths(), Limits(documents=10, bytes=4 * FIRST_BYTES)
    paths.add("a", "a.md", "alice", 0, limits)
    paths.name("a", 3 * FIRST_BYTES, limits)
    paths.name("a", 2 * FIRST_BYTES, limits)
    paths = Paths.read(paths.write())
    assert paths.reserve("a", FIRST_BYTES + 1, limits) == 2 * FIRST_BYTES
    with pytest.raises(RpcError, match=f"take {4 * FIRST_BYTES} bytes with their history, and this needs 1 more"):
        paths.name("a", 2 * FIRST_BYTES + 1, limits)
    with pytest.raises(RpcError, match="keeper_max_project_bytes"):
        paths.add("b", "b.md", "alice", 0, limits)


def test_documents_from_before_the_limit_are_counted_with_their_next_update() -> None:
    paths = Paths.read(b'{"documents": {"a": ["a.md", 1, "alice"]}, "gone": []}')
    assert paths.used == 0
    assert paths.reserve("a", 5000, Limits(documents=10, bytes=10_000)) == paths.used == 10_000


def test_what_an_account_may_store_comes_back() -> None:
    now = [0.0]
    rate = Rate(100, lambda: now[0])
    rate.charge("alice", 150)
    with pytest.raises(RpcError) as refused:
        rate.check("alice")
    assert refused.value.data["retry_after"] == HOUR / 2 + 1
    rate.check("bob")
    now[0] = HOUR / 2 + 1
    rate.check("alice")
