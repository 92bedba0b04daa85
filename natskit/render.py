"""Render the templates of every config file that lands on a host; usable without pyinfra."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import jinja2.meta

from natskit.errors import TemplateError
from natskit.identity import Identity
from natskit.identity.claims import COOKIE
from natskit.settings import Settings, load

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
_environment.filters["quote"] = lambda value: json.dumps(str(value))


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
    return settings.model_dump() | {
        "root": str(root),
        "directory": str(folder),
        "url": settings.url,
        "listen": settings.nats_host or settings.listen,
        "proxy_listen": settings.proxy_listen or settings.listen,
        "inner": "https" if settings.platform_tls else "http",
        "cookie_name": COOKIE,
    }


def values(name: str, given: Mapping[str, Any], identity: Path | None) -> dict[str, Any]:
    """What a template needs beyond what was ``given``: the defaults of a deploy, and what follows from them.

    Raises :class:`SettingsError` for a wrong setting and :class:`IdentityError` for a wrong identity directory.
    """
    mine = {key: value for key, value in given.items() if key not in _variables(name) - set(Settings.model_fields)}
    settings = load(mine, "settings")
    address = settings.platform_address
    found = derived(name, settings) | {
        "web_root": str(settings.platform_root / "console"),
        "routes": [],
        "nats_upstreams": [f"{address}:{settings.nats_websocket_port}"],
        "hub_upstreams": [f"{address}:{port}" for port in settings.hub_ports],
        "http2_directive": True,
        "proxy_user": "",
        "user": "",
        "open_files": 16_384,
    }
    if identity is not None:
        loaded = Identity.load(identity)
        found |= {"operator_jwt": loaded.operator_jwt, "system_account": loaded.account_public_key("SYS")}
    return found | dict(given)


def _variables(name: str) -> set[str]:
    """The names a template uses; what is neither one of them nor a setting is a typing error."""
    path = TEMPLATES / f"{name}.j2"
    return jinja2.meta.find_undeclared_variables(_environment.parse(path.read_text())) if path.exists() else set()
