"""``natskit identity``: the platform's keys on this machine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click


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
@click.pass_obj
def encrypt(platform: str, directory: Path | None) -> None:
    """Encrypt the secrets of an identity with a passphrase: that of the platform, or the one in DIR.

    What was readable is removed once it is encrypted, but a disk may keep what was removed. An identity that is still
    to be made is encrypted from the start: do this before the first deploy. Interrupted, the same command completes it.

    \b
    Examples:
      natskit identity encrypt
      NATSKIT_IDENTITY_PASSPHRASE_COMMAND='pass show natskit' natskit identity encrypt ~/bus/platform/identity
    """
    from natskit.identity import vault

    directory = directory or default(platform)
    number = vault.encrypt(directory)
    click.echo(f"{directory} is encrypted; {number} secrets were readable before.")
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

    directory = directory or default(platform)
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

    directory = directory or default(platform)
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

    directory = directory or default(platform)
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


def default(platform: str) -> Path:
    """The identity of a platform, which need not be deployed yet."""
    return Path(platform) / "identity"
