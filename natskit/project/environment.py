"""The environment of a project's commands: that of a login shell of its user, and the variables a setting adds.

Commands get no other variable of the environment that started the platform: it may hold a passphrase.
"""

from __future__ import annotations

import os
import pwd
from collections.abc import Mapping

DEFAULT_PATH = "/usr/local/bin:/usr/bin:/bin"
_PROXIES = ("http_proxy", "https_proxy", "ftp_proxy", "all_proxy", "no_proxy")
NETWORK = (
    *_PROXIES,
    *(name.upper() for name in _PROXIES),
    # Where OpenSSL, Python's requests, curl, git, pip and Node.js look for certificates of CAs.
    *("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"),
    *("GIT_SSL_CAINFO", "PIP_CERT", "NODE_EXTRA_CA_CERTS"),
)
"""The proxies and CAs a program uses to connect to other networks."""
PASSED_ON = ("PATH", "LANG", "LANGUAGE", "TZ", "TMPDIR", *NETWORK)
OWN = ("HOME", "USER", "LOGNAME", "PWD")
"""Variables that only natskit sets, like those that begin with ``NATSKIT_``."""
NO_SHELLS = ("nologin", "false")


def passed_on(environment: Mapping[str, str]) -> dict[str, str]:
    """The part of a program's environment that it passes on to commands."""
    found = {name: value for name, value in environment.items() if name in PASSED_ON or name.startswith("LC_")}
    if "PATH" in found:
        found["PATH"] = machine_path(found["PATH"])
    return found


def machine_path(path: str) -> str:
    """Remove virtual environments from a ``PATH``: natskit's own would otherwise come before the machine's Python.

    Relative entries go as well: they would name a folder of the project.
    """
    kept = [entry for entry in path.split(os.pathsep) if os.path.isabs(entry) and not _is_virtual(entry)]
    return os.pathsep.join(kept) or DEFAULT_PATH


def _is_virtual(folder: str) -> bool:
    """Whether a folder holds the programs of a virtual environment (PEP 405)."""
    places = (os.path.abspath(folder), os.path.realpath(folder))
    return any(os.path.exists(os.path.join(os.path.dirname(place), "pyvenv.cfg")) for place in places)


def of_command(
    own: Mapping[str, str], *, home: str, directory: str | None, project_id: str, setting: Mapping[str, str]
) -> dict[str, str]:
    """The environment of a command that runs in ``directory``; ``own`` is that of the agent.

    Without a ``directory`` there is no ``PWD``, and a shell finds its folder itself.
    """
    user, shell = _user(own)
    return {
        "PATH": DEFAULT_PATH,
        "LANG": "C.UTF-8",
        "TERM": "dumb",
        # Else what Python prints into a pipe arrives at its end, and not at all when it is killed before.
        "PYTHONUNBUFFERED": "1",
        "SHELL": shell,
        **passed_on(own),
        **setting,
        "HOME": home,
        "USER": user,
        "LOGNAME": user,
        **({"PWD": directory} if directory is not None else {}),
        "NATSKIT_PROJECT_ID": project_id,
    }


def of_terminal(command: Mapping[str, str], setting: Mapping[str, str]) -> dict[str, str]:
    """The environment of a program on a terminal, from that of a command: there, nothing waits in a pipe."""
    kept = {name: value for name, value in command.items() if name != "PYTHONUNBUFFERED" or name in setting}
    return {**kept, "TERM": "xterm-256color", "COLORTERM": "truecolor"}


def _user(own: Mapping[str, str]) -> tuple[str, str]:
    """The name that ``id -un`` prints, and a shell: the user's own, unless it forbids logins."""
    try:
        entry = pwd.getpwuid(os.getuid())
    except KeyError:  # a user without a name, as in some containers
        return own.get("USER") or str(os.getuid()), _shell("")
    return entry.pw_name, _shell(entry.pw_shell)


def _shell(wanted: str) -> str:
    if wanted and os.path.basename(wanted) not in NO_SHELLS and os.access(wanted, os.X_OK):
        return wanted
    return "/bin/bash" if os.access("/bin/bash", os.X_OK) else "/bin/sh"
