"""``natskit runner``: manage the runners."""

from __future__ import annotations

import click

from natskit.cli.platform import call_hub, json_option, show_json, show_table


@click.group()
def runner() -> None:
    """Manage runners: list, revoke and allow them. To add a runner, deploy."""


@runner.command("list")
@json_option
@click.pass_obj
def list_runners(directory: str, as_json: bool) -> None:
    """List the runners.

    \b
    Example:
      natskit runner list --json | jq -r '.[] | select(.alive | not) | .name'
    """
    runners = call_hub(directory, "runner_list")
    if as_json:
        show_json(runners)
        return
    rows = [[r["name"], r["runner_id"], _state(r), str(r["projects"]), str(r["running"])] for r in runners]
    show_table(["runner", "id", "state", "projects", "running"], rows, "This platform has no runners.")


@runner.command()
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
@click.pass_obj
def revoke(directory: str, name: str, yes: bool, as_json: bool) -> None:
    """Revoke a runner and its projects' agents: disconnect them at once and refuse their keys.

    Programs on that host keep running, but cannot reach the platform. The runner's projects can be stopped and moved.

    \b
    Example:
      natskit runner revoke b.example.org --yes
    """
    if not yes:
        click.confirm(f"Revoke the runner {name} and disconnect all its projects?", abort=True, err=True)
    done = call_hub(directory, "runner_revoke", name=name)
    if as_json:
        show_json(done)
    else:
        click.echo(f"{name} is revoked. Undo this with: natskit runner allow {name}")


@runner.command()
@click.argument("name")
@json_option
@click.pass_obj
def allow(directory: str, name: str, as_json: bool) -> None:
    """Allow a revoked runner again.

    \b
    Example:
      natskit runner allow b.example.org
    """
    done = call_hub(directory, "runner_allow", name=name)
    if as_json:
        show_json(done)
    else:
        click.echo(f"{name} is allowed.")


def _state(row: dict[str, object]) -> str:
    if row["revoked"]:
        return "revoked"
    return "alive" if row["alive"] else "not alive"
