"""``natskit schedule``: the units that it writes, as systemd itself reads them."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from natskit.cli import cli
from natskit.identity.passphrase import COMMAND


@pytest.fixture
def platform(tmp_path: Path) -> Path:
    """The folder of a platform, as far as a schedule needs it."""
    content = {"identity": str(tmp_path / "identity"), "url": "https://localhost"}
    (tmp_path / "platform.json").write_text(json.dumps(content))
    return tmp_path


def schedule(platform: Path, *words: str, **environment: str | None) -> Result:
    return CliRunner().invoke(cli, ["--platform", str(platform), "schedule", *words], env=environment)


def units(result: Result) -> dict[str, str]:
    assert result.exit_code == 0, result.output
    parts = re.split(r"^# ---- (\S+)$", result.output, flags=re.MULTILINE)[1:]
    return {Path(name).name: text for name, text in zip(parts[::2], parts[1::2], strict=True)}


def verify(units: dict[str, str], folder: Path) -> None:
    """systemd-analyze reads them as systemd would."""
    for name, text in units.items():
        (folder / name).write_text(text)
        done = subprocess.run(
            ["systemd-analyze", "verify", "--man=no", folder / name], capture_output=True, text=True, check=False
        )
        said = [line for line in done.stderr.splitlines() if str(folder / name) in line or name in line]
        assert said == [], done.stderr
    for text in units.values():
        for calendar in re.findall(r"^OnCalendar=(.*)$", text, re.MULTILINE):
            subprocess.run(["systemd-analyze", "calendar", calendar], check=True, capture_output=True)


def test_backups_every_day_and_a_verification_every_week(platform: Path, tmp_path: Path) -> None:
    words = ("backup", "--target", "/srv/back up", "--at", "22:30", "--keep", "3", "--print")
    found = units(schedule(platform, *words, **{COMMAND: "cat '/root/100%'", "NATSKIT_METRICS": "/srv/metrics"}))
    assert list(found) == [f"natskit-{task}.{kind}" for task in ("backup", "verify") for kind in ("service", "timer")]
    create, prune = re.findall(r"^ExecStart=(.*)$", found["natskit-backup.service"], re.MULTILINE)
    assert create.endswith(f" --platform {platform} backup create")
    assert prune.endswith(" backup prune --keep 3 --keep-days 30")
    assert 'Environment="NATSKIT_BACKUP_TARGET=/srv/back up"' in found["natskit-backup.service"]
    assert f"Environment=\"{COMMAND}=cat '/root/100%%'\"" in found["natskit-backup.service"]
    assert 'Environment="NATSKIT_METRICS=/srv/metrics"' in found["natskit-verify.service"]
    assert "OnCalendar=*-*-* 22:30:00" in found["natskit-backup.timer"]
    assert "OnCalendar=Sun *-*-* 02:30:00" in found["natskit-verify.timer"]
    verify(found, tmp_path)


def test_a_dead_host_is_left_out_of_each_backup(platform: Path, tmp_path: Path) -> None:
    words = ("backup", "--target", "/srv/backup", "--without-runner", "two", "--without-runner", "a b", "--print")
    found = units(schedule(platform, *words, **{COMMAND: "cat /root/passphrase"}))
    create, prune = re.findall(r"^ExecStart=(.*)$", found["natskit-backup.service"], re.MULTILINE)
    assert create.endswith(" backup create --without-runner two --without-runner 'a b'")
    assert "--without-runner" not in prune
    # An incomplete backup is a backup: old ones are removed after it.
    assert "\nSuccessExitStatus=3\n" in found["natskit-backup.service"]
    assert "SuccessExitStatus" not in found["natskit-verify.service"]
    verify(found, tmp_path)


def test_the_canary_every_few_minutes(platform: Path, tmp_path: Path) -> None:
    words = ("canary", "--email", "c@example.org", "--password-file", "/root/canary", "--every", "10", "--print")
    found = units(schedule(platform, *words, "--name", "bus"))
    assert list(found) == ["bus-canary.service", "bus-canary.timer"]
    assert "canary --email c@example.org --password-file /root/canary" in found["bus-canary.service"]
    assert "OnCalendar=*-*-* *:0/10:00" in found["bus-canary.timer"]
    verify(found, tmp_path)


@pytest.mark.parametrize(
    ("words", "environment", "said"),
    [
        (("--at", "25:00"), {COMMAND: "cat x"}, "--at 25:00: write an hour and a minute"),
        (("--verify-on", "Sunday"), {COMMAND: "cat x"}, "--verify-on Sunday: write one of Mon"),
        ((), {COMMAND: None}, f"{COMMAND} is not set"),
    ],
)
def test_what_it_refuses(platform: Path, words: tuple[str, ...], environment: dict[str, str | None], said: str) -> None:
    refused = schedule(platform, "backup", "--target", "/srv/backup", "--print", *words, **environment)
    assert said in str(refused.exception)


def test_nothing_is_removed_that_is_not_there(platform: Path) -> None:
    refused = schedule(platform, "remove", "canary", "--name", "nobodys")
    assert "nothing of that name is scheduled" in str(refused.exception)
