"""Let a deploy into a cluster's machines by SSH, as into real hosts. It takes a third of the time of `docker exec`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cluster.lifecycle import ClusterError, listed, run_in
from cluster.machines import MACHINES

KEY, KNOWN_HOSTS = "key", "known_hosts"

_LET_IN = """
install -d -m 700 /root/.ssh
grep -qsxF '{key}' /root/.ssh/authorized_keys || echo '{key}' >> /root/.ssh/authorized_keys
systemctl --quiet enable --now ssh
cat /etc/ssh/ssh_host_ed25519_key.pub
"""


def let_in(cluster: str, folder: Path) -> None:
    """Let root log in to the running machines of a cluster with the key in ``folder``, which is made if it is missing.

    Writes the machines' own keys to ``known_hosts`` beside it. Raises :class:`ClusterError`.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    public = _public_key(folder / KEY)
    running = [machine for machine in listed(cluster) if machine.state == "running"]
    with ThreadPoolExecutor(len(MACHINES)) as pool:
        said = pool.map(lambda machine: run_in(machine.container, _LET_IN.format(key=public)), running)
        found = {
            machine.address: _host_key(machine.container, text) for machine, text in zip(running, said, strict=True)
        }
    lines = [line for line in _known(folder / KNOWN_HOSTS) if line.split()[0] not in found]
    lines += [f"{address} {key}" for address, key in sorted(found.items())]
    (folder / KNOWN_HOSTS).write_text("".join(f"{line}\n" for line in lines))


def _public_key(path: Path) -> str:
    """The public half of the key in a file, which is made if it is missing."""
    if path.exists():
        private = serialization.load_ssh_private_key(path.read_bytes(), password=None)
    else:
        private = Ed25519PrivateKey.generate()
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(
                private.private_bytes(
                    serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
                )
            )
    public = private.public_key()
    return public.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()


def _known(path: Path) -> Iterator[str]:
    """The lines that are there, also of machines that do not run at this moment."""
    if path.exists():
        yield from filter(str.strip, path.read_text().splitlines())


def _host_key(container: str, said: str) -> str:
    """The type and the key in the output of :data:`_LET_IN`."""
    words = said.split()
    if words[:1] != ["ssh-ed25519"]:
        raise ClusterError(f"{container} has no SSH server: docker exec {container} systemctl status ssh")
    return " ".join(words[:2])
