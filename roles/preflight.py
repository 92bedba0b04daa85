"""Checks of all machines before any is changed: taken ports and the processes that have them, full disks, wrong clocks,
users without rights, hosts of another platform, and hosts that do not reach the hosts they will use."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import shlex
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gevent
from pyinfra.api import FactBase, Host, Inventory
from pyinfra.context import ctx_host

from natskit.config.settings import Settings
from natskit.config.topology import Topology, of_hosts
from natskit.errors import SettingsError
from natskit.ops import stop_platform
from natskit.validation.names import shown
from roles import artifacts, host_probe, project_mounts

LEAST_FREE = 1024**3
"""Bytes. JetStream, logs and the projects' files need space. With less, the disk would be full within a day."""
MOST_SKEW = 5.0
"""Seconds. Longer than the check itself takes, and shorter than the validity of the tokens of hubs and servers."""
OTHER_RIGHTS = ("_doas", "_dzdo", "_su_user")
"""pyinfra's other ways to become root, for hosts without sudo."""


def check(settings: Settings) -> None:
    """Check the control machine. Raises :class:`SettingsError` with one line for each problem."""
    root = settings.platform_root
    check_owner(root)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limits = host_probe.limits() | ({} if hard == resource.RLIM_INFINITY else {"open_files": hard})
    problems = [
        *_taken_here(settings),
        *_full_disk(root, host_probe.free(root)),
        *too_many_browsers(settings, limits, servers=1),
    ]
    if problems:
        raise SettingsError("\n".join(problems))


def check_owner(root: Path) -> None:
    """Raises :class:`SettingsError` if another user owns the folder, even for root: one user deploys a platform."""
    try:
        stop_platform.check_owner(root)
    except stop_platform.NotOursError as error:
        raise SettingsError(f"{error}, or choose a folder of your own with NATSKIT_LOCAL") from None
    if root.exists() and root.stat().st_uid != os.geteuid():
        owner, me = stop_platform.user_name(root.stat().st_uid), stop_platform.user_name(os.geteuid())
        raise SettingsError(
            f"{root} is {owner}'s platform, and you are {me}: deploy as {owner}, or choose a folder of your own with "
            "NATSKIT_LOCAL"
        )


def _taken_here(settings: Settings) -> Iterator[str]:
    """The ports that are taken on this machine: a line for each other platform, other user and process."""
    wanted, root = ports(settings), settings.platform_root
    listening = {port: found for port, found in host_probe.listeners().items() if port in wanted}
    owners = host_probe.owners({inode for inode, _ in listening.values()})
    platforms = list(stop_platform.supervisors())
    groups: dict[str, list[int]] = {}
    for port, (inode, user) in sorted(listening.items()):
        pid, command = owners.get(inode, (0, ""))
        if f"{root}/" in command or (pid and _working_directory(pid) == root):
            continue
        if pid and (other := next((p for p in platforms if p.root == _working_directory(pid)), None)):
            who = _of_platform(other)
        elif pid:
            yield from _taken_ports(wanted, [(port, pid, command)])
            continue
        else:
            who = _of_user(user, [p for p in platforms if p.user == user])
        groups.setdefault(who, []).append(port)
    for who, taken in groups.items():
        numbers, keys = ", ".join(map(str, taken)), ", ".join(dict.fromkeys(wanted[port] for port in taken))
        yield f"port{'s' if len(taken) > 1 else ''} {numbers} taken by {who}, or set {keys} to free ports"


def _of_platform(found: stop_platform.Supervisor) -> str:
    owner = stop_platform.user_name(found.user)
    by = "" if found.user == os.geteuid() else f" as {owner}"
    return f"the platform of {owner} in {found.root}: stop it{by} (scripts/down {shlex.quote(str(found.root))})"


def _of_user(user: int, platforms: list[stop_platform.Supervisor]) -> str:
    """Who has the ports, if it is not known which of the user's processes does."""
    owner = stop_platform.user_name(user)
    if not platforms:
        return f"processes of {owner}: stop them"
    if len(platforms) == 1:
        return _of_platform(platforms[0])
    folders = " or ".join(str(found.root) for found in platforms)
    return f"a platform of {owner}, in {folders}: stop it as {owner} (scripts/down FOLDER)"


def check_hosts(inventory: Inventory, site: Topology, known: dict[str, Settings]) -> None:
    """Check every connected host. Raises :class:`SettingsError` with one line for each problem and its hosts."""
    hosts = list(inventory.get_active_hosts())
    there = [known[host.name] for host in hosts]
    looking = [gevent.spawn(_problems, host, site, known[host.name], there) for host in hosts]
    gevent.joinall(looking, raise_error=True)
    problems = of_hosts(
        (host.name, problem) for host, found in zip(hosts, looking, strict=True) for problem in found.value
    )
    lines = [f"{', '.join(names)}: {problem}" for names, problem in problems]
    # natskit status and the deploy itself connect from this machine.
    mine = {f"{one.platform_address}:{one.nats_port}": one for one in there if one in site.nats}
    lines += [f"this machine {said}" for said in _not_reached(host_probe.all_unreached([*mine]), mine)]
    if lines:
        raise SettingsError("\n".join(lines))


def ports(settings: Settings, site: Topology | None = None) -> dict[int, str]:
    """The ports that a host's programs listen on, and their settings. Without a ``site``: those of all roles."""
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
    found |= dict.fromkeys(
        settings.metrics_ports[: 1 + (settings.hub_count if _has_hubs(settings, site) else 0)], "metrics_port"
    )
    if site is not None and settings in site.monitoring:
        found[settings.monitoring_port] = "monitoring_port"
        found[settings.monitoring_alertmanager_port] = "monitoring_alertmanager_port"
    return found


def _has_hubs(settings: Settings, site: Topology | None) -> bool:
    return site is None or settings in site.hub


@dataclass(frozen=True)
class Rights:
    """The user that pyinfra has on a host, and whether sudo works for it."""

    user: str
    is_root: bool
    sudo: str


class HostRights(FactBase[Rights | None]):
    """Asked without sudo: if sudo needs a password, pyinfra would ask for it in the middle of the run."""

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
    """The output of ``roles/host_probe.py``, run as root. It reads the clock last, and :meth:`process` compares it as
    soon as the answer arrives."""

    def command(self, folder: str, places: list[str], connect: bool = False) -> str:
        words = [*(["--connect"] if connect else []), folder, *places]
        return (
            'echo "uid $(id -u)"; [ ! -d /run/systemd/system ] || echo systemd\n'
            "if python3 -c 'import sys; sys.exit(sys.version_info < (3, 8))' 2>/dev/null; then\n"
            f"python3 - {shlex.join(words)} <<'END'\n{Path(host_probe.__file__).read_text()}\nEND\nfi"
        )

    def process(self, output: Iterable[str]) -> dict[str, Any] | None:
        lines = list(output)
        found: dict[str, Any] = {"is_root": "uid 0" in lines, "has_systemd": "systemd" in lines}
        for line in lines:
            if line.startswith("{"):
                found |= json.loads(line)
                found["skew"] = found["clock"] - time.time()
        return found


def used(settings: Settings, site: Topology, there: Iterable[Settings]) -> dict[str, Settings]:
    """The ``ADDRESS:PORT`` pairs that a host's programs connect to, with the settings of their hosts. Only hosts in
    ``there`` count."""
    ports: dict[str, Settings] = {}
    for other in there:
        found: list[int] = []
        if other in site.nats:
            if settings in site.nats and other is not settings:
                found.append(other.nats_cluster_port)
            if any(settings in role for role in (site.nats, site.hub, site.runner)):
                found.append(other.nats_port)
            if settings in site.proxy:
                found.append(other.nats_websocket_port)
        if other in site.hub and settings in site.proxy:
            found += other.hub_ports
        ports |= {f"{other.platform_address}:{port}": other for port in found}
    return ports


def _problems(host: Host, site: Topology, settings: Settings, there: list[Settings]) -> list[str]:
    uses = used(settings, site, there)
    with ctx_host.use(host):
        rights = host.get_fact(HostRights, _sudo=False)
        if rights is None:
            return ["it accepts this user's login but runs no command: see its output above"]
        refusal = _no_root(host, rights)
        if refusal:
            return [refusal]
        found = host.get_fact(HostLook, folder=str(settings.platform_root), places=list(uses))
        if found is None:
            return [f"sudo refuses {rights.user}: check _sudo_password"]
        target = host.get_fact(artifacts.HostTarget)
        unseen = list(project_mounts.problems(settings)) if settings in site.runner else []
    return [
        *unseen,
        *_unfit(found, artifacts.unfit(target), rights),
        *_of_another_platform(found, settings),
        *_taken_ports(ports(settings, site), _foreign(found)),
        *(_full_disk(settings.platform_root, found["free"]) if "free" in found else ()),
        *(too_many_browsers(settings, found.get("limits", {}), len(site.nats)) if settings in site.proxy else ()),
        *_wrong_clock(found),
        *(f"it {said}" for said in _not_reached(found.get("unreached", {}), uses)),
    ]


def _no_root(host: Host, rights: Rights) -> str:
    if rights.is_root or any(host.data.get(key) for key in OTHER_RIGHTS):
        return ""
    if rights.sudo == "works" or (rights.sudo == "wants a password" and host.data.get("_sudo_password")):
        return ""
    if rights.sudo == "wants a password":
        return (
            f"{rights.user} may not use sudo, or not without a password: write '{rights.user} ALL=(ALL) NOPASSWD: ALL' "
            f"into /etc/sudoers.d/{rights.user} there, or set _sudo_password"
        )
    return f"{rights.user} is not root, and sudo {rights.sudo}: install it, or set ssh_user to root"


def _unfit(found: dict[str, Any], target: str, rights: Rights) -> Iterator[str]:
    if not found["is_root"]:
        yield f"commands run as {rights.user}, who is not root: set _sudo = True"
    if not found["has_systemd"]:
        yield "systemd does not run there: natskit needs it to keep programs running"
    if target:
        yield target


def _of_another_platform(found: dict[str, Any], settings: Settings) -> Iterator[str]:
    """The problem of a host of another platform: a deploy would replace its keys, and lock out the holders of those."""
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
            who = f"process {pid} ({shown(command[:80].strip())})" if pid else "a process of another user"
            yield f"port {port} is taken by {who}: stop it, or set {wanted[port]} to a free port"


def _working_directory(pid: int) -> Path | None:
    """The working directory of a process. It tells which platform an nginx worker belongs to."""
    try:
        return Path(f"/proc/{pid}/cwd").readlink()
    except OSError:
        return None


def _full_disk(root: Path, free: int) -> Iterator[str]:
    if free < LEAST_FREE:
        yield f"the disk of {root} has {free // 1024**2} MiB free and needs {LEAST_FREE // 1024**2}: make room"


def too_many_browsers(settings: Settings, limits: Mapping[str, int], servers: int) -> Iterator[str]:
    """The limits of a host that ``proxy_max_browsers`` exceeds (:func:`roles.host_probe.limits`)."""
    browsers = settings.proxy_max_browsers
    files = limits.get("open_files", settings.proxy_open_files)
    if settings.proxy_open_files > files:
        fit = max(0, (files - settings.proxy_open_files) // 2 + browsers)
        yield (
            f"proxy_max_browsers = {browsers} needs {settings.proxy_open_files} open files in a process, and {files} "
            "are allowed: raise nofile in limits.conf(5) and fs.nr_open in sysctl.d(5), or set proxy_max_browsers to "
            f"{fit}"
        )
    connections = servers * limits.get("local_ports", browsers)
    if browsers > connections:
        yield (
            f"proxy_max_browsers = {browsers}, and nginx has ports for {connections} connections to {servers} "
            "nats-server(s): widen net.ipv4.ip_local_port_range in sysctl.d(5), or lower proxy_max_browsers"
        )


def _wrong_clock(found: dict[str, Any]) -> Iterator[str]:
    skew = found.get("skew", 0.0)
    if abs(skew) > MOST_SKEW:
        way = "ahead of" if skew > 0 else "behind"
        yield (
            f"its clock is {abs(skew):.0f} s {way} this machine's, and certificates and tokens would be refused: set "
            "both clocks with NTP (apt-get install systemd-timesyncd)"
        )


def _not_reached(unreached: dict[str, str], uses: dict[str, Settings]) -> Iterator[str]:
    for place, why in unreached.items():
        name = uses[place].platform_name
        yield (
            f"cannot reach {place} of {name} ({why}): set platform_address of {name} to an address that all hosts and "
            "this machine know (not an alias in ssh_config), and open that port to them"
        )
