"""pip and uv both use the mirror that a user has configured for either of them, and check hashes."""

from __future__ import annotations

import base64
import functools
import hashlib
import http.server
import os
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from roles import artifacts, mirrors
from roles.errors import DeployError
from tests.platform.site import REPOSITORY

WHEEL = "mirror_probe-1.0-py3-none-any.whl"


@dataclass
class Mirror:
    """A package index on loopback (PEP 503). Records its requests."""

    folder: Path
    port: int
    asked: list[str] = field(default_factory=list)
    expects: str = ""
    """The header ``Authorization`` without which it answers nobody."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/simple"


@pytest.fixture
def mirror(tmp_path: Path) -> Iterator[Mirror]:
    """A mirror with one package that exists nowhere else."""
    folder = tmp_path / "mirror"
    (folder / "simple" / "mirror-probe").mkdir(parents=True)
    write_wheel(folder / "simple" / "mirror-probe" / WHEEL)
    (folder / "simple" / "mirror-probe" / "index.html").write_text(f'<a href="{WHEEL}">{WHEEL}</a>')

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.headers.get("Authorization", "") == found.expects:
                super().do_GET()
            else:
                self.send_response(401)
                self.send_header("WWW-Authenticate", 'Basic realm="mirror"')
                self.send_header("Content-Length", "0")
                self.end_headers()

        def log_message(self, *_: object) -> None:
            found.asked.append(self.path)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
    found = Mirror(folder / "simple" / "mirror-probe", server.server_address[1])
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield found
    server.shutdown()
    server.server_close()


def write_wheel(path: Path) -> None:
    """The smallest wheel that pip and uv accept (PEP 427)."""
    info = "mirror_probe-1.0.dist-info"
    files = {
        "mirror_probe.py": "",
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: mirror-probe\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    with zipfile.ZipFile(path, "w") as wheel:
        for name, content in files.items():
            wheel.writestr(name, content)
        wheel.writestr(f"{info}/RECORD", "".join(f"{name},,\n" for name in (*files, f"{info}/RECORD")))


@pytest.fixture
def lock(mirror: Mirror, tmp_path: Path) -> Path:
    """A lock file with that package."""
    path = tmp_path / "probe.lock"
    digest = hashlib.sha256((mirror.folder / WHEEL).read_bytes()).hexdigest()
    path.write_text(f"mirror-probe==1.0 --hash=sha256:{digest}\n")
    return path


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user without any configuration."""
    for name in list(os.environ):
        if name.startswith(("PIP_", "UV_", "XDG_")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    return home


def configure(home: Path, mirror: Mirror, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Configure the mirror in one of the possible ways."""
    nowhere = "http://127.0.0.1:1/simple"
    pip, uv = home / ".config" / "pip" / "pip.conf", home / ".config" / "uv" / "uv.toml"
    files = {
        "pip.conf": (pip, f"[global]\nindex-url = {mirror.url}\n"),
        "pip.conf of install": (pip, f"[global]\nindex-url = {nowhere}\n[install]\nindex-url = {mirror.url}\n"),
        "legacy pip.conf": (home / ".pip" / "pip.conf", f"[global]\nindex-url = {mirror.url}\n"),
        "two in pip.conf": (
            pip,
            f"[global]\nindex-url = {mirror.url}/a\nextra-index-url =\n    {mirror.url}/b\n    {mirror.url}\n",
        ),
        "folder in pip.conf": (pip, f"[global]\nno-index = true\nfind-links = {mirror.folder}\n"),
        "uv.toml": (uv, f'[[index]]\nname = "company"\nurl = "{mirror.url}"\ndefault = true\n'),
        "legacy uv.toml": (uv, f'[pip]\nindex-url = "{mirror.url}"\n'),
        "folder in uv.toml": (uv, f'no-index = true\nfind-links = ["{mirror.folder}"]\n'),
    }
    variables = {
        "PIP_INDEX_URL": mirror.url,
        "PIP_CONFIG_FILE": str(home / "own.conf"),
        "UV_DEFAULT_INDEX": mirror.url,
        "UV_INDEX_URL": mirror.url,
        "UV_CONFIG_FILE": str(home / "own.toml"),
    }
    if how in files:
        path, content = files[how]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    else:
        monkeypatch.setenv(how, variables[how])
        (home / "own.conf").write_text(f"[global]\nindex-url = {mirror.url}\n")
        (home / "own.toml").write_text(f'index-url = "{mirror.url}"\n')


FOR_PIP = [
    *("pip.conf", "pip.conf of install", "legacy pip.conf", "two in pip.conf", "folder in pip.conf"),
    *("PIP_INDEX_URL", "PIP_CONFIG_FILE"),
]
FOR_UV = [
    *("uv.toml", "legacy uv.toml", "folder in uv.toml"),
    *("UV_DEFAULT_INDEX", "UV_INDEX_URL", "UV_CONFIG_FILE"),
]


def by_pip(lock: Path, into: Path) -> subprocess.CompletedProcess[str]:
    """Install as scripts/environment does."""
    pip = [sys.executable, "-m", "pip", "install", "--require-hashes", "--no-deps", "--no-cache-dir"]
    command = [sys.executable, "-P", str(REPOSITORY / "roles" / "mirrors.py"), *pip]
    return subprocess.run(
        [*command, "--target", str(into), "-r", str(lock)], capture_output=True, text=True, check=False
    )


def by_uv(lock: Path, into: Path) -> None:
    """Install as a deploy does for a host."""
    artifacts._install(lock, artifacts.Target("aarch64", "3.13"), into)


@pytest.mark.parametrize(
    ("install", "how"),
    [
        *(("by_uv", how) for how in (*FOR_PIP, *FOR_UV)),
        *(("by_pip", how) for how in FOR_UV),
    ],
)
def test_each_takes_it_from_the_mirror_of_the_other_and_uv_from_its_own(
    home: Path,
    mirror: Mirror,
    lock: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    install: str,
    how: str,
) -> None:
    configure(home, mirror, how, monkeypatch)
    done = {"by_pip": by_pip, "by_uv": by_uv}[install](lock, tmp_path / "into")
    assert (tmp_path / "into" / "mirror_probe.py").exists(), done
    if not how.startswith("folder"):
        assert any(path.endswith(WHEEL) for path in mirror.asked)


def test_the_kit_of_a_wheel_takes_the_file_of_the_folder_where_the_deploy_is_started(
    home: Path, mirror: Mirror, lock: Path, tmp_path: Path
) -> None:
    """Nobody puts a file into or above the folder of an installed package."""
    kit, bus = home / "site-packages" / "natskit" / "_kit", tmp_path / "bus"
    for folder in (kit / "roles", bus / "below"):
        folder.mkdir(parents=True)
    shutil.copy(REPOSITORY / "roles" / "mirrors.py", kit / "roles")
    (kit / "uv.toml").write_text('index-url = "http://127.0.0.1:1/simple"\n')
    (bus / "uv.toml").write_text(f'index-url = "{mirror.url}"\n')
    pip = [sys.executable, "-m", "pip", "install", "--require-hashes", "--no-deps", "--no-cache-dir"]
    command = [sys.executable, "-P", str(kit / "roles" / "mirrors.py"), *pip, "--target", "there", "-r", str(lock)]
    done = subprocess.run(command, cwd=bus / "below", capture_output=True, text=True, check=False)
    assert (bus / "below" / "there" / "mirror_probe.py").exists(), done.stderr
    assert any(path.endswith(WHEEL) for path in mirror.asked)


def test_a_mirror_that_serves_something_else_is_refused(
    home: Path, mirror: Mirror, lock: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(home, mirror, "pip.conf", monkeypatch)
    with zipfile.ZipFile(mirror.folder / WHEEL, "a") as wheel:
        wheel.writestr("mirror_probe_evil.py", "")
    assert "THESE PACKAGES DO NOT MATCH THE HASHES" in by_pip(lock, tmp_path / "a").stderr
    with pytest.raises(DeployError, match=r"what the hosts need cannot be fetched: .*[Hh]ash"):
        by_uv(lock, tmp_path / "b")
    assert not list(tmp_path.glob("[ab]/*.py"))


def test_each_keeps_its_own_where_both_are_configured(
    home: Path, mirror: Mirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(home, mirror, "pip.conf", monkeypatch)
    monkeypatch.setenv("UV_INDEX_URL", "http://127.0.0.1:1/uv")
    found = mirrors.environment(os.environ)
    assert "UV_DEFAULT_INDEX" not in found
    assert "PIP_INDEX_URL" not in found
    monkeypatch.setenv("SSL_CERT_FILE", "/etc/ssl/own.pem")
    monkeypatch.setenv("PIP_CERT", "/etc/ssl/company.pem")
    found = mirrors.environment(os.environ)
    assert (found["SSL_CERT_FILE"], found["PIP_CERT"]) == ("/etc/ssl/own.pem", "/etc/ssl/company.pem")


def test_names_and_passwords_of_the_mirror_are_used(
    home: Path, mirror: Mirror, lock: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the address, and from uv's variables."""
    mirror.expects = "Basic " + base64.b64encode(b"ada:a/b c").decode()
    with_password = mirror.url.replace("127.0.0.1", "ada:a%2Fb%20c@127.0.0.1")
    for variables in (
        {"PIP_INDEX_URL": with_password},
        {
            "UV_CONFIG_FILE": str(home / "uv.toml"),
            "UV_INDEX_COMPANY_USERNAME": "ada",
            "UV_INDEX_COMPANY_PASSWORD": "a/b c",
        },
    ):
        (home / "uv.toml").write_text(f'[[index]]\nname = "company"\nurl = "{mirror.url}"\ndefault = true\n')
        with monkeypatch.context() as here:
            for name, value in variables.items():
                here.setenv(name, value)
            for number, install in enumerate((by_pip, by_uv)):
                into = tmp_path / f"{len(variables)}-{number}"
                done = install(lock, into)
                assert (into / "mirror_probe.py").exists(), done


def test_what_else_pip_was_told_reaches_uv_and_node(home: Path) -> None:
    path = home / ".config" / "pip" / "pip.conf"
    path.parent.mkdir(parents=True)
    path.write_text(
        "[global]\ncert = /etc/ssl/company.pem\nproxy = http://proxy.example.org:3128\ntimeout = 90\n"
        "trusted-host =\n    mirror.example.org\n    other.example.org:8080\n"
    )
    found = mirrors.environment({"HOME": str(home), "PATH": os.environ["PATH"]})
    assert found["NODE_EXTRA_CA_CERTS"] == found["SSL_CERT_FILE"] == "/etc/ssl/company.pem"
    assert found["ALL_PROXY"] == "http://proxy.example.org:3128"
    assert found["UV_HTTP_TIMEOUT"] == "90"
    assert found["UV_INSECURE_HOST"] == "mirror.example.org other.example.org:8080"
    assert "UV_DEFAULT_INDEX" not in found
