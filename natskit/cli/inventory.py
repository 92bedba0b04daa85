"""``natskit init``: the inventory of a new platform, from flags or from answers."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from natskit.errors import SettingsError

REPOSITORY = Path(__file__).parent.parent.parent

QUESTIONS = {
    "nats": "Hosts for nats-server, one, three or five, separated by spaces",
    "hub": "Hosts for hubs, two or more",
    "proxy": "Host for the proxy, which people reach",
    "runner": "Hosts where projects run",
}

_REASONS = {
    "nats": "A majority of these has to live: three may lose one.",
    "hub": "Two or more, so that one can be lost or upgraded while another answers.",
    "proxy": "nginx, the only host that people reach.",
    "runner": "Where projects run: commands of your users.",
}


@click.command()
@click.argument("directory", metavar="DIR", type=click.Path(file_okay=False, path_type=Path))
@click.option("--nats", multiple=True, metavar="HOST", help="A host for nats-server; once for each.")
@click.option("--hub", multiple=True, metavar="HOST", help="A host for a hub; once for each.")
@click.option("--proxy", multiple=True, metavar="HOST", help="The host people reach.")
@click.option("--runner", multiple=True, metavar="HOST", help="A host where projects run; once for each.")
@click.option("--user", metavar="NAME", help="Who logs in by SSH and may use sudo; root needs none.")
@click.option("--key", metavar="FILE", help="The private key for that; otherwise the agent and ~/.ssh are asked.")
@click.option("--domain", metavar="NAME", help="The name people type into the address bar.")
@click.option("--admin", metavar="EMAIL", help="E-mail of the first account [default: admin@DOMAIN].")
def init(
    directory: Path, user: str | None, key: str | None, domain: str | None, admin: str | None, **hosts: tuple[str, ...]
) -> None:
    """Write an inventory for hosts of your own to DIR: inventory.py and group_data/all.py.

    What is not given is asked for on a terminal. A host that is named for several roles plays all of them.

    \b
    Examples:
      natskit init ~/bus
      natskit init ~/bus --nats a.example.org --nats b.example.org --nats c.example.org \\
        --hub a.example.org --hub b.example.org --proxy c.example.org --runner c.example.org \\
        --user deploy --domain bus.example.org
    """
    directory = directory.expanduser().absolute()
    inventory, settings = directory / "inventory.py", directory / "group_data" / "all.py"
    for path in (inventory, settings):
        if path.exists():
            raise SettingsError(f"{path} is there already: edit it, or name another folder")
    named = {role: list(hosts[role]) or _ask(QUESTIONS[role], f"--{role} HOST").split() for role in QUESTIONS}
    user = user or _ask("User who logs in by SSH and may use sudo", "--user NAME", "deploy")
    domain = domain or _ask("Name people type into the address bar", "--domain NAME", named["proxy"][0])
    admin = admin or (f"admin@{domain}" if "." in domain else "admin@localhost")
    data: dict[str, Any] = {
        "platform_control": str(directory / "platform"),
        "platform_first_account": admin,
        "proxy_name": domain,
        "proxy_port": 443,
        "hub_count": 1 if len(set(named["hub"])) > 1 else 2,
    }
    check(named, data)
    settings.parent.mkdir(parents=True, exist_ok=True)
    inventory.write_text(inventory_text(named))
    settings.write_text(settings_text(data, user, key))
    click.echo(f"Wrote {inventory} and {settings}.\n\nLook at what a deploy would do, and do it:\n")
    click.echo(f"  cd {shlex.quote(str(REPOSITORY))}\n  make console")
    for flag in ("--dry", "-y"):
        click.echo(f"  .venv/bin/pyinfra {flag} {shlex.quote(str(inventory))} deploy.py")
    click.echo(f"  .venv/bin/natskit --platform {shlex.quote(data['platform_control'])} ready")


def check(named: dict[str, list[str]], data: dict[str, Any]) -> None:
    """Refuse what a deploy would refuse. Raises :class:`SettingsError`."""
    from natskit import topology

    every = dict.fromkeys(host for hosts in named.values() for host in hosts)
    topology.validate((host, [role for role in named if host in named[role]], data) for host in every)


def inventory_text(named: dict[str, list[str]]) -> str:
    """The content of ``inventory.py``."""
    lines = [
        '"""The hosts of the platform; their settings are in group_data/all.py. pyinfra reads both as Python.',
        "",
        "A host that is in several groups plays several roles. Hosts are named as this machine reaches them by SSH;",
        'they reach each other there too, unless told otherwise: (NAME, {"platform_address": "10.0.0.1"}).',
        '"""',
    ]
    for role in QUESTIONS:
        lines += ["", f"# {_REASONS[role]}", f"{role} = {_list(named[role])}"]
    return "\n".join(lines) + "\n"


def settings_text(data: dict[str, Any], user: str, key: str | None) -> str:
    """The content of ``group_data/all.py``."""
    notes = {
        "platform_control": "The platform's keys, on this machine. Whoever has them has the platform: back them up.",
        "proxy_name": "What people type into the address bar.",
        "hub_count": "Hubs on each host of the group hub.",
    }
    login = [f"ssh_user = {_quoted(user)}"] + ([f"ssh_key = {_quoted(key)}"] if key else [])
    sudo = (
        []
        if user == "root"
        else ["# Every command as root. Where sudo wants a password: _sudo_password.", "_sudo = True"]
    )
    lines = [
        '"""Settings of every host; natskit/settings.py of the kit lists all there are, with their reasons."""',
        "",
        *login,
        "# Only into hosts whose keys are in ~/.ssh/known_hosts.",
        'ssh_strict_host_key_checking = "yes"',
        *sudo,
        "",
    ]
    for name, value in data.items():
        lines += [f"# {notes[name]}"] if name in notes else []
        lines.append(f"{name} = {_quoted(value) if isinstance(value, str) else value}")
    lines += [
        "",
        "# Your own certificate for it, with its chain, both files on this machine; otherwise the platform's own CA",
        "# signs one, which browsers do not know.",
        f'# proxy_certificate = "/etc/letsencrypt/live/{data["proxy_name"]}/fullchain.pem"',
        f'# proxy_key = "/etc/letsencrypt/live/{data["proxy_name"]}/privkey.pem"',
    ]
    return "\n".join(lines) + "\n"


def _ask(question: str, flag: str, default: str | None = None) -> str:
    if not _has_terminal():
        if default is not None:
            return default
        raise click.UsageError(f"{flag} is missing, and there is no terminal to ask on")
    return str(click.prompt(question, default=default))


def _has_terminal() -> bool:
    return sys.stdin.isatty()


def _list(hosts: Sequence[str]) -> str:
    words = ", ".join(_quoted(host) for host in dict.fromkeys(hosts))
    return f"[{words}]"


def _quoted(text: str) -> str:
    """A string of Python, in double quotes as the rest of the file."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
