"""The announcement of `natskit identity rotate`, and how it finds the deploy to run."""

from __future__ import annotations

import fcntl
import json
from collections import Counter
from pathlib import Path

import pytest
from click.testing import CliRunner

from natskit.cli import cli
from natskit.cli.rotate import consequences
from natskit.errors import NatskitError
from natskit.identity.identity import Identity
from natskit.identity.rotation import KINDS, Kind
from roles.platform import how_to_deploy

CONNECTED = Counter(browser=3, project=2, runner=1)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("hub-keys", "Users stay signed in"),
        ("project-keys", "Browsers stay connected"),
        ("nats-account", "No browser, project or runner reconnects"),
        ("operator-signing-key", "each of the 3 is restarted, one after the other, twice"),
    ],
)
def test_it_says_who_reconnects(kind: Kind, words: str) -> None:
    said = " ".join(consequences(kind, CONNECTED, 3, False, 900, False).split())
    assert said.startswith("Connected now: 3 browsers, 2 projects, 1 runners.")
    assert words in said


def test_urgent_is_another_matter() -> None:
    assert "All users must sign in again" in " ".join(consequences("hub-keys", CONNECTED, 1, True, 0, False).split())


@pytest.mark.parametrize("kind", KINDS)
def test_a_resolver_in_memory_cuts_everybody_at_each_push(kind: Kind) -> None:
    assert (
        "Each reload disconnects every browser" in " ".join(consequences(kind, CONNECTED, 1, False, 0, True).split())
    ) == (kind != "project-keys")


def test_a_deploy_is_repeated_on_all_hosts_without_questions_and_passwords() -> None:
    argv = (
        "pyinfra -y --limit nats-1 --ssh-password secret --ssh-password=secret site.py deploy.py --data a=b -v --json"
    )
    found = how_to_deploy(
        argv.split(), {"NATSKIT_LOCAL": "/x", "NATSKIT_IDENTITY_PASSPHRASE": "secret", "PATH": "/bin"}
    )
    assert found == {
        "arguments": ["site.py", "deploy.py", "--data", "a=b"],
        "directory": str(Path.cwd()),
        "environment": {"NATSKIT_LOCAL": "/x"},
    }


@pytest.mark.parametrize(("text", "kept"), [("hosts = []", False), ("os.environ['NATSKIT_CLUSTER']", True)])
def test_the_name_of_a_cluster_is_kept_where_the_inventory_reads_it(tmp_path: Path, text: str, kept: bool) -> None:
    """``make`` passes it to every command."""
    inventory = tmp_path / "site.py"
    inventory.write_text(text)
    found = how_to_deploy(["pyinfra", str(inventory), "deploy.py"], {"NATSKIT_CLUSTER": "natskit"})
    assert found["environment"] == ({"NATSKIT_CLUSTER": "natskit"} if kept else {})


def platform(tmp_path: Path) -> list[str]:
    """A platform after one deploy. None of its servers answers."""
    Identity.ensure(tmp_path / "identity", now=1_800_000_000)
    content = {"identity": str(tmp_path / "identity"), "nats": ["n"], "authorization_ttl": 900, "session_sliding": 60}
    (tmp_path / "platform.json").write_text(json.dumps(content))
    return ["--platform", str(tmp_path), "identity", "rotate"]


def test_another_rotation_is_not_disturbed(tmp_path: Path) -> None:
    words = platform(tmp_path)
    with (tmp_path / "identity" / "rotation.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = CliRunner().invoke(cli, [*words, "hub-keys", "--yes"])
    assert isinstance(done.exception, NatskitError)
    assert "another rotation of" in str(done.exception)


def test_one_kind_is_completed_before_the_next(tmp_path: Path) -> None:
    words = platform(tmp_path)
    identity = Identity.load(tmp_path / "identity", write=True)
    identity.begin_rotation("nats-account", now=1_800_000_001, urgent=False)
    done = CliRunner().invoke(cli, [*words, "hub-keys", "--yes"])
    assert isinstance(done.exception, NatskitError)
    assert "run `natskit identity rotate nats-account` first" in str(done.exception)
