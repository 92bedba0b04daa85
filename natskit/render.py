"""Render the templates of every config file that lands on a host; usable without pyinfra."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from natskit.errors import TemplateError

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
_environment.filters["quote"] = json.dumps


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
