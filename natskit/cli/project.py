"""``natskit project``: manage the projects of all accounts."""

from __future__ import annotations

import asyncio
import re
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from natskit.cli.move import Move, Outcome, progress
from natskit.cli.platform import json_option, list_hub, show_json, show_table, with_client
from natskit.errors import NatskitError
from natskit.validation.names import title_key

if TYPE_CHECKING:
    from natskit.client import Client

ROTATED_AT_ONCE = 8
"""Each of them reconnects to nats-server."""
ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@click.group()
def project() -> None:
    """Manage projects: list, create, share, start, stop, move and delete them.

    PROJECT is an id, or a title that no other project has and that looks like no other title.
    """


@project.command("list")
@click.option("--account", "email", metavar="EMAIL", help="Show only the projects this account may use.")
@json_option
@click.pass_obj
def list_projects(directory: str, email: str | None, as_json: bool) -> None:
    """List projects.

    \b
    Example:
      natskit project list --account ada@example.org
    """
    projects = list_hub(directory, "project_list", email=email)
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
    """Share a project with the account EMAIL. The right takes effect at once, also on open connections.

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
    """Stop sharing a project with the account EMAIL. Open connections lose the right at once.

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
    _switch(directory, "start_project", name, as_json)


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
    _switch(directory, "stop_project", name, as_json)


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
@click.option("--runner", metavar="NAME", help="The runner that starts it in future.")
@click.option("--stop", "stop_first", is_flag=True, help="Stop the project if it runs.")
@click.option("--without-files", is_flag=True, help="Leave the files behind: the project begins with those over there.")
@click.option("--cancel", is_flag=True, help="Give up a move, and remove what has arrived.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--quiet", "-q", is_flag=True, help="Show no progress.")
@json_option
@click.pass_obj
def move(
    directory: str,
    name: str,
    runner: str | None,
    stop_first: bool,
    without_files: bool,
    cancel: bool,
    yes: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Move a stopped project with its files to another runner.

    The files are copied in parts over NATS, and compared by their hashes. Then the other runner has the project, and
    the old copy is removed. Until then, nobody can start the project. If anything stops the command, run it again: it
    continues.

    \b
    Examples:
      natskit project move "First steps" --runner c.example.org --stop
      natskit project move "First steps" --cancel
    """
    if (runner is None) != cancel or (cancel and without_files):
        raise click.UsageError("name a runner with --runner, or give up a move with --cancel")
    if without_files and not yes:
        question = f"Begin {name!r} without its present files? They stay where they are, and are of no use to it"
        click.confirm(question, abort=True, err=True)

    async def work(client: Client) -> tuple[dict[str, Any], Outcome]:
        project_id = (await find_project(client, name))["project_id"]
        if stop_first and runner is not None:
            await client.call_hub("stop_project", wait=40, project_id=project_id)
        if without_files:
            return await client.call_hub("project_assign", wait=40, project_id=project_id, runner=runner), Outcome()
        with progress(quiet=quiet or as_json) as report:
            moving = Move(client, project_id, report)
            try:
                done = await (moving.cancel() if runner is None else moving.run(runner))
            except (NatskitError, asyncio.CancelledError):
                click.echo(moving.hint, nl=bool(moving.hint), err=True)
                raise
        return done, moving.outcome

    state, outcome = with_client(directory, work)
    if as_json:
        show_json(state | asdict(outcome))
        return
    if cancel:
        click.echo(f"{state['title']!r} stays on {_runner_name(state)}.")
    else:
        click.echo(f"{state['title']!r} is on {_runner_name(state)}.")
    if outcome.sha256:
        click.echo(f"{outcome.files:,} files, {outcome.size:,} bytes, verified: sha256 {outcome.sha256}")
    if outcome.left:
        click.echo(f"not moved, as they are sockets or devices: {len(outcome.left)}", err=True)
    for old in state["left_on"]:
        click.echo(
            f"What is left on {old['name']} is not removed: it is not alive. Repeat the command when it is.", err=True
        )


def _runner_name(state: dict[str, Any]) -> str:
    return str(state["runner"]["name"]) if state["runner"] else "no runner"


@project.command("rotate-keys")
@click.argument("name", metavar="PROJECT", required=False)
@click.option("--all", "every", is_flag=True, help="Rotate the keys of all running projects.")
@json_option
@click.pass_obj
def rotate_keys(directory: str, name: str | None, every: bool, as_json: bool) -> None:
    """Rotate the key of a running project. The project and its commands keep running, and the old key is refused.

    A stopped project needs no rotation: its old key is refused already, and it gets a new key when it starts.

    \b
    Examples:
      natskit project rotate-keys "First steps"
      natskit project rotate-keys --all
    """
    if (name is None) != every:
        raise click.UsageError("name one PROJECT, or use --all")

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
        click.echo(f"{rotated} of {len(done)} projects have a new key." if every else _one_rotated(done[0]))
    if failed:
        raise NatskitError(f"{len(failed)} of {len(done)} projects kept their key: try again, or restart the projects")


async def rotate_all(client: Client) -> list[dict[str, Any]]:
    """Rotate the key of every running project. A result with ``error`` means that the project kept its key."""
    running = [p for p in await client.list_hub("project_list") if p["desired"] == "running"]
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
    return "The project has a new key." if row["rotated"] else "The project is not running: its next start makes a key."


async def find_project(client: Client, name: str) -> dict[str, Any]:
    """The project with this id or title. Raises :class:`NatskitError` unless exactly one matches."""
    projects: list[dict[str, Any]] = await client.list_hub("project_list")
    if ID.fullmatch(name):
        found = [p for p in projects if p["project_id"] == name]
    else:
        found = [p for p in projects if title_key(p["title"]) == title_key(name)]
    if not found:
        raise NatskitError(f"there is no project {name!r}: `natskit project list` lists all projects")
    if len(found) > 1:
        have = "have the title" if len({p["title"] for p in found}) == 1 else "have titles that look like"
        raise NatskitError(f"{len(found)} projects {have} {name!r}: use an id, such as {found[0]['project_id']}")
    return found[0]


def _call(directory: str, method: str, name: str, **params: Any) -> dict[str, Any]:
    async def work(client: Client) -> dict[str, Any]:
        found = await find_project(client, name)
        answer: dict[str, Any] = await client.call_hub(method, wait=40, project_id=found["project_id"], **params)
        return answer

    return with_client(directory, work)


def _switch(directory: str, method: str, name: str, as_json: bool) -> None:
    changed = _call(directory, method, name)
    _show(changed, f"{changed['title']!r} is {changed['state']}.", as_json)


def _show(answer: dict[str, Any], sentence: str, as_json: bool) -> None:
    if as_json:
        show_json(answer)
    else:
        click.echo(sentence)


def _people(row: dict[str, Any]) -> str:
    return ", ".join(person["email"] for person in row["collaborators"])
