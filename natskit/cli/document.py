"""``natskit document``: the documents of a project, which several people edit at once, and their history."""

from __future__ import annotations

import asyncio
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from natskit.cli import output
from natskit.cli.platform import json_option, show_json, show_table, with_client
from natskit.cli.project import find_project
from natskit.errors import NatskitError

if TYPE_CHECKING:
    from natskit.client import Client
    from natskit.document import Document

T = TypeVar("T")
GROUP_SECONDS = 60.0
"""Edits of one person that are at most this far apart are one row of the history."""


@click.group()
def document() -> None:
    """Read, edit and restore documents that several people edit at once.

    PROJECT is an id, or a title that no other project has. It need not run. DOCUMENT is a path, such as notes/todo.md.
    """


@document.command("retention")
@click.argument("project")
@click.option("--days", type=click.IntRange(0, 36_500), help="Thin out after so many days; 0: never.")
@click.option("--keep", type=click.Choice(["minute", "hour"]), default="minute", help="Of each, one version stays.")
@click.option("--platform", is_flag=True, help="Do as the platform's settings say.")
@json_option
@click.pass_obj
def retention(directory: str, project: str, days: int | None, keep: str, platform: bool, as_json: bool) -> None:
    """Show or set how much of the history of a project's documents stays.

    \b
    Example:
      natskit document retention "First steps" --days 90 --keep hour
    """
    if platform and days is not None:
        raise click.UsageError("give either --days or --platform")

    async def work(client: Client) -> Any:
        project_id = await _id(client, project)
        if days is None and not platform:
            return await client.call_documents(project_id, "retention")
        return await client.call_documents(project_id, "set_retention", days=days, keep=keep)

    found = with_client(directory, work)
    if as_json:
        show_json(found)
        return
    what = f"After {found['days']} days, one version of each {found['keep']}" if found["days"] else "Everything"
    click.echo(f"{what} stays ({'set for this project' if found['is_own'] else 'the platform says so'}).")


@document.command("list")
@click.argument("project")
@json_option
@click.pass_obj
def list_documents(directory: str, project: str, as_json: bool) -> None:
    """List the documents of a project.

    \b
    Example:
      natskit document list "First steps"
    """

    async def work(client: Client) -> Any:
        return await client.list_documents(await _id(client, project))

    found = with_client(directory, work)
    if as_json:
        show_json(found)
    else:
        rows = [[each["path"], each["document_id"], _when(each["created"])] for each in found]
        show_table(["document", "id", "created"], rows, "No documents.")


@document.command()
@click.argument("project")
@click.argument("path", metavar="DOCUMENT")
@click.pass_obj
def cat(directory: str, project: str, path: str) -> None:
    """Print the text of a document.

    \b
    Example:
      natskit document cat "First steps" notes.md
    """
    _print(_with_document(directory, project, path, _text))


@document.command()
@click.argument("project")
@click.argument("path", metavar="DOCUMENT")
@click.option("--create", is_flag=True, help="Make the document if there is none.")
@click.pass_obj
def edit(directory: str, project: str, path: str, create: bool) -> None:
    """Edit the text of a document in $VISUAL or $EDITOR, or take it from standard input.

    Only what was changed is sent, so that it fits between the edits that others make meanwhile.

    \b
    Examples:
      natskit document edit "First steps" notes.md
      echo "# Notes" | natskit document edit "First steps" notes.md --create
    """

    async def work(opened: Document) -> int:
        before = opened.copy()
        old = str(before["text"])
        new = await asyncio.to_thread(_edited, old, Path(path).name)
        if new != old:
            opened.edit_since(before, new)
            try:
                await opened.saved()
            except BaseException:
                with tempfile.NamedTemporaryFile("w", prefix="natskit-", newline="", delete=False) as file:
                    file.write(new)
                click.echo(f"what you wrote is in {file.name}", err=True)
                raise
        return int(new != old)

    changed = _with_document(directory, project, path, work, create=create)
    click.echo("saved" if changed else "not changed", err=True)


@document.command()
@click.argument("project")
@click.argument("path", metavar="DOCUMENT")
@json_option
@click.pass_obj
def history(directory: str, project: str, path: str, as_json: bool) -> None:
    """List who changed a document when, oldest first.

    MOMENT is what `natskit document show --at` and `restore --at` take. Edits of one person that follow within a minute
    are one row; with --json, each stored update is one.

    \b
    Example:
      natskit document history "First steps" notes.md
    """

    async def work(opened: Document) -> list[list[Any]]:
        return [row async for row in opened.history(0 if as_json else GROUP_SECONDS)]

    rows = _with_document(directory, project, path, work)
    if as_json:
        show_json([dict(zip(("sequence", "time", "author", "client", "bytes"), row, strict=True)) for row in rows])
    else:
        shown = [[str(row[0]), _when(row[1]), row[2], str(row[4])] for row in rows]
        show_table(["moment", "time", "account", "bytes"], shown, "No history.")


@document.command()
@click.argument("project")
@click.argument("path", metavar="DOCUMENT")
@click.option("--at", "moment", required=True, metavar="MOMENT", help="A moment of the history, or a time.")
@click.pass_obj
def show(directory: str, project: str, path: str, moment: str) -> None:
    """Print the text that a document had at a moment.

    A time is in this machine's time zone unless it says another, such as 2026-11-29T18:00 or 2026-11-29T17:00Z.

    \b
    Example:
      natskit document show "First steps" notes.md --at 2026-11-29T18:00
    """

    async def work(opened: Document) -> str:
        from pycrdt import Text

        doc = await opened.state_at(**_moment(moment))
        return str(doc.get("text", type=Text))

    _print(_with_document(directory, project, path, work))


@document.command()
@click.argument("project")
@click.argument("path", metavar="DOCUMENT")
@click.option("--at", "moment", required=True, metavar="MOMENT", help="A moment of the history, or a time.")
@click.pass_obj
def restore(directory: str, project: str, path: str, moment: str) -> None:
    """Bring back the text that a document had at a moment, by a new edit. Its history stays.

    \b
    Example:
      natskit document restore "First steps" notes.md --at 2026-11-29T18:00
    """

    async def work(opened: Document) -> Any:
        return await opened.restore(**_moment(moment))

    done = _with_document(directory, project, path, work)
    click.echo(f"{path} is as it was at {moment}; this is moment {done['sequence']}")


@document.command()
@click.argument("project")
@click.argument("path", metavar="DOCUMENT")
@click.argument("new", metavar="NEW_PATH")
@click.pass_obj
def rename(directory: str, project: str, path: str, new: str) -> None:
    """Give a document another path. Its history stays.

    \b
    Example:
      natskit document rename "First steps" notes.md old/notes.md
    """
    _about(directory, project, path, "rename", path=new)


@document.command()
@click.argument("project")
@click.argument("path", metavar="DOCUMENT")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def delete(directory: str, project: str, path: str, yes: bool) -> None:
    """Remove a document and its whole history from the disks. Nothing brings it back but a backup.

    \b
    Example:
      natskit document delete "First steps" notes.md
    """
    if not yes:
        click.confirm(f"Delete {path} of {project} with its history?", abort=True)
    _about(directory, project, path, "delete")


def _about(directory: str, project: str, named: str, method: str, /, **params: Any) -> Any:
    """One call about a document."""

    async def work(client: Client) -> Any:
        project_id = await _id(client, project)
        found = [each for each in await client.list_documents(project_id) if each["path"] == named]
        if not found:
            raise NatskitError(f"the project has no document {named!r}: `natskit document list` shows all")
        return await client.call_documents(project_id, method, document=found[0]["document_id"], **params)

    return with_client(directory, work)


def _with_document(
    directory: str, project: str, path: str, use: Callable[[Document], Awaitable[T]], *, create: bool = False
) -> T:
    """Open a document, and use it."""

    async def work(client: Client) -> T:
        async with client.document(await _id(client, project), path, create=create) as opened:
            return await use(opened)

    return with_client(directory, work)


async def _id(client: Client, project: str) -> str:
    return str((await find_project(client, project))["project_id"])


async def _text(opened: Document) -> str:
    return str(opened.text)


def _edited(text: str, name: str) -> str:
    """The text after an editor, or what standard input has."""
    if not sys.stdin.isatty():
        data = sys.stdin.buffer.read()
        if not data:
            raise NatskitError("standard input is empty: nothing was changed")
        return _lines(data, "standard input")
    editor = shlex.split(os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi")
    folder = tempfile.mkdtemp(prefix="natskit-")  # stays with what was written if something fails
    file = Path(folder, name)
    file.write_text(text, newline="")
    try:
        done = subprocess.run([*editor, str(file)], check=False)
    except FileNotFoundError:
        shutil.rmtree(folder)
        raise NatskitError(f"there is no editor {editor[0]}: set EDITOR") from None
    if done.returncode:
        raise NatskitError(f"{editor[0]} ended with exit code {done.returncode}: nothing was changed; see {file}")
    new = _lines(file.read_bytes(), str(file))
    shutil.rmtree(folder)
    return new


def _lines(data: bytes, place: str) -> str:
    try:
        return data.decode().replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise NatskitError(f"{place} is not UTF-8 at byte {error.start}: nothing was changed") from None


def _moment(text: str) -> dict[str, int]:
    """A moment as the service takes it."""
    if text.isdecimal():
        return {"sequence": int(text)}
    try:
        return {"time": round(datetime.fromisoformat(text).timestamp() * 1000)}
    except ValueError:
        raise NatskitError(
            f"--at {text!r}: write a moment as `natskit document history` shows it, such as 812, or a time such as "
            "2026-11-29T18:00"
        ) from None


def _when(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1000).strftime("%Y-%m-%d %H:%M:%S")


def _print(text: str) -> None:
    output.write(1, text.encode())
