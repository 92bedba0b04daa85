"""The two clients, in Python and in the browser, ask again for the same methods, and for such that there are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from natskit import client, rpc

BROWSER = Path(__file__).parents[2] / "web" / "src" / "natskit.js"


@pytest.mark.parametrize("name", ["REPEATABLE", "CUTTING", "OVER_HTTP"])
def test_the_clients_have_the_same_list(name: str) -> None:
    found = re.search(rf"const {name} = new Set\(\[(.*?)\]\)", BROWSER.read_text(), re.DOTALL)
    assert found is not None
    assert set(re.findall(r'"(\w+)"', found[1])) == getattr(client, name)


def test_each_is_a_method_of_the_hub_or_of_projects() -> None:
    known = {
        method
        for package, group in (("natskit.hub", "natskit_hub"), ("natskit.project", "natskit_project"))
        for method in rpc.load_methods(package, group, []).names()
    }
    assert known >= client.REPEATABLE
    assert known >= client.CUTTING
    assert known >= client.OVER_HTTP
