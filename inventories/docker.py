"""The machines of the running Docker cluster that NATSKIT_CLUSTER names. Default: `natskit`.

The platform's keys, and all else that a deploy keeps on this machine, are in `.cluster/NAME`, or in the folder that
NATSKIT_CONTROL names; so is the SSH key with which root logs in to the machines.
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


def _login(address: str) -> dict[str, Any]:
    """How pyinfra logs in to a machine. Nothing answers at the address of one that is stopped."""
    return {
        "ssh_hostname": address,
        "ssh_user": "root",
        "ssh_key": str(_control / "ssh" / "key"),
        "ssh_known_hosts_file": str(_control / "ssh" / "known_hosts"),
        "ssh_strict_host_key_checking": "yes",
    }


def _machines() -> dict[str, list[tuple[str, dict[str, Any]]]]:
    groups: dict[str, list[tuple[str, dict[str, Any]]]] = {"nats": [], "hub": [], "proxy": [], "runner": []}
    names = _docker("ps", "--all", "--filter", f"label=natskit.cluster={_cluster}", "--format", "{{.Names}}").split()
    if not names:
        raise InventoryError(f"no cluster {_cluster} in Docker: make cluster starts one")
    if not (_control / "ssh" / "key").exists():
        raise InventoryError(f"{_control / 'ssh' / 'key'}, the SSH key for the machines, is missing: run make cluster")
    for container in json.loads(_docker("container", "inspect", *sorted(names))):
        name = container["Name"].removeprefix("/")
        (network,) = container["NetworkSettings"]["Networks"].values()
        # Its configured address: a stopped container has no other.
        address = network["IPAMConfig"]["IPv4Address"]
        machine = {
            "platform_name": name.removeprefix(f"{_cluster}-"),
            "platform_address": address,
            "platform_control": str(_control),
            "proxy_port": 443,
            "hub_count": 1,
            "keeper_count": 1,
            "keeper_max_bytes": 256 * 1024**2,
            "nats_jetstream_max_file": 2 * 1024**3,  # all machines share this one's disk
        }
        groups[container["Config"]["Labels"]["natskit.role"]].append((name, machine | _login(address)))
    for machines in groups.values():
        for _, machine in machines:
            machine["proxy_name"] = groups["proxy"][0][1]["platform_address"]
    return groups


_groups = _machines()
nats, hub, proxy, runner = (_groups[role] for role in ("nats", "hub", "proxy", "runner"))
