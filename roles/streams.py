"""The streams of the platform. The control machine creates them, since hubs may not; the servers must be running."""

from __future__ import annotations

import subprocess
import sys

from pyinfra import host, logger
from pyinfra.api.exceptions import OperationError
from pyinfra.operations import python

from natskit.config.settings import Settings
from natskit.config.topology import Topology
from natskit.identity.identity import Identity
from natskit.ops.stream_provisioning import WITH_STREAMS
from roles.platform import ca_file, reached, stream_settings


def deploy(settings: Settings, site: Topology, identity: Identity) -> None:
    """Create missing streams, and update those that differ from the inventory.

    This happens once in a deploy, at the first reachable host of hubs: with ``--serial``, the hosts of nats come before
    it.
    """
    if host not in reached("hub")[:1]:
        return
    python.call(
        name="Make the streams as the inventory says",
        function=_apply,
        settings=settings,
        site=site,
        identity=identity,
        _if=lambda: any(_run(settings, site, identity, name, "--check").returncode != 0 for name in WITH_STREAMS),
    )


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
