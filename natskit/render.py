"""Render the templates of every config file that lands on a host; usable without pyinfra."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jinja2
import jinja2.meta

from natskit.errors import SettingsError, TemplateError
from natskit.identity import NATS_ACCOUNTS, Identity
from natskit.identity.claims import COOKIE
from natskit.settings import Settings, load
from natskit.topology import ROLES, Topology, assemble

TEMPLATES = Path(__file__).parent.parent / "templates"

_environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(TEMPLATES),
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
    autoescape=False,
)
# JSON strings are valid strings of nats-server's and supervisor's syntax too.
_environment.filters["quote"] = lambda value: json.dumps(str(value), ensure_ascii=False)
_environment.filters["seconds"] = lambda value: None if value is None else f"{value}s"


def _lines(options: Mapping[str, Any], indent: int = 0) -> str:
    """A line of nats-server's configuration for each option that is set: ``key: value``."""
    there = {key: value for key, value in options.items() if value is not None and value not in ([], {})}
    return "".join(f"{' ' * indent}{key}: {_value(value)}\n" for key, value in there.items())


def _value(value: Any) -> str:
    return json.dumps(value, default=str, ensure_ascii=False)


_environment.filters["lines"] = _lines
_environment.filters["value"] = _value
_environment.filters["combined"] = lambda one, other: {**one, **other}


def names() -> list[str]:
    """The templates there are, without ``.j2``."""
    return sorted(path.name.removesuffix(".j2") for path in TEMPLATES.glob("*.j2"))


def render(name: str, settings: Mapping[str, Any]) -> str:
    """The content of a config file. Raises :class:`TemplateError` for an unknown template or a missing setting."""
    try:
        return _environment.get_template(f"{name}.j2").render(settings)
    except jinja2.TemplateNotFound:
        raise TemplateError(f"there is no template {name!r}: there are {', '.join(names())}") from None
    except jinja2.UndefinedError as error:
        raise TemplateError(f"template {name}: {error.message}: give it a value") from None


def derived(name: str, settings: Settings) -> dict[str, Any]:
    """The settings of a deploy and what follows from them for one template, whoever renders it."""
    root = settings.platform_root
    folder = {"nats-server.conf": root / "nats", "nginx.conf": root / "proxy"}.get(name, root)
    on_host = settings.proxy_certificate_on_host
    return settings.model_dump() | {
        "root": str(root),
        "directory": str(folder),
        "url": settings.url,
        "listen": settings.nats_host or settings.listen,
        "proxy_listen": settings.proxy_listen or settings.listen,
        "http_port": settings.http_port,
        "site_certificate": settings.proxy_certificate
        if on_host and settings.proxy_certificate
        else folder / "tls.crt",
        "site_key": settings.proxy_key if on_host and settings.proxy_key else folder / "tls.key",
        "inner": "https" if settings.platform_tls else "http",
        "cookie_name": COOKIE,
    }


def nats_values(settings: Settings, site: Topology, identity: Identity | None) -> dict[str, Any]:
    """What ``nats-server.conf`` needs; without an identity all but what comes from it."""
    directory = settings.platform_root / "nats"
    found = derived("nats-server.conf", settings) | {
        "url": site.url,
        "routes": [*site.routes_for(settings), *settings.nats_cluster_routes],
        "jetstream_directory": str(settings.jetstream_directory),
        "leafnode_credentials": [
            str(directory / f"leafnode-{number}.creds") if remote.credentials else None
            for number, remote in enumerate(settings.nats_leafnode_remotes)
        ],
    }
    if identity is None:
        return found
    keys = {account: identity.account_public_key(account) for account in NATS_ACCOUNTS}
    return found | {
        "operator_jwt": identity.operator_jwt,
        "system_account": keys["SYS"],
        "nats_accounts": keys,
        "account_jwts": {keys[account]: identity.account_jwt(account) for account in NATS_ACCOUNTS},
    }


def proxy_values(settings: Settings, site: Topology) -> dict[str, Any]:
    """What ``nginx.conf`` needs, but for where the console is and what nginx it is."""
    return derived("nginx.conf", settings) | {
        "nats_upstreams": [f"{nats.platform_address}:{nats.nats_websocket_port}" for nats in site.nats],
        "hub_upstreams": [f"{hub.platform_address}:{port}" for hub in site.hub for port in hub.hub_ports],
    }


def values(name: str, given: Mapping[str, Any], identity: Path | None = None) -> dict[str, Any]:
    """What a template needs for a platform of one host, from the settings that were ``given``.

    Raises :class:`SettingsError` for a wrong setting and :class:`IdentityError` for a wrong identity directory.
    """
    own, rest = _sorted(name, given)
    settings = load(own, "settings")
    return _values(name, settings, Topology(*((settings,),) * 4), rest, identity)


def values_of_host(
    name: str, content: Mapping[str, Any], host: str, over: Mapping[str, Any], identity: Path | None = None
) -> dict[str, Any]:
    """What a template needs for one host of a platform that is described as in ``docs/render.md``: ``hosts`` by name,
    each with its ``groups`` and settings, and settings of all beside them; ``over`` wins over both.

    Raises :class:`SettingsError` for a wrong setting of any host and :class:`IdentityError`.
    """
    own, rest = _sorted(name, over)
    load({key: value for key, value in own.items() if key not in Settings.model_fields}, "settings")
    site, known = assemble(_hosts(content, own))
    if host not in known:
        raise SettingsError(f"there is no host {host!r}: there are {', '.join(known)}")
    return _values(name, known[host], site, rest, identity)


def _hosts(content: Mapping[str, Any], over: Mapping[str, Any]) -> Iterator[tuple[str, list[str], dict[str, Any]]]:
    # Nothing is uploaded and nothing is kept, so it does not matter which folder that would be.
    shared = {"platform_control": "/nonexistent"} | {key: value for key, value in content.items() if key != "hosts"}
    hosts = content["hosts"]
    if not isinstance(hosts, Mapping) or not all(isinstance(host, Mapping) for host in hosts.values()):
        raise SettingsError("hosts must have settings by name, such as nats-1: {groups: [nats]}")
    for name, host in hosts.items():
        groups = host.get("groups", [])
        if not isinstance(groups, list) or not groups or not set(groups) <= set(ROLES):
            raise SettingsError(f"hosts, {name}: groups must be a list of some of {', '.join(ROLES)}")
        own = {key: value for key, value in host.items() if key != "groups"}
        yield str(name), groups, shared | own | dict(over)


def _values(
    name: str, settings: Settings, site: Topology, given: Mapping[str, Any], identity: Path | None
) -> dict[str, Any]:
    loaded = Identity.load(identity) if identity is not None else None
    if name == "nats-server.conf":
        found = nats_values(settings, site, loaded)
    elif name == "nginx.conf":
        found = proxy_values(settings, site) | {"http2_directive": True, "proxy_user": ""}
        found["web_root"] = str(settings.platform_programs / "console")
    else:
        found = derived(name, settings) | unit_values(name, settings, str(given.get("python") or ""))
    return found | dict(given)


def unit_values(name: str, settings: Settings, python: str = "") -> dict[str, Any]:
    """What the files of systemd and supervisor need where no deploy has installed the programs: they are taken to be
    in ``platform_programs``, nats-server as ``nats-server/VERSION/nats-server`` and natskit in the venv ``env``."""
    root, programs = settings.platform_root, settings.platform_programs
    python = python or str(programs / "env" / "bin" / "python")
    nats, hub, proxy, runner = (root / folder for folder in ("nats", settings.hub_names[0], "proxy", "runner"))
    server = f"{programs}/nats-server/{settings.nats_version}/nats-server -c {nats}/nats-server.conf"
    monitor = f"http://127.0.0.1:{settings.nats_monitor_port}"
    common: dict[str, Any] = {"environment": {}, "open_files": 16_384, "stop_seconds": 20, "user": ""}
    limits: dict[str, Any] = {
        "memory": settings.runner_project_memory,
        "cpu_percent": settings.runner_project_cpu,
        "tasks": settings.runner_project_processes,
        "file_bytes": settings.runner_project_file or "infinity",
        "open_files": 4096,
    }
    runners: dict[str, Any] = {"python": python, "runner_directory": str(runner), "state_name": "natskit-project"}
    own: dict[str, dict[str, Any]] = {
        "natskit-nats.service": {
            "user": "natskit-nats",
            "command": server,
            "reload_command": f"{python} -m natskit.reload {nats}/run/nats-server.pid {monitor}",
            "stop_seconds": settings.nats_lame_duck_duration + 30,
            "writable": settings.nats_writable,
            "memory_limit": settings.nats_memory_limit,
            "environment_file": str(nats / "environment") if settings.nats_jetstream_key_file else None,
            "mount": settings.nats_jetstream_directory,
        },
        "natskit-hub.service": {
            "name": settings.hub_names[0],
            "user": "natskit-hub",
            "directory": str(hub),
            "command": f"{python} -m natskit.hub --settings {hub}/hub.json",
            "reload_command": "/bin/kill -HUP $MAINPID",
        },
        "natskit-runner.service": runners,
        "natskit-project@.service": runners | limits,
        "nginx-natskit.conf": {
            "user": "natskit-proxy",
            "binary": "/usr/sbin/nginx",
            "directory": str(proxy),
            "port": settings.lowest_proxy_port,
        },
        "supervisor-program.conf": {
            "program": "nats",
            "command": server,
            "priority": 10,
            "stop_signal": "TERM",
            "working_directory": str(root),
        },
    }
    return common | own.get(name, {})


def _sorted(name: str, given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings in what was given, and what only the template knows; what neither knows is a typing error."""
    only = _variables(name) - set(Settings.model_fields)
    return (
        {key: value for key, value in given.items() if key not in only},
        {key: value for key, value in given.items() if key in only},
    )


def _variables(name: str) -> set[str]:
    """The names a template uses."""
    path = TEMPLATES / f"{name}.j2"
    found = jinja2.meta.find_undeclared_variables(_environment.parse(path.read_text())) if path.exists() else set()
    return found | ({"python"} if name.endswith(".service") else set())
