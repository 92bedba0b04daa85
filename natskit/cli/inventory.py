"""``natskit init``: write the inventory of a new platform, from options or from answers."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from natskit.cli.platform import FOLDER, called
from natskit.errors import SettingsError
from natskit.identity.files import make_private
from natskit.validation.addresses import host_name

QUESTIONS = {
    "nats": "Hosts for nats-server, one, three or five, separated by spaces",
    "hub": "Hosts for hubs, two or more",
    "proxy": "Host for the proxy, which users connect to",
    "runner": "Hosts where projects run",
}

_REASONS = {
    "nats": "A majority of these must run: of three, one may fail.",
    "hub": "Two or more, so that one can fail or be upgraded while another answers.",
    "proxy": "nginx, the only host that users connect to.",
    "runner": "Hosts that run projects, which execute your users' commands.",
}


@click.command()
@click.argument("directory", metavar="[DIR]", default=".", type=click.Path(file_okay=False, path_type=Path))
@click.option("--nats", multiple=True, metavar="HOST", help="A host for nats-server. Repeat for more.")
@click.option("--hub", multiple=True, metavar="HOST", help="A host for a hub. Repeat for more.")
@click.option("--proxy", multiple=True, metavar="HOST", help="The host users connect to.")
@click.option("--runner", multiple=True, metavar="HOST", help="A host where projects run. Repeat for more.")
@click.option("--user", metavar="NAME", help="The SSH user, root or one who may use sudo.")
@click.option("--key", metavar="FILE", help="The SSH user's private key [default: the SSH agent's keys and ~/.ssh].")
@click.option("--domain", metavar="NAME", help="The host name in the platform's URL.")
@click.option("--admin", metavar="EMAIL", help="E-mail of the first account [default: admin@DOMAIN].")
def init(
    directory: Path, user: str | None, key: str | None, domain: str | None, admin: str | None, **hosts: tuple[str, ...]
) -> None:
    """Write an inventory for your own hosts to DIR [default: this folder]: inventory.py and group_data/all.py.

    On a terminal, natskit asks for missing options. One host can have several roles.

    \b
    Examples:
      natskit init ~/bus
      natskit init ~/bus --nats a.example.org --nats b.example.org --nats c.example.org \\
        --hub a.example.org --hub b.example.org --proxy c.example.org --runner c.example.org \\
        --user deploy --domain bus.example.org
    """
    directory = Path(os.path.abspath(directory.expanduser()))
    inventory, settings = directory / "inventory.py", directory / "group_data" / "all.py"
    for path in (inventory, settings):
        if path.exists():
            raise SettingsError(f"{path} exists already: edit it, or choose another folder")
    named = {role: list(hosts[role]) or _ask(QUESTIONS[role], f"--{role} HOST").split() for role in QUESTIONS}
    user = user or _ask("SSH user who may use sudo", "--user NAME", "deploy")
    domain = domain or _ask("Host name in the platform's URL", "--domain NAME", named["proxy"][0])
    domain = _host(domain)
    admin = admin or (f"admin@{domain}" if "." in domain else "admin@localhost")
    data: dict[str, Any] = {
        "platform_control": str(directory / FOLDER),
        "platform_first_account": admin,
        "proxy_name": domain,
        "proxy_port": 443,
        "hub_count": 1 if len(set(named["hub"])) > 1 else 2,
        "keeper_count": 1 if len(set(named["hub"])) > 1 else 2,
    }
    check(named, data)
    settings.parent.mkdir(parents=True, exist_ok=True)
    make_private(directory / FOLDER)
    inventory.write_text(inventory_text(named))
    settings.write_text(settings_text(data, user, key))
    click.echo(f"Wrote {inventory} and {settings}.\n\nTry a dry run, then deploy:\n")
    if directory != Path.cwd():
        click.echo(f"  cd {shlex.quote(str(directory))}")
    click.echo(f"  {called(directory)} deploy --dry\n  {called(directory)} deploy")


def check(named: dict[str, list[str]], data: dict[str, Any]) -> None:
    """Run a deploy's checks. Raises :class:`SettingsError`."""
    from natskit.config import topology

    every = dict.fromkeys(host for hosts in named.values() for host in hosts)
    topology.validate((host, [role for role in named if host in named[role]], data) for host in every)


def inventory_text(named: dict[str, list[str]]) -> str:
    """The content of ``inventory.py``."""
    lines = [
        '"""The hosts of the platform; their settings are in group_data/all.py. pyinfra reads both as Python.',
        "",
        "A host in several groups has several roles. Each name is the address this machine uses for SSH. The hosts use",
        'it among themselves too, unless you set another: (NAME, {"platform_address": "10.0.0.1"}).',
        '"""',
    ]
    for role in QUESTIONS:
        lines += ["", f"# {_REASONS[role]}", f"{role} = {_list(named[role])}"]
    return "\n".join(lines) + "\n"


def settings_text(data: dict[str, Any], user: str, key: str | None) -> str:
    """The content of ``group_data/all.py``."""
    notes = {
        "platform_control": "The platform's keys, on this machine. They give full control: protect them, back them up.",
        "proxy_name": "The host name in the platform's URL.",
        "hub_count": "Number of hubs on each host of the group hub.",
        "keeper_count": "Number of keepers of documents on each host of the group hub.",
    }
    login = [f"ssh_user = {_quoted(user)}"] + ([f"ssh_key = {_quoted(key)}"] if key else [])
    sudo = (
        []
        if user == "root"
        else ["# Run every command as root. If sudo asks for a password, set _sudo_password.", "_sudo = True"]
    )
    lines = [
        '"""Settings of every host. The settings reference of natskit describes all settings."""',
        "",
        *login,
        "# Connect only to hosts whose keys are in ~/.ssh/known_hosts.",
        'ssh_strict_host_key_checking = "yes"',
        *sudo,
        "",
    ]
    for name, value in data.items():
        lines += [f"# {notes[name]}"] if name in notes else []
        lines.append(f"{name} = {_quoted(value) if isinstance(value, str) else value}")
    lines += [
        "",
        "# Your own certificate with its chain, and its key, both on this machine. Without them, the platform's own CA",
        "# signs a certificate, which browsers do not trust.",
        f'# proxy_certificate = "/etc/letsencrypt/live/{data["proxy_name"]}/fullchain.pem"',
        f'# proxy_key = "/etc/letsencrypt/live/{data["proxy_name"]}/privkey.pem"',
    ]
    return "\n".join(lines) + "\n"


def _host(domain: str) -> str:
    try:
        return host_name(domain)
    except ValueError as error:
        raise SettingsError(f"--domain {domain!r}: {error}") from None


def _ask(question: str, flag: str, default: str | None = None) -> str:
    if not _has_terminal():
        if default is not None:
            return default
        raise click.UsageError(f"{flag} is missing: add it (there is no terminal to ask on)")
    return str(click.prompt(question, default=default))


def _has_terminal() -> bool:
    return sys.stdin.isatty()


def _list(hosts: Sequence[str]) -> str:
    words = ", ".join(_quoted(host) for host in dict.fromkeys(hosts))
    return f"[{words}]"


def _quoted(text: str) -> str:
    """A Python string literal in double quotes, like the rest of the file."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
