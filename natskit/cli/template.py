"""``natskit render``: the config files, for people who use Helm, Ansible or nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from natskit.errors import SettingsError, TemplateError


@click.command()
@click.argument("template", required=False)
@click.option("--settings", "file", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
              help="Settings as YAML or JSON; of one host, or of all of them by name under hosts.")  # fmt: skip
@click.option("--host", metavar="NAME", help="The host of the file whose config it is.")
@click.option("--set", "pairs", multiple=True, metavar="KEY=VALUE", help="One setting; wins over the file.")
@click.option("--list", "list_them", is_flag=True, help="List the templates.")
@click.option("--identity", type=click.Path(file_okay=False, path_type=Path), metavar="DIR",
              help="Take the operator's JWT and the NATS accounts from this identity directory.")  # fmt: skip
def render(
    template: str | None,
    file: Path | None,
    host: str | None,
    pairs: tuple[str, ...],
    list_them: bool,
    identity: Path | None,
) -> None:
    """Print a config file rendered from settings, without pyinfra and without touching anything.

    Settings not given have the defaults of a deploy; docs/settings.md has them all, docs/render.md says how to use this
    with Helm, Ansible or nothing.

    \b
    Examples:
      natskit render --list
      natskit render nginx.conf --set platform_root=/srv/natskit --set proxy_name=bus.example.org
      natskit render nats-server.conf --settings site.yaml --host nats-1 --identity .local/identity
    """
    from natskit import render as templates

    if list_them or template is None:
        click.echo("\n".join(templates.names()))
        return
    content = _read(file) if file else {}
    given = dict(_pair(pair) for pair in pairs)
    if "hosts" in content and host is None:
        raise SettingsError(f"{file} has several hosts: say which with --host, one of {', '.join(content['hosts'])}")
    if "hosts" not in content and host is not None:
        raise SettingsError(f"--host {host}: {file or 'no file'} has no hosts to choose from (docs/render.md)")
    try:
        if host is None:
            found = templates.values(template, content | given, identity)
        else:
            found = templates.values_of_host(template, content, host, given, identity)
        text = templates.render(template, found)
    except TemplateError as error:
        if any(name in str(error) for name in ("operator_jwt", "system_account", "nats_accounts", "account_jwts")):
            raise TemplateError(f"{error}, or the identity of a platform: --identity .local/identity") from None
        raise
    click.echo(text, nl=False)


def _read(path: Path) -> dict[str, Any]:
    import yaml

    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise SettingsError(f"{path} cannot be read as YAML or JSON: {error}") from None
    if not isinstance(content, dict):
        raise SettingsError(f"{path} must hold settings by name, such as nats_port: 4222")
    return content


def _pair(pair: str) -> tuple[str, Any]:
    import yaml

    key, separator, value = pair.partition("=")
    if not separator:
        raise click.BadParameter(f"{pair!r} is not KEY=VALUE", param_hint="--set")
    return key, yaml.safe_load(value)
