"""A whole platform that the tests start with ``deploy.py``, and the people and projects that live in it."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx

from tests.platform.raw import RawClient

PORTS = ("nats_port", "nats_websocket_port", "nats_monitor_port", "proxy_port", "hub_port")
REPOSITORY = Path(__file__).parents[2]
T = TypeVar("T")


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on at this moment."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def wait_for(condition: Callable[[], T], what: str, timeout: float = 30) -> T:
    """Poll until ``condition`` is truthy and return it; a test never sleeps for a fixed time."""
    deadline = time.monotonic() + timeout
    error: Exception | None = None
    while time.monotonic() < deadline:
        try:
            if value := condition():
                return value
        except Exception as caught:
            error = caught
        time.sleep(0.02)
    raise AssertionError(f"{what}: not within {timeout} s ({error!r})")


@dataclass
class Site:
    """One deployed platform. ``root`` holds its data; ``info`` is what the deploy wrote for the command line."""

    root: Path
    data: dict[str, str]
    info: dict[str, Any] = field(default_factory=dict)

    def deploy(self, *arguments: str, **overrides: str) -> subprocess.CompletedProcess[str]:
        """Run ``pyinfra inventories/local.py deploy.py`` with this site's settings, and ``overrides`` on top."""
        data = self.data | overrides
        command = [
            str(Path(sys.executable).with_name("pyinfra")),
            # With -y a dry run does not even look for what would change.
            *([] if "--dry" in arguments else ["-y"]),
            "inventories/local.py",
            "deploy.py",
            *[word for key, value in data.items() for word in ("--data", f"{key}={value}")],
            *arguments,
        ]
        done = subprocess.run(
            command, cwd=REPOSITORY, env=self.environment, capture_output=True, text=True, timeout=300, check=False
        )
        if (self.root / "platform.json").exists():
            self.info = json.loads((self.root / "platform.json").read_text())
        return done

    @property
    def environment(self) -> dict[str, str]:
        return os.environ | {"NATSKIT_LOCAL": str(self.root), "NATSKIT_PLATFORM": str(self.root)}

    def natskit(
        self, *arguments: str, check: bool = True, stdin: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run the ``natskit`` command against this site."""
        done = subprocess.run(
            [str(Path(sys.executable).with_name("natskit")), *arguments],
            cwd=self.root,
            env=self.environment,
            capture_output=True,
            text=True,
            input=stdin,
            timeout=120,
            check=False,
        )
        assert not check or done.returncode == 0, f"natskit {' '.join(arguments)}: {done.stdout}{done.stderr}"
        return done

    def natskit_json(self, *arguments: str) -> Any:
        """The output of ``natskit … --json``."""
        return json.loads(self.natskit(*arguments, "--json").stdout)

    @property
    def url(self) -> str:
        return str(self.info["url"])

    @property
    def websocket_url(self) -> str:
        return self.url.replace("https://", "wss://") + "/nats"

    @property
    def ca_file(self) -> str:
        return str(self.info["ca_file"])

    @property
    def nats_port(self) -> int:
        return int(self.info["nats_urls"][0].rsplit(":", 1)[1])

    def http(self) -> httpx.Client:
        """A browser-like HTTP client: trusts the local CA, keeps cookies, sends the site's Origin."""
        import ssl

        context = ssl.create_default_context(cafile=self.ca_file)
        return httpx.Client(base_url=self.url, verify=context, headers={"Origin": self.url}, timeout=20)

    def sign_in(self, email: str, password: str) -> Session:
        """Sign in over HTTP, as the browser does."""
        with self.http() as http:
            answer = http.post("/api/sign-in", json={"email": email, "password": password})
            assert answer.status_code == 200, answer.text
            cookie = "; ".join(f"{name}={value}" for name, value in answer.cookies.items())
            return Session(answer.json()["account_id"], cookie)

    def stop(self) -> None:
        """Take the platform down and wait until it is."""
        subprocess.run([REPOSITORY / "scripts" / "down", str(self.root)], check=True, capture_output=True, timeout=120)

    def logs(self) -> str:
        """The end of every log, for the report of a failing test."""
        parts = []
        for log in sorted((self.root / "log").glob("*.log")):
            parts.append(f"---- {log.name}\n{log.read_text(errors='replace')[-3000:]}")
        return "\n".join(parts)


@contextlib.contextmanager
def deployed(root: Path, **data: str) -> Iterator[Site]:
    """A platform on free ports, ready for use, and taken down at the end."""
    site = Site(root, dict(zip(PORTS, map(str, free_ports(len(PORTS))), strict=True)) | data)
    try:
        done = site.deploy()
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n{site.logs()}"
        site.natskit("ready")
        yield site
    finally:
        site.stop()


@dataclass(frozen=True)
class Session:
    """A signed-in browser: the ``Cookie`` header it sends."""

    account_id: str
    cookie: str


@dataclass
class World:
    """Two accounts, a running project each, and the runner: everybody the permission tests speak as."""

    names: dict[str, str]
    email_a: str
    email_b: str
    password: str

    def name(self, subject: str) -> str:
        """Fill ``{a}``, ``{b}``, ``{p}``, ``{q}`` and ``{r}`` into a subject."""
        return subject.format(**self.names)

    def connect(self, site: Site, role: str) -> RawClient:
        """A raw connection with the real credentials of a role."""
        creds = site.info["creds"]
        match role:
            case "browser" | "other browser":
                email = self.email_a if role == "browser" else self.email_b
                session = site.sign_in(email, self.password)
                return RawClient.websocket(
                    site.websocket_url, ca_file=site.ca_file, cookie=session.cookie, origin=site.url
                )
            case "project":
                return RawClient.tcp("127.0.0.1", site.nats_port, self.project_creds(site, "p"))
            case "runner":
                return RawClient.tcp("127.0.0.1", site.nats_port, site.root / "runner" / "runner.creds")
            case "hub":
                return RawClient.tcp("127.0.0.1", site.nats_port, site.root / "hub-1" / "platform.creds")
            case "admin":
                return RawClient.tcp("127.0.0.1", site.nats_port, Path(creds["platform_admin"]))
            case "probe":
                path = Path(creds["platform_admin"]).with_name("probe.creds")
                return RawClient.tcp("127.0.0.1", site.nats_port, path)
        raise ValueError(role)

    def project_creds(self, site: Site, which: str) -> Path:
        """The creds file the runner wrote for a project."""
        (found,) = (site.root / "runner" / "projects" / self.names[which]).glob("*.creds")
        return found


def populate(site: Site) -> World:
    """Create the people and projects of :class:`World` through the command line."""
    password = "correct horse battery staple"  # noqa: S105
    names: dict[str, str] = {}
    for account, project in (("a", "p"), ("b", "q")):
        email = f"{account}@example.org"
        site.natskit("account", "add", email, "--password-stdin", stdin=password)
        names[project] = site.natskit_json("project", "create", email, f"Project of {account}")["project_id"]
        names[account] = site.sign_in(email, password).account_id
        site.natskit("project", "start", names[project])
    names["r"] = json.loads((site.root / "runner" / "runner.json").read_text())["runner_id"]
    return World(names, "a@example.org", "b@example.org", password)
