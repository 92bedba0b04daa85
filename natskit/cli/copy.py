"""``natskit cp``: copy files into a project, and out of it."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import click

from natskit.cli.platform import with_client
from natskit.errors import NatskitError
from natskit.validation.names import shown

if TYPE_CHECKING:
    from natskit.client import Client
    from natskit.files import ProjectFiles

MOST_SHOWN = 8
"""Files whose progress is shown."""


@dataclass(frozen=True)
class Place:
    """A path in a project, or on this machine if ``project`` is ``None``."""

    project: str | None
    path: str

    @classmethod
    def parse(cls, said: str) -> Place:
        """``PROJECT:PATH``, or a path here. One with a colon in it begins with ``./`` or ``/``."""
        project, colon, path = said.partition(":")
        if colon and project and not said.startswith((".", "/")):
            return cls(project, path.lstrip("/") or ".")
        return cls(None, said)


@click.command("cp")
@click.argument("sources", metavar="SOURCE...", nargs=-1, required=True, type=click.UNPROCESSED)
@click.argument("target", type=click.UNPROCESSED)
@click.option("--recursive", "-r", is_flag=True, help="Copy folders with all that is in them.")
@click.option("--quiet", "-q", is_flag=True, help="Show no progress.")
@click.pass_obj
def copy(directory: str, sources: tuple[str, ...], target: str, recursive: bool, quiet: bool) -> None:
    """Copy files into a project, or out of it. PROJECT:PATH is a path in a project, given by its id or title.

    A copy appears when it is complete, and keeps the file's mode and time. After an interruption, the same command
    continues where it stopped. Skips links.

    \b
    Examples:
      natskit cp data.bin "First steps:"
      natskit cp -r src "First steps:work/"
      natskit cp "First steps:results.tar" .
    """
    from_places, to = [Place.parse(said) for said in sources], Place.parse(target)
    projects = {place.project for place in from_places}
    if len(projects) != 1 or (to.project is None) == (projects == {None}):
        raise click.UsageError("copy from this machine into one project (PROJECT:PATH), or from one project here")
    name = to.project or from_places[0].project or ""

    async def work(client: Client) -> None:
        project_id = await find_running(client, name)
        with local_errors(), progress_of(quiet=quiet) as report:
            paths = [place.path for place in from_places]
            job: _Upload | _Download
            if to.project is not None:
                job = _Upload(client, project_id, report, recursive=recursive)
            else:
                job = _Download(client, project_id, report, recursive=recursive)
            await job.run(paths, to.path)

    with_client(directory, work)


Report = Callable[[str, int, int], None]
"""Is called with a file's name, the bytes that have arrived of it, and its size."""


class _Job:
    def __init__(self, client: Client, project_id: str, report: Report, *, recursive: bool) -> None:
        self._client = client
        self._project_id = project_id
        self._files: ProjectFiles = client.files(project_id)
        self._report = report
        self._recursive = recursive

    def _progress(self, name: str) -> Callable[[int, int], None]:
        return lambda done, size: self._report(name, done, size)

    def _check_recursive(self, path: str) -> None:
        if not self._recursive:
            raise NatskitError(f"{shown(path)} is a folder: add --recursive")

    async def _kind(self, path: str) -> str | None:
        """The entry at a path in the project, through a link at its end; ``None`` if there is none."""
        from natskit.rpc import RpcError

        try:
            entry = await self._client.call_project(self._project_id, "stat", path=path)
            if entry["type"] != "symlink":
                return str(entry["type"])
            await self._client.call_project(self._project_id, "stat", path=f"{path}/")
        except RpcError as error:
            if error.kind == "not_found":
                return None
            if error.kind == "invalid_params":  # a link to a file
                return "file"
            raise
        return "directory"


class _Upload(_Job):
    async def run(self, sources: list[str], target: str) -> None:
        """Copy the sources to the target, or into it if it is a folder."""
        into = target.endswith("/") or len(sources) > 1 or await self._kind(target) == "directory"
        if into:
            await self._client.call_project(self._project_id, "make_directory", path=target)
        for source in sources:
            path = Path(source)
            goal = str(PurePosixPath(target) / (path.name or path.resolve().name)) if into else target
            if path.is_dir():
                self._check_recursive(source)
                await self._tree(path, goal)
            elif not path.exists():
                raise NatskitError(f"{shown(source)} does not exist")
            else:
                await self._files.upload(path, goal, progress=self._progress(path.name))

    async def _tree(self, top: Path, goal: str) -> None:
        copies: list[tuple[Path, str]] = []
        for folder, folders, names in os.walk(top):
            there = str(PurePosixPath(goal) / Path(folder).relative_to(top).as_posix())
            await self._client.call_project(self._project_id, "make_directory", path=there)
            for name in [*folders, *names]:
                path = Path(folder, name)
                if path.is_symlink() or not (path.is_dir() or path.is_file()):
                    click.echo(f"skipped, as it is no file: {shown(str(path))}", err=True)
                elif name in names:
                    copies.append((path, f"{there}/{name}"))

        await self._files.upload_all(copies, self._report)


class _Download(_Job):
    async def run(self, sources: list[str], target: str) -> None:
        """Copy the sources to the target, or into it if it is a folder."""
        into = Path(target).is_dir()
        if not into and (target.endswith("/") or len(sources) > 1):
            raise NatskitError(f"{shown(target)} is not a folder")
        for source in sources:
            goal = Path(target, PurePosixPath(source).name) if into else Path(target)
            if await self._kind(source) == "directory":
                self._check_recursive(source)
                copies = [copy async for copy in self._tree(source, goal)]
                await self._files.download_all(copies, self._report)
            else:
                await self._files.download(source, goal, progress=self._progress(goal.name))

    async def _tree(self, top: str, goal: Path) -> AsyncIterator[tuple[str, int, Path]]:
        """The files in a folder of the project, and where they go. Makes the folders.

        No link is made here: a project could have another file written through it, anywhere on this machine.
        """
        goal.mkdir(exist_ok=True)
        async for entry in self._client.list_directory(self._project_id, top):
            name, path = entry["name"], f"{top}/{entry['name']}"
            if "/" in name or name in ("", ".", ".."):
                raise NatskitError(f"the project lists a file called {name!r}, which no file can be called")
            if entry["type"] == "directory":
                if (goal / name).is_symlink():
                    raise NatskitError(f"{shown(str(goal / name))} is a link: remove it, or copy into another folder")
                async for copy in self._tree(path, goal / name):
                    yield copy
            elif entry["type"] == "file":
                yield path, entry["size"], goal / name
            else:
                click.echo(f"skipped, as it is no file: {shown(path)}", err=True)


async def find_running(client: Client, name: str) -> str:
    """The id of a project. Raises :class:`NatskitError` if there is none, or it does not run."""
    from natskit.cli.project import find_project

    found = await find_project(client, name)
    if found["state"] != "running":
        raise NatskitError(f"project {name!r} is {found['state']}: start it first, with `natskit project start`")
    return str(found["project_id"])


@contextlib.contextmanager
def local_errors() -> Iterator[None]:
    """Turns an error about a local file into one line."""
    try:
        yield
    except OSError as error:
        raise NatskitError(f"{shown(str(error.filename or 'a file here'))}: {error.strerror or error}") from None


@contextlib.contextmanager
def progress_of(*, quiet: bool) -> Iterator[Report]:
    """Shows the progress of each file on a terminal, and nothing elsewhere."""
    if quiet or not sys.stderr.isatty():
        yield lambda *_: None
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TransferSpeedColumn

    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()
    with Progress(*columns, console=Console(stderr=True)) as bar:
        shown_now: dict[str, TaskID] = {}

        def report(name: str, done: int, size: int) -> None:
            if name not in shown_now:
                shown_now[name] = bar.add_task(escape(shown(name)), total=size)
            bar.update(shown_now[name], completed=done, total=size)
            if done == size and len(shown_now) > MOST_SHOWN:
                bar.remove_task(shown_now.pop(name))

        yield report
