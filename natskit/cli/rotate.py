"""``natskit identity rotate``, ``diff``, ``push`` and ``delete-account``: keys and claims of a platform that runs."""

from __future__ import annotations

import asyncio
import fcntl
import os
import shlex
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from natskit.cli.platform import Platform, json_option, note, show_json, show_table, with_client
from natskit.cli.project import rotate_all
from natskit.errors import NatskitError
from natskit.identity.rotation import KINDS, Kind

if TYPE_CHECKING:
    from natskit.identity import Identity
    from natskit.resolver import Servers

T = TypeVar("T")

DYNAMIC = ("browser", "project", "runner")
DEPLOY_SECONDS = 1800
_LAST_LINES = 15
_COMPLETE = "--> Results"


@click.command()
@click.argument("kind", type=click.Choice(KINDS))
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--now", is_flag=True, help="The old keys are in wrong hands: out with them as soon as can be.")
@click.option(
    "--wait",
    type=click.IntRange(min=0),
    metavar="SECONDS",
    help="hub-keys: how long to wait for connections to be renewed by themselves before the rest is cut.  "
    "[default: as long as it takes, hub_authorization_ttl]",
)
@click.option("--no-deploy", is_flag=True, help="Do not deploy: say what to run, and stop there.")
@click.option("--deployed", is_flag=True, help="The deploy that the last run asked for is done: go on.")
@click.pass_obj
def rotate(directory: str, kind: Kind, yes: bool, now: bool, wait: int | None, no_deploy: bool, deployed: bool) -> None:
    """Exchange keys while the platform runs: new in, both accepted, old out.

    \b
    hub-keys              what hubs sign with (AUTH; browser, project and runner of PLATFORM), and their own creds
    project-keys          the nkeys and creds of every project that runs, and of every runner
    nats-account          the signing keys of SYS and PLATFORM that stay here, and the creds signed by them
    operator-signing-key  the key that signs NATS accounts; every nats-server is restarted, twice

    What will reconnect is said before anything is changed. Interrupted, the same command goes on where it was.

    The identity keys of the operator and of the NATS accounts are not rotated. A NATS account is known by its identity
    key: it owns the streams with the platform's state, and an account with another key would begin with none. These
    keys sign nothing in the daily run and never leave this machine. If one is lost to somebody, make a new identity
    and move the state.

    \b
    Examples:
      natskit identity rotate hub-keys
      natskit identity rotate hub-keys --now --yes
    """
    from natskit.identity import Identity
    from natskit.rotation import Rotation

    if wait is not None and kind != "hub-keys":
        raise NatskitError(f"--wait {wait} is for hub-keys: a rotation of {kind} waits for nobody")
    platform = Platform.find(directory)
    # As long as an authorisation is good: by then each connection was made anew, with a new key.
    patience = float(wait if wait is not None else int(platform["authorization_ttl"] * 1.1) + 30)
    live = _Live(platform, deploys=not no_deploy, deployed=deployed)
    began = 0.0

    def say(text: str) -> None:
        click.echo(f"{time.monotonic() - began:6.1f} s  {text}")

    with _alone(Path(platform["identity"])):
        identity = Identity.load(Path(platform["identity"]), write=True)
        pending = (identity.pending_rotation or {}).get("kind", kind)
        if pending != kind:
            raise NatskitError(
                f"a rotation of {pending} is under way: run `natskit identity rotate {pending}` to the end"
            )
        if not yes:
            memory = "memory" in platform["resolvers"].values()
            click.echo(consequences(kind, live.connections(identity), len(platform["nats"]), now, patience, memory))
            click.confirm("Go on?" if identity.pending_rotation else "Begin?", abort=True)
        began = time.monotonic()
        note(directory, f"identity rotate {kind}: begun" + " (--now)" * now)
        rotation = Rotation(identity, live, say, cookie_seconds=platform["session_sliding"], patience=patience)
        rotation.run(kind, urgent=now)
        say("done: the old keys are refused everywhere")
        note(directory, f"identity rotate {kind}: done")


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """One at a time; a deploy may run beside it."""
    fd = os.open(directory / "rotation.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise NatskitError(f"another rotation of {directory} is running: wait until it has ended") from None
        yield
    finally:
        os.close(fd)


def consequences(kind: Kind, connected: Counter[str], servers: int, urgent: bool, patience: float, memory: bool) -> str:
    """What a rotation does to who is connected, for whoever is about to begin it."""
    everybody = ", ".join(f"{connected[who]} {who}s" for who in DYNAMIC)
    cut = "is cut at once and comes back within seconds; projects keep running"
    hubs = "Hubs restart one after the other"
    match kind:
        case "hub-keys" if urgent:
            text = f"{hubs}. Then every browser, project and runner {cut}. Everybody has to sign in again."
        case "hub-keys" if patience:
            text = (
                f"{hubs}; projects reconnect once for their new creds, and keep running. Nobody else is cut: each "
                "connection is made anew when its authorisation expires, as always; that is waited for, "
                f"{patience / 60:.0f} minutes at the most. Nobody has to sign in again."
            )
        case "hub-keys":
            text = (
                f"{hubs}. Then every browser, project and runner that is still connected by an old key {cut}. Nobody "
                "has to sign in again."
            )
        case "project-keys":
            text = (
                f"{hubs}, twice. Each project and runner reconnects once, by itself, and projects keep running. "
                "Browsers stay connected."
            )
        case "nats-account":
            text = (
                f"{hubs}. No browser, project or runner reconnects. A natskit command that runs in another terminal is "
                "cut."
            )
        case "operator-signing-key":
            text = (
                f"nats-server reads the operator's JWT only when it starts: {_each(servers)}, twice. Whoever is "
                "connected to one that stops reconnects"
                + (" to another at once." if servers > 1 else " when it is back, after a few seconds.")
            )
    if memory and kind != "project-keys":
        text += (
            " nats_resolver is memory: nats-server also reloads its configuration for other NATS accounts, and cuts "
            "every browser, project and runner at each reload; they come back within seconds."
        )
    return click.wrap_text(f"Connected now: {everybody}. {text}", 100)


def _each(servers: int) -> str:
    return f"each of the {servers} is restarted, one after the other" if servers > 1 else "it is restarted"


@click.command()
@json_option
@click.pass_obj
def diff(directory: str, as_json: bool) -> None:
    """Show where the NATS accounts here and those the nats-servers use differ; exit 1 if they do.

    The keys of the operator that a nats-server believes are compared as well; a deploy brings those, not `push`.

    \b
    Examples:
      natskit identity diff
      natskit identity diff --json | jq '.[].server'
    """
    from natskit.identity import Identity
    from natskit.nats_accounts import differing

    platform = Platform.find(directory)
    identity = Identity.load(Path(platform["identity"]))
    found = _run(platform, identity, lambda servers: differing(servers, identity))
    if as_json:
        rows = [{"server": d.server, "account": d.account, "name": d.name, "what": d.what} for d in found]
        show_json([row | {"fields": list(d.fields)} for row, d in zip(rows, found, strict=True)])
    else:
        columns = ["server", "NATS account", "", "fields"]
        table = [[d.server, d.name or d.account, d.what, ", ".join(d.fields)] for d in found]
        show_table(columns, table, f"All {len(platform['nats'])} nats-servers use the NATS accounts that are here.")
    sys.exit(1 if found else 0)


@click.command()
@click.pass_obj
def push(directory: str) -> None:
    """Make every nats-server use the NATS accounts that are here, and see that it does.

    NATS accounts that are on a server alone are left; `natskit identity delete-account` removes one.

    \b
    Example:
      natskit identity push
    """
    from natskit.identity import Identity
    from natskit.nats_accounts import push_all

    platform = Platform.find(directory)
    identity = Identity.load(Path(platform["identity"]), write=True)
    if "memory" in platform["resolvers"].values():
        raise NatskitError("nats_resolver is memory: nats-server has its NATS accounts in its configuration; deploy")
    _run(platform, identity, lambda servers: push_all(servers, identity))
    note(directory, "identity push")
    click.echo(f"All {len(platform['nats'])} nats-servers use the NATS accounts that are here.")


@click.command("delete-account")
@click.argument("account")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option(
    "--force", is_flag=True, help="Even with clients in it, or with streams: whose messages nobody reaches then."
)
@click.pass_obj
def delete_account(directory: str, account: str, yes: bool, force: bool) -> None:
    """Delete a NATS account, by its name or public key, from every nats-server.

    Not one of natskit's own, and not one with clients or streams in it unless forced. Needs the setting
    nats_resolver_allow_delete. While a nats-server is away nothing is deleted: it would bring the NATS account back.

    \b
    Example:
      natskit identity delete-account OLD-TENANT
    """
    from natskit.identity import Identity
    from natskit.nats_accounts import deletable

    platform = Platform.find(directory)
    identity = Identity.load(Path(platform["identity"]))

    async def look(servers: Servers) -> tuple[str, str, list[str]]:
        return await deletable(servers, identity, account)

    public, name, uses = _run(platform, identity, look)
    if uses and not force:
        raise NatskitError(f"NATS account {name} is in use: {'; '.join(uses)}. --force deletes it all the same")
    if not yes:
        for use in uses:
            click.echo(f"In use: {use}")
        click.confirm(f"Delete NATS account {name} ({public}) on {len(platform['nats'])} nats-servers?", abort=True)
    _run(platform, identity, lambda servers: servers.delete(public, identity.operator_signing_seed))
    note(directory, f"identity delete-account {name} ({public})")
    click.echo(f"NATS account {name} is deleted on all {len(platform['nats'])} nats-servers.")


def _run(platform: Platform, identity: Identity, work: Callable[[Servers], Awaitable[T]]) -> T:
    async def run() -> T:
        async with _open(platform, identity) as servers:
            return await work(servers)

    return asyncio.run(run())


@asynccontextmanager
async def _open(platform: Platform, identity: Identity) -> AsyncIterator[Servers]:
    from natskit.connection import CredsText
    from natskit.resolver import open_servers

    lazy = [name for name, kind in platform["resolvers"].items() if kind == "cache"]
    creds = CredsText(identity.creds("SYS", "admin"))
    async with open_servers(platform.nats_servers, creds, platform["nats"], lazy) as servers:
        yield servers


class _Live:
    """The platform that a rotation works on; see :class:`natskit.rotation.Platform`."""

    def __init__(self, platform: Platform, *, deploys: bool, deployed: bool) -> None:
        self._platform = platform
        self._deploys = deploys
        self._deployed = deployed

    def push(self, identity: Identity) -> None:
        from natskit.nats_accounts import push_all

        if "memory" in self._platform["resolvers"].values():
            self.deploy()
        _run(self._platform, identity, lambda servers: push_all(servers, identity))

    def deploy(self) -> None:
        from natskit.identity.passphrase import handed_down
        from natskit.program import end_with_parent

        how = self._platform["deploy"]
        if self._deployed:
            self._deployed = False
            return
        command = [str(Path(sys.executable).with_name("pyinfra")), "-y", *how["arguments"]]
        if not self._deploys:
            variables = [f"{name}={shlex.quote(value)}" for name, value in how["environment"].items()]
            line = " ".join([*variables, shlex.join(command)])
            raise NatskitError(
                f"a deploy is needed now: cd {shlex.quote(how['directory'])} && {line}; then the same command again "
                "with --deployed"
            )
        with handed_down() as (passphrase, descriptors):
            done = subprocess.run(
                command,
                cwd=how["directory"],
                env=os.environ | how["environment"] | passphrase,
                pass_fds=descriptors,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=DEPLOY_SECONDS,
                check=False,
                # Killed, this command leaves no deploy behind that would stand in the way of the one that goes on.
                preexec_fn=end_with_parent,
            )
        said = done.stdout + done.stderr
        # pyinfra that is interrupted ends with 0, but has no results then.
        if done.returncode != 0 or _COMPLETE not in said:
            raise NatskitError(
                "the deploy failed; run this again when it can succeed:\n"
                + "\n".join(said.strip().splitlines()[-_LAST_LINES:])
            )

    def operator_keys(self, identity: Identity) -> dict[str, Collection[str]]:
        looked = _run(self._platform, identity, lambda servers: servers.look([]))
        return {server.name: server.operator_keys for server in looked}

    def holders(self, identity: Identity) -> dict[str, int]:
        found: Counter[str] = Counter()
        for each in self._all(identity):
            if each.get("issuer_key") in identity.retiring_keys:
                kind, name = str(each.get("authorized_user", "")).partition(".")[0], str(each.get("name", ""))
                hub = name.rpartition("-")[0]
                other = f"hub {hub}" if hub in self._platform["hubs"] else name or "client without a name"
                found[f"{kind}s" if kind in DYNAMIC else other] += 1
        return dict(found)

    def connections(self, identity: Identity) -> Counter[str]:
        """Who is connected through the auth callout, by kind."""
        return Counter(str(each.get("authorized_user", "")).partition(".")[0] for each in self._all(identity))

    def renew_projects(self) -> None:
        done = with_client(str(self._platform.directory), rotate_all)
        failed = [f"{row['project_id']} ({row['error']})" for row in done if row.get("error")]
        if failed:
            raise NatskitError(
                f"{len(failed)} projects keep the keys they have: {', '.join(failed[:5])}: stop them, or see what "
                "their runners say, and run this again"
            )

    def wait(self, seconds: float) -> None:
        time.sleep(seconds)

    def _all(self, identity: Identity) -> list[dict[str, Any]]:
        from natskit.identity import NATS_ACCOUNTS

        async def look(servers: Servers) -> list[dict[str, Any]]:
            return [
                each for name in NATS_ACCOUNTS for each in await servers.connections(identity.account_public_key(name))
            ]

        return _run(self._platform, identity, look)
