"""``natskit identity``: manage the platform's keys on this machine."""

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
    """Manage the platform's keys on this machine: encrypt, back up, list expiry dates, exchange with nsc.

    natskit asks for a passphrase on the terminal, unless the variable NATSKIT_IDENTITY_PASSPHRASE holds it or
    NATSKIT_IDENTITY_PASSPHRASE_COMMAND is a command that prints it.
    """


def _directory_argument(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.argument("directory", metavar="[DIR]", required=False, type=click.Path(path_type=Path))(command)


@identity.command()
@_directory_argument
@click.option("--new", is_flag=True, help="DIR has no keys yet: the first deploy makes them, encrypted.")
@click.pass_obj
def encrypt(platform: str, directory: Path | None, new: bool) -> None:
    """Encrypt the secrets of the platform's identity, or of the identity in DIR, with a passphrase.

    The readable files are removed after encryption, but the disk may still contain their data. To encrypt an identity
    from the start, run this command before the first deploy. If the command is interrupted, run it again.

    \b
    Examples:
      natskit identity encrypt
      NATSKIT_IDENTITY_PASSPHRASE_COMMAND='pass show natskit' natskit identity encrypt ~/bus/platform/identity
    """
    from natskit.identity import vault

    if directory is not None and not new:
        _check_exists(directory, ", or add --new if the first deploy is to create it")
    directory = directory or default(platform)
    number = vault.encrypt(directory)
    if (directory / "natskit.json").exists():
        click.echo(f"{directory} is encrypted. {number} secrets were readable before.")
    else:
        click.echo(f"{directory} is encrypted from the start. The first deploy creates the platform's keys there.")
    for path in vault.unknown_files(directory):
        click.echo(f"{path} is not encrypted: natskit does not know this file", err=True)


@identity.command()
@_directory_argument
@click.pass_obj
def decrypt(platform: str, directory: Path | None) -> None:
    """Decrypt the secrets of an identity into readable files.

    \b
    Example:
      natskit identity decrypt
    """
    from natskit.identity import vault

    directory = _check_exists(directory or default(platform))
    number = vault.decrypt(directory)
    click.echo(f"{directory} is no longer encrypted: {number} secrets are readable.")


@identity.command()
@_directory_argument
@click.pass_obj
def passphrase(platform: str, directory: Path | None) -> None:
    """Change the passphrase of an identity. natskit asks for the new one, or reads NATSKIT_IDENTITY_NEW_PASSPHRASE.

    The old passphrase still opens earlier backups and copies of the folder.

    \b
    Example:
      natskit identity passphrase
    """
    from natskit.identity import vault

    directory = _check_exists(directory or default(platform))
    vault.change_passphrase(directory)
    click.echo(f"{directory} has a new passphrase.")


@identity.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--identity", "directory", metavar="DIR", type=click.Path(path_type=Path), help="Of this identity.")
@click.pass_obj
def backup(platform: str, file: Path, directory: Path | None) -> None:
    """Write the whole identity to FILE, encrypted with its passphrase or, if it has none, with a new one.

    \b
    Example:
      natskit identity backup /media/usb/bus-2026-11-24.age
    """
    from natskit.identity.backup import backup as write

    directory = _check_exists(directory or default(platform))
    write(directory, file)
    click.echo(f"{file} is a backup of {directory}. Keep its passphrase elsewhere: nothing else opens the file.")


@identity.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
def restore(file: Path, directory: Path) -> None:
    """Restore the identity in the backup FILE to DIR, which must be missing or empty. A failure leaves DIR unchanged.

    \b
    Example:
      natskit identity restore /media/usb/bus-2026-11-24.age ~/bus/platform/identity
    """
    from natskit.identity.backup import restore as read

    read(file, directory)
    click.echo(f"{directory} is restored from {file}.")


def _check_exists(directory: Path, otherwise: str = "") -> Path:
    """The folder itself. Raises :class:`IdentityError` unless it has an identity or the passphrase of a future one.

    A mistyped path must not get unrelated files encrypted.
    """
    from natskit.identity.identity import INDEX
    from natskit.identity.vault import KEY

    if not any((directory / name).exists() for name in (INDEX, KEY)):
        raise IdentityError(f"there is no identity in {directory}: correct the path{otherwise}")
    return directory


def default(platform: str) -> Path:
    """The identity folder of a platform, also before its first deploy."""
    return Path(platform) / "identity"


@identity.command("export")
@click.argument("target", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--identity", "directory", metavar="DIR", type=click.Path(path_type=Path), help="Of this identity.")
@click.pass_obj
def export_nsc(platform: str, target: Path, directory: Path | None) -> None:
    """Export the identity to DIR in nsc's format. DIR must be missing or empty, and its files are not encrypted.

    \b
    Example:
      natskit identity export /mnt/ramdisk/bus
      nsc --data-dir /mnt/ramdisk/bus/stores --keystore-dir /mnt/ramdisk/bus/keys list accounts
    """
    from natskit.identity import nsc

    nsc.export(directory or default(platform), target)
    click.echo(f"{target} has all keys, unencrypted.")


@identity.command("import")
@click.argument("source", metavar="FROM", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
def import_nsc(source: Path, directory: Path) -> None:
    """Import an identity from nsc's folder FROM to DIR, which must be missing or empty.

    FROM was written by `natskit identity export`, copied from there by nsc, or contains an operator made by nsc. That
    operator must have the name natskit, one signing key, and the accounts SYS, AUTH and PLATFORM.

    \b
    Example:
      natskit identity import /mnt/ramdisk/bus ~/bus/platform/identity
    """
    from natskit.identity import nsc

    nsc.import_(source, directory)
    click.echo(f"{directory} has the identity of {source}. Encrypt it with: natskit identity encrypt {directory}")
    if not (directory / "tls" / "ca.crt").exists():
        click.echo(
            f"{source} has no certificates: the next deploy makes a new CA. To keep the CA of a deployed platform, "
            f"first copy tls, routes and proxy from its identity to {directory}.",
            err=True,
        )


@identity.command("list")
@_directory_argument
@click.option("--warn-days", type=click.IntRange(min=0), metavar="N", help="Exit 1 if an entry expires within N days.")
@json_option
@click.pass_obj
def list_identity(platform: str, directory: Path | None, warn_days: int | None, as_json: bool) -> None:
    """List every key, JWT and certificate: its user, its expiry date and the action to take. Needs no passphrase.

    With --warn-days N, exits 1 and names each entry that expires within N days, is missing or is damaged.

    \b
    Examples:
      natskit identity list
      natskit identity list --warn-days 25 >/dev/null    # daily, by cron
    """
    from natskit.identity import report

    now = int(time.time())
    found = report.entries(directory or default(platform), None if directory else in_use(platform))
    if as_json:
        show_json([asdict(entry) | {"state": entry.state(now, warn_days or 0)} for entry in found])
    else:
        rows = [[entry.kind, entry.name, entry.used_by, entry.until, entry.to_do] for entry in found]
        show_table(["", "of", "used by", "expires", "what to do"], rows, "")
    due = report.due(found, now, warn_days) if warn_days is not None else []
    if due:
        named = "; ".join(f"{entry.kind} of {entry.name} ({entry.until})" for entry in due)
        raise IdentityError(f"expired, damaged, or expiring within {warn_days} days: {named}")


def in_use(platform: str) -> InUse | None:
    """What the last deploy recorded; ``None`` before the first deploy."""
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
    """Run COMMAND with the passphrase, so that deploys and natskit commands in it do not ask again.

    They read the passphrase from a file descriptor: it is in no environment variable and in no file. For an identity
    without a passphrase, natskit asks nothing.

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
