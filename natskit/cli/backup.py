"""``natskit backup``: back up the whole platform, check backups, restore it."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from natskit.cli.platform import (
    PATIENCE,
    Platform,
    call_hub,
    json_option,
    list_hub,
    metrics_folder,
    note,
    show_json,
    show_table,
    with_client,
)
from natskit.errors import BackupError, NatskitError
from natskit.validation.names import shown

if TYPE_CHECKING:
    from natskit.backup.manifest import Manifest
    from natskit.backup.platform_streams import Site
    from natskit.backup.runner_files import Runner
    from natskit.backup.target import Target
    from natskit.client import Client


INCOMPLETE = 3
"""The exit code of a command that has done its work, but for files that it named."""


@click.group()
def backup() -> None:
    """Back up the whole platform while it runs, verify backups, restore it.

    A backup holds all streams and buckets, the files of projects, the identity, the inventory and its settings, all
    encrypted: only the identity's passphrase opens it. For an identity without a passphrase, `create` asks for one.
    """


def _target_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--target",
        "place",
        required=True,
        envvar="NATSKIT_BACKUP_TARGET",
        metavar="TARGET",
        help="The folder with all backups, or rclone:REMOTE:PATH [env: NATSKIT_BACKUP_TARGET].",
    )(command)


_name_argument = click.argument("name", metavar="[NAME]", required=False)


@backup.command()
@_target_option
@click.option("--without-files", is_flag=True, help="Leave out the files of projects.")
@click.option(
    "--without-runner", "absent", multiple=True, metavar="NAME", help="Leave out the files of projects on this runner."
)
@click.option(
    "--rate", default=0, type=click.IntRange(min=0), metavar="KIB", help="Send at most KIB a second of files [0: all]."
)
@click.option(
    "--without-account",
    "without",
    multiple=True,
    metavar="KEY",
    help="Leave out the streams of this NATS account (its public key, A…), whose key natskit does not have.",
)
@json_option
@click.pass_obj
def create(
    directory: str,
    place: str,
    without_files: bool,
    absent: tuple[str, ...],
    rate: int,
    without: tuple[str, ...],
    as_json: bool,
) -> None:
    """Take a backup while the platform serves. If it fails, it removes what it has written.

    The backup contains every write that was acknowledged before the command began.

    Exits 3 when the backup is complete and can be restored, but lacks something that you did not leave out: a runner
    that did not answer, a project with files of another user, files that could not be read. Each is named. Exits 1 when
    there is no backup.

    \b
    Examples:
      natskit backup create --target /srv/backup
      NATSKIT_IDENTITY_PASSPHRASE_COMMAND='cat /root/passphrase' natskit backup create --target /srv/backup
    """
    from natskit.backup.create import Source
    from natskit.backup.create import create as take

    platform = Platform.find(directory)
    _refuse_inside(platform, place)
    target = _target(place)
    runners = () if without_files else tuple(_runners(directory, absent))
    asked = () if without_files else tuple(sorted(set(absent)))

    async def run(client: Client | None) -> Manifest:
        source = Source(
            site=_site(platform),
            url=platform["url"],
            inventory=tuple(_inventory(platform)),
            client=client,
            runners=runners,
            absent=asked,
            rate=rate,
            but=frozenset(without),
        )
        return await take(source, target, _say(as_json))

    made = asyncio.run(run(None)) if without_files else with_client(directory, run)
    _remember(platform, target)
    note(directory, f"backup create: {made.name}")
    if as_json:
        show_json(made.model_dump(mode="json", exclude={"mac"}))
    else:
        click.echo(f"{target.place}/{made.name} is complete. Check it with: natskit backup verify {made.name}")
    lacks = made.lacks.model_copy(update={"runners": sorted({*made.absent} - {*asked})})
    if lacks:
        click.echo(f"natskit: the backup lacks {lacks}", err=True)
        sys.exit(INCOMPLETE)


@backup.command("list")
@_target_option
@json_option
def list_backups(place: str, as_json: bool) -> None:
    """List the backups, oldest first, when each was last verified, and what it lacks. Needs no passphrase.

    \b
    Example:
      natskit backup list --target /srv/backup
    """
    from natskit.backup.manifest import Manifest, Verification, age_of

    target, now = _target(place), datetime.now(UTC)
    rows: list[list[str]] = []
    records: list[dict[str, Any]] = []
    for name in target.names():
        folder = target.directory / name
        verified = Verification.read(folder)
        try:
            manifest = Manifest.read(folder)
        except BackupError as error:
            rows.append([name, "", "", "", "", str(error), ""])
            records.append({"name": name, "problem": str(error)})
            continue
        messages = sum(stream.messages for stream in manifest.streams)
        files = None if manifest.files is None else sum(entry.files for entry in manifest.files)
        said = f"{age_of(verified.finished, now)} ago" if verified else "never"
        numbers = [str(len(manifest.streams)), str(messages), "left out" if files is None else str(files)]
        lacks = manifest.lacks
        rows.append([name, f"{age_of(manifest.started, now)} ago", *numbers, said, str(lacks)])
        records.append(
            {"name": name, "started": manifest.started.isoformat(), "url": manifest.url, "messages": messages}
            | {"streams": len(manifest.streams), "files": files, "bytes": manifest.size}
            | {"verified": verified.model_dump(mode="json") if verified else None}
            | {"lacks": lacks.model_dump(mode="json")}
        )
    if as_json:
        show_json(records)
    else:
        columns = ["backup", "begun", "streams", "messages", "files", "verified", "lacks"]
        show_table(columns, rows, f"There is no backup in {target.place}.")


@backup.command()
@_target_option
@_name_argument
@json_option
@click.pass_obj
def verify(directory: str, place: str, name: str | None, as_json: bool) -> None:
    """Verify a backup [default: the newest]: check every hash, restore its streams, compare them.

    Restores the streams into a separate nats-server on this machine. Prints how old the data is, and how long the
    restore took.

    \b
    Example:
      natskit backup verify --target /srv/backup
    """
    from natskit.backup.verify import verify as check

    platform, target = Platform.find(directory), _target(place)
    found = asyncio.run(check(target, name, Path(platform["identity"]), _say(as_json)))
    _remember(platform, target)
    if as_json:
        show_json(found.model_dump(mode="json"))
    else:
        click.echo(
            f"The backup is good. Its data was {found.age_seconds:.0f} s old; restoring {found.messages} messages and "
            f"reading {found.files} files took {found.seconds:.1f} s."
        )


@backup.command()
@_target_option
@_name_argument
@click.option(
    "--stream", "label", metavar="ACCOUNT/STREAM", help="Restore this stream alone, such as STATE/KV_accounts."
)
@click.option("--project", metavar="PROJECT", help="Restore the files of this project alone: an id or a title.")
@click.option("--without-files", is_flag=True, help="Leave out the files of projects.")
@click.option("--overwrite", is_flag=True, help="Replace what the platform has.")
@click.pass_obj
def restore(
    directory: str,
    place: str,
    name: str | None,
    label: str | None,
    project: str | None,
    without_files: bool,
    overwrite: bool,
) -> None:
    """Restore a platform from a backup [default: the newest], one of its streams, or the files of one project.

    On a control machine without the platform's identity, this restores the identity and the inventory. Deploy then, and
    run the command again: it restores the streams and the files of projects into the empty platform.

    Nobody can use the platform until the command has compared everything with the backup. Then its programs reconnect
    by themselves. With --project, everybody goes on, and the project must be stopped.

    Exits 3 when files could not be restored. Each is named, and its project keeps the files that it has, if it has any.

    \b
    Examples:
      natskit --platform ~/bus/platform backup restore --target /srv/backup
      natskit backup restore --target /srv/backup --project "My project" --overwrite
      natskit backup restore --target /srv/backup --stream STATE/KV_accounts --overwrite
    """
    from natskit.backup.restore import Restoration, restore_control
    from natskit.identity.identity import INDEX

    target, control = _target(place), Path(directory)
    if not (control / "identity" / INDEX).exists():
        inventory = asyncio.run(restore_control(target, name, control))
        click.echo(
            f"{control / 'identity'} has the platform's keys, and {inventory} the inventory with its settings.\n"
            "Put the inventory in its place, change what differs on the new hosts, and deploy. Then run this command "
            "again."
        )
        return
    platform = Platform.find(directory)
    if project is not None:
        if label is not None or without_files:
            raise BackupError("--project restores files, and nothing else: leave out --stream and --without-files")
        if not overwrite:
            raise BackupError(f"the files of {project} would be replaced: add --overwrite, and take a backup before")
        _end_restore(_restore_project(directory, platform, target, name, project))
        return
    if "memory" in platform["resolvers"].values():
        raise BackupError("nats_resolver is memory: a NATS account cannot be closed then; use full, and deploy")
    restoration = Restoration(_site(platform), target, name, label)
    if without_files:
        restoration.files = []
    if restoration.files:
        known = {runner.runner_id for runner in _runners(directory, ())}
        if unknown := [entry.name for entry in restoration.files if entry.runner not in known]:
            raise BackupError(
                f"this platform has no runner {', '.join(unknown)}, whose files are in the backup: deploy the "
                "inventory of the backup, or add --without-files"
            )
    if not overwrite:
        _refuse_filled(directory, platform, label)
    if restoration.files:
        missing = with_client(directory, lambda client: restoration.run(client, click.echo))
    else:
        missing = asyncio.run(restoration.run(None, click.echo))
    note(directory, f"backup restore: {restoration.manifest.name}" + (f", {label}" if label else ""))
    click.echo("The platform is open again. Check it with: natskit ready")
    _end_restore(missing)


def _end_restore(missing: list[str]) -> None:
    if missing:
        click.echo(f"natskit: {len(missing)} files could not be restored", err=True)
        sys.exit(INCOMPLETE)


@backup.command()
@_target_option
@click.argument("project")
@click.argument("path", default="")
@click.option(
    "--to", "new", required=True, metavar="NEW", type=click.Path(path_type=Path), help="The file or folder to make."
)
@click.option("--from", "name", metavar="NAME", help="The backup [default: the newest].")
@click.pass_obj
def files(directory: str, place: str, project: str, path: str, new: Path, name: str | None) -> None:
    """Get a file or a folder of a project out of a backup; without PATH, all files of the project.

    The command changes nothing on the platform: `natskit cp` puts into the project what you want to have back. PROJECT
    is an id or a title; a project that was deleted has only its id. The files are yours alone, and only files, folders
    and links are made.

    \b
    Examples:
      natskit backup files "My project" notes.md --to /tmp/notes.md
      natskit backup files 6c1f8c0a-… --to /tmp/all --from 2026-11-29T133510Z
    """
    from natskit.backup.project_files import extract
    from natskit.backup.sealing import BackupKey
    from natskit.backup.verify import trusted
    from natskit.cli.project import ID, find_project

    platform, target = Platform.find(directory), _target(place)
    key = BackupKey.load(Path(platform["identity"]))
    manifest = trusted(target.folder(name), key)
    if not manifest.files:
        raise BackupError(f"the backup {manifest.name} was taken without the files of projects: choose another one")

    async def find(client: Client) -> str:
        return str((await find_project(client, project))["project_id"])

    project_id = project if ID.fullmatch(project) else with_client(directory, find)
    for left_out in extract(target, key, manifest.files, project_id, path, new):
        click.echo(f"{shown(left_out)} is no file, folder or link, and was left out")
    click.echo(f"{new} is as it was in the backup {manifest.name}. Put it back with: natskit cp")


@backup.command()
@_target_option
@click.option("--keep", required=True, type=click.IntRange(min=1), metavar="N", help="Keep the newest N.")
@click.option("--keep-days", default=0.0, type=click.FloatRange(min=0), metavar="D", help="Keep those of D days, too.")
@click.pass_obj
def prune(directory: str, place: str, keep: int, keep_days: float) -> None:
    """Remove old backups, and the files of projects that only these held.

    \b
    Example:
      natskit backup prune --target /srv/backup --keep 7 --keep-days 30
    """
    from natskit.backup.prune import prune as remove
    from natskit.backup.sealing import BackupKey

    platform, target = Platform.find(directory), _target(place)
    key = BackupKey.load(Path(platform["identity"]))
    removed = remove(target, key, keep=keep, keep_days=keep_days, now=datetime.now(UTC))
    _remember(platform, target)
    if removed:
        note(directory, f"backup prune: {', '.join(removed)}")
    click.echo("\n".join(f"{name} is removed." for name in removed) or "Nothing is old enough to be removed.")


def _restore_project(directory: str, platform: Platform, target: Target, name: str | None, project: str) -> list[str]:
    """Returns the files that could not be restored."""
    from natskit.backup.restore import restore_files
    from natskit.backup.runner_files import RunnerFiles
    from natskit.backup.sealing import BackupKey
    from natskit.backup.verify import trusted
    from natskit.cli.project import find_project

    key = BackupKey.load(Path(platform["identity"]))
    runners = _runners(directory, ())

    async def restore(client: Client) -> tuple[str, list[str]]:
        found = await find_project(client, project)
        with target.locked():
            manifest = trusted(target.folder(name), key)
            holders = [
                runner.runner_id
                for runner in runners
                if await RunnerFiles(client, target, key, runner).holds(found["project_id"])
            ]
            entries = [entry for entry in manifest.files or () if not holders or entry.runner in holders]
            if not entries:
                raise BackupError(
                    f"the backup {manifest.name} has no files of the runner that the project is on: get them with "
                    "`natskit backup files`, and put them back with `natskit cp`"
                )
            missing = await restore_files(client, target, key, entries, click.echo, found["project_id"])
        return f"{found['title']!r} has the files of the backup {manifest.name}", missing

    done, missing = with_client(directory, restore)
    note(directory, f"backup restore: {done}")
    click.echo(f"{done}. Start it with: natskit project start")
    return missing


def _remember(platform: Platform, target: Target) -> None:
    """Note for `natskit status`, for Prometheus and for the console what the target holds now. The backup is good
    without that."""
    from natskit.backup.record import Record

    if (found := Record.of(target)) is None:
        return
    try:
        found.keep(platform.directory, metrics_folder(platform))
    except OSError as error:
        click.echo(f"not recorded: {error.filename}: {error.strerror}", err=True)
    times = {"begun": found.begun.timestamp(), "verified": found.verified.timestamp() if found.verified else None}
    try:
        call_hub(str(platform.directory), "note_backup", wait=PATIENCE, **times)
    except NatskitError as error:
        click.echo(f"the console does not know of it: {error}", err=True)


def _refuse_inside(platform: Platform, place: str) -> None:
    """Raise :class:`BackupError` for a target that is lost together with the platform."""
    from natskit.backup.remote_target import PREFIX

    if place.startswith(PREFIX):
        return
    local = platform.content.get("supervisor_socket")
    places = [platform.directory, Path(platform["identity"]), *([Path(local).parents[1]] if local else [])]
    inside = next((own for own in places if Path(place).resolve().is_relative_to(own.resolve())), None)
    if inside is not None:
        raise BackupError(
            f"{place} is in {inside}, the platform's own folder, and would be lost with it: choose a folder on "
            "another disk"
        )


def _target(place: str) -> Target:
    from natskit.backup.remote_target import target_of

    # A run that is told to end removes what it has begun.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    return target_of(place)


def _say(as_json: bool) -> Callable[[str], None]:
    return lambda line: click.echo(line, err=as_json)


def _site(platform: Platform) -> Site:
    from natskit.backup.platform_streams import Site

    return Site(
        identity=Path(platform["identity"]),
        servers=platform.nats_servers,
        names=tuple(platform["nats"]),
        lazy=tuple(name for name, kind in platform["resolvers"].items() if kind == "cache"),
    )


def _runners(directory: str, absent: tuple[str, ...]) -> list[Runner]:
    """The runners of the platform. Raises :class:`BackupError` if one of ``absent`` is unknown."""
    from natskit.backup.runner_files import Runner
    from natskit.config.settings import BACKUP_BYTES

    most = Platform.find(directory).content.get("backup_bytes", {})  # an earlier deploy has written none
    found = [
        Runner(row["runner_id"], row["name"], most.get(row["runner_id"], BACKUP_BYTES))
        for row in call_hub(directory, "runner_list")
    ]
    names = [runner.name for runner in found]
    if unknown := [name for name in absent if name not in names]:
        raise BackupError(f"there is no runner {unknown[0]}: `natskit runner list` names {', '.join(names)}")
    return [runner for runner in found if runner.name not in absent]


def _inventory(platform: Platform) -> list[Path]:
    """The inventory of the last deploy, its settings, and the files that they name."""
    deploy = platform["deploy"]
    words = deploy["arguments"]
    inventory = Path(deploy["directory"]) / words[words.index("deploy.py") - 1]
    places = [inventory, *(inventory.parent / folder for folder in ("group_data", "host_data"))]
    found = [path for path in places if path.exists()]
    missing = [path for path in [inventory, *map(Path, platform["local_files"])] if not path.exists()]
    if missing:
        raise BackupError(f"{missing[0]} is missing, which the last deploy used: put it back, or deploy again")
    return [platform.directory / "platform.json", *found, *map(Path, platform["local_files"])]


def _refuse_filled(directory: str, platform: Platform, label: str | None) -> None:
    """Raise :class:`BackupError` unless the platform is as the first deploy leaves it."""
    if label is not None:
        raise BackupError(f"{label} would be replaced: add --overwrite, and take a backup before")
    try:
        accounts = list_hub(directory, "account_list")
        projects = list_hub(directory, "project_list")
    except NatskitError as error:
        raise BackupError(
            f"no hub says within {PATIENCE:g} s whether the platform is empty ({error}): start it, or add --overwrite"
        ) from None
    strangers = [account["email"] for account in accounts if account["email"] != platform["first_account"]]
    if strangers or projects:
        raise BackupError(
            f"the platform has {len(accounts)} accounts and {len(projects)} projects: restore into an empty one, or "
            "add --overwrite, which replaces them"
        )
