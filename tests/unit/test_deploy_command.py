"""The platform that `natskit deploy` chooses, and the mistakes it refuses before anything runs."""

from __future__ import annotations

import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from natskit.cli import cli
from natskit.cli.deploy import _run, deploy, platform_of
from natskit.errors import SettingsError


def meant(inventory: Path, *options: str) -> str:
    """The platform of a deploy with these options of ``natskit``."""
    with cli.make_context("natskit", [*options, "deploy", str(inventory)]) as parent:
        parent.obj = parent.params["directory"]
        with click.Context(deploy, parent=parent, obj=parent.obj) as context:
            return platform_of(inventory, context)


def test_the_platform_beside_the_inventory_is_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NATSKIT_PLATFORM", raising=False)
    assert meant(tmp_path / "inventory.py") == ".local"
    (tmp_path / "platform").mkdir()
    assert meant(tmp_path / "inventory.py") == str(tmp_path / "platform")
    assert meant(tmp_path / "inventory.py", "--platform", "/srv/other") == "/srv/other"
    monkeypatch.setenv("NATSKIT_PLATFORM", "/srv/named")
    assert meant(tmp_path / "inventory.py") == "/srv/named"


@pytest.mark.parametrize("verbose", ["", "1"])
def test_a_deploy_without_results_has_failed(verbose: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupted pyinfra exits with 0."""
    monkeypatch.setenv("VERBOSE", verbose)
    begin = "print('--> Starting operation: Render nats-server.conf')"
    assert not _run([sys.executable, "-c", begin])
    assert _run([sys.executable, "-c", f"{begin}; print('--> Results:')"])
    assert not _run([sys.executable, "-c", f"{begin}; print('--> Results:'); exit(1)"])


def test_a_missing_inventory_is_named(tmp_path: Path) -> None:
    done = CliRunner().invoke(cli, ["deploy", str(tmp_path / "gone.py")])
    assert isinstance(done.exception, SettingsError)
    assert f"there is no {tmp_path}/gone.py" in str(done.exception)
