"""nats-server: its configuration, NATS accounts, JetStream, and its place among the other servers."""

from __future__ import annotations

import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pyinfra import host
from pyinfra.api import FactBase
from pyinfra.api.exceptions import OperationError
from pyinfra.operations import files, python

from natskit.bus.permissions import STATE_SCOPES
from natskit.config import referenced_files
from natskit.config.nats_settings import LeafRemote
from natskit.config.render import nats_values, render
from natskit.config.settings import Settings
from natskit.config.topology import Topology
from natskit.identity.identity import NATS_ACCOUNTS, Identity
from roles import service, tls
from roles.errors import DeployError
from roles.files import WrittenFile, checked_file, private_directory
from roles.managed_program import Program, nats_open_files
from roles.platform import ca_file, reached

WELL_SECONDS = "20"
"""How long the other servers may take to become healthy before a restart. They were healthy before, so this has to be
longer than an election."""
PROBE_SECONDS = 86_400
"""Longer than a deploy takes."""
CAUGHT_UP_SECONDS = "300"
"""How long a server may take to catch up with the others after its restart."""


@dataclass(frozen=True)
class Place:
    """Where nats-server runs: its folder and user on the host, and the programs that start it there."""

    directory: Path
    owner: str
    server: Path
    python: Path
    monitor: str
    """The URL of its monitoring port."""

    @property
    def configuration(self) -> Path:
        """The file nats-server is started with."""
        return self.directory / "nats-server.conf"

    @property
    def probe_creds(self) -> Path:
        """The creds that the restart gate connects with."""
        return self.directory / "state-probe.creds"

    @property
    def earlier_probe_creds(self) -> Path:
        """The creds that an older version's gate connects with, as long as the state is in PLATFORM."""
        return self.directory / "probe.creds"

    @property
    def documents_probe_creds(self) -> Path:
        """The creds with which it looks at the documents' streams."""
        return self.directory / "documents-probe.creds"

    def give(self, name: str, content: str, file: str) -> WrittenFile:
        """Write a file into the folder, for nats-server's user alone."""
        return checked_file(name=name, content=content, path=self.directory / file, owner=self.owner)


@dataclass(frozen=True)
class Configured:
    """The files that nats-server uses, sorted by what a change of them requires."""

    accounts: list[WrittenFile]
    """JWTs of NATS accounts: a change is pushed to the running server."""
    reload_on: list[WrittenFile]
    restart_on: list[WrittenFile]
    probe_creds: Path
    """The creds of the restart gate, in the NATS account that has the state."""


def deploy(settings: Settings, site: Topology, identity: Identity) -> None:
    """Install, configure, activate."""
    place = Place(
        directory=settings.platform_root / "nats",
        owner=service.owner(settings, "nats"),
        server=service.nats_server(settings),
        python=service.python(settings),
        monitor=f"http://127.0.0.1:{settings.nats_monitor_port}",
    )
    install(place, settings)
    configured = configure(place, settings, site, identity)
    kept_running = activate(place, settings, site, configured)
    if settings.nats_resolver != "memory":  # that one reads the accounts from its configuration, when it reloads it
        _push_changed(Endpoint.of(settings), identity, configured.accounts, kept_running)


def install(place: Place, settings: Settings) -> None:
    """Make the folders, and check that the disk has room for the streams."""
    for folder in (place.directory, *map(Path, settings.nats_writable)):
        private_directory(folder, place.owner)
    if settings.nats_jetstream and settings.nats_jetstream_reserve and service.uses_systemd(settings):
        wanted = settings.nats_jetstream_max_file + settings.nats_jetstream_reserve
        _require_disk_room(settings.jetstream_directory, wanted)


def configure(place: Place, settings: Settings, site: Topology, identity: Identity) -> Configured:
    """Write what nats-server reads. nats-server itself checks its configuration before it replaces the one in use."""
    accounts = [_account(place, identity, account) for account in NATS_ACCOUNTS]
    # The restart gate reads these creds, nats-server does not. A reload would disconnect every client that the auth
    # callout has let in.
    place.give(
        "Give nats-server's host the creds of its probe", identity.creds("STATE", "probe"), place.probe_creds.name
    )
    creds = identity.creds("DOCS", "probe")
    place.give("Give nats-server's host the creds of its probe of documents", creds, place.documents_probe_creds.name)
    reload_on = tls.install(settings, identity, "nats", place.directory, place.owner) if settings.platform_tls else []
    reload_on += _leafnodes(place, settings.nats_leafnode_remotes)
    variables = referenced_files.jetstream_environment(settings)
    restart_on = [_environment(place, variables)] if variables else []
    configuration = render("nats-server.conf", nats_values(settings, site, identity))
    written = {f"nats_section_extra.{section}": text for section, text in settings.nats_section_extra.items()}
    explain = own_lines(written | {"nats_extra": settings.nats_extra}, configuration)
    reload_on.append(_configuration(place, configuration, variables, explain))
    probe_creds = place.earlier_probe_creds if identity.state_in_platform else place.probe_creds
    if identity.state_in_platform:
        creds = probe_in_platform(identity, int(time.time()))
        place.give("Give nats-server's host the creds of its probe in PLATFORM", creds, probe_creds.name)
    else:
        files.file(
            name="Leave nats-server's host no creds of an older version's probe",
            path=str(place.earlier_probe_creds),
            present=False,
        )
    return Configured(accounts, reload_on, restart_on, probe_creds)


def probe_in_platform(identity: Identity, now: int) -> str:
    """The creds of the restart gate for the deploy that moves the state, and restarts nats-servers before it does.

    Those of an older version may have ended, and a new host never had them.
    """
    return identity.temporary_creds("PLATFORM", "probe", STATE_SCOPES["probe"], now=now, seconds=PROBE_SECONDS)


def activate(place: Place, settings: Settings, site: Topology, configured: Configured) -> Callable[[], bool]:
    """Keep nats-server running with these files; the answer says during the run whether it was not restarted."""
    # A script under a name that stays. With the version of natskit in its unit, nats-server would be restarted for
    # each new version.
    reload = [str(place.python), "-m", "natskit.ops.reload", str(place.directory / "run" / "nats-server.pid")]
    script = checked_file(
        name="Write how nats-server is reloaded",
        content="#!/bin/sh\nexec " + shlex.join([*reload, place.monitor]) + "\n",
        path=place.directory / "reload",
        mode="700",
        owner=place.owner,
    )
    # A single server has no others to wait for, and programs that start later wait for the hubs.
    gate = _gate(place, configured.probe_creds, settings, site) if len(site.nats) > 1 else []
    program = Program(
        name="nats",
        command=[str(place.server), "-c", str(place.configuration)],
        priority=10,
        # nats-server can reload most settings. It refuses the others, and is restarted then.
        reload=[str(script.path)],
        # Under systemd its unit names the signal. nats-server ignores SIGTERM while it leaves slowly (lame duck).
        stop_signal="INT",
        stop_seconds=settings.nats_stop_seconds,
        healthy=[*gate, "--seconds", CAUGHT_UP_SECONDS] if gate else (),
        before_restart=[*gate, "--before", "--seconds", WELL_SECONDS] if gate else (),
        unit={
            "user": place.owner,
            "writable": settings.nats_writable,
            "memory_limit": settings.nats_memory_limit,
            "environment_file": str(place.directory / "environment") if configured.restart_on else None,
            "mount": settings.nats_jetstream_directory,
            # When the others are down, it has the browsers of all proxies.
            "open_files": nats_open_files(sum(proxy.proxy_max_browsers for proxy in site.proxy)),
        },
    )
    return service.run(settings, program, restart_on=configured.restart_on, reload_on=configured.reload_on)


# ---- the steps of install, configure and activate


class DiskRoom(FactBase[int]):
    """The bytes that streams in a folder can take: those they take now, and those that are free.

    The folder may not exist yet.
    """

    def command(self, folder: str) -> str:
        up = 'while [ ! -d "$f" ]; do f=$(dirname "$f"); done'
        return f'f={shlex.quote(folder)}; du -sB1 "$f" 2>/dev/null; {up}; df -B1 --output=avail "$f" | tail -1'

    def process(self, output: Iterable[str]) -> int:
        return sum(int(line.split()[0]) for line in output)


def _require_disk_room(folder: Path, wanted: int) -> None:
    """JetStream stops on a server whose disk is full, while its own limit only refuses a write: that has to come first.

    Raises :class:`DeployError` if the streams cannot take ``wanted`` bytes.
    """
    room = host.get_fact(DiskRoom, folder=str(folder))
    if room < wanted:
        raise DeployError(
            f"{host.name}: the disk of {folder} has room for {room // 1024**2} MiB, and nats_jetstream_max_file with "
            f"nats_jetstream_reserve is {wanted // 1024**2} MiB: make room, or lower one of them"
        )


def _account(place: Place, identity: Identity, account: str) -> WrittenFile:
    """The JWT of a NATS account, where the resolver of nats-server keeps it."""
    file = f"jwt/{identity.account_public_key(account)}.jwt"
    return place.give(f"Give NATS account {account} to the resolver", identity.account_jwt(account), file)


def _leafnodes(place: Place, remotes: Sequence[LeafRemote]) -> list[WrittenFile]:
    return [
        place.give(
            f"Give nats-server the creds of leafnode {number}",
            referenced_files.creds(remote.credentials),
            f"leafnode-{number}.creds",
        )
        for number, remote in enumerate(remotes)
        if remote.credentials
    ]


def _environment(place: Place, variables: dict[str, str]) -> WrittenFile:
    """The keys of JetStream, in a file that systemd reads as root and nats-server itself cannot read."""
    return checked_file(
        name="Give nats-server the key of JetStream",
        content=referenced_files.environment_file(variables),
        path=place.directory / "environment",
        owner="root",
    )


def _configuration(place: Place, content: str, variables: Iterable[str], explain: str) -> WrittenFile:
    """nats-server.conf; ``variables`` name what it takes from the environment."""
    # The check runs without the keys, and any value will do for it.
    environment = [f"{name}=unknown" for name in variables]
    return checked_file(
        name="Render nats-server.conf",
        content=content,
        path=place.configuration,
        owner=place.owner,
        check=[*(["env", *environment] if environment else []), str(place.server), "-t", "-c", "{}"],
        explain=explain,
    )


def own_lines(texts: Mapping[str, str], configuration: str) -> str:
    """Which lines of nats-server.conf the user wrote, by setting: nats-server only says which line is wrong."""
    lines = configuration.splitlines()
    places = []
    for setting, text in texts.items():
        mark = next((number for number, line in enumerate(lines, 1) if line.strip() == f"# {setting}"), None)
        if text and mark:
            first, last = mark + 1, mark + len(text.splitlines())
            places.append(f"{setting} (line {first})" if first == last else f"{setting} (lines {first} to {last})")
    if not places:
        return "all of it is made from settings in the inventory: docs/reference/settings.md"
    return f"in the inventory, these are as you wrote them: {', '.join(places)}"


def _gate(place: Place, creds: Path, settings: Settings, site: Topology) -> list[str]:
    """The command that waits until this server, and the others, can do without one that restarts."""
    words = ["--creds", str(creds), "--documents-creds", str(place.documents_probe_creds)]
    words += ["--monitor", place.monitor]
    words += ["--urls", ",".join(site.nats_urls_for(settings)), "--server", settings.platform_name]
    words += ["--ca", str(place.directory / "tls" / "ca.crt")] if settings.platform_tls else []
    return [str(place.python), "-m", "natskit.ops.restart_gate", *words]


# ---- NATS accounts of servers that run


@dataclass(frozen=True)
class Endpoint:
    """A nats-server as the control machine reaches it."""

    name: str
    url: str
    ca_file: Path | None

    @classmethod
    def of(cls, settings: Settings) -> Endpoint:
        """The nats-server of a host."""
        return cls(settings.platform_name, settings.nats_url, ca_file(settings) if settings.platform_tls else None)

    def resolve(self, identity: Identity, *words: str) -> str:
        """Run :mod:`natskit.ops.account_resolver` for this server; returns why it failed, or nothing."""
        authority = ["--ca", str(self.ca_file)] if self.ca_file else []
        command = [sys.executable, "-m", "natskit.ops.account_resolver", *authority, "--server", self.name, *words]
        command += [self.url, *(str(identity.account_path(account)) for account in NATS_ACCOUNTS)]
        creds = identity.creds("SYS", "admin")
        done = subprocess.run(command, input=creds, capture_output=True, text=True, check=False)
        return "" if done.returncode == 0 else done.stderr.strip() or "it uses other NATS accounts"


def _push_changed(
    server: Endpoint, identity: Identity, accounts: Sequence[WrittenFile], kept_running: Callable[[], bool]
) -> None:
    python.call(
        name="Push the NATS accounts to nats-server",
        function=_push,
        server=server,
        identity=identity,
        # A server that was just started has read them. One that kept running is asked what it uses: an earlier deploy
        # may have ended after it wrote the files.
        _if=lambda: (
            kept_running() and (any(a.did_change() for a in accounts) or server.resolve(identity, "--check") != "")
        ),
    )


def _push(server: Endpoint, identity: Identity) -> None:
    """A running server takes changed NATS accounts over the bus, and keeps its connections."""
    if said := server.resolve(identity):
        raise OperationError(f"nats-server of {host.name} does not take the NATS accounts: {said[-300:]}")


def end_earlier_rights(site: Topology, identity: Identity) -> None:
    """Take from the NATS accounts the rights that only programs of an older version needed.

    This happens once in a deploy, after the last reachable host of hubs has its new ones.
    """
    if host not in reached("hub")[-1:]:
        return
    python.call(
        name="End the rights that only programs of an older version had",
        function=_end_earlier_rights,
        site=site,
        identity=identity,
        _if=lambda: identity.has_earlier_rights,
    )


def _end_earlier_rights(site: Topology, identity: Identity) -> None:
    identity.end_earlier_rights(now=int(time.time()))
    push_accounts(site, identity)


def push_accounts(site: Topology, identity: Identity) -> None:
    """Push changed NATS accounts to the servers that this deploy can reach. Raises :class:`OperationError`."""
    names = {other.data.get("platform_name", other.name) for other in reached("nats")}
    # A server with the resolver "memory" has the accounts in its configuration; the next deploy writes a new one.
    servers = [
        Endpoint.of(server)
        for server in site.nats
        if server.platform_name in names and server.nats_resolver != "memory"
    ]
    for server in servers:
        if said := server.resolve(identity):
            raise OperationError(f"{server.name} does not take the NATS accounts: {said[-300:]}")
