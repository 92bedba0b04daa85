"""The parts of its host that a project sees: those listed here and in ``templates/natskit-project@.service.j2``, those
that settings add, and no others. docs/reference/sandbox.md describes them; tests/cluster/test_seen.py compares all
three with a real project.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath

HOMES = Path("/var/lib/private/natskit-project")
"""The folder of the projects' homes on a host. The name dates from when systemd made them (``StateDirectory=``)."""
HOME = Path("/home/project")
"""The home as its project sees it: the same in every project."""
RENEWED = Path("/home/renewed")
"""The folder in which a project finds newer credentials than those of its start."""
SHOWN = Path("/run/natskit")
"""The folder in which a project finds the certificate of the platform's CA, ``ca.crt``, and the files in
:data:`FOLLOWED`."""
FOLLOWED = ("hosts", "resolv.conf")
"""Files of ``/etc`` whose changes a project sees while it runs: the network of its host may change."""
LINKS = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
"""Links into ``/usr``. A project has those that its host has."""
FOLDERS = ("dev", "etc", "home", "proc", "root", "run", "sys", "tmp", "usr", "var", "var/tmp")
"""Folders that programs expect, even if they are empty."""
ETC = (
    # How the machine is called, and how it finds others.
    *("hostname", "host.conf", "nsswitch.conf", "gai.conf", "networks"),
    *("protocols", "services", "ethertypes", "rpc"),
    # Whose certificates it trusts. Keys are in /etc/ssl/private, which is not here.
    *("ssl/certs", "ssl/openssl.cnf", "ca-certificates.conf", "pki/tls/certs", "pki/ca-trust/extracted"),
    *("crypto-policies", "gnutls"),
    # Which release it is, its time and its languages.
    *("os-release", "debian_version", "lsb-release", "localtime", "timezone"),
    *("locale.alias", "locale.conf", "default/locale"),
    # How programs find their libraries, and which of several a name stands for.
    *("ld.so.cache", "ld.so.conf", "ld.so.conf.d", "alternatives"),
    # What packages of languages and tools keep here instead of in /usr.
    *("python3", "python3.11", "python3.12", "python3.13", "perl", "R", "fonts", "OpenCL", "vulkan"),
    *("java-11-openjdk", "java-17-openjdk", "java-21-openjdk", "java-25-openjdk"),
    # How shells and terminals behave.
    *("profile", "bash.bashrc", "inputrc", "terminfo", "mime.types", "magic", "magic.mime", "nanorc", "vim"),
)
"""What a project sees of ``/etc``, where the host has it."""
WRITTEN_ETC = ("passwd", "group", "mtab")
"""Files of ``/etc`` that the runner makes for each project: users and groups of its own instead of those of the host,
and a link to the mounts that the project sees."""

_KERNEL = ("/proc", "/sys", "/dev")
_OWN = (
    str(HOME),
    str(RENEWED),
    "/etc/passwd",
    "/etc/group",
    "/etc/mtab",
    "/etc/hosts",
    "/etc/resolv.conf",
    "/tmp",
    "/var/tmp",
)
_CLOSED = (
    str(HOMES.parent),
    "/var/lib/natskit-project",
    "/run/systemd",
    "/run/credentials",
    "/run/natskit",
    "/run/natskit-project",
)
_GIVEN_DEVICES = (
    "shm",
    "pts",
    "mqueue",
    "hugepages",
    "null",
    "zero",
    "full",
    "random",
    "urandom",
    "tty",
    "ptmx",
    "log",
)
_CLOSED_DEVICES = ("mem", "kmem", "port", "kmsg", "char", "block", "disk", "mapper", "loop-control", "fd")


def clean(path: str) -> str:
    """A path as settings may name it. Raises :class:`ValueError` that says what is wrong with it."""
    if not path.startswith("/"):
        raise ValueError(f"{path!r} is not an absolute path")
    if bad := sorted({character for character in path if character in "\\\"'$%:,;" or character.isspace()}):
        raise ValueError(f"{path!r} contains {' '.join(map(repr, bad))}, which systemd gives another meaning")
    if not path.isprintable():
        raise ValueError(f"{path!r} contains an invisible character")
    if ".." in PurePosixPath(path).parts:
        raise ValueError(f"{path!r} contains ..: write the path without it")
    return "/" + str(PurePosixPath(path)).strip("/")


def why_not_shown(path: str, root: Path) -> str:
    """Why a project may not be shown this path of its host, whose ``platform_root`` is ``root``; empty if it may."""
    place = PurePosixPath(path)
    if path == "/":
        return "that is all of the host: name the folders that projects need"
    if _inside(place, _KERNEL):
        return "devices are for runner_project_devices" if _inside(place, ("/dev",)) else "the kernel's files are there"
    if path == "/etc":
        return "name the files and folders in it that projects need: others hold the host's secrets"
    if path == "/usr" or place.parts[1] in LINKS:
        return "projects see all of /usr, and that is part of it"
    if _inside(place, _OWN):
        return "each project has its own there"
    for closed in (*_CLOSED, str(root)):
        if _inside(place, (closed,)) or _inside(PurePosixPath(closed), (path,)):
            return f"{closed} is not for projects"
    for own in _OWN:
        if _inside(PurePosixPath(own), (path,)):
            return f"each project has its own {own}: name what is wanted in {path}, one by one"
    return ""


def why_no_device(path: str) -> str:
    """Why a project may not be given this device, or folder of devices; empty if it may."""
    place = PurePosixPath(path)
    if not _inside(place, ("/dev",)) or path == "/dev":
        return "a device has a path such as /dev/dri or /dev/nvidia0"
    if place.parts[2] in _GIVEN_DEVICES:
        return "every project has its own"
    if place.parts[2] in _CLOSED_DEVICES:
        return "a project with that device would control the host"
    return ""


def _inside(place: PurePosixPath, folders: tuple[str, ...]) -> bool:
    return any(place.is_relative_to(folder) for folder in folders)
