"""``natskit document`` against a platform."""

from __future__ import annotations

import shlex

import pytest

from tests.documents import block
from tests.platform.site import Site, World

pytestmark = pytest.mark.platform
PAGE = "docs/how-to/edit-together.md"


def commands(section: str) -> list[list[str]]:
    """The commands of a section of the guide, without ``natskit``."""
    lines = block(PAGE, section, "sh").splitlines()
    return [words[words.index("natskit") + 1 :] for words in map(shlex.split, lines)]


def test_the_commands_of_the_how_to_guide_run(site: Site, world: World) -> None:
    """Make, edit, read, look back, restore, rename and delete; in a project that does not run."""
    project = site.natskit_json("project", "create", world.email_a, "Edited together")["project_id"]

    def document(command: list[str], stdin: str | None = None) -> str:
        words = [project if word == "First steps" else word for word in command]
        return site.natskit(*words, stdin=stdin).stdout

    create, edit, cat, show_all = commands("Use the command")
    document(create, "# Notes\n")
    document(edit, "# Notes\nmore 😀\n")
    assert document(cat) == "# Notes\nmore 😀\n"
    assert "notes.md" in document(show_all)
    history, show, restore = commands("Look at the history")
    assert "admin" in document(history)
    moments = site.natskit_json(*[project if word == "First steps" else word for word in history])
    assert [row["author"] for row in moments] == ["admin"] * 3
    at = str(moments[1]["sequence"])
    assert document([*show[:-1], at]) == "# Notes\n"
    document([*restore[:-1], at])
    assert document(cat) == "# Notes\n"
    thin_out, as_platform = commands("Thin out old history")
    assert document(thin_out) == "After 90 days, one version of each hour stays (set for this project).\n"
    assert document(as_platform) == "Everything stays (the platform says so).\n"
    document(["document", "rename", project, "notes.md", "old/notes.md"])
    assert document(["document", "cat", project, "old/notes.md"]) == "# Notes\n"
    refused = site.natskit("document", "show", project, "old/notes.md", "--at", "yesterday", check=False)
    assert "--at 'yesterday': write a moment" in refused.stderr
    (delete,) = commands("Remove a document for good")
    document([word if word != "notes.md" else "old/notes.md" for word in delete])
    assert "No documents." in document(show_all)
    site.natskit("project", "delete", project, "--yes")
