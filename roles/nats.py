"""nats-server: configuration, NATS accounts, JetStream, and its place among the other servers."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

from pyinfra import host
from pyinfra.api.exceptions import OperationError
from pyinfra.operations import python

from natskit.identity import NATS_ACCOUNTS, Identity
from natskit.render import derived, render
from natskit.settings import Settings
from natskit.topology import Topology
from roles import service, tls
from roles.files import checked_file, private_directory
from roles.platform import ca_file
from roles.program import Program

STOP_SECONDS = 30
"""Beyond the lame duck's own time: JetStream writes what it holds."""
CAUGHT_UP_SECONDS = "300"
"""How long a server may take to catch up with the others after its restart."""


def deploy(settings: Settings, site: Topology, identity: Identity) -> None:
    """Install, configure, activate."""
    directory, owner = settings.platform_root / "nats", service.owner(settings, "nats")
    server, programs = service.nats_server(settings), service.python(settings)
    writable = [directory / "jwt", directory / "jetstream", directory / "run"]
    for folder in (directory, *writable):
        private_directory(folder, owner)

    accounts = {
        account: checked_file(
            name=f"Give NATS account {account} to the resolver",
            content=identity.account_jwt(account),
            path=account_file(settings, identity, account),
            owner=owner,
        )
        for account in NATS_ACCOUNTS
    }
    probe = checked_file(
        name="Give nats-server's host the creds of its probe",
        content=identity.creds("PLATFORM", "probe"),
        path=directory / "probe.creds",
        owner=owner,
    )
    reload_on = [probe, *(tls.install(settings, identity, "nats", directory, owner) if settings.platform_tls else [])]
    reload_on.append(
        checked_file(
            name="Render nats-server.conf",
            content=render("nats-server.conf", values(settings, site, identity)),
            path=directory / "nats-server.conf",
            owner=owner,
            check=[str(server), "-t", "-c", "{}"],
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
        before_restart=() if alone else [*gate, "--before"],
        unit={
            "user": owner,
            "writable": [str(folder) for folder in writable],
            "memory_limit": settings.nats_memory_limit,
        },
    )
    kept_running = service.run(settings, program, reload_on=reload_on)
    for account, change in accounts.items():
        python.call(
            name=f"Push NATS account {account} to nats-server",
            function=_push,
            settings=settings,
            identity=identity,
            account=account,
            _if=[change.did_change, kept_running],
        )


def _push(settings: Settings, identity: Identity, account: str) -> None:
    """A running server takes a changed NATS account over the bus, without losing a connection."""
    folder = identity.directory / "stores" / "natskit" / "accounts" / account
    words = [
        sys.executable,
        "-m",
        "natskit.resolver",
        *(["--ca", str(ca_file(settings))] if settings.platform_tls else []),
    ]
    words += [settings.nats_url, str(identity.creds_path("SYS", "admin")), str(folder / f"{account}.jwt")]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise OperationError(
            f"nats-server of {host.name} does not take NATS account {account}: {done.stderr.strip()[-300:]}; "
            "it reads it when it is restarted"
        )


def account_file(settings: Settings, identity: Identity, account: str) -> Path:
    """Where the resolver keeps the JWT of a NATS account."""
    return settings.platform_root / "nats" / "jwt" / f"{identity.account_public_key(account)}.jwt"


def values(settings: Settings, site: Topology, identity: Identity) -> dict[str, object]:
    """What the template ``nats-server.conf`` needs."""
    return derived("nats-server.conf", settings) | {
        "url": site.url,
        "routes": site.routes_for(settings),
        "operator_jwt": identity.operator_jwt,
        "system_account": identity.account_public_key("SYS"),
    }
