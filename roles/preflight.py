"""What machines lack, said for all of them before anything is changed: a port that is taken, and by whom; a full disk;
a wrong clock; a user without rights; a host that belongs to another platform."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gevent
from pyinfra.api import FactBase, Host, Inventory
from pyinfra.context import ctx_host

from natskit.errors import SettingsError
from natskit.settings import Settings
from natskit.topology import Topology, of_hosts
from roles import artifacts, look

LEAST_FREE = 1024**3
"""Bytes. JetStream, logs and the projects' files need room; below this the first day would end with a full disk."""
MOST_SKEW = 5.0
"""Seconds. More than looking takes, and less than the time for which hubs and servers take each other's words."""
REACH_SECONDS = 5.0
OTHER_RIGHTS = ("_doas", "_dzdo", "_su_user")
"""Ways to root beside sudo that pyinfra knows, for hosts that have them."""


def check(settings: Settings) -> None:
    """Look at the control machine itself. Raises :class:`SettingsError` with one line for each problem."""
    listening = look.listeners()
    owners = look.owners({inode for port, inode in listening.items() if port in ports(settings)})
    taken = [(port, *owners.get(inode, (0, ""))) for port, inode in listening.items()]
    root = settings.platform_root
    foreign = [
        (port, pid, command)
        for port, pid, command in taken
        if f"{root}/" not in command and _working_directory(pid) != root
    ]
    problems = [*_taken_ports(ports(settings), foreign), *_full_disk(root, look.free(root))]
    if problems:
        raise SettingsError("\n".join(problems))


def check_hosts(inventory: Inventory, site: Topology, known: dict[str, Settings]) -> None:
    """Look at every host that is connected. Raises :class:`SettingsError`: a line for each problem, and who has it."""
    hosts = list(inventory.get_active_hosts())
    looking = [gevent.spawn(_problems, host, site, known[host.name]) for host in hosts]
    gevent.joinall(looking, raise_error=True)
    problems = of_hosts(
        (host.name, problem) for host, found in zip(hosts, looking, strict=True) for problem in found.value
    )
    lines = [f"{', '.join(names)}: {problem}" for names, problem in problems]
    if lines:
        raise SettingsError("\n".join(lines))


def ports(settings: Settings, site: Topology | None = None) -> dict[int, str]:
    """The ports that programs of a host listen on, and the settings that say so; all of them without a ``site``."""
    found: dict[int, str] = {}
    if site is None or settings in site.nats:
        found |= {
            settings.nats_port: "nats_port",
            settings.nats_websocket_port: "nats_websocket_port",
            settings.nats_monitor_port: "nats_monitor_port",
        }
        for key in ("nats_leafnode_port", "nats_gateway_port", "nats_mqtt_port"):
            if (port := getattr(settings, key)) is not None:
                found[port] = key
    if site is not None and settings in site.nats and len(site.nats) > 1:
        found[settings.nats_cluster_port] = "nats_cluster_port"
    if site is None or settings in site.hub:
        found |= dict.fromkeys(settings.hub_ports, "hub_port")
    if site is None or settings in site.proxy:
        found[settings.proxy_port] = "proxy_port"
        if settings.http_port:
            found[settings.http_port] = "proxy_http_port"
    return found


@dataclass(frozen=True)
class Rights:
    """Who pyinfra is on a host, and what sudo says to that."""

    user: str
    is_root: bool
    sudo: str


class HostRights(FactBase[Rights | None]):
    """Asked without sudo: where that wants a password, pyinfra would ask for it in the middle of the run."""

    def command(self) -> str:
        return (
            'echo "$(id -un) $(id -u)"; if ! command -v sudo >/dev/null; then echo is not installed; '
            "elif sudo -n true 2>/dev/null; then echo works; else echo wants a password; fi"
        )

    def process(self, output: Iterable[str]) -> Rights | None:
        first, *rest = list(output)
        user, _, number = first.rpartition(" ")
        return Rights(user, number == "0", " ".join(rest))


class HostLook(FactBase[dict[str, Any] | None]):
    """What ``roles/look.py`` finds as root. The clock is the last it reads, and compared when the answer is here."""

    def command(self, folder: str) -> str:
        return (
            'echo "uid $(id -u)"; [ ! -d /run/systemd/system ] || echo systemd\n'
            "if python3 -c 'import sys; sys.exit(sys.version_info < (3, 8))' 2>/dev/null; then\n"
            f"python3 - {folder} <<'END'\n{Path(look.__file__).read_text()}\nEND\nfi"
        )

    def process(self, output: Iterable[str]) -> dict[str, Any] | None:
        lines = list(output)
        found: dict[str, Any] = {"is_root": "uid 0" in lines, "has_systemd": "systemd" in lines}
        for line in lines:
            if line.startswith("{"):
                found |= json.loads(line)
                found["skew"] = found["clock"] - time.time()
        return found


def _problems(host: Host, site: Topology, settings: Settings) -> list[str]:
    with ctx_host.use(host):
        rights = host.get_fact(HostRights, _sudo=False)
        refusal = _no_root(host, rights)
        if refusal:
            return [refusal]
        found = host.get_fact(HostLook, folder=str(settings.platform_root))
        if found is None:
            return [f"sudo does not let {rights.user if rights else 'the user'} do anything: is _sudo_password right?"]
        target = host.get_fact(artifacts.HostTarget)
    return [
        *_unfit(found, artifacts.unfit(target), rights),
        *_of_another_platform(found, settings),
        *_taken_ports(ports(settings, site), _foreign(found)),
        *(_full_disk(settings.platform_root, found["free"]) if "free" in found else ()),
        *_wrong_clock(found),
        *(_unreachable(settings) if settings in site.nats else ()),
    ]


def _no_root(host: Host, rights: Rights | None) -> str:
    if rights is None or rights.is_root or any(host.data.get(key) for key in OTHER_RIGHTS):
        return ""
    if rights.sudo == "works" or (rights.sudo == "wants a password" and host.data.get("_sudo_password")):
        return ""
    if rights.sudo == "wants a password":
        return (
            f"{rights.user} may not use sudo, or not without a password: write '{rights.user} ALL=(ALL) NOPASSWD: ALL' "
            f"into /etc/sudoers.d/{rights.user} there, or set _sudo_password"
        )
    return f"{rights.user} is not root, and sudo {rights.sudo}: install it, or set ssh_user to root"


def _unfit(found: dict[str, Any], target: str, rights: Rights | None) -> Iterator[str]:
    if not found["is_root"]:
        yield f"commands run as {rights.user if rights else 'a user'}, who is not root: set _sudo = True"
    if not found["has_systemd"]:
        yield "systemd does not run there: natskit needs it to keep programs running"
    if target:
        yield target


def _of_another_platform(found: dict[str, Any], settings: Settings) -> Iterator[str]:
    """Its keys would be replaced, and with them everybody locked out who has the others."""
    path = settings.identity / "tls" / "ca.crt"
    own = hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else ""
    if any(authority != own for authority in found.get("authorities", ())):
        yield (
            f"it belongs to a platform whose keys are not in {settings.identity}: set platform_control to the folder "
            f"that has them, or, to give that platform up, remove {settings.platform_root} there"
        )


def _foreign(found: dict[str, Any]) -> Iterator[tuple[int, int, str]]:
    for port, pid, command, unit in found.get("ports", ()):
        if not unit.startswith("natskit-") and not (unit == "nginx.service" and found["has_proxy"]):
            yield port, pid, command


def _taken_ports(wanted: dict[int, str], foreign: Iterable[tuple[int, int, str]]) -> Iterator[str]:
    for port, pid, command in sorted(foreign):
        if port in wanted:
            who = f"process {pid} ({command[:80].strip()})" if pid else "a process of another user"
            yield f"port {port} is taken by {who}: stop it, or set {wanted[port]} to a free port"


def _working_directory(pid: int) -> Path | None:
    """Where a process works: nginx's workers do not say whose they are, but they work in the platform's folder."""
    try:
        return Path(f"/proc/{pid}/cwd").readlink()
    except OSError:
        return None


def _full_disk(root: Path, free: int) -> Iterator[str]:
    if free < LEAST_FREE:
        yield f"the disk of {root} has {free // 1024**2} MiB free and needs {LEAST_FREE // 1024**2}: make room"


def _wrong_clock(found: dict[str, Any]) -> Iterator[str]:
    skew = found.get("skew", 0.0)
    if abs(skew) > MOST_SKEW:
        way = "ahead of" if skew > 0 else "behind"
        yield (
            f"its clock is {abs(skew):.0f} s {way} this machine's, and certificates and tokens would be refused: set "
            "them by NTP (apt-get install systemd-timesyncd)"
        )


def _unreachable(settings: Settings) -> Iterator[str]:
    """Whether this machine gets through to where nats-server listens, or will: refused is an answer too."""
    try:
        socket.create_connection((settings.platform_address, settings.nats_port), REACH_SECONDS).close()
    except ConnectionRefusedError:
        pass
    except OSError as error:
        why = os.strerror(error.errno) if error.errno else f"no answer in {REACH_SECONDS:g} s"
        yield (
            f"this machine does not reach {settings.platform_address}:{settings.nats_port} ({why}), and natskit status "
            "needs it: open nats_port for it, and look at platform_address"
        )
