"""``natskit doctor``: find the platform's problems, with the evidence and the command that fixes each."""

from __future__ import annotations

import asyncio
import json
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from natskit.cli.platform import Platform, json_option, list_hub, show_json
from natskit.errors import NatskitError

if TYPE_CHECKING:
    from natskit.cli.checks import Part, Report
    from natskit.doctor.finding import Finding
    from natskit.identity.identity import Identity

MARKS = {"broken": "[red]broken[/]", "soon": "[yellow]soon[/]", "untidy": "untidy"}
DRIFT_SECONDS = 120.0
CONNECT_SECONDS = 12.0
"""Longer than it takes to notice that two servers do not answer (:data:`natskit.bus.connection.CONNECT_TIMEOUT`), and
to try the third."""


@click.command()
@click.option(
    "--bundle", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Write FILE for support."
)
@json_option
@click.pass_obj
def doctor(directory: str, bundle: Path | None, as_json: bool) -> None:
    """Find problems of the platform. Prints the most important ones first, each with its evidence and a fix.

    Checks every part, the keys, streams and disks, and compares all hosts with the inventory of the last deploy.
    Changes nothing. Exits 1 if something is broken.

    With --bundle, writes the findings, the answers of the parts, and the end of each log of this machine into FILE, a
    gzipped tar. It removes keys, tokens and passwords, but not names and addresses.

    \b
    Examples:
      natskit doctor
      natskit doctor --json | jq -r '.findings[].mend'
      natskit doctor --bundle /tmp/doctor.tar.gz
    """
    from natskit import __version__
    from natskit.cli.checks import inspect
    from natskit.doctor import bundle as bundles
    from natskit.doctor.finding import in_order

    platform = Platform.find(directory)
    report = inspect(platform)
    found = in_order(_findings(directory, platform, report))
    record = {"version": __version__, "findings": [finding.to_json() for finding in found]}
    if bundle is not None:
        logs = platform.content.get("log_directory")
        seen = {"doctor": record, "status": report.to_json(), "platform": platform.content}
        bundles.write(bundle, seen, Path(logs) if logs else None)
        click.echo(f"{bundle} is for support: look at it before you send it.", err=True)
    if as_json:
        show_json(record)
    else:
        _print(found)
    sys.exit(1 if any(finding.severity == "broken" for finding in found) else 0)


def _findings(directory: str, platform: Platform, report: Report) -> Iterator[Finding]:
    """All findings. Checks on which others depend come first."""
    from natskit.cli.identity import in_use
    from natskit.doctor import backups, keys, machine, machine_probe
    from natskit.doctor.finding import Finding
    from natskit.identity.identity import Identity

    deploy = deploy_command(platform)
    if unsafe := list(keys.readable(Path(platform["identity"]))):
        yield from unsafe
        return  # nothing else can be asked without the keys
    identity = Identity.load(Path(platform["identity"]))
    yield from parts(report.parts, deploy)
    if root := _local_root(platform):
        yield from machine.orphans(root, deploy)
        yield from machine.open_files({process.name: process.pid for process in report.running if process.pid})
    known = _known_projects(directory)
    try:
        yield from machine.findings(machine_probe.look([str(platform.directory), "/"]))
    except (OSError, ValueError, KeyError, subprocess.SubprocessError) as error:
        why = f"{type(error).__name__}: {error}"
        yield Finding("soon", "this machine cannot be looked at", why, "mend that, then natskit doctor")
    yield from keys.expiring(identity.directory, in_use(directory), int(time.time()), deploy)
    yield from keys.named(platform["url"])
    yield from keys.served(platform["url"], Path(platform["ca_file"]), deploy)
    yield from backups.old(platform.directory, datetime.now(UTC))
    yield from asyncio.run(_of_servers(platform, identity, deploy))
    yield from _of_hosts(directory, platform, deploy, known)
    if known is not None:
        for folder in platform.content.get("projects", {}).values():
            yield from machine.left_projects(Path(folder), known)


def parts(found: list[Part], deploy: str) -> Iterator[Finding]:
    """The parts that do not work, and programs whose version differs from this one's."""
    from natskit import __version__
    from natskit.doctor.finding import Finding

    for part in found:
        if part.state != "ok":
            why = part.detail or "it does not answer"
            yield Finding("broken" if part.state == "failed" else "soon", f"{part.name} does not work", why, deploy)
        elif part.version and not part.name.startswith("nats") and part.version != __version__:
            yield Finding(
                "soon",
                f"{part.name} runs natskit {part.version}",
                f"this control machine has {__version__}: the last deploy was not finished, or was another machine's",
                deploy,
            )


async def _of_servers(platform: Platform, identity: Identity, deploy: str) -> list[Finding]:
    """The findings of the nats-servers. The check of the parts reports servers that do not answer."""
    from natskit.bus.connection import connect
    from natskit.bus.credentials import CredsText
    from natskit.bus.permissions import inbox_prefix
    from natskit.doctor import servers as checks
    from natskit.doctor.finding import Finding
    from natskit.ops.account_resolver import open_servers
    from natskit.ops.stream_provisioning import WITH_STREAMS, StreamSettings

    found: list[Finding] = []
    if identity.state_can_go_back:
        found.append(
            Finding(
                "untidy",
                "PLATFORM still has the streams from which the state was moved",
                "they are the way back to the older version, and take room on the disks of the nats-servers",
                "natskit state confirm, when you do not want to go back",
            )
        )
    lazy = [name for name, kind in platform["resolvers"].items() if kind == "cache"]
    creds = CredsText(identity.creds("SYS", "admin"))
    with suppress(NatskitError):
        async with open_servers(
            platform.nats_servers, creds, platform["nats"], lazy, timeout=CONNECT_SECONDS
        ) as servers:
            for check in (checks.accounts(servers, identity), checks.storage(servers)):
                with suppress(NatskitError):  # all servers have to answer for these
                    found += await check
    settings = StreamSettings.model_validate(platform["streams"])
    for account in WITH_STREAMS:
        with suppress(NatskitError):
            connection = await connect(
                platform.nats_servers,
                name="natskit doctor",
                inbox_prefix=inbox_prefix("admin"),
                creds=CredsText(identity.creds(account, "admin")),
                timeout=CONNECT_SECONDS,
            )
            try:
                found += await checks.streams(connection, settings, deploy, account)
            finally:
                await connection.close()
    return found


def _of_hosts(directory: str, platform: Platform, deploy: str, known: set[str] | None) -> Iterator[Finding]:
    """What the dry run of a deploy tells of all hosts."""
    from natskit.doctor import gathered

    with tempfile.NamedTemporaryFile(prefix="natskit-doctor-") as file:
        yield from drift(platform, deploy, Path(file.name))
        if known is not None:  # and those that were created meanwhile
            known = known | (_known_projects(directory) or set())
        yield from gathered.findings(Path(file.name), known)


def drift(platform: Platform, deploy: str, said: Path) -> Iterator[Finding]:
    """What a deploy would change on any host, by a dry run of the last one, which writes into a file what hosts say of
    themselves."""
    from natskit.cli.deploy import repeat
    from natskit.doctor.finding import Finding
    from natskit.doctor.gathered import FILE_VARIABLE

    try:
        environment = {FILE_VARIABLE: str(said)}
        done = repeat(platform, "--dry", "--json", seconds=DRIFT_SECONDS, environment=environment)
        errors = [line for line in done.stderr.splitlines() if "error" in line.lower()][:1]
        why = " ".join(errors)[:300] or f"exit code {done.returncode}"
        plan = json.loads(done.stdout)["plan"]
    except (ValueError, KeyError, NatskitError) as error:
        if isinstance(error, NatskitError):
            why = str(error)
        why = f"a dry run of the last deploy ends with: {why}"
        yield Finding(
            "soon",
            "the hosts cannot be compared with the inventory",
            why,
            deploy.replace(" deploy ", " deploy --dry ", 1),
        )
        return
    changes: dict[str, list[str]] = {}
    for operation in plan:
        for host in operation["hosts_with_change"]:
            changes.setdefault(host, []).append(operation["name"])
    for host, names in changes.items():
        yield Finding("soon", f"{host} differs from the inventory", f"a deploy would: {'; '.join(names)}", deploy)


def _known_projects(directory: str) -> set[str] | None:
    """The projects that hubs know; ``None`` if no hub answers, which the parts say."""
    try:
        return {project["project_id"] for project in list_hub(directory, "project_list")}
    except NatskitError:
        return None


def deploy_command(platform: Platform) -> str:
    """The command that repeats the last deploy."""
    from natskit.cli.deploy import variables_of

    last = platform["deploy"]
    words = shlex.join(word for word in last["arguments"] if word != "deploy.py")
    return " ".join([*variables_of(last), f"natskit --platform {shlex.quote(str(platform.directory))} deploy {words}"])


def _local_root(platform: Platform) -> Path | None:
    """The folder of a platform on this machine; ``None`` for one on hosts."""
    socket = platform.content.get("supervisor_socket")
    return Path(socket).parents[1] if socket else None


def _print(found: list[Finding]) -> None:
    from rich.console import Console

    from natskit.validation.names import shown

    if not found:
        click.echo("Nothing is wrong.")
        return
    console = Console(highlight=False, soft_wrap=True)
    for finding in found:
        console.print(MARKS[finding.severity], end=" ")
        # A host that was taken over may report what a terminal would obey.
        console.print(shown(finding.what), markup=False)
        console.print(f"  why:  {shown(finding.why)}", markup=False)
        console.print(f"  mend: {shown(finding.mend)}", markup=False)
