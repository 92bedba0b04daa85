"""A whole platform that the tests deploy with ``deploy.py``, and the people and projects on it."""

from __future__ import annotations

import contextlib
import json
import os
import ssl
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

import httpx

from tests.kit.commands import run
from tests.kit.platforms import own_platform
from tests.kit.ports import free_ports
from tests.platform.raw import RawClient

PORTS = ("nats_port", "nats_websocket_port", "nats_monitor_port", "proxy_port", "hub_port")
"""The settings of a platform's ports. The second hub has the one that follows ``hub_port``."""
REPOSITORY = Path(__file__).parents[2]


def own_ports() -> dict[str, str]:
    """The settings of a platform on ports that no other one uses."""
    return dict(zip(PORTS, map(str, free_ports(len(PORTS) + 1)), strict=False))


@dataclass(frozen=True)
class Deployed:
    """The result of a run of ``deploy.py``."""

    returncode: int
    stdout: str
    stderr: str

    @property
    def results(self) -> dict[str, Any]:
        """pyinfra's results for each operation (``operations``) and in all (``totals``). Needs ``--json``."""
        assert self.returncode == 0, f"{self.stdout[-20_000:]}\n{self.stderr[-20_000:]}"
        return dict(json.loads(self.stdout)["results"])

    @property
    def changes(self) -> dict[str, list[str]]:
        """The names of the operations that changed something, by host."""
        changed: dict[str, list[str]] = {}
        for operation in self.results["operations"]:
            for host in operation["success"]:
                changed.setdefault(host.rpartition("/")[2], []).append(operation["name"])
        return changed


@dataclass
class Site(ABC):
    """A deployed platform, on one machine or on several: what the tests that run on both know of it.

    ``root`` is the folder with its keys and with ``info``, which the deploy wrote for the command line.
    """

    root: Path
    data: dict[str, str]
    info: dict[str, Any] = field(default_factory=dict)
    inventory: ClassVar[str]
    domain: str = "example.org"
    """Where the people live: a site that is used again has some already, who cannot be deleted."""

    def deploy(self, *arguments: str, **overrides: str) -> Deployed:
        """Run ``pyinfra INVENTORY deploy.py`` with this site's settings, and ``overrides`` on top."""
        data = self.data | overrides
        command = [
            str(Path(sys.executable).with_name("pyinfra")),
            # With -y a dry run does not even look for what would change.
            *([] if "--dry" in arguments else ["-y"]),
            self.inventory,
            "deploy.py",
            *[word for key, value in data.items() for word in ("--data", f"{key}={value}")],
            *arguments,
        ]
        done = subprocess.run(
            command, cwd=REPOSITORY, env=self.environment, capture_output=True, text=True, timeout=600, check=False
        )
        if (self.root / "platform.json").exists():
            self.info = json.loads((self.root / "platform.json").read_text())
        return Deployed(done.returncode, done.stdout, done.stderr)

    @property
    def environment(self) -> dict[str, str]:
        """The environment of commands that run against this site."""
        return os.environ | {"NATSKIT_PLATFORM": str(self.root)}

    def natskit(
        self, *arguments: str, check: bool = True, stdin: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run the ``natskit`` command against this site."""
        return run(
            [str(Path(sys.executable).with_name("natskit")), *arguments],
            check=check,
            cwd=self.root,
            env=self.environment,
            input=stdin,
            timeout=120,
        )

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

    def http(self) -> httpx.Client:
        """An HTTP client like a browser: trusts the local CA, keeps cookies, sends the site's Origin."""
        context = ssl.create_default_context(cafile=self.ca_file)
        return httpx.Client(base_url=self.url, verify=context, headers={"Origin": self.url}, timeout=20)

    def sign_in(self, email: str, password: str) -> Session:
        """Sign in over HTTP, as the browser does."""
        with self.http() as http:
            answer = http.post("/api/sign-in", json={"email": email, "password": password})
            assert answer.status_code == 200, answer.text
            cookie = "; ".join(f"{name}={value}" for name, value in answer.cookies.items())
            return Session(answer.json()["account_id"], cookie)

    def tcp(self, creds: Path | str | None = None) -> RawClient:
        """A raw connection to a nats-server, past the proxy, with a creds file (its path or its text)."""
        url = urlsplit(self.info["nats_urls"][0])
        assert url.hostname
        assert url.port
        return RawClient.tcp(url.hostname, url.port, creds, ca_file=self.info["nats_ca_file"])

    @abstractmethod
    def read(self, program: str, name: str) -> str:
        """A file in the folder of a program, wherever that runs."""

    @abstractmethod
    def project_creds(self, project_id: str) -> str:
        """The creds that the runner gave to a project."""

    @abstractmethod
    def monitor(self, path: str) -> list[str]:
        """The answer of each nats-server's monitoring, which only its own machine reaches."""

    @abstractmethod
    def readable_by_others(self) -> list[str]:
        """Files with keys that others than their owner may read. Fails if there are no such files at all."""

    @abstractmethod
    def stop(self) -> None:
        """Take the platform down, and wait until it is down."""

    @abstractmethod
    def logs(self) -> str:
        """The end of every log, for the report of a failing test."""


class LocalSite(Site):
    """The platform on this machine. ``root`` has all its files."""

    inventory = "inventories/local.py"
    first_deploy = ""
    """All that the first deploy had to say, at its most talkative."""

    @property
    def environment(self) -> dict[str, str]:
        return super().environment | {"NATSKIT_LOCAL": str(self.root)}

    def read(self, program: str, name: str) -> str:
        return (self.root / program / name).read_text()

    def project_creds(self, project_id: str) -> str:
        return self.project_creds_file(project_id).read_text()

    def project_creds_file(self, project_id: str) -> Path:
        """The path of that file."""
        (found,) = (self.root / "runner" / "projects" / project_id).glob("*.creds")
        return found

    def monitor(self, path: str) -> list[str]:
        return [httpx.get(f"{self.info['monitor_url']}/{path}").text]

    def readable_by_others(self) -> list[str]:
        found = [path for path in self.root.rglob("*") if is_secret(path.name)]
        assert found
        return [str(path) for path in found if path.stat().st_mode & 0o077]

    def stop(self) -> None:
        subprocess.run([REPOSITORY / "scripts" / "down", str(self.root)], check=True, capture_output=True, timeout=120)

    def logs(self) -> str:
        parts = []
        for log in sorted((self.root / "log").glob("*.log")):
            parts.append(f"---- {log.name}\n{log.read_text(errors='replace')[-3000:]}")
        return "\n".join(parts)


def is_secret(name: str) -> bool:
    """Whether a file of this name holds a key."""
    return name == "keys.json" or name.endswith((".nk", ".creds", ".key"))


@contextlib.contextmanager
def deployed(root: Path, kind: type[LocalSite] = LocalSite, /, **data: str) -> Iterator[LocalSite]:
    """A platform on its own ports, ready for use, and taken down at the end."""
    site = kind(root, own_ports() | data)
    with own_platform(root):
        try:
            done = site.deploy("-vvv", "--debug")
            assert done.returncode == 0, f"{done.stdout[-20_000:]}\n{done.stderr[-20_000:]}\n{site.logs()}"
            site.first_deploy = done.stdout + done.stderr
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
    """Two accounts, a running project each, and the runner: the principals of the permission tests."""

    names: dict[str, str]
    email_a: str
    email_b: str
    password: str

    def name(self, subject: str) -> str:
        """Fill ``{a}``, ``{b}``, ``{p}``, ``{q}`` and ``{r}`` into a subject."""
        return subject.format(**self.names)

    def connect(self, site: Site, role: str) -> RawClient:
        """A raw connection with the real credentials of a role."""
        admin = Path(site.info["creds"]["platform_admin"])
        match role:
            case "browser" | "other browser":
                email = self.email_a if role == "browser" else self.email_b
                session = site.sign_in(email, self.password)
                return RawClient.websocket(
                    site.websocket_url, ca_file=site.ca_file, cookie=session.cookie, origin=site.url
                )
            case "project" | "other project":
                return site.tcp(site.project_creds(self.names["p" if role == "project" else "q"]))
            case "runner":
                return site.tcp(site.read("runner", "runner.creds"))
            case "hub":
                return site.tcp(site.read("hub-1", "platform.creds"))
            case "hub in AUTH":
                return site.tcp(site.read("hub-1", "auth.creds"))
            case "keeper in DOCS":
                return site.tcp(site.read("keeper-1", "docs.creds"))
            case "admin in STATE":
                return site.tcp(Path(site.info["creds"]["state_admin"]))
            case "keeper":
                return site.tcp(site.read("keeper-1", "platform.creds"))
            case "admin":
                return site.tcp(admin)
            case "probe":
                return site.tcp(Path(site.info["creds"]["state_admin"]).with_name("probe.creds"))
        raise ValueError(role)


def populate(site: Site) -> World:
    """Create the people and projects of :class:`World` through the command line."""
    password = "correct horse battery staple"  # noqa: S105
    names: dict[str, str] = {}
    for account, project in (("a", "p"), ("b", "q")):
        email = f"{account}@{site.domain}"
        site.natskit("account", "add", email, "--password-stdin", stdin=password)
        names[project] = site.natskit_json("project", "create", email, f"Project of {account}")["project_id"]
        names[account] = site.sign_in(email, password).account_id
        site.natskit("project", "start", names[project])
    names["r"] = json.loads(site.read("runner", "runner.json"))["runner_id"]
    return World(names, f"a@{site.domain}", f"b@{site.domain}", password)
