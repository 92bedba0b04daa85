"""``natskit identity``: the platform's keys on this machine."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from natskit.cli.platform import Platform, json_option, show_json, show_table
from natskit.errors import IdentityError

if TYPE_CHECKING:
    from natskit.identity.report import InUse


@click.group()
def identity() -> None:
    """The platform's keys on this machine: encrypt, back up, list what expires, exchange with nsc.

    A passphrase is asked for on the terminal, unless it is in the variable NATSKIT_IDENTITY_PASSPHRASE, or
    NATSKIT_IDENTITY_PASSPHRASE_COMMAND is a command that prints it.
    """


def _directory_argument(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.argument("directory", metavar="[DIR]", required=False, type=click.Path(path_type=Path))(command)


@identity.command()
@_directory_argument
@click.option("--new", is_flag=True, help="DIR has no keys yet: the first deploy makes them, encrypted.")
@click.pass_obj
def encrypt(platform: str, directory: Path | None, new: bool) -> None:
    """Encrypt the secrets of an identity with a passphrase: that of the platform, or the one in DIR.

    What was readable is removed once it is encrypted, but a disk may keep what was removed. An identity that is still
    to be made is encrypted from the start: do this before the first deploy. Interrupted, the same command completes it.

    \b
    Examples:
      natskit identity encrypt
      NATSKIT_IDENTITY_PASSPHRASE_COMMAND='pass show natskit' natskit identity encrypt ~/bus/platform/identity
    """
    from natskit.identity import vault

    if directory is not None and not new:
        _check_there(directory, "; for one that the first deploy is to make: --new")
    directory = directory or default(platform)
    number = vault.encrypt(directory)
    if (directory / "natskit.json").exists():
        click.echo(f"{directory} is encrypted; {number} secrets were readable before.")
    else:
        click.echo(f"{directory} is encrypted from the start: the first deploy makes the platform's keys there.")
    for path in vault.unknown_files(directory):
        click.echo(f"{path} is left as it is: natskit does not know whether it is secret", err=True)


@identity.command()
@_directory_argument
@click.pass_obj
def decrypt(platform: str, directory: Path | None) -> None:
    """Undo `natskit identity encrypt`: the secrets are readable files again.

    \b
    Example:
      natskit identity decrypt
    """
    from natskit.identity import vault

    directory = _check_there(directory or default(platform))
    number = vault.decrypt(directory)
    click.echo(f"{directory} is not encrypted any more: {number} secrets are readable.")


@identity.command()
@_directory_argument
@click.pass_obj
def passphrase(platform: str, directory: Path | None) -> None:
    """Change the passphrase; the new one is asked for, or taken from NATSKIT_IDENTITY_NEW_PASSPHRASE.

    Backups, and copies of the folder that were made before, still open with the old one.

    \b
    Example:
      natskit identity passphrase
    """
    from natskit.identity import vault

    directory = _check_there(directory or default(platform))
    vault.change_passphrase(directory)
    click.echo(f"{directory} has another passphrase.")


@identity.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--identity", "directory", metavar="DIR", type=click.Path(path_type=Path), help="Of this identity.")
@click.pass_obj
def backup(platform: str, file: Path, directory: Path | None) -> None:
    """Write the whole identity to FILE, encrypted: with its own passphrase if it has one, else with a new one.

    \b
    Example:
      natskit identity backup /media/usb/bus-2026-11-24.age
    """
    from natskit.identity.backup import backup as write

    directory = _check_there(directory or default(platform))
    write(directory, file)
    click.echo(f"{file} holds {directory}. Without its passphrase it is worth nothing: keep that elsewhere.")


@identity.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
def restore(file: Path, directory: Path) -> None:
    """Put the identity in the backup FILE to DIR, which is missing or empty: whole, or not at all.

    \b
    Example:
      natskit identity restore /media/usb/bus-2026-11-24.age ~/bus/platform/identity
    """
    from natskit.identity.backup import restore as read

    read(file, directory)
    click.echo(f"{directory} is restored from {file}.")


def _check_there(directory: Path, otherwise: str = "") -> Path:
    """Raises :class:`IdentityError` where there is neither an identity nor the passphrase of one to be made.

    Most likely it is a slip of the keys, and what is in that folder is nothing to encrypt.
    """
    from natskit.identity import INDEX
    from natskit.identity.vault import KEY

    if not any((directory / name).exists() for name in (INDEX, KEY)):
        raise IdentityError(f"there is no identity in {directory}: say where it is{otherwise}")
    return directory


def default(platform: str) -> Path:
    """The identity of a platform, which need not be deployed yet."""
    return Path(platform) / "identity"


@identity.command("export")
@click.argument("target", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--identity", "directory", metavar="DIR", type=click.Path(path_type=Path), help="Of this identity.")
@click.pass_obj
def export_nsc(platform: str, target: Path, directory: Path | None) -> None:
    """Write the identity to DIR, missing or empty, as nsc keeps it; nothing in there is encrypted.

    \b
    Example:
      natskit identity export /mnt/ramdisk/bus
      nsc --data-dir /mnt/ramdisk/bus/stores --keystore-dir /mnt/ramdisk/bus/keys list accounts
    """
    from natskit.identity import nsc

    nsc.export(directory or default(platform), target)
    click.echo(f"{target} has all keys, readable.")


@identity.command("import")
@click.argument("source", metavar="FROM", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
def import_nsc(source: Path, directory: Path) -> None:
    """Make the identity in DIR, missing or empty, of what `natskit identity export` wrote.

    An operator that nsc made itself is refused: its JWT names the system account of other servers.

    \b
    Example:
      natskit identity import /mnt/ramdisk/bus ~/bus/platform/identity
    """
    from natskit.identity import nsc

    nsc.import_(source, directory)
    click.echo(f"{directory} has the identity of {source}; encrypt it with natskit identity encrypt {directory}.")


@identity.command("list")
@_directory_argument
@click.option("--warn-days", type=click.IntRange(min=0), metavar="N", help="Exit 1 if something ends within N days.")
@json_option
@click.pass_obj
def list_identity(platform: str, directory: Path | None, warn_days: int | None, as_json: bool) -> None:
    """Every key, JWT and certificate: who uses it, when it expires, what to do. No passphrase is needed.

    With --warn-days, exits 1 when something ends within so many days, is missing or damaged, and names it.

    \b
    Examples:
      natskit identity list
      natskit identity list --warn-days 25 >/dev/null    # daily, by cron
    """
    from natskit.identity import report

    now = int(time.time())
    found = report.entries(directory or default(platform), None if directory else _in_use(platform))
    if as_json:
        show_json([asdict(entry) | {"state": entry.state(now, warn_days or 0)} for entry in found])
    else:
        rows = [[entry.kind, entry.name, entry.used_by, entry.until, entry.to_do] for entry in found]
        show_table(["", "of", "used by", "expires", "what to do"], rows, "")
    due = report.due(found, now, warn_days) if warn_days is not None else []
    if due:
        named = "; ".join(f"{entry.kind} of {entry.name} ({entry.until})" for entry in due)
        raise IdentityError(f"within {warn_days} days, or already: {named}")


def _in_use(platform: str) -> InUse | None:
    """What the last deploy said; nothing if there was none."""
    from natskit.identity import report

    if not (Path(platform) / "platform.json").exists():
        return None
    content = Platform.find(platform).content
    if "certificates" not in content:
        return None
    named = tuple(report.Named(**one) for one in content.get("named_files", []))
    return report.InUse(frozenset(content["certificates"]), named)


@identity.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.argument("command", nargs=-1, required=True, metavar="COMMAND...", type=click.UNPROCESSED)
@click.pass_obj
def unlocked(platform: str, command: tuple[str, ...]) -> None:
    """Ask for the passphrase once and run COMMAND, in which deploys and natskit do not ask again.

    They read it from a descriptor: it is in no environment and in no file. Asks nothing for an identity without one.

    \b
    Example:
      natskit identity unlocked -- sh -c 'deploy-bus && natskit ready'
    """
    from natskit.identity.passphrase import handed_down
    from natskit.identity.vault import Vault

    Vault(default(platform)).unlock()
    with handed_down() as (environment, descriptors):
        for descriptor in descriptors:
            os.set_inheritable(descriptor, True)
        try:
            os.execvpe(command[0], command, os.environ | environment)  # noqa: S606
        except OSError as error:
            raise IdentityError(f"{command[0]} cannot be run: {error.strerror}") from None
