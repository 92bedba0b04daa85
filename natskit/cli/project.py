"""``natskit project``: the projects of everybody."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Any

import click

from natskit.cli.platform import json_option, show_json, show_table, with_client
from natskit.errors import NatskitError

if TYPE_CHECKING:
    from natskit.client import Client

ROTATED_AT_ONCE = 8
"""Each comes back to nats-server anew."""
_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@click.group()
def project() -> None:
    """Projects: list, create, share, start, stop, move, delete.

    PROJECT is an id, or a title that only one project has.
    """


@project.command("list")
@click.option("--account", "email", metavar="EMAIL", help="Only those this account may use.")
@json_option
@click.pass_obj
def list_projects(directory: str, email: str | None, as_json: bool) -> None:
    """List projects.

    \b
    Example:
      natskit project list --account ada@example.org
    """
    projects = with_client(directory, lambda client: client.call_hub("project_list", email=email))
    if as_json:
        show_json(projects)
        return
    rows = [[p["project_id"], p["title"], p["state"], _people(p)] for p in projects]
    show_table(["project", "title", "state", "people"], rows, "No projects yet.")


@project.command()
@click.argument("email")
@click.argument("title")
@json_option
@click.pass_obj
def create(directory: str, email: str, title: str, as_json: bool) -> None:
    """Create a project that the account EMAIL owns.

    \b
    Example:
      natskit project create ada@example.org "First steps"
    """
    made = with_client(directory, lambda client: client.call_hub("project_create", email=email, title=title))
    _show(made, made["project_id"], as_json)


@project.command()
@click.argument("name", metavar="PROJECT")
@click.argument("email")
@json_option
@click.pass_obj
def share(directory: str, name: str, email: str, as_json: bool) -> None:
    """Let the account EMAIL use a project; its open connections have the right at once.

    \b
    Example:
      natskit project share "First steps" bob@example.org
    """
    changed = _call(directory, "project_share", name, email=email)
    _show(changed, f"{email} may use {changed['title']!r}.", as_json)


@project.command()
@click.argument("name", metavar="PROJECT")
@click.argument("email")
@json_option
@click.pass_obj
def unshare(directory: str, name: str, email: str, as_json: bool) -> None:
    """Take a project from the account EMAIL; its open connections lose the right at once.

    \b
    Example:
      natskit project unshare "First steps" bob@example.org
    """
    changed = _call(directory, "project_unshare", name, email=email)
    _show(changed, f"{email} may no longer use {changed['title']!r}.", as_json)


@project.command()
@click.argument("name", metavar="PROJECT")
@json_option
@click.pass_obj
def start(directory: str, name: str, as_json: bool) -> None:
    """Start a project and wait until it runs.

    \b
    Example:
      natskit project start "First steps"
    """
    changed = _call(directory, "start_project", name)
    _show(changed, f"{changed['title']!r} is {changed['state']}.", as_json)


@project.command()
@click.argument("name", metavar="PROJECT")
@json_option
@click.pass_obj
def stop(directory: str, name: str, as_json: bool) -> None:
    """Stop a project and wait until it has stopped.

    \b
    Example:
      natskit project stop "First steps"
    """
    changed = _call(directory, "stop_project", name)
    _show(changed, f"{changed['title']!r} is {changed['state']}.", as_json)


@project.command()
@click.argument("name", metavar="PROJECT")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
@click.pass_obj
def delete(directory: str, name: str, yes: bool, as_json: bool) -> None:
    """Delete a project with its files.

    \b
    Example:
      natskit project delete "First steps" --yes
    """
    if not yes:
        click.confirm(f"Delete {name!r} and its files?", abort=True, err=True)
    gone = _call(directory, "project_delete", name)
    _show(gone, f"Deleted {gone['project_id']}.", as_json)


@project.command()
@click.argument("name", metavar="PROJECT")
@click.option("--runner", required=True, metavar="NAME", help="The runner that starts it from now on.")
@json_option
@click.pass_obj
def move(directory: str, name: str, runner: str, as_json: bool) -> None:
    """Have a stopped project started by another runner. Its files stay on the host where they are: copy them.

    \b
    Example:
      natskit project stop "First steps" && natskit project move "First steps" --runner c.example.org
    """
    moved = _call(directory, "project_move", name, runner=runner)
    _show(moved, f"{moved['title']!r} will be started by {runner}. Its files stay where they are.", as_json)


@project.command("rotate-keys")
@click.argument("name", metavar="PROJECT", required=False)
@click.option("--all", "every", is_flag=True, help="Every project that runs.")
@json_option
@click.pass_obj
def rotate_keys(directory: str, name: str | None, every: bool, as_json: bool) -> None:
    """Give a project that runs a new key. It goes on, with its commands; the old key is good for nothing.

    A project that does not run gets a new key when it is started, and its old one is dead already.

    \b
    Examples:
      natskit project rotate-keys "First steps"
      natskit project rotate-keys --all
    """
    if (name is None) != every:
        raise click.UsageError("say which project, or --all")

    async def work(client: Client) -> list[dict[str, Any]]:
        if name is not None:
            return [await _rotate(client, (await find_project(client, name))["project_id"])]
        return await rotate_all(client)

    done = with_client(directory, work)
    failed = [row for row in done if row.get("error")]
    if as_json:
        show_json(done)
    else:
        for row in failed:
            click.echo(f"{row['project_id']}: {row['error']}", err=True)
        rotated = sum(row["rotated"] for row in done)
        click.echo(f"{rotated} of {len(done)} have a new key." if every else _one_rotated(done[0]))
    if failed:
        raise NatskitError(f"{len(failed)} of {len(done)} projects keep their key: do it again, or stop and start them")


async def rotate_all(client: Client) -> list[dict[str, Any]]:
    """Give every project that runs a new key; what came of each, with an ``error`` for those that keep theirs."""
    running = [p for p in await client.call_hub("project_list") if p["desired"] == "running"]
    room = asyncio.Semaphore(ROTATED_AT_ONCE)

    async def one(project_id: str) -> dict[str, Any]:
        async with room:
            try:
                return await _rotate(client, project_id)
            except NatskitError as error:
                return {"project_id": project_id, "rotated": False, "error": str(error)}

    return list(await asyncio.gather(*(one(p["project_id"]) for p in running)))


async def _rotate(client: Client, project_id: str) -> dict[str, Any]:
    answer: dict[str, Any] = await client.call_hub("rotate_project_keys", wait=40, project_id=project_id)
    return answer


def _one_rotated(row: dict[str, Any]) -> str:
    return "It has a new key." if row["rotated"] else "It does not run: it gets a new key when it is started."


async def find_project(client: Client, name: str) -> dict[str, Any]:
    """The project with this id or title. Raises :class:`NatskitError` unless exactly one fits."""
    projects: list[dict[str, Any]] = await client.call_hub("project_list")
    key = "project_id" if _ID.fullmatch(name) else "title"
    found = [p for p in projects if p[key] == name]
    if not found:
        raise NatskitError(f"there is no project {name!r}: `natskit project list` shows them all")
    if len(found) > 1:
        raise NatskitError(f"{len(found)} projects are called {name!r}: use an id, {found[0]['project_id']} is one")
    return found[0]


def _call(directory: str, method: str, name: str, **params: Any) -> dict[str, Any]:
    async def work(client: Client) -> dict[str, Any]:
        found = await find_project(client, name)
        answer: dict[str, Any] = await client.call_hub(method, wait=40, project_id=found["project_id"], **params)
        return answer

    return with_client(directory, work)


def _show(answer: dict[str, Any], sentence: str, as_json: bool) -> None:
    if as_json:
        show_json(answer)
    else:
        click.echo(sentence)


def _people(row: dict[str, Any]) -> str:
    return ", ".join(person["email"] for person in row["collaborators"])
