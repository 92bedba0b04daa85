"""The streams of the platform, made from the control machine: the servers have to be up, and hubs may not make them."""

from __future__ import annotations

import subprocess
import sys

from pyinfra import host, logger
from pyinfra.api.exceptions import OperationError
from pyinfra.operations import python

from natskit.identity import Identity
from natskit.settings import Settings
from natskit.streams import StreamSettings
from natskit.topology import Topology
from roles.platform import ca_file, reached


def deploy(settings: Settings, site: Topology, identity: Identity) -> None:
    """Make the streams that are missing, and change those that are not as the inventory says.

    Once in a deploy, when it comes to the first host of hubs that can be reached: with ``--serial`` the hosts of nats
    are done by then.
    """
    if host not in reached("hub")[:1]:
        return
    python.call(
        name="Make the streams as the inventory says",
        function=_apply,
        settings=settings,
        site=site,
        identity=identity,
        _if=lambda: _run(settings, site, identity, "--check").returncode != 0,
    )


def stream_settings(site: Topology) -> StreamSettings:
    """What the inventory says about streams; all hubs have it in common."""
    hub = site.hub[0]
    return StreamSettings(
        replicas=site.replicas,
        state_bytes=hub.hub_state_max_bytes,
        audit_seconds=hub.hub_audit_days * 86_400,
        audit_bytes=hub.hub_audit_bytes,
    )


def _apply(settings: Settings, site: Topology, identity: Identity) -> None:
    done = _run(settings, site, identity)
    if done.returncode != 0:
        raise OperationError(f"the streams cannot be made: {done.stderr.strip()[-500:]}")
    for line in done.stdout.split("\n"):
        if line:
            logger.info("    stream %s", line)


def _run(settings: Settings, site: Topology, identity: Identity, *words: str) -> subprocess.CompletedProcess[str]:
    """Run :mod:`natskit.streams`."""
    command = [sys.executable, "-m", "natskit.streams", *words]
    command += ["--ca", str(ca_file(settings))] if settings.platform_tls else []
    command += ["--settings", stream_settings(site).model_dump_json(), ",".join(site.nats_urls)]
    creds = identity.creds("PLATFORM", "admin")
    return subprocess.run(command, input=creds, capture_output=True, text=True, check=False)
