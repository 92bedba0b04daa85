"""nats-server: configuration, NATS accounts, JetStream."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from pathlib import Path

from pyinfra.operations import server

from natskit.identity import NATS_ACCOUNTS, Identity
from natskit.render import derived, render
from natskit.settings import Settings
from roles import service
from roles.files import checked_file, private_directory


def deploy(settings: Settings, identity: Identity) -> None:
    """Install, configure, activate."""
    directory = settings.platform_root / "nats"
    for folder in (directory, directory / "jwt", directory / "jetstream"):
        private_directory(folder)

    accounts = {
        account: checked_file(
            name=f"Give NATS account {account} to the resolver",
            content=identity.account_jwt(account),
            path=str(account_file(settings, identity, account)),
        )
        for account in NATS_ACCOUNTS
    }
    configuration = checked_file(
        name="Render nats-server.conf",
        content=render("nats-server.conf", values(settings, identity)),
        path=str(directory / "nats-server.conf"),
        check=[str(service.BIN / "nats-server"), "-t", "-c", "{}"],
    )

    program = service.Program(
        name="nats",
        command=[str(service.BIN / "nats-server"), "-c", str(directory / "nats-server.conf")],
        priority=10,
        stop_signal="TERM",
        stop_seconds=30,
    )
    # Most settings can be reloaded; nats-server says no to the others, and then it is restarted.
    reload = [sys.executable, "-m", "natskit.reload", str(directory / "nats-server.pid")]
    reload.append(f"http://127.0.0.1:{settings.nats_monitor_port}")
    kept_running = service.run(
        settings,
        program,
        reload_on=[configuration],
        reload_command=f"{shlex.join(reload)} || {{control}} restart nats",
    )
    for account, change in accounts.items():
        _push(settings, identity, account, [change.did_change, kept_running])


def _push(settings: Settings, identity: Identity, account: str, conditions: list[Callable[[], bool]]) -> None:
    """A running server takes a changed NATS account over the bus, without losing a connection."""
    push = [sys.executable, "-m", "natskit.resolver", settings.nats_url, str(identity.creds_path("SYS", "admin"))]
    push.append(str(account_file(settings, identity, account)))
    server.shell(
        name=f"Push NATS account {account} to nats-server",
        commands=[f"{shlex.join(push)} || {service.control(settings)} restart nats"],
        _if=conditions,
    )


def account_file(settings: Settings, identity: Identity, account: str) -> Path:
    """Where the resolver keeps the JWT of a NATS account."""
    return settings.platform_root / "nats" / "jwt" / f"{identity.account_public_key(account)}.jwt"


def values(settings: Settings, identity: Identity) -> dict[str, object]:
    """What the template ``nats-server.conf`` needs."""
    return derived("nats-server.conf", settings) | {
        "operator_jwt": identity.operator_jwt,
        "system_account": identity.account_public_key("SYS"),
    }
