"""nats-server: configuration, NATS accounts, JetStream, and its place among the other servers."""

from __future__ import annotations

import shlex
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from pyinfra import host
from pyinfra.api import FactBase
from pyinfra.api.exceptions import OperationError
from pyinfra.operations import python

from natskit import named_files
from natskit.identity import NATS_ACCOUNTS, Identity
from natskit.render import nats_values, render
from natskit.settings import Settings
from natskit.topology import Topology
from roles import service, tls
from roles.errors import DeployError
from roles.files import WrittenFile, checked_file, private_directory
from roles.platform import ca_file, reached
from roles.program import Program

STOP_SECONDS = 30
"""Beyond the lame duck's own time: JetStream writes what it holds."""
WELL_SECONDS = "20"
"""How long the others may take to be well before a restart; longer than an election, and they were well before."""
CAUGHT_UP_SECONDS = "300"
"""How long a server may take to catch up with the others after its restart."""


def deploy(settings: Settings, site: Topology, identity: Identity) -> None:
    """Install, configure, activate."""
    directory, owner = settings.platform_root / "nats", service.owner(settings, "nats")
    server, programs = service.nats_server(settings), service.python(settings)
    for folder in (directory, *map(Path, settings.nats_writable)):
        private_directory(folder, owner)
    _room(settings)

    accounts = [
        checked_file(
            name=f"Give NATS account {account} to the resolver",
            content=identity.account_jwt(account),
            path=account_file(settings, identity, account),
            owner=owner,
        )
        for account in NATS_ACCOUNTS
    ]
    # Not nats-server reads it, but the gate: no reload, which would cut whoever came through the auth callout.
    checked_file(
        name="Give nats-server's host the creds of its probe",
        content=identity.creds("PLATFORM", "probe"),
        path=directory / "probe.creds",
        owner=owner,
    )
    reload_on = tls.install(settings, identity, "nats", directory, owner) if settings.platform_tls else []
    reload_on += _leafnodes(settings, directory, owner)
    environment, restart_on = _environment(settings, directory)
    # Where the keys are not in reach, any will do to check a configuration.
    variables = ["env", *(f"{name}=unknown" for name in environment)] if environment else []
    configuration = render("nats-server.conf", values(settings, site, identity))
    reload_on.append(
        checked_file(
            name="Render nats-server.conf",
            content=configuration,
            path=directory / "nats-server.conf",
            owner=owner,
            check=[*variables, str(server), "-t", "-c", "{}"],
            explain=own_lines(settings, configuration),
        )
    )

    monitor = f"http://127.0.0.1:{settings.nats_monitor_port}"
    gate = [str(programs), "-m", "natskit.gate", "--creds", str(directory / "probe.creds"), "--monitor", monitor]
    gate += ["--urls", ",".join(site.nats_urls_for(settings)), "--server", settings.platform_name]
    gate += ["--ca", str(directory / "tls" / "ca.crt")] if settings.platform_tls else []
    alone = len(site.nats) == 1
    # By a name that stays: with the version of natskit in its unit, nats-server would be restarted for each new one.
    reload = checked_file(
        name="Write how nats-server is reloaded",
        content="#!/bin/sh\nexec "
        + shlex.join([str(programs), "-m", "natskit.reload", str(directory / "run" / "nats-server.pid"), monitor])
        + "\n",
        path=directory / "reload",
        mode="700",
        owner=owner,
    )
    program = Program(
        name="nats",
        command=[str(server), "-c", str(directory / "nats-server.conf")],
        priority=10,
        # Most settings can be reloaded; nats-server says no to the others, and then it is restarted.
        reload=[str(reload.path)],
        stop_seconds=settings.nats_lame_duck_duration + STOP_SECONDS,
        # Alone there is nobody to wait for, and whoever starts later waits for the hubs.
        healthy=() if alone else [*gate, "--seconds", CAUGHT_UP_SECONDS],
        before_restart=() if alone else [*gate, "--before", "--seconds", WELL_SECONDS],
        unit={
            "user": owner,
            "writable": settings.nats_writable,
            "memory_limit": settings.nats_memory_limit,
            "environment_file": str(directory / "environment") if environment else None,
            "mount": settings.nats_jetstream_directory,
        },
    )
    kept_running = service.run(settings, program, restart_on=restart_on, reload_on=reload_on)
    if settings.nats_resolver == "memory":  # it has them in its configuration, and reads that when it is reloaded
        return
    python.call(
        name="Push the NATS accounts to nats-server",
        function=_push,
        settings=settings,
        identity=identity,
        # One that was started has read them. What it uses is asked: a deploy may have ended after it wrote the files.
        _if=lambda: (
            kept_running() and (any(a.did_change() for a in accounts) or _resolver(settings, identity, "--check") != "")
        ),
    )


def _environment(settings: Settings, directory: Path) -> tuple[dict[str, str], list[WrittenFile]]:
    """The keys of JetStream, in a file that systemd reads as root and nats-server itself cannot."""
    environment = named_files.jetstream_environment(settings)
    if not environment:
        return {}, []
    written = checked_file(
        name="Give nats-server the key of JetStream",
        content=named_files.environment_file(environment),
        path=directory / "environment",
        owner="root",
    )
    return environment, [written]


def _leafnodes(settings: Settings, directory: Path, owner: str) -> list[WrittenFile]:
    return [
        checked_file(
            name=f"Give nats-server the creds of leafnode {number}",
            content=named_files.creds(remote.credentials),
            path=directory / f"leafnode-{number}.creds",
            owner=owner,
        )
        for number, remote in enumerate(settings.nats_leafnode_remotes)
        if remote.credentials
    ]


class DiskRoom(FactBase[int]):
    """Bytes that the streams in a folder, which may not be there yet, can take: what they do, and what is free."""

    def command(self, folder: str) -> str:
        up = 'while [ ! -d "$f" ]; do f=$(dirname "$f"); done'
        return f'f={shlex.quote(folder)}; du -sB1 "$f" 2>/dev/null; {up}; df -B1 --output=avail "$f" | tail -1'

    def process(self, output: Iterable[str]) -> int:
        return sum(int(line.split()[0]) for line in output)


def _room(settings: Settings) -> None:
    """A full disk ends JetStream on a server, and its own limit only refuses a write: the limit has to come first."""
    if not settings.nats_jetstream or not settings.nats_jetstream_reserve or not service.uses_systemd(settings):
        return
    folder = str(settings.jetstream_directory)
    room, wanted = host.get_fact(DiskRoom, folder=folder), settings.nats_jetstream_max_file
    wanted += settings.nats_jetstream_reserve
    if room < wanted:
        raise DeployError(
            f"{host.name}: the disk of {folder} has room for {room // 1024**2} MiB, and nats_jetstream_max_file with "
            f"nats_jetstream_reserve is {wanted // 1024**2} MiB: make room, or lower one of them"
        )


def _push(settings: Settings, identity: Identity) -> None:
    """A running server takes changed NATS accounts over the bus, without losing a connection."""
    if said := _resolver(settings, identity):
        raise OperationError(f"nats-server of {host.name} does not take the NATS accounts: {said[-300:]}")


def end_earlier_rights(site: Topology, identity: Identity) -> None:
    """Take from the NATS accounts what only programs of an older version needed.

    Once in a deploy, when the last host of hubs that can be reached has its new ones.
    """
    if host not in reached("hub")[-1:]:
        return
    names = {other.data.get("platform_name", other.name) for other in reached("nats")}
    python.call(
        name="End the rights that only programs of an older version had",
        function=_end_earlier_rights,
        servers=[server for server in site.nats if server.platform_name in names],
        identity=identity,
        _if=lambda: identity.has_earlier_rights,
    )


def _end_earlier_rights(servers: list[Settings], identity: Identity) -> None:
    identity.end_earlier_rights(now=int(time.time()))
    for settings in servers:
        # One that has them in its configuration is given another by the next deploy.
        if settings.nats_resolver != "memory" and (said := _resolver(settings, identity)):
            raise OperationError(f"{settings.platform_name} does not take the NATS accounts: {said[-300:]}")


def _resolver(settings: Settings, identity: Identity, *words: str) -> str:
    """Run :mod:`natskit.resolver` for this host's nats-server; what is wrong, or nothing."""
    authority = ["--ca", str(ca_file(settings))] if settings.platform_tls else []
    command = [sys.executable, "-m", "natskit.resolver", *authority, "--server", settings.platform_name, *words]
    command += [settings.nats_url, *(str(identity.account_path(account)) for account in NATS_ACCOUNTS)]
    creds = identity.creds("SYS", "admin")
    done = subprocess.run(command, input=creds, capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else done.stderr.strip() or "it uses others"


def account_file(settings: Settings, identity: Identity, account: str) -> Path:
    """Where the resolver keeps the JWT of a NATS account."""
    return settings.platform_root / "nats" / "jwt" / f"{identity.account_public_key(account)}.jwt"


def own_lines(settings: Settings, configuration: str) -> str:
    """Which lines of nats-server.conf are the user's own words, since nats-server only says which line is wrong."""
    lines = configuration.splitlines()
    texts = {f"nats_section_extra.{section}": text for section, text in settings.nats_section_extra.items()}
    texts |= {"nats_extra": settings.nats_extra}
    places = []
    for setting, text in texts.items():
        mark = next((number for number, line in enumerate(lines, 1) if line.strip() == f"# {setting}"), None)
        if text and mark:
            first, last = mark + 1, mark + len(text.splitlines())
            places.append(f"{setting} (line {first})" if first == last else f"{setting} (lines {first} to {last})")
    if not places:
        return "all of it is made from settings in the inventory: docs/settings.md"
    return f"in the inventory, these are as you wrote them: {', '.join(places)}"


def values(settings: Settings, site: Topology, identity: Identity) -> dict[str, object]:
    """What the template ``nats-server.conf`` needs."""
    return nats_values(settings, site, identity)
