"""Each document has the one keeper that all prefer, and clients ask that one."""

from __future__ import annotations

import signal
import time

import pytest

from natskit.bus.affinity import KEEPER
from natskit.client import Client
from natskit.rpc import RpcError
from tests.hub.site import Site
from tests.keeper.running import keepers
from tests.keeper.writer import Person, opened, person, project_of
from tests.kit.wait import eventually


async def named(someone: Person, project: str, document: str) -> str:
    """Whom a keeper names, one of them by chance."""
    return str((await someone.ask(project, document, "check"))[KEEPER])


async def both_name(someone: Person, project: str, document: str) -> bool:
    """Whether all keepers name the same one. Twelve times in a row the same one of two is asked by chance once in
    2,048 times."""
    return len({await named(someone, project, document) for _ in range(12)}) == 1


async def test_all_name_the_same(site: Site, client: Client) -> None:
    someone = await person(site)
    project = await project_of(someone)
    copies = [await opened(someone, project, f"{number}.md", "text") for number in range(16)]
    both = set(await keepers(client))
    assert len(both) == 2

    async def agree() -> bool:
        return [await both_name(someone, project, copy.document) for copy in copies[:3]] == [True] * 3

    await eventually(agree, "both keepers know of each other", 20)
    first = [await named(someone, project, copy.document) for copy in copies]
    assert set(first) == both, "documents are shared out"
    assert "keeper" not in await someone.ask(project, f"{copies[0].document}.{first[0]}", "check"), "it is the one"
    (other,) = both - {first[0]}
    assert (await someone.ask(project, f"{copies[0].document}.{other}", "check"))[KEEPER] == first[0]
    stranger = await person(site)
    await project_of(stranger)
    with pytest.raises(RpcError, match="may not use"):
        await stranger.ask(project, f"{copies[0].document}.{first[0]}", "check")


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
async def test_the_preferred_one_ends(site: Site, client: Client, how: signal.Signals) -> None:
    """Who asked it asks another one at once, and all name that one soon; and it again when it is back."""
    someone = await person(site)
    project = await project_of(someone)
    copy = await opened(someone, project, "kept.md", "text")
    await eventually(lambda: _has_two(client), "both keepers are there", 20)
    await client.call_documents(project, "check", document=copy.document)
    preferred = await named(someone, project, copy.document)
    name = (await keepers(client))[preferred]
    site.kill_keeper(name, how)
    started = time.monotonic()
    await client.call_documents(project, "check", document=copy.document)
    assert time.monotonic() - started < 2, "a client does not wait for one that is gone"
    (left,) = await keepers(client)

    async def moved() -> bool:
        return await named(someone, project, copy.document) == left

    await eventually(moved, "the other one is preferred", 20)
    await client.call_documents(project, "check", document=copy.document)
    assert KEEPER not in await client.call_documents(project, "check", document=copy.document), "it asks that one"
    site.start_keeper(name)
    await site.keeper_ready(name)

    await eventually(lambda: both_name(someone, project, copy.document), "both agree again", 20)


async def _has_two(client: Client) -> bool:
    return len(await keepers(client)) == 2
