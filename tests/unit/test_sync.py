"""``natskit sync`` refuses paths in a project's list that would lead out of the local folder."""

from __future__ import annotations

from typing import Any, cast

import pytest

from natskit.cli.sync import _Remote
from natskit.client import Client
from natskit.errors import NatskitError


class Lies:
    """The part of a project's agent that lists a tree."""

    def __init__(self, names: list[tuple[str, str]]) -> None:
        self._names = names

    def files(self, project_id: str) -> None:
        """Not used here."""

    async def call_project(self, *_: object, **__: object) -> dict[str, Any]:
        return {"entries": [{"name": name, "type": kind, "size": 1} for name, kind in self._names], "next": None}


@pytest.mark.parametrize(
    "names",
    [
        [("/root.evil", "file")],
        [("/", "directory"), ("//etc", "directory"), ("//etc/passwd", "file")],
        [("..", "directory"), ("../x", "file")],
        [("a", "link"), ("a/x", "file")],
        [("a/x", "file")],
        [("", "directory")],
        [("a", "directory"), ("a/../../x", "file")],
    ],
)
async def test_a_list_that_leads_elsewhere_is_refused(names: list[tuple[str, str]]) -> None:
    with pytest.raises(NatskitError, match="which is not in a folder that it lists"):
        await _Remote(cast("Client", Lies(names)), "project", "x").tree()


async def test_a_list_of_folders_and_what_is_in_them() -> None:
    names = [("a", "directory"), ("a/b", "directory"), ("a/b/c", "file"), ("..d", "file")]
    found = await _Remote(cast("Client", Lies(names)), "project", "x").tree()
    assert set(found) == {name for name, _ in names}
