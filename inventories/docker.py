"""The machines of a Docker cluster that runs: of the one that NATSKIT_CLUSTER names, `natskit` unless told.

What belongs to this machine, the platform's keys among it, lands in `.cluster/NAME`, or where NATSKIT_CONTROL says.
"""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

from pyinfra.api.exceptions import InventoryError

_cluster = os.environ.get("NATSKIT_CLUSTER") or "natskit"
_control = Path(os.environ.get("NATSKIT_CONTROL") or Path(__file__).parent.parent / ".cluster" / _cluster).resolve()


def _docker(*words: str) -> str:
    try:
        return subprocess.run(["docker", *words], check=True, capture_output=True, text=True).stdout
    except FileNotFoundError:
        raise InventoryError("there is no docker command here: make cluster installs it") from None
    except subprocess.CalledProcessError as error:
        reason = error.stderr.strip().splitlines()[-1:] or ["no answer"]
        raise InventoryError(f"Docker cannot be asked; make cluster starts it ({reason[0]})") from None


def _machines() -> dict[str, list[tuple[str, dict[str, Any]]]]:
    groups: dict[str, list[tuple[str, dict[str, Any]]]] = {"nats": [], "hub": [], "proxy": [], "runner": []}
    names = _docker("ps", "--all", "--filter", f"label=natskit.cluster={_cluster}", "--format", "{{.Names}}").split()
    if not names:
        raise InventoryError(f"no cluster {_cluster} in Docker: make cluster starts one")
    for container in json.loads(_docker("container", "inspect", *sorted(names))):
        name = container["Name"].removeprefix("/")
        (network,) = container["NetworkSettings"]["Networks"].values()
        # The address it was given: it has none while it is stopped.
        address = network["IPAMConfig"]["IPv4Address"]
        machine = {
            "platform_name": name.removeprefix(f"{_cluster}-"),
            "platform_address": address,
            "platform_control": str(_control),
            "proxy_port": 443,
            "hub_count": 1,
            "nats_jetstream_max_file": 2 * 1024**3,  # all machines share this one's disk
        }
        place = f"@docker/{name}"
        if container["State"]["Status"] != "running":
            # It fails alone, as a host that is down does: nobody answers there. By its container pyinfra would make an
            # image of it, and remove it in the end.
            place, machine = name, machine | {"ssh_hostname": address, "ssh_connect_retries": 0}
        groups[container["Config"]["Labels"]["natskit.role"]].append((place, machine))
    for machines in groups.values():
        for _, machine in machines:
            machine["proxy_name"] = groups["proxy"][0][1]["platform_address"]
    return groups


_groups = _machines()
nats, hub, proxy, runner = (_groups[role] for role in ("nats", "hub", "proxy", "runner"))
