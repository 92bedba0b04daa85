"""``natskit render``: render config files for Helm, Ansible or deployment by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from natskit.errors import SettingsError, TemplateError


@click.command()
@click.argument("template", required=False)
@click.option("--settings", "file", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
              help="A YAML or JSON file: the settings of one host, or of several under hosts.")  # fmt: skip
@click.option("--host", metavar="NAME", help="Render for this host of the file.")
@click.option("--set", "pairs", multiple=True, metavar="KEY=VALUE", help="Set one setting; overrides the file.")
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
    """Print a config file rendered from settings. Needs no pyinfra and changes nothing.

    Settings that are not given have a deploy's defaults. docs/reference/settings.md lists all settings;
    docs/how-to/render.md explains the use with Helm, with Ansible and by hand.

    \b
    Examples:
      natskit render --list
      natskit render nginx.conf --set platform_root=/srv/natskit --set proxy_name=bus.example.org
      natskit render nats-server.conf --settings docs/how-to/site.yaml --host nats-1 --identity .local/identity
    """
    from natskit.config import render as templates

    if list_them or template is None:
        click.echo("\n".join(templates.names()))
        return
    content = _read(file) if file else {}
    given = dict(_pair(pair) for pair in pairs)
    if "hosts" in content and host is None:
        raise SettingsError(f"{file} has several hosts: choose one with --host: {', '.join(content['hosts'])}")
    if "hosts" not in content and host is not None:
        raise SettingsError(f"--host {host}: {file or 'no settings file'} lists no hosts (docs/how-to/render.md)")
    try:
        if host is None:
            found = templates.values(template, content | given, identity)
        else:
            found = templates.values_of_host(template, content, host, given, identity)
        text = templates.render(template, found)
    except TemplateError as error:
        if any(name in str(error) for name in ("operator_jwt", "system_account", "nats_accounts", "account_jwts")):
            raise TemplateError(f"{error}, or name a platform's identity: --identity .local/identity") from None
        raise
    click.echo(text, nl=False)


def _read(path: Path) -> dict[str, Any]:
    import yaml

    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise SettingsError(f"{path} cannot be read as YAML or JSON: {error}") from None
    if not isinstance(content, dict):
        raise SettingsError(f"{path} must be a mapping of settings, such as nats_port: 4222")
    return content


def _pair(pair: str) -> tuple[str, Any]:
    import yaml

    key, separator, value = pair.partition("=")
    if not separator:
        raise click.BadParameter(f"{pair!r} must have the form KEY=VALUE", param_hint="--set")
    return key, yaml.safe_load(value)
