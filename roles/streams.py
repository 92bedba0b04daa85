"""The streams of the platform. The control machine creates them, since hubs may not; the servers must be running."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence

from pyinfra import host, logger
from pyinfra.api.exceptions import OperationError
from pyinfra.operations import python

from natskit.config.settings import Settings
from natskit.config.topology import Topology
from natskit.identity.identity import Identity
from natskit.ops.stream_provisioning import WITH_STREAMS
from roles import nats
from roles.errors import DeployError
from roles.platform import ca_file, reached, stream_settings


def deploy(settings: Settings, site: Topology, identity: Identity) -> None:
    """Create missing streams, and update those that differ from the inventory.

    This happens once in a deploy, at the first reachable host of hubs: with ``--serial``, the hosts of nats come before
    it.
    """
    if host not in reached("hub")[:1]:
        return
    if identity.state_in_platform:
        refuse_some_hubs(
            [hub.platform_name for hub in site.hub],
            [other.data.get("platform_name", other.name) for other in reached("hub")],
        )
    python.call(
        name="Move the state to a NATS account of its own",
        function=_move,
        settings=settings,
        site=site,
        identity=identity,
        _if=lambda: identity.state_in_platform,
    )
    python.call(
        name="Make the streams as the inventory says",
        function=_apply,
        settings=settings,
        site=site,
        identity=identity,
        _if=lambda: any(_run(settings, site, identity, name, "--check").returncode != 0 for name in WITH_STREAMS),
    )


def refuse_some_hubs(names: Sequence[str], reached_names: Sequence[str]) -> None:
    """Refuse to move the state away from hubs that this deploy does not upgrade. Raises :class:`DeployError`."""
    if left := [name for name in names if name not in reached_names]:
        raise DeployError(
            "this deploy moves the state to a NATS account of its own, where hubs of the older version cannot use it, "
            f"and does not reach {', '.join(left)}: deploy to all hosts of hubs at once, or take those that are gone "
            "out of the inventory"
        )


def _move(settings: Settings, site: Topology, identity: Identity) -> None:
    """Move the streams that an older version has made. Its hubs cannot use them any more; new ones are next."""
    from natskit.backup import state_move  # takes a while, and other deploys do not need it

    now = int(time.time())
    creds = [
        identity.temporary_creds(account, "backup", state_move.MOVE_STATE, now=now, seconds=state_move.CREDS_SECONDS)
        for account in ("PLATFORM", "STATE")
    ]
    command = [sys.executable, "-m", "natskit.backup.state_move"]
    command += ["--ca", str(ca_file(settings))] if settings.platform_tls else []
    command += ["--audit-last"] if any(server.nats_resolver == "memory" for server in site.nats) else []
    command += ["--settings", stream_settings(site).model_dump_json(), ",".join(site.nats_urls)]
    command += [identity.account_public_key("STATE")]
    given = json.dumps(dict(zip(("source", "target"), creds, strict=True)))
    done = subprocess.run(command, input=given, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        why = done.stderr.strip()[-500:] or "it was killed: until you deploy again, nobody can change the state"
        raise OperationError(f"the state was not moved: {why}")
    for line in done.stdout.splitlines():
        logger.info("    stream %s", line)
    identity.note_state("moved", now=int(time.time()))
    nats.push_accounts(site, identity)


def _apply(settings: Settings, site: Topology, identity: Identity) -> None:
    for name in WITH_STREAMS:
        done = _run(settings, site, identity, name)
        if done.returncode != 0:
            raise OperationError(f"the streams of {name} cannot be made: {done.stderr.strip()[-500:]}")
        for line in done.stdout.split("\n"):
            if line:
                logger.info("    stream %s", line)


def _run(
    settings: Settings, site: Topology, identity: Identity, account: str, *words: str
) -> subprocess.CompletedProcess[str]:
    """Run :mod:`natskit.ops.stream_provisioning`."""
    command = [sys.executable, "-m", "natskit.ops.stream_provisioning", *words]
    command += ["--ca", str(ca_file(settings))] if settings.platform_tls else []
    command += ["--settings", stream_settings(site).model_dump_json(), ",".join(site.nats_urls), account]
    creds = identity.creds(account, "admin")
    return subprocess.run(command, input=creds, capture_output=True, text=True, check=False)
