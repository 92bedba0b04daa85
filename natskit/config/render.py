"""Render the templates of all config files on hosts. Usable without pyinfra."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import jinja2.meta

from natskit.config.kit import kit
from natskit.config.settings import Settings, load
from natskit.config.topology import OPTIONAL_ROLES, ROLES, Topology, assemble
from natskit.errors import SettingsError, TemplateError
from natskit.identity.claims import cookie_name
from natskit.identity.identity import Identity
from natskit.runner.sandbox import ETC, HOME, HOMES, RENEWED, SHOWN

TEMPLATES = kit() / "templates"
RULES = TEMPLATES / "monitoring" / "natskit.rules.yml"
"""The alerts. No template: what is in braces there is for Prometheus."""
ALERTMANAGER = RULES.with_name("alertmanager.yml")
"""Alertmanager's configuration until somebody says whom to tell."""
PROJECT_OPEN_FILES = 4096

_environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(TEMPLATES),
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
    autoescape=False,
)
# JSON strings are also valid strings in the configuration of nats-server, nginx and supervisor.
_environment.filters["quote"] = lambda value: json.dumps(str(value), ensure_ascii=False)
_environment.filters["ini"] = lambda value: ini(str(value))
_environment.filters["seconds"] = lambda value: None if value is None else f"{value}s"


def _lines(options: Mapping[str, Any], indent: int = 0) -> str:
    """nats-server configuration: a line ``key: value`` for each option that is set."""
    there = {key: value for key, value in options.items() if value is not None and value not in ([], {})}
    return "".join(f"{' ' * indent}{key}: {_value(value)}\n" for key, value in there.items())


def _value(value: Any) -> str:
    return json.dumps(value, default=str, ensure_ascii=False)


def ini(value: str) -> str:
    """Escape text for supervisor, where % starts a variable, and ; or # after a space starts a comment. Within the
    single quotes of :func:`shlex.quote`, closing and reopening the quotes separates them from the space."""
    return re.sub(r"(?<=\s)(?=[;#])", "''", value.replace("%", "%%"))


_environment.filters["lines"] = _lines
_environment.filters["value"] = _value
_environment.filters["combined"] = lambda one, other: {**one, **other}


def names() -> list[str]:
    """The names of all templates, without ``.j2``."""
    return sorted(path.name.removesuffix(".j2") for path in TEMPLATES.glob("*.j2"))


def render(name: str, settings: Mapping[str, Any]) -> str:
    """The content of a config file. Raises :class:`TemplateError` for an unknown template or a missing setting."""
    try:
        return _environment.get_template(f"{name}.j2").render(settings)
    except jinja2.TemplateNotFound:
        raise TemplateError(f"there is no template {name!r}: use one of {', '.join(names())}") from None
    except jinja2.UndefinedError as error:
        raise TemplateError(f"template {name}: {error.message}: give it a value") from None


def derived(name: str, settings: Settings) -> dict[str, Any]:
    """The variables of one template: a deploy's settings and the values derived from them."""
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
        "hsts": settings.hsts_seconds,
        "proxy_connections": settings.proxy_connections,
        "proxy_open_files": settings.proxy_open_files,
        "site_certificate": settings.proxy_certificate
        if on_host and settings.proxy_certificate
        else folder / "tls.crt",
        "site_key": settings.proxy_key if on_host and settings.proxy_key else folder / "tls.key",
        "inner": "https" if settings.platform_tls else "http",
        "cookie_name": cookie_name(settings.url),
    }


def nats_values(settings: Settings, site: Topology, identity: Identity | None) -> dict[str, Any]:
    """The variables of ``nats-server.conf``. Without an identity, those that come from it are missing."""
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
    keys = {account: identity.account_public_key(account) for account in identity.accounts}
    return found | {
        "operator_jwt": identity.operator_jwt,
        "system_account": keys["SYS"],
        "nats_accounts": keys,
        "account_jwts": {keys[account]: identity.account_jwt(account) for account in identity.accounts},
    }


def proxy_values(settings: Settings, site: Topology) -> dict[str, Any]:
    """The variables of ``nginx.conf``, except the console's folder and nginx' kind."""
    return derived("nginx.conf", settings) | {
        "nats_upstreams": [f"{nats.platform_address}:{nats.nats_websocket_port}" for nats in site.nats],
        "hub_upstreams": [f"{hub.platform_address}:{port}" for hub in site.hub for port in hub.hub_ports],
    }


def prometheus_values(settings: Settings, site: Topology) -> dict[str, Any]:
    """The variables of ``prometheus.yml`` for one host of the group monitoring."""
    directory = settings.platform_root / "monitoring"
    hosts = [_target(host, host.metrics_port, host.platform_name) for host in site.exporter]
    hubs = [
        _target(host, host.metrics_port + number, site.hub_label(host, name))
        for host in site.hub
        if host.metrics_token_file
        for number, name in enumerate(host.hub_names, 1)
    ]
    return derived("prometheus.yml", settings) | {
        "scheme": "https" if settings.platform_tls else "http",
        "rules": str(directory / RULES.name),
        "token_file": str(directory / "token"),
        "ca_file": str(directory / "ca.crt"),
        "jobs": {"natskit-hosts": hosts, "natskit-hubs": hubs},
        "server_names": {"natskit-hosts": "exporter.natskit", "natskit-hubs": "hub.natskit"},
        "own": f"127.0.0.1:{settings.monitoring_port}",
        "alertmanager": f"127.0.0.1:{settings.monitoring_alertmanager_port}",
    }


def _target(host: Settings, port: int, name: str) -> dict[str, str]:
    return {"address": f"{host.platform_address}:{port}", "host": host.platform_name, "name": name}


def values(name: str, given: Mapping[str, Any], identity: Path | None = None) -> dict[str, Any]:
    """The variables of a template for a platform of one host, from the ``given`` settings.

    Raises :class:`SettingsError` for a wrong setting and :class:`IdentityError` for a wrong identity directory.
    """
    own, rest = _sorted(name, given)
    settings = load(own, "settings")
    return _values(name, settings, Topology(*((settings,),) * 4), rest, identity)


def values_of_host(
    name: str, content: Mapping[str, Any], host: str, over: Mapping[str, Any], identity: Path | None = None
) -> dict[str, Any]:
    """The variables of a template for one host of a platform. ``docs/how-to/render.md`` describes the format: ``hosts``
    by name, each with its ``groups`` and settings, beside the settings of all hosts. ``over`` overrides both.

    Raises :class:`SettingsError` for a wrong setting of any host and :class:`IdentityError`.
    """
    own, rest = _sorted(name, over)
    load({key: value for key, value in own.items() if key not in Settings.model_fields}, "settings")
    site, known = assemble(_hosts(content, own))
    if host not in known:
        raise SettingsError(f"there is no host {host!r}: use one of {', '.join(known)}")
    return _values(name, known[host], site, rest, identity)


def _hosts(content: Mapping[str, Any], over: Mapping[str, Any]) -> Iterator[tuple[str, list[str], dict[str, Any]]]:
    # A render uploads and stores nothing, so the folder does not matter.
    shared = {"platform_control": "/nonexistent"} | {key: value for key, value in content.items() if key != "hosts"}
    hosts = content["hosts"]
    if not isinstance(hosts, Mapping) or not all(isinstance(host, Mapping) for host in hosts.values()):
        raise SettingsError("hosts must be a mapping of names to settings, such as nats-1: {groups: [nats]}")
    for name, host in hosts.items():
        groups = host.get("groups", [])
        if not isinstance(groups, list) or not groups or not set(groups) <= {*ROLES, *OPTIONAL_ROLES}:
            known = ", ".join((*ROLES, *OPTIONAL_ROLES))
            raise SettingsError(f"hosts, {name}: groups must be a list with one or more of {known}")
        own = {key: value for key, value in host.items() if key != "groups"}
        yield str(name), groups, shared | own | dict(over)


def _values(
    name: str, settings: Settings, site: Topology, given: Mapping[str, Any], identity: Path | None
) -> dict[str, Any]:
    loaded = Identity.load(identity) if identity is not None else None
    if name == "nats-server.conf":
        found = nats_values(settings, site, loaded)
    elif name == "nginx.conf":
        found = proxy_values(settings, site) | {"http2_directive": True, "proxy_user": "", "addresses": {}}
        found["web_root"] = str(settings.platform_programs / "console")
    elif name == "prometheus.yml":
        found = prometheus_values(settings, site)
    else:
        found = derived(name, settings) | unit_values(name, settings, str(given.get("python") or ""))
    return found | dict(given)


def unit_values(name: str, settings: Settings, python: str = "") -> dict[str, Any]:
    """The variables of systemd's and supervisor's files without a deploy. The programs are assumed to be in
    ``platform_programs``: nats-server as ``nats-server/VERSION/nats-server``, natskit in the venv ``env``."""
    root, programs = settings.platform_root, settings.platform_programs
    python = python or str(programs / "env" / "bin" / "python")
    nats, hub, proxy, runner = (root / folder for folder in ("nats", settings.hub_names[0], "proxy", "runner"))
    keeper = root / settings.keeper_names[0]
    server = f"{programs}/nats-server/{settings.nats_version}/nats-server -c {nats}/nats-server.conf"
    monitor = f"http://127.0.0.1:{settings.nats_monitor_port}"
    common: dict[str, Any] = {
        "environment": {},
        "open_files": 16_384,
        "stop_seconds": 20,
        "user": "",
        "interpreter": "",
    }
    own: dict[str, dict[str, Any]] = {
        "natskit-nats.service": {
            "user": "natskit-nats",
            "command": server,
            "reload_command": f"{python} -m natskit.ops.reload {nats}/run/nats-server.pid {monitor}",
            "stop_seconds": settings.nats_stop_seconds,
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
        "natskit-keeper.service": {
            "name": settings.keeper_names[0],
            "user": "natskit-keeper",
            "directory": str(keeper),
            "command": f"{python} -m natskit.keeper --settings {keeper}/keeper.json",
        },
        "natskit-runner.service": {
            "python": python,
            "runner_directory": str(runner),
            "homes": str(HOMES),
            "metrics": str(root / "metrics"),
        },
        "natskit-exporter.service": {
            "user": "natskit-exporter",
            "directory": str(root / "exporter"),
            "command": f"{python} -m natskit.exporter --settings {root}/exporter/exporter.json",
        },
        "natskit-project@.service": project_values(settings, python, devices=settings.runner_project_devices),
        "nginx-natskit.conf": {
            "user": "natskit-proxy",
            "binary": "/usr/sbin/nginx",
            "directory": str(proxy),
            "port": settings.lowest_proxy_port,
            "open_files": settings.proxy_open_files,
        },
        **{
            f"natskit-{name}.service": {
                "user": "natskit-monitoring",
                "directory": str(root / "monitoring"),
                "command": f"/usr/bin/{binary} --config.file={root}/monitoring/{name}.yml",
            }
            for name, binary in (("prometheus", "prometheus"), ("alertmanager", "prometheus-alertmanager"))
        },
        "supervisor-program.conf": {
            "program": "nats",
            "command": server,
            "priority": 10,
            "stop_signal": "INT",
            "stop_seconds": settings.nats_stop_seconds,
            "working_directory": str(root),
        },
    }
    return common | own.get(name, {})


def project_values(
    settings: Settings,
    python: str,
    *,
    python_prefix: str = "/usr",
    devices: Sequence[str] = (),
    device_groups: Sequence[str] = (),
) -> dict[str, Any]:
    """The variables of the projects' unit: their limits, and the parts of the host that they see.

    ``python_prefix`` is the folder of the host's Python, ``devices`` are the host's device nodes that match
    ``runner_project_devices``, and ``device_groups`` are their groups.
    """
    prefix = Path(python_prefix)
    return {
        "python": python,
        "runner_directory": str(settings.platform_root / "runner"),
        "homes": str(HOMES),
        "home": str(HOME),
        "renewed": str(RENEWED),
        "memory": settings.runner_project_memory,
        "cpu_percent": settings.runner_project_cpu,
        "tasks": settings.runner_project_processes,
        "file_bytes": settings.runner_project_file or "infinity",
        "open_files": PROJECT_OPEN_FILES,
        "etc": [f"/etc/{name}" for name in ETC],
        # The folder of its virtual environment, and the Python it was made from.
        "programs": [
            str(Path(python).parent.parent),
            *([] if prefix.is_relative_to("/usr") else [str(prefix)]),
        ],
        "shown": f"{settings.runner_shown}:{SHOWN}",
        "read_only": settings.runner_project_read_only_paths,
        "read_write": settings.runner_project_read_write_paths,
        "device_paths": settings.runner_project_devices,
        "devices": list(devices),
        "device_groups": list(device_groups),
    }


def _sorted(name: str, given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split the given values into settings and variables of the template only. Any other name is an error."""
    only = _variables(name) - set(Settings.model_fields)
    return (
        {key: value for key, value in given.items() if key not in only},
        {key: value for key, value in given.items() if key in only},
    )


def _variables(name: str) -> set[str]:
    """The variables that a template uses."""
    path = TEMPLATES / f"{name}.j2"
    found = jinja2.meta.find_undeclared_variables(_environment.parse(path.read_text())) if path.exists() else set()
    return found | ({"python"} if name.endswith(".service") else set())
