"""``natskit deploy``: run pyinfra on an inventory, show what changed, and wait until the platform is ready."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

import click

from natskit.cli.deploy_output import RESULTS, Digest
from natskit.cli.health import ready
from natskit.cli.platform import FOLDER, Platform
from natskit.config.kit import kit
from natskit.errors import NatskitError, SettingsError

DEPLOY = "deploy.py"


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option("--dry", is_flag=True, help="Show what would change, and change nothing.")
@click.argument("inventory", default="inventory.py", type=click.Path(path_type=Path))
@click.argument("words", nargs=-1, metavar="[PYINFRA OPTIONS]...", type=click.UNPROCESSED)
@click.pass_context
def deploy(context: click.Context, dry: bool, inventory: Path, words: tuple[str, ...]) -> None:
    """Deploy to the hosts of INVENTORY [default: inventory.py], and wait until the platform is ready.

    What follows INVENTORY is passed to pyinfra. Set VERBOSE=1 to see all that pyinfra prints. The passphrase of an
    encrypted identity is asked for once; --platform says which identity, if it is not the one beside the inventory that
    `natskit init` wrote.

    \b
    Examples:
      natskit deploy --dry
      natskit deploy
      natskit deploy inventory.py --limit proxy --data nats_version=2.15.1
    """
    from natskit.identity.vault import Vault

    if not inventory.exists():
        raise SettingsError(f"there is no {inventory}: name an inventory, or let `natskit init` write one")
    command = pyinfra("--dry" if dry else "-y", str(inventory), DEPLOY, *words)
    if dry:
        sys.exit(subprocess.run(command, check=False).returncode)
    context.obj = platform_of(inventory, context)
    Vault(Path(context.obj) / "identity").unlock()
    if not _run(command):
        raise NatskitError("the deploy failed: see above; VERBOSE=1 shows all that pyinfra prints")
    context.invoke(ready)


def platform_of(inventory: Path, context: click.Context) -> str:
    """The folder of the platform that this inventory describes: what --platform says, or the one beside it."""
    beside = inventory.parent / FOLDER
    source = context.parent.get_parameter_source("directory") if context.parent else None
    if source is click.core.ParameterSource.DEFAULT and beside.is_dir():
        return str(beside)
    return str(context.obj)


def pyinfra(*words: str) -> list[str]:
    """The command that runs pyinfra with these words, of which ``deploy.py`` means the kit's.

    Raises :class:`ModuleNotFoundError` where pyinfra is not installed, and :class:`NatskitError` for a checkout whose
    console was not built.
    """
    if find_spec("pyinfra") is None:
        raise ModuleNotFoundError(name="pyinfra")
    if not (kit() / "web" / "dist" / "index.html").exists():
        raise NatskitError(f"the console is not built: run `make console` in {kit()}")
    program = str(Path(sys.executable).with_name("pyinfra"))
    return [program, *(str(kit() / DEPLOY) if word == DEPLOY else word for word in words)]


def repeat(
    platform: Platform, *options: str, seconds: float, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the last deploy again with other options of pyinfra, such as ``--dry``, without asking anything.

    It ends with this process, however that ends: it would block the deploy of the next run. Raises
    :class:`NatskitError` if it has not ended after ``seconds``.
    """
    from natskit.identity.passphrase import handed_down
    from natskit.process.lifecycle import end_with_parent

    last = platform["deploy"]
    with handed_down() as (passphrase, descriptors), _ended_within(seconds):
        return subprocess.run(
            pyinfra(*options, *last["arguments"]),
            cwd=last["directory"],
            env=os.environ | last["environment"] | passphrase | dict(environment or {}),
            pass_fds=descriptors,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds,
            check=False,
            preexec_fn=end_with_parent,
        )


@contextmanager
def _ended_within(seconds: float) -> Iterator[None]:
    try:
        yield
    except subprocess.TimeoutExpired:
        raise NatskitError(f"the deploy has not ended after {seconds:g} s: is a host very slow?") from None


def variables_of(last: dict[str, Any]) -> list[str]:
    """The environment of the last deploy, as words to put before a command in a shell."""
    return [f"{name}={shlex.quote(value)}" for name, value in last["environment"].items()]


def _run(command: Sequence[str]) -> bool:
    """Run a deploy and show what it changed. Whether it came to its end."""
    from natskit.identity.passphrase import handed_down

    show = _show_all if os.environ.get("VERBOSE") else _show_digest
    with (
        handed_down() as (passphrase, descriptors),
        subprocess.Popen(
            command,
            env=os.environ | passphrase,
            pass_fds=descriptors,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        ) as process,
    ):
        assert process.stdout is not None
        complete = show(process.stdout)
    return process.returncode == 0 and complete


def _show_all(output: IO[str]) -> bool:
    """Print pyinfra's output as it comes. Whether it has results."""
    complete = False
    for line in output:
        click.echo(line, nl=False)
        complete = complete or line.startswith(RESULTS)
    return complete


def _show_digest(output: IO[str]) -> bool:
    """Print a digest of pyinfra's output as it comes. Whether it has results."""
    digest = Digest()
    for line in output:
        for text in digest.feed(line.rstrip("\n")):
            click.echo(text)
    for text in digest.end():
        click.echo(text)
    return digest.complete
