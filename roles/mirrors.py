"""Package indexes: a user's configuration for pip also applies to uv, and the other way round.

    python roles/mirrors.py COMMAND…     run a command with the environment that configures both

uv reads no pip.conf, and pip no uv.toml (docs.astral.sh/uv, "Compatibility with pip"). npm reads ~/.npmrc, and gets the
same CAs. With any mirror, the hashes in ``requirements/`` and ``package-lock.json`` decide which packages are accepted.
This module needs only Python's standard library.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

_KIT = Path(__file__).parent.parent
_BUNDLE = Path("/etc/ssl/certs/ca-certificates.crt")
"""The CAs that Debian and Ubuntu trust, including those that a company added."""


@dataclass
class Sources:
    """The configuration of pip or of uv."""

    index: str = ""
    extra: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    no_index: bool = False
    options: dict[str, str] = field(default_factory=dict)
    """Further settings, by pip's name."""

    def __bool__(self) -> bool:
        return bool(self.index or self.extra or self.links or self.no_index)


def environment(given: Mapping[str, str]) -> dict[str, str]:
    """An environment in which pip, uv and Node.js use the indexes of the user. Variables in ``given`` stay."""
    pip, uv = _of_pip(given), _of_uv(given)
    wanted = _certificates(pip, given) | _network_of(pip)
    if pip and not uv:
        wanted |= _index_for_uv(pip)
    if uv and not pip:
        wanted |= _index_for_pip(uv)
    return {name: value for name, value in wanted.items() if value} | dict(given)


def start() -> Path:
    """The folder from which uv looks upwards for the ``uv.toml`` of a project: the checkout. With an installed wheel,
    which is no place for files of the user, it is the folder in which the deploy was started."""
    return _KIT if (_KIT / "pyproject.toml").exists() else Path.cwd()


def arguments(given: Mapping[str, str]) -> list[str]:
    """Options for uv's command line, for which uv has no variable."""
    return ["--no-index"] if _of_pip(given).no_index and not _of_uv(given) else []


def _of_pip(given: Mapping[str, str]) -> Sources:
    """The configuration in pip's variables and files. Options of ``pip install`` override those of all commands."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "config", "list"]
    done = subprocess.run(command, env=dict(given), capture_output=True, text=True, check=False)
    found: dict[str, str] = {}
    for section in ("global", "install", ":env:"):
        for line in done.stdout.splitlines():
            name, separator, value = line.partition("=")
            if separator and name.startswith(f"{section}."):
                found[name.removeprefix(f"{section}.")] = str(ast.literal_eval(value))
    no_index = found.get("no-index", "").lower() in ("1", "true", "yes", "on", "y", "t")
    extra, links = found.pop("extra-index-url", "").split(), found.pop("find-links", "").split()
    return Sources(found.pop("index-url", ""), extra, links, no_index, found)


def _of_uv(given: Mapping[str, str]) -> Sources:
    """The configuration in uv's variables or, if they name no index, in the first of its files that does."""
    found = Sources(
        given.get("UV_DEFAULT_INDEX") or given.get("UV_INDEX_URL", ""),
        [
            re.sub(r"^[\w.-]+=", "", url)
            for name in ("UV_INDEX", "UV_EXTRA_INDEX_URL")
            for url in given.get(name, "").split()
        ],
        [link for link in given.get("UV_FIND_LINKS", "").split(",") if link],
    )
    for path in _files_of_uv(given):
        if not found:
            found = _in_file(path, given)
    return found


def _files_of_uv(given: Mapping[str, str]) -> Iterator[Path]:
    """The files of the project, the user and the machine (docs.astral.sh/uv, "Configuration files")."""
    if given.get("UV_CONFIG_FILE"):
        yield Path(given["UV_CONFIG_FILE"])
    elif not given.get("UV_NO_CONFIG"):
        for folder in (start(), *start().parents):
            yield folder / "uv.toml"
        home = given.get("HOME") or "/"
        yield Path(given.get("XDG_CONFIG_HOME") or f"{home}/.config", "uv", "uv.toml")
        for shared in (given.get("XDG_CONFIG_DIRS") or "/etc/xdg").split(":"):
            yield Path(shared, "uv", "uv.toml")
        yield Path("/etc/uv/uv.toml")


def _in_file(path: Path, given: Mapping[str, str]) -> Sources:
    try:
        content = tomllib.loads(path.read_text())
    except (OSError, ValueError):  # missing, or invalid, which uv itself reports
        return Sources()
    settings: dict[str, Any] = content | content.get("pip", {})
    found = Sources(
        settings.get("index-url", ""),
        list(settings.get("extra-index-url", [])),
        list(settings.get("find-links", [])),
        bool(settings.get("no-index")),
    )
    for index in content.get("index", []):
        url = _with_credentials(index, given)
        if index.get("default"):
            found.index = url
        elif not index.get("explicit"):
            found.extra.append(url)
    return found


def _with_credentials(index: Mapping[str, Any], given: Mapping[str, str]) -> str:
    """An index's URL with the user and password that uv reads from ``UV_INDEX_{NAME}_USERNAME`` and ``…_PASSWORD``."""
    prefix = "UV_INDEX_" + re.sub(r"[^A-Z0-9]", "_", str(index.get("name", "")).upper())
    user, password = given.get(f"{prefix}_USERNAME", ""), given.get(f"{prefix}_PASSWORD", "")
    parts = urlsplit(str(index["url"]))
    if not (user or password) or "@" in parts.netloc:
        return str(index["url"])
    return urlunsplit(parts._replace(netloc=f"{quote(user, safe='')}:{quote(password, safe='')}@{parts.netloc}"))


def _index_for_uv(pip: Sources) -> dict[str, str]:
    return {
        "UV_DEFAULT_INDEX": pip.index,
        "UV_INDEX": " ".join(pip.extra),
        "UV_FIND_LINKS": ",".join(pip.links),
        # pip's strategy, which is safe with hashes. By default uv uses the first index that has the package.
        "UV_INDEX_STRATEGY": "unsafe-best-match",
    }


def _index_for_pip(uv: Sources) -> dict[str, str]:
    return {
        "PIP_INDEX_URL": uv.index,
        "PIP_EXTRA_INDEX_URL": " ".join(uv.extra),
        "PIP_FIND_LINKS": " ".join(uv.links),
        "PIP_NO_INDEX": "1" if uv.no_index else "",
    }


def _certificates(pip: Sources, given: Mapping[str, str]) -> dict[str, str]:
    """One file of CAs for all. Without one, uv trusts the CAs of the machine, as pip does."""
    own = pip.options.get("cert", "")
    return {
        "SSL_CERT_FILE": own,
        "NODE_EXTRA_CA_CERTS": own or given.get("SSL_CERT_FILE", ""),
        "SSL_CLIENT_CERT": pip.options.get("client-cert", ""),
        "UV_SYSTEM_CERTS": "true" if _BUNDLE.exists() and not own else "",
    }


def _network_of(pip: Sources) -> dict[str, str]:
    return {
        "UV_INSECURE_HOST": " ".join(pip.options.get("trusted-host", "").split()),
        "ALL_PROXY": pip.options.get("proxy", ""),
        "UV_HTTP_TIMEOUT": pip.options.get("timeout") or pip.options.get("default-timeout", ""),
        "UV_KEYRING_PROVIDER": "subprocess" if pip.options.get("keyring-provider") == "subprocess" else "",
    }


if __name__ == "__main__":
    more = arguments(os.environ) if Path(sys.argv[1]).name == "uv" else []
    os.execvpe(sys.argv[1], [*sys.argv[1:], *more], environment(os.environ))  # noqa: S606
