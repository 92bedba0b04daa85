"""``natskit sync``: make a folder in a project like one here, or the other way round."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from natskit.cli.copy import Place, Report, find_running, local_errors, progress_of
from natskit.cli.platform import with_client
from natskit.errors import NatskitError
from natskit.validation.names import shown

if TYPE_CHECKING:
    from natskit.client import Client

HASHED_AT_ONCE = 500
"""Files in one request for hashes, if their paths fit into a message."""
WAIT = 600.0
"""Seconds that the project may take for one request, such as to hash a large file."""
OWN = ".natskit-"
"""Names of natskit's unfinished files begin like this."""
KINDS = {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "symlink"}


@dataclass(frozen=True)
class Found:
    """The file, folder or link at a path of a tree."""

    kind: str
    size: int


_NOTHING = Found("nothing", 0)
Tree = dict[str, Found]
"""The node at each path below the top of a tree. A folder comes before its content."""


@dataclass
class Difference:
    """The changes that make one tree like another."""

    folders: list[str] = field(default_factory=list)
    """Folders that are missing."""
    copies: list[str] = field(default_factory=list)
    """Files that are missing, or have another size."""
    alike: list[str] = field(default_factory=list)
    """Files of the same size, whose hashes have to be compared."""
    surplus: list[str] = field(default_factory=list)
    """Paths that the source does not have. Of a folder, only the folder itself."""


def compare(source: Tree, target: Tree) -> Difference:
    """Plan the changes that make the target like the source. Ignores links, pipes and the like on both sides.

    Raises :class:`NatskitError` if a file would take the place of a folder or a link, or the other way round.
    """
    found = Difference()
    for path, one in source.items():
        other = target.get(path)
        if one.kind not in ("file", "directory"):
            continue
        if other is not None and other.kind != one.kind:
            raise NatskitError(f"{shown(path)} is a {one.kind} in the source, and a {other.kind} in the target")
        if one.kind == "directory":
            found.folders += [path] if other is None else []
        elif other is None or other.size != one.size:
            found.copies.append(path)
        else:
            found.alike.append(path)
    for path, other in target.items():
        is_below = bool(found.surplus) and path.startswith(f"{found.surplus[-1]}/")
        if path not in source and other.kind in ("file", "directory") and not is_below:
            found.surplus.append(path)
    return found


@click.command("sync")
@click.argument("source", type=click.UNPROCESSED)
@click.argument("target", type=click.UNPROCESSED)
@click.option("--delete", is_flag=True, help="Remove what SOURCE does not have.")
@click.option("--dry-run", "-n", is_flag=True, help="Only say what would be done.")
@click.option("--quiet", "-q", is_flag=True, help="Show no progress.")
@click.pass_obj
def sync(directory: str, source: str, target: str, delete: bool, dry_run: bool, quiet: bool) -> None:
    """Make the folder TARGET like the folder SOURCE. One of them is in a project: PROJECT:PATH.

    Compares files of the same size by their hashes, so a second run copies nothing. Ignores links.

    \b
    Examples:
      natskit sync src "First steps:src"
      natskit sync --delete "First steps:results" results
    """
    from_place, to_place = Place.parse(source), Place.parse(target)
    if (from_place.project is None) == (to_place.project is None):
        raise click.UsageError("one of SOURCE and TARGET is in a project (PROJECT:PATH), and the other one is here")
    is_upload = from_place.project is None
    there, here = (to_place, from_place) if is_upload else (from_place, to_place)

    async def work(client: Client) -> None:
        remote = _Remote(client, await find_running(client, there.project or ""), there.path)
        local = _Local(Path(here.path))
        with local_errors(), progress_of(quiet=quiet) as report:
            job = _Upload(remote, local, report) if is_upload else _Download(remote, local, report)
            await job.run(delete=delete, dry_run=dry_run)

    with_client(directory, work)


class _Local:
    """A folder on this machine."""

    def __init__(self, top: Path) -> None:
        self.top = top

    def tree(self) -> Tree:
        """Its content. Raises :class:`OSError` for a folder that cannot be read."""
        found: Tree = {}
        for folder, folders, names in os.walk(self.top, onerror=_raise):
            folders.sort()
            above = os.path.relpath(folder, self.top)
            for name in [*folders, *sorted(names)]:
                path = name if above == "." else f"{above}/{name}"
                status = os.lstat(self.top / path)
                found[path] = Found(KINDS.get(stat.S_IFMT(status.st_mode), "other"), status.st_size)
        return _ordered(found)

    def versions(self, paths: list[str]) -> list[str]:
        """The hashes of files."""
        found = []
        for path in paths:
            with (self.top / path).open("rb") as file:
                found.append(hashlib.file_digest(file, "sha256").hexdigest())
        return found


class _Remote:
    """A folder in a project."""

    def __init__(self, client: Client, project_id: str, top: str) -> None:
        self._client = client
        self._project_id = project_id
        self.top = top
        self.files = client.files(project_id)

    async def call(self, method: str, **params: Any) -> Any:
        """Call a method of the project."""
        return await self._client.call_project(self._project_id, method, wait=WAIT, **params)

    def path(self, path: str) -> str:
        """A path from the project's home."""
        return f"{self.top.rstrip('/')}/{path}"

    async def tree(self) -> Tree:
        """Its content."""
        found: Tree = {}
        after: str | None = ""
        while after is not None:
            page = await self.call("list_tree", path=self.top, after=after)
            for entry in page["entries"]:
                path = entry["name"]
                above, _, name = path.rpartition("/")
                # A path whose folder is not listed could lead through a link that is here.
                if (
                    path.startswith("/")
                    or name in ("", ".", "..")
                    or (above and found.get(above, _NOTHING).kind != "directory")
                ):
                    raise NatskitError(f"the project lists {path!r}, which is not in a folder that it lists")
                found[path] = Found(entry["type"], entry["size"])
            after = page["next"]
        return _ordered(found)

    async def exists(self) -> bool:
        """Whether there is such a folder."""
        from natskit.rpc import RpcError

        try:
            await self.call("stat", path=f"{self.top}/")
        except RpcError as error:
            if error.kind == "not_found":
                return False
            raise
        return True

    async def versions(self, paths: list[str]) -> list[str | None]:
        """The hashes of files; ``None`` for files that cannot be read."""
        from natskit.rpc import size_of

        found: list[str | None] = []
        some: list[str] = []
        left = room = self._client.connection.max_payload // 2
        for path in map(self.path, paths):
            needed = size_of(path) + 1
            if some and (needed > left or len(some) == HASHED_AT_ONCE):
                found += (await self.call("hash_files", paths=some))["versions"]
                some, left = [], room
            some.append(path)
            left -= needed
        if some:
            found += (await self.call("hash_files", paths=some))["versions"]
        return found


class _Job:
    def __init__(self, remote: _Remote, local: _Local, report: Report) -> None:
        self.remote = remote
        self.local = local
        self.report = report

    async def _compare(self, source: Tree, target: Tree) -> Difference:
        found = compare(source, target)
        there, here = await asyncio.gather(
            self.remote.versions(found.alike), asyncio.to_thread(self.local.versions, found.alike)
        )
        found.copies += [path for path, one, other in zip(found.alike, there, here, strict=True) if one != other]
        return found


class _Upload(_Job):
    async def run(self, *, delete: bool, dry_run: bool) -> None:
        """Make the project's folder like the one here."""
        if not self.local.top.is_dir():
            raise NatskitError(f"{shown(str(self.local.top))} is not a folder")
        exists = await self.remote.exists()
        target = await self.remote.tree() if exists else {}
        found = await self._compare(await asyncio.to_thread(self.local.tree), target)
        removed = found.surplus if delete else []
        if not dry_run:
            await self.remote.call("make_directory", path=self.remote.top)
            for path in removed:
                await self.remote.call("remove", path=self.remote.path(path))
            for path in found.folders:
                await self.remote.call("make_directory", path=self.remote.path(path))
            await self.remote.files.upload_all(
                [(self.local.top / path, self.remote.path(path)) for path in found.copies], self.report
            )
        _say(found.copies, removed, dry_run=dry_run)


class _Download(_Job):
    async def run(self, *, delete: bool, dry_run: bool) -> None:
        """Make the folder here like the project's. No file is written through a link that is here."""
        source = await self.remote.tree()
        top = self.local.top
        if top.exists() and not top.is_dir():
            raise NatskitError(f"{shown(str(top))} is not a folder")
        target = await asyncio.to_thread(self.local.tree) if top.exists() else {}
        found = await self._compare(source, target)
        removed = found.surplus if delete else []
        if not dry_run:
            top.mkdir(exist_ok=True)
            for path in removed:
                _remove(top / path)
            for path in found.folders:
                (top / path).mkdir()
            await self.remote.files.download_all(
                [(self.remote.path(path), source[path].size, top / path) for path in found.copies], self.report
            )
        _say(found.copies, removed, dry_run=dry_run)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _ordered(tree: Tree) -> Tree:
    """The tree without natskit's unfinished files. Each folder comes right before its content."""
    paths = sorted(tree, key=lambda path: path.split("/"))
    return {path: tree[path] for path in paths if not any(part.startswith(OWN) for part in path.split("/"))}


def _say(copies: list[str], removed: list[str], *, dry_run: bool) -> None:
    """For a dry run, one line for each path; otherwise the totals."""
    if dry_run:
        for what, paths in (("copy", copies), ("remove", removed)):
            for path in paths:
                click.echo(f"{what} {shown(path)}")
    else:
        click.echo(f"{len(copies)} copied, {len(removed)} removed.")


def _raise(error: OSError) -> None:
    raise NatskitError(f"{shown(str(error.filename))} cannot be read: {error.strerror}")
