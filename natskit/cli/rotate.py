"""``natskit identity rotate``, ``diff``, ``push`` and ``delete-account``: keys and claims of a running platform."""

from __future__ import annotations

import asyncio
import fcntl
import os
import shlex
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from natskit.cli.deploy import pyinfra, repeat, variables_of
from natskit.cli.deploy_output import RESULTS
from natskit.cli.platform import Platform, json_option, note, show_json, show_table, with_client
from natskit.cli.project import rotate_all
from natskit.errors import NatskitError
from natskit.identity.rotation import KINDS, Kind

if TYPE_CHECKING:
    from natskit.identity.identity import Identity
    from natskit.ops.account_resolver import Servers

T = TypeVar("T")

DYNAMIC = ("browser", "project", "runner")
DEPLOY_SECONDS = 1800
_LAST_LINES = 15


@click.command()
@click.argument("kind", type=click.Choice(KINDS))
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--now", is_flag=True, help="Refuse the old keys as soon as possible, because they are compromised.")
@click.option(
    "--wait",
    type=click.IntRange(min=0),
    metavar="SECONDS",
    help="hub-keys: how long to wait for connections to be renewed before natskit disconnects the rest.  "
    "[default: hub_authorization_ttl, after which all are renewed]",
)
@click.option("--no-deploy", is_flag=True, help="Do not deploy: print the deploy command and stop.")
@click.option("--deployed", is_flag=True, help="Continue after the deploy that the last run asked for.")
@click.pass_obj
def rotate(directory: str, kind: Kind, yes: bool, now: bool, wait: int | None, no_deploy: bool, deployed: bool) -> None:
    """Rotate keys of the running platform: add the new key, accept both, remove the old key.

    \b
    hub-keys              the hubs' signing keys (AUTH; browser, project and runner of PLATFORM) and creds
    project-keys          the nkeys and creds of every running project and of every runner
    nats-account          the signing keys that only this machine has, and the creds they signed
    operator-signing-key  the key that signs NATS accounts; every nats-server restarts twice

    The command lists the connections it will interrupt before it changes anything. If it is interrupted, run it again.

    The identity keys of the operator and of the NATS accounts are not rotated. The identity key is the NATS account's
    name: an account with another key would not own the streams with the platform's state. These keys sign nothing in
    daily operation and never leave this machine. If one is compromised, make a new identity and move the state.

    \b
    Examples:
      natskit identity rotate hub-keys
      natskit identity rotate hub-keys --now --yes
    """
    from natskit.identity.identity import Identity
    from natskit.ops.key_rotation import Rotation

    if wait is not None and kind != "hub-keys":
        raise NatskitError(f"--wait {wait} is only for hub-keys: leave it out for {kind}")
    platform = Platform.find(directory)
    # After the lifetime of an authorization, every connection has been renewed with a new key.
    patience = float(wait if wait is not None else int(platform["authorization_ttl"] * 1.1) + 30)
    live = _Live(platform, deploys=not no_deploy, deployed=deployed)
    began = 0.0

    def say(text: str) -> None:
        click.echo(f"{time.monotonic() - began:6.1f} s  {text}")

    with _exclusive(Path(platform["identity"])):
        identity = Identity.load(Path(platform["identity"]), write=True)
        pending = (identity.pending_rotation or {}).get("kind", kind)
        if pending != kind:
            raise NatskitError(
                f"a rotation of {pending} is not finished: run `natskit identity rotate {pending}` first"
            )
        if not yes:
            memory = "memory" in platform["resolvers"].values()
            click.echo(consequences(kind, live.connections(identity), len(platform["nats"]), now, patience, memory))
            click.confirm("Continue?" if identity.pending_rotation else "Begin?", abort=True)
        began = time.monotonic()
        note(directory, f"identity rotate {kind}: begun" + " (--now)" * now)
        rotation = Rotation(identity, live, say, cookie_seconds=platform["session_sliding"], patience=patience)
        rotation.run(kind, urgent=now)
        say("done: the old keys are refused everywhere")
        note(directory, f"identity rotate {kind}: done")


@contextmanager
def _exclusive(directory: Path) -> Iterator[None]:
    """Allow one rotation at a time. A deploy may run at the same time."""
    fd = os.open(directory / "rotation.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise NatskitError(f"another rotation of {directory} is running: wait until it ends") from None
        yield
    finally:
        os.close(fd)


def consequences(kind: Kind, connected: Counter[str], servers: int, urgent: bool, patience: float, memory: bool) -> str:
    """Describe the effect of a rotation on connected clients, for the confirmation prompt."""
    everybody = ", ".join(f"{connected[who]} {who}s" for who in DYNAMIC)
    disconnect = "is disconnected at once and reconnects within seconds; projects keep running"
    hubs = "Hubs restart one after the other"
    match kind:
        case "hub-keys" if urgent:
            text = f"{hubs}. Then every browser, project and runner {disconnect}. All users must sign in again."
        case "hub-keys" if patience:
            text = (
                f"{hubs}; projects reconnect once for their new creds, and keep running. No other client is "
                "disconnected: each connection is renewed when its authorization expires, as usual. The command waits "
                f"for that, up to {patience / 60:.0f} minutes. Users stay signed in."
            )
        case "hub-keys":
            text = (
                f"{hubs}. Then every browser, project and runner that still uses an old key {disconnect}. Users stay "
                "signed in."
            )
        case "project-keys":
            text = (
                f"{hubs}, twice. Each project and runner reconnects once, by itself, and projects keep running. "
                "Browsers stay connected."
            )
        case "nats-account":
            text = (
                f"{hubs}. No browser, project or runner reconnects. A natskit command that runs in another terminal is "
                "disconnected."
            )
        case "operator-signing-key":
            text = (
                f"nats-server reads the operator's JWT only when it starts: {_each(servers)}, twice. Clients of a "
                "server that stops reconnect"
                + (" to another one at once." if servers > 1 else " when it is back, after a few seconds.")
            )
    if memory and kind != "project-keys":
        text += (
            " nats_resolver is memory: nats-server also reloads its configuration to change NATS accounts. Each reload "
            "disconnects every browser, project and runner; they reconnect within seconds."
        )
    return click.wrap_text(f"Connected now: {everybody}. {text}", 100)


def _each(servers: int) -> str:
    return f"each of the {servers} is restarted, one after the other" if servers > 1 else "it is restarted"


@click.command()
@json_option
@click.pass_obj
def diff(directory: str, as_json: bool) -> None:
    """Compare the local NATS accounts with those that the nats-servers use. Exits 1 if they differ.

    Also compares the operator keys that each nats-server trusts. To update those, deploy; `push` does not.

    \b
    Examples:
      natskit identity diff
      natskit identity diff --json | jq '.[].server'
    """
    from natskit.identity.identity import Identity
    from natskit.ops.account_diff import differing

    platform = Platform.find(directory)
    identity = Identity.load(Path(platform["identity"]))
    found = run_on_servers(platform, identity, lambda servers: differing(servers, identity))
    if as_json:
        rows = [{"server": d.server, "account": d.account, "name": d.name, "what": d.what} for d in found]
        show_json([row | {"fields": list(d.fields)} for row, d in zip(rows, found, strict=True)])
    else:
        columns = ["server", "NATS account", "", "fields"]
        table = [[d.server, d.name or d.account, d.what, ", ".join(d.fields)] for d in found]
        show_table(columns, table, f"All {len(platform['nats'])} nats-servers use the local NATS accounts.")
    sys.exit(1 if found else 0)


@click.command()
@click.pass_obj
def push(directory: str) -> None:
    """Push the local NATS accounts to every nats-server and verify that each server uses them.

    NATS accounts that exist only on a server stay there; remove one with `natskit identity delete-account`.

    \b
    Example:
      natskit identity push
    """
    from natskit.identity.backup import end_restore
    from natskit.identity.identity import Identity
    from natskit.ops.account_diff import push_all

    platform = Platform.find(directory)
    identity = Identity.load(Path(platform["identity"]), write=True)
    if "memory" in platform["resolvers"].values():
        raise NatskitError("nats_resolver is memory: the NATS accounts are in nats-server's configuration; deploy")
    run_on_servers(platform, identity, lambda servers: push_all(servers, identity))
    end_restore(Path(platform["identity"]))
    note(directory, "identity push")
    click.echo(f"All {len(platform['nats'])} nats-servers use the local NATS accounts.")


@click.command("delete-account")
@click.argument("account")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option(
    "--force", is_flag=True, help="Delete it even if it has clients or streams. Its messages become unreachable."
)
@click.pass_obj
def delete_account(directory: str, account: str, yes: bool, force: bool) -> None:
    """Delete a NATS account, by its name or public key, from every nats-server.

    natskit's own NATS accounts are refused, and without --force so are those with clients or streams. Needs the setting
    nats_resolver_allow_delete. Nothing is deleted while a nats-server is down: that server would restore the account.

    \b
    Example:
      natskit identity delete-account OLD-TENANT
    """
    from natskit.identity.identity import Identity
    from natskit.ops.account_diff import deletable

    platform = Platform.find(directory)
    identity = Identity.load(Path(platform["identity"]))

    async def inspect(servers: Servers) -> tuple[str, str, list[str]]:
        return await deletable(servers, identity, account)

    public, name, uses = run_on_servers(platform, identity, inspect)
    if uses and not force:
        raise NatskitError(f"NATS account {name} is in use: {'; '.join(uses)}. To delete it anyway, add --force")
    if not yes:
        for use in uses:
            click.echo(f"In use: {use}")
        click.confirm(f"Delete NATS account {name} ({public}) on {len(platform['nats'])} nats-servers?", abort=True)
    run_on_servers(platform, identity, lambda servers: servers.delete(public, identity.operator_signing_seed))
    note(directory, f"identity delete-account {name} ({public})")
    click.echo(f"NATS account {name} is deleted on all {len(platform['nats'])} nats-servers.")


def run_on_servers(platform: Platform, identity: Identity, work: Callable[[Servers], Awaitable[T]]) -> T:
    """Connect to the nats-servers as ``SYS/admin``, do the work, disconnect. Raises :class:`NatskitError`."""

    async def run() -> T:
        async with _open(platform, identity) as servers:
            return await work(servers)

    return asyncio.run(run())


@asynccontextmanager
async def _open(platform: Platform, identity: Identity) -> AsyncIterator[Servers]:
    from natskit.bus.credentials import CredsText
    from natskit.ops.account_resolver import open_servers

    lazy = [name for name, kind in platform["resolvers"].items() if kind == "cache"]
    creds = CredsText(identity.creds("SYS", "admin"))
    async with open_servers(platform.nats_servers, creds, platform["nats"], lazy) as servers:
        yield servers


class _Live:
    """The running platform; implements :class:`natskit.ops.key_rotation.Platform`."""

    def __init__(self, platform: Platform, *, deploys: bool, deployed: bool) -> None:
        self._platform = platform
        self._deploys = deploys
        self._deployed = deployed

    def push(self, identity: Identity) -> None:
        from natskit.ops.account_diff import push_all

        if "memory" in self._platform["resolvers"].values():
            self.deploy()
        run_on_servers(self._platform, identity, lambda servers: push_all(servers, identity))

    def deploy(self) -> None:
        how = self._platform["deploy"]
        if self._deployed:
            self._deployed = False
            return
        if not self._deploys:
            line = " ".join([*variables_of(how), shlex.join(pyinfra("-y", *how["arguments"]))])
            raise NatskitError(
                f"deploy now: cd {shlex.quote(how['directory'])} && {line}; then run the same command again "
                "with --deployed"
            )
        done = repeat(self._platform, "-y", seconds=DEPLOY_SECONDS)
        said = done.stdout + done.stderr
        if done.returncode != 0 or RESULTS not in said:
            raise NatskitError(
                "the deploy failed; fix the cause and run this command again:\n"
                + "\n".join(said.strip().splitlines()[-_LAST_LINES:])
            )

    def operator_keys(self, identity: Identity) -> dict[str, Collection[str]]:
        states = run_on_servers(self._platform, identity, lambda servers: servers.inspect([]))
        return {server.name: server.operator_keys for server in states}

    def holders(self, identity: Identity) -> dict[str, int]:
        found: Counter[str] = Counter()
        for each in self._all(identity):
            if each.get("issuer_key") in identity.retiring_keys:
                kind, name = str(each.get("authorized_user", "")).partition(".")[0], str(each.get("name", ""))
                program = name.rpartition("-")[0]
                keepers = self._platform.content.get("keepers", [])
                programs = {hub: f"hub {hub}" for hub in self._platform["hubs"]}
                programs |= {keeper: f"keeper {keeper}" for keeper in keepers}
                other = programs.get(program) or name or "unnamed client"
                found[f"{kind}s" if kind in DYNAMIC else other] += 1
        return dict(found)

    def connections(self, identity: Identity) -> Counter[str]:
        """The number of clients that the auth callout authorized, by kind."""
        return Counter(str(each.get("authorized_user", "")).partition(".")[0] for each in self._all(identity))

    def renew_projects(self) -> None:
        done = with_client(str(self._platform.directory), rotate_all)
        failed = [f"{row['project_id']} ({row['error']})" for row in done if row.get("error")]
        if failed:
            raise NatskitError(
                f"{len(failed)} projects kept their old keys: {', '.join(failed[:5])}: stop them, or fix the cause "
                "that their runners log, and run this command again"
            )

    def wait(self, seconds: float) -> None:
        time.sleep(seconds)

    def _all(self, identity: Identity) -> list[dict[str, Any]]:
        async def inspect(servers: Servers) -> list[dict[str, Any]]:
            return [
                each
                for name in identity.accounts
                for each in await servers.connections(identity.account_public_key(name))
            ]

        return run_on_servers(self._platform, identity, inspect)
