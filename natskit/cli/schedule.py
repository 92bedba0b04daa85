"""``natskit schedule``: backups, their verification and the canary by timers of systemd on this machine."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from natskit.cli.backup import INCOMPLETE
from natskit.cli.platform import METRICS_FOLDER, Platform
from natskit.errors import NatskitError, SettingsError

BACKUP_HOURS, VERIFY_HOURS = 12, 12
"""A run that takes longer is ended."""
_SECONDS = 60.0


@dataclass(frozen=True)
class Task:
    """A unit and its timer."""

    name: str
    title: str
    commands: list[list[str]]
    calendar: str
    """When it runs (systemd.time(7))."""
    longest: str
    spread: str = "5m"
    environment: dict[str, str] = field(default_factory=dict)
    also_good: int | None = None
    """An exit code after which the next command runs as after 0."""

    def files(self, directory: Path) -> dict[str, str]:
        """The units by their file names; ``directory`` is where the commands run."""
        from natskit.config.render import render

        values = {
            "title": self.title,
            "commands": [shlex.join(command) for command in self.commands],
            "calendar": self.calendar,
            "longest": self.longest,
            "spread": self.spread,
            "environment": self.environment,
            "directory": str(directory),
            "also_good": self.also_good,
        }
        return {f"{self.name}.{kind}": render(f"schedule/task.{kind}", values) for kind in ("service", "timer")}


@click.group()
def schedule() -> None:
    """Run backups, their verification and the canary regularly, by timers of systemd on this machine.

    As root the timers are the machine's, otherwise those of this user, whom `loginctl enable-linger` keeps running.
    """


def _common(command: Callable[..., Any]) -> Callable[..., Any]:
    name = click.option(
        "--name", default="natskit", show_default=True, metavar="NAME", help="The units' names begin so."
    )
    shown = click.option("--print", "show", is_flag=True, help="Print the units; write nothing.")
    return name(shown(command))


@schedule.command("backup")
@click.option("--target", required=True, metavar="TARGET", help="The folder with all backups, or rclone:REMOTE:PATH.")
@click.option("--at", default="02:30", show_default=True, metavar="HH:MM", help="When, every day.")
@click.option("--verify-on", default="Sun", show_default=True, metavar="DAY", help="The day of the verification.")
@click.option("--keep", default=7, show_default=True, type=click.IntRange(min=1), help="Keep the newest N.")
@click.option(
    "--keep-days", default=30, show_default=True, type=click.IntRange(min=0), help="Keep those of D days, too."
)
@click.option("--without-files", is_flag=True, help="Leave out the files of projects.")
@click.option(
    "--without-runner", "absent", multiple=True, metavar="NAME", help="Leave out the files of projects on this runner."
)
@_common
@click.pass_obj
def schedule_backup(
    directory: str,
    target: str,
    at: str,
    verify_on: str,
    keep: int,
    keep_days: int,
    without_files: bool,
    absent: tuple[str, ...],
    name: str,
    show: bool,
) -> None:
    """Take a backup every day, remove old ones, and verify the newest one every week.

    The command that prints the passphrase is taken from NATSKIT_IDENTITY_PASSPHRASE_COMMAND.

    \b
    Example:
      NATSKIT_IDENTITY_PASSPHRASE_COMMAND='cat /root/passphrase' natskit schedule backup --target /srv/backup
    """
    from natskit.identity.passphrase import COMMAND

    platform = Platform.find(directory)
    if not re.fullmatch(r"([01]\d|2[0-3]):[0-5]\d", at):
        raise SettingsError(f"--at {at}: write an hour and a minute, such as 02:30")
    if verify_on not in (days := ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")):
        raise SettingsError(f"--verify-on {verify_on}: write one of {', '.join(days)}")
    if not os.environ.get(COMMAND):
        raise SettingsError(f"{COMMAND} is not set: set it to a command that prints the passphrase, which timers need")
    is_remote = target.startswith("rclone:")
    place = target if is_remote else str(Path(target).absolute())
    environment = {COMMAND: os.environ[COMMAND], "NATSKIT_BACKUP_TARGET": place} | _metrics()
    if is_remote and os.environ.get("RCLONE_CONFIG"):
        environment["RCLONE_CONFIG"] = os.environ["RCLONE_CONFIG"]
    backup = [*_natskit(platform), "backup"]
    left_out = ["--without-files"] if without_files else [word for one in absent for word in ("--without-runner", one)]
    tasks = [
        Task(
            name=f"{name}-backup",
            title="natskit backup",
            commands=[
                [*backup, "create", *left_out],
                [*backup, "prune", "--keep", str(keep), "--keep-days", str(keep_days)],
            ],
            calendar=f"*-*-* {at}:00",
            longest=f"{BACKUP_HOURS}h",
            environment=environment,
            also_good=INCOMPLETE,
        ),
        Task(
            name=f"{name}-verify",
            title="natskit backup verify",
            commands=[[*backup, "verify"]],
            # After the backup of that day. Two at once are refused.
            calendar=f"{verify_on} *-*-* {_hours_after(at, 4)}:00",
            longest=f"{VERIFY_HOURS}h",
            environment=environment,
        ),
    ]
    _install(tasks, platform.directory.resolve(), show)


@schedule.command("canary")
@click.option("--email", required=True, metavar="EMAIL", help="An account for this alone.")
@click.option("--password-file", required=True, type=click.Path(path_type=Path), metavar="FILE", help="A private file.")
@click.option("--every", default=5, show_default=True, type=click.IntRange(1, 60), metavar="MINUTES", help="How often.")
@_common
@click.pass_obj
def schedule_canary(directory: str, email: str, password_file: Path, every: int, name: str, show: bool) -> None:
    """Run `natskit canary` every few minutes.

    \b
    Example:
      natskit schedule canary --email canary@example.org --password-file /root/canary
    """
    platform = Platform.find(directory)
    words = ["canary", "--email", email, "--password-file", str(password_file.absolute())]
    task = Task(
        name=f"{name}-canary",
        title="natskit canary",
        commands=[[*_natskit(platform), *words]],
        calendar=f"*-*-* *:0/{every}:00",
        longest="10min",
        spread="30s",
        environment=_metrics(),
    )
    _install([task], platform.directory.resolve(), show)


@schedule.command("remove")
@click.argument("what", type=click.Choice(["backup", "canary"]))
@click.option("--name", default="natskit", show_default=True, metavar="NAME", help="The units' names begin so.")
def schedule_remove(what: str, name: str) -> None:
    """Remove the timers that `natskit schedule` has installed.

    \b
    Example:
      natskit schedule remove canary
    """
    folder = _folder()
    tasks = [f"{name}-backup", f"{name}-verify"] if what == "backup" else [f"{name}-canary"]
    for task in tasks:
        if not (folder / f"{task}.timer").exists():
            raise NatskitError(f"there is no {folder / task}.timer: nothing of that name is scheduled")
    for task in tasks:
        _systemctl("disable", "--now", f"{task}.timer")
        for kind in ("timer", "service"):
            (folder / f"{task}.{kind}").unlink(missing_ok=True)
    _systemctl("daemon-reload")


def _hours_after(at: str, hours: int) -> str:
    hour, minute = map(int, at.split(":"))
    return f"{(hour + hours) % 24:02}:{minute:02}"


def _natskit(platform: Platform) -> list[str]:
    return [str(Path(sys.executable).with_name("natskit")), "--platform", str(platform.directory.resolve())]


def _metrics() -> dict[str, str]:
    return {METRICS_FOLDER: os.environ[METRICS_FOLDER]} if os.environ.get(METRICS_FOLDER) else {}


def _folder() -> Path:
    """Where units are: of the machine for root, otherwise of this user (systemd.unit(5))."""
    own = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    return Path("/etc/systemd/system") if os.geteuid() == 0 else own / "systemd" / "user"


def _install(tasks: list[Task], directory: Path, show: bool) -> None:
    files = {name: text for task in tasks for name, text in task.files(directory).items()}
    folder = _folder()
    if show:
        for name, text in files.items():
            click.echo(f"# ---- {folder / name}\n{text}")
        return
    if not Path("/run/systemd/system").is_dir():
        raise NatskitError("systemd does not run here: use --print, and let another scheduler run the commands")
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    _systemctl("daemon-reload")
    for task in tasks:
        _systemctl("enable", "--quiet", "--now", f"{task.name}.timer")
        click.echo(f"{task.name}.timer: {task.calendar}; run it now with: {_start(task.name)}")


def _start(name: str) -> str:
    return f"systemctl {'' if os.geteuid() == 0 else '--user '}start {name}.service"


def _systemctl(*words: str) -> None:
    command = ["systemctl", *([] if os.geteuid() == 0 else ["--user"]), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    if done.returncode != 0:
        raise NatskitError(f"{shlex.join(command)}: {done.stderr.strip() or f'exit code {done.returncode}'}")
