"""``natskit canary``: what a user does, from the outside, again and again."""

from __future__ import annotations

import asyncio
import os
import stat
import time
from collections.abc import Awaitable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from natskit.cli.platform import METRICS_FOLDER, Platform, json_option, metrics_folder, show_json
from natskit.errors import NatskitError, SettingsError

if TYPE_CHECKING:
    from natskit.client import Client

T = TypeVar("T")

TITLE = "natskit canary"
STEPS = ("sign in", "create a project", "start it", "run a command", "write and read a file", "delete it", "sign out")
STEP_SECONDS = 45.0
_SAYS = ["sh", "-c", "echo $((6 * 7))"]


@click.command()
@click.option("--email", required=True, metavar="EMAIL", help="An account for this alone.")
@click.option(
    "--password-file",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="A private file with its password.",
)
@click.option("--url", metavar="URL", help="The site  [default: that of the platform].")
@click.option(
    "--ca-file",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="The CA of the site's certificate  [default: the platform's, and those of this machine].",
)
@json_option
@click.pass_obj
def canary(
    directory: str, email: str, password_file: Path, url: str | None, ca_file: Path | None, as_json: bool
) -> None:
    """Do what a user does, from the outside: sign in, start a project, run a command, clean up.

    Says how long each step took, and exits 1 if one fails. With --url and --ca-file, it needs nothing of the platform
    and runs on any machine.

    For Prometheus it leaves the result in the folder that NATSKIT_METRICS names, or in that of a local platform's
    exporter.

    \b
    Examples:
      natskit canary --email canary@example.org --password-file /root/canary
      NATSKIT_METRICS=/var/lib/prometheus/node-exporter natskit canary --url https://bus.example.org …
    """
    folder = Path(named) if (named := os.environ.get(METRICS_FOLDER)) else None
    if url is None:
        platform = Platform.find(directory)
        url, ca_file = str(platform["url"]), ca_file or Path(platform["ca_file"])
        folder = metrics_folder(platform)
    flight = Flight(url, email, _password(password_file), ca_file)
    try:
        asyncio.run(flight.fly())
    finally:
        if folder is not None:
            try:
                flight.record(folder)
            except OSError as error:  # it must not take the place of what the canary found
                click.echo(f"the figures are not recorded: {folder}: {error.strerror}", err=True)
    if as_json:
        show_json({"seconds": flight.seconds})
    else:
        click.echo("\n".join(f"{step}: {took:.2f} s" for step, took in flight.seconds.items()))


def _password(path: Path) -> str:
    try:
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise SettingsError(f"{path} can be read by others: run chmod go= {path}")
        return path.read_text().rstrip("\n")
    except OSError as error:
        raise SettingsError(f"{path}: {error.strerror}") from None


class Flight:
    """One run of the canary."""

    def __init__(self, url: str, email: str, password: str, ca_file: Path | None) -> None:
        self._url, self._email, self._password, self._ca_file = url, email, password, ca_file
        self.seconds: dict[str, float] = {}
        """How long each step took that has succeeded."""

    async def fly(self) -> None:
        """Take all steps. Raises :class:`NatskitError` that names the step which failed."""
        from natskit.client import Client

        client = await self._step(
            "sign in", Client.sign_in(self._url, self._email, self._password, ca_file=self._ca_file)
        )
        try:
            if client.must_change_password:
                raise NatskitError(
                    f"{self._email} has a one-time password: sign in once and choose one, then put it into the file"
                )
            await self._use(client)
            await self._step("sign out", client.sign_out())
        finally:
            await client.close()

    async def _use(self, client: Client) -> None:
        await self._remove_left(client)
        made = await self._step("create a project", client.call_hub("create_project", title=TITLE))
        project = made["project_id"]
        try:
            await self._step("start it", client.call_hub("start_project", wait=STEP_SECONDS, project_id=project))
            await self._step("run a command", _run(client, project))
            await self._step("write and read a file", _write_and_read(client, project))
        except BaseException:
            await _quietly(client.call_hub("delete_project", wait=STEP_SECONDS, project_id=project))
            raise
        await self._step("delete it", client.call_hub("delete_project", wait=STEP_SECONDS, project_id=project))

    async def _remove_left(self, client: Client) -> None:
        """Delete what a run left that was killed, or whose platform broke down meanwhile."""
        for project in await client.list_hub("list_projects"):
            if project["title"] == TITLE:
                await _quietly(client.call_hub("delete_project", wait=STEP_SECONDS, project_id=project["project_id"]))

    async def _step(self, name: str, work: Awaitable[T]) -> T:
        began = time.monotonic()
        try:
            found = await asyncio.wait_for(work, STEP_SECONDS)
        except TimeoutError:
            raise NatskitError(f"{name}: no end after {STEP_SECONDS:g} s") from None
        except NatskitError as error:
            raise NatskitError(f"{name}: {error}") from None
        self.seconds[name] = time.monotonic() - began
        return found

    def record(self, folder: Path) -> None:
        """Leave the result for Prometheus in a folder. Raises :class:`OSError`."""
        from natskit.process.metrics_file import Gauge, write

        seconds = Gauge("natskit_canary_step_seconds", "Time of a step that has succeeded in the last run")
        for step, took in self.seconds.items():
            seconds.add(took, step=step)
        good = float(set(STEPS) <= set(self.seconds))
        write(
            folder / "canary.prom",
            [
                Gauge.of("natskit_canary_good", "Whether all steps of the last run have succeeded", good),
                Gauge.of("natskit_canary_ended_seconds", "When the last run ended, in Unix seconds", time.time()),
                seconds,
            ],
        )


async def _run(client: Client, project_id: str) -> None:
    async with client.exec(project_id, _SAYS, timeout=STEP_SECONDS) as run:
        printed, _ = await run.output()
    if run.exit_code != 0 or printed.strip() != b"42":
        raise NatskitError(f"the command ended with {run.signal or run.exit_code}, and printed {printed[:80]!r}")


async def _write_and_read(client: Client, project_id: str) -> None:
    word: dict[str, Any] = {"project_id": project_id, "path": "canary.txt"}
    await client.call_hub("write_text_file_to_project", **word, text=TITLE)
    found = await client.call_hub("read_text_file_from_project", **word)
    if TITLE not in str(found):
        raise NatskitError("the file does not have what was written to it")


async def _quietly(work: Awaitable[Any]) -> None:
    """What went wrong before is what is said."""
    try:
        await work
    except NatskitError:
        return
