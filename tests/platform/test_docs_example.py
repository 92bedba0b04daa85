"""The example in docs/how-to/add-your-own-api.md works, exactly as the page shows it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from natskit.client import Client
from natskit.rpc import RpcError
from tests.documents import block
from tests.platform.site import Site, deployed

PASSWORD = "correct horse battery staple"  # noqa: S105


PAGE = "docs/how-to/add-your-own-api.md"


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A platform with the page's methods in its hub and projects."""
    root = Path(tmp_path_factory.mktemp("own-api"))
    (root / "my_platform.py").write_text(block(PAGE, "Write the methods", "python"))
    own = {"platform_python_path": str(root), "hub_api_packages": "my_platform"}
    with deployed(root / "local", **own, runner_project_api_packages="my_platform") as site:
        yield site


async def test_the_example_of_an_own_api(extended: Site) -> None:
    extended.natskit("account", "add", "ada@example.org", "--password-stdin", stdin=PASSWORD)
    project = extended.natskit_json("project", "create", "ada@example.org", "Words")["project_id"]
    extended.natskit("exec", project, "--start", "--", "sh", "-c", "echo one two three > text")
    client = await Client.sign_in(extended.url, "ada@example.org", PASSWORD, ca_file=extended.ca_file)
    assert await client.call_hub("greet", greeting="Hello") == "Hello, ada@example.org!"
    assert await client.call_project(project, "count_words", path="text") == 3
    with pytest.raises(RpcError, match="greet needs the parameter 'greeting'"):
        await client.call_hub("greet")
    with pytest.raises(RpcError) as refused:
        await client.call_hub("greet", greeting="")
    assert (refused.value.kind, refused.value.message) == ("invalid_params", "say something")
    await client.close()


async def test_the_example_of_a_program(extended: Site) -> None:
    """The program makes, starts and uses a project without a pause. The disconnect that brings its new rights must not
    break the next call."""
    extended.natskit("account", "add", "grace@example.org", "--password-stdin", stdin=PASSWORD)
    async with await Client.sign_in(extended.url, "grace@example.org", PASSWORD, ca_file=extended.ca_file) as client:
        project = await client.call_hub("create_project", title="Demo")
        await client.call_hub("start_project", project_id=project["project_id"], wait=40)
        async with client.exec(project["project_id"], command="echo works") as run:
            assert await run.output() == (b"works\n", b"")
        assert run.exit_code == 0


def test_a_package_that_is_nowhere_is_refused_before_anything_is_touched(extended: Site) -> None:
    done = extended.deploy(hub_api_packages="my_platfrom")
    assert done.returncode != 0
    assert "'my_platfrom'" in done.stdout + done.stderr
    assert extended.natskit("status", check=False).returncode == 0
