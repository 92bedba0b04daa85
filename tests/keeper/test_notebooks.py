"""Notebook files and documents with cells: a hub, two keepers, a runner and a project's agent, all real."""

from __future__ import annotations

import asyncio
import json
from base64 import b64decode
from functools import partial
from typing import Any

from pycrdt import Array, Doc, Map, Text

from natskit import notebook, notebook_text
from natskit.document import Document
from natskit.project.bound import record
from natskit.project.bound.text_merge import MIDDLE, MINE, THEIRS
from tests.keeper.running import Place
from tests.kit.wait import eventually
from tests.unit.test_notebook_text import STRANGE


def cells(doc: Document) -> Array[Any]:
    found: Array[Any] = doc.doc.get("cells", type=Array)
    return found


def sources(doc: Document) -> list[str]:
    return [str(cell["source"]) for cell in cells(doc)]


def _reads(doc: Document, title: str) -> bool:
    return sources(doc)[1] == title


async def test_a_notebook_is_a_document_with_cells(place: Place) -> None:
    """People and programs edit it in turn; what nobody edited stays byte for byte."""
    file = place.file("work.ipynb")
    file.write_text(STRANGE)
    async with place.client.document(place.project, "work.ipynb", create=True) as doc:
        await eventually(lambda: sources(doc) == ["print(1)\n# é", "# Title"], "the cells arrive", 30)
        assert file.read_text() == STRANGE
        source: Text = cells(doc)[0]["source"]
        source.insert(0, "x = 1\n")
        await doc.saved(20)
        wanted = STRANGE.replace('["print(1)', '["x = 1\\n",  "print(1)')
        await place.reads("work.ipynb", wanted)
        file.write_text(wanted.replace("# Title", "# A title"))
        await eventually(lambda: sources(doc)[1] == "# A title", "what the program did arrives", 30)
        row = [row for row in await place.rows(doc.document_id) if row[2] == "disk"][-1]
        assert row[4] < 60, "a small change is a small edit"
        await place.reads("work.ipynb", wanted.replace("# Title", "# A title"))
        cell = {"cell_type": "code", "source": Text("new"), "metadata": Map({}), "outputs": Array([]), "id": "new"}
        cells(doc).append(Map({**cell, "execution_count": None, "execution_state": "idle"}))
        await doc.saved(20)
        await eventually(lambda: len(json.loads(file.read_text())["cells"]) == 3, "the cell is in the file", 30)
        assert file.read_text().startswith(wanted.replace("# Title", "# A title")[:-80])
        made = json.loads(file.read_text())
        assert "execution_state" not in made["cells"][2]
        assert made["metadata"]["big"] == 12345678901234567890
        assert not doc.file_problem


async def test_numbers_are_those_of_javascript(place: Place) -> None:
    """No integer in the document has more than 53 bits as such: yjs would make a BigInt of it."""
    place.file("numbers.ipynb").write_text(STRANGE)
    async with place.client.document(place.project, "numbers.ipynb", create=True) as doc:
        await eventually(lambda: len(cells(doc)) == 2, "the cells arrive", 30)
        updates = (await place.owner.ask(place.project, doc.document_id, "updates"))["updates"]
        content = b"".join(b64decode(update["update"]) for update in updates)
        # lib0: 122 is the tag of a BigInt; the big integer is there as a float64, tag 123.
        assert b"\x03big\x01\x7b" in content
        assert b"\x03big\x01\x7a" not in content
        assert notebook.read(doc.doc) == notebook_text.parse(STRANGE, "f")


async def test_a_new_notebook_gets_a_file(place: Place) -> None:
    async with place.client.document(place.project, "new.ipynb", create=True) as doc:
        await eventually(lambda: json.loads(place.file("new.ipynb").read_text()), "there is a file", 30)
        assert json.loads(place.file("new.ipynb").read_text())["cells"] == []
        cell = {"cell_type": "markdown", "source": Text("# New"), "metadata": Map({}), "id": "a"}
        cells(doc).append(Map(cell))
        doc.doc.get("meta", type=Map).update({"nbformat": 4.0, "nbformat_minor": 5.0})
        await doc.saved(20)
        await eventually(lambda: "# New" in place.file("new.ipynb").read_text(), "the cell is in the file", 30)


async def test_what_is_no_notebook_is_refused(place: Place) -> None:
    """A file that is no notebook, and a document that is plain text, or has cells that make none."""
    place.file("broken.ipynb").write_text("{")
    async with place.client.document(place.project, "broken.ipynb", create=True) as doc:
        await eventually(lambda: "is not a notebook of nbformat 4" in doc.file_problem, "the reason", 30)
        place.file("broken.ipynb").write_text(STRANGE)
        await eventually(lambda: len(cells(doc)) == 2, "it is mended", 30)
        del cells(doc)[0]["cell_type"]
        await doc.saved(20)
        await eventually(lambda: "cell 1 needs a 'cell_type'" in doc.file_problem, "the reason", 30)
        assert place.file("broken.ipynb").read_text() == STRANGE
    async with place.client.document(place.project, "text.ipynb", create=True, text="{}") as doc:
        await eventually(lambda: "is plain text, and its file a notebook" in doc.file_problem, "the reason", 30)


async def test_both_were_changed_while_the_project_was_stopped(place: Place) -> None:
    """Each source is merged by itself, and the file stays a notebook."""
    file = place.file("apart.ipynb")
    file.write_text(STRANGE)
    async with place.client.document(place.project, "apart.ipynb", create=True) as doc:
        await eventually(lambda: len(cells(doc)) == 2, "the cells arrive", 30)
        await eventually(lambda: doc.document_id in (place.home / record.PATH).read_text(), "it is remembered", 30)
        await place.stop()
        cells(doc)[0]["source"].insert(0, "by people\n")
        await doc.saved(20)
        file.write_text(STRANGE.replace('["print(1)', '["by the disk\\n", "print(1)'))
        await place.start()
        both = f"{MINE}by people\n{MIDDLE}by the disk\n{THEIRS}print(1)\n# é"
        await eventually(lambda: sources(doc)[0] == both, "the document has both", 30)
        await eventually(
            lambda: "".join(json.loads(file.read_text())["cells"][0]["source"]) == both, "the file has both", 30
        )
        assert '"big": 12345678901234567890, "e": 1E16' in file.read_text()


async def test_two_edit_one_cell_at_once(place: Place) -> None:
    """A person types into a cell while programs write other ones: nothing is lost."""
    file = place.file("busy.ipynb")
    file.write_text(STRANGE)
    async with place.client.document(place.project, "busy.ipynb", create=True) as doc:
        await eventually(lambda: len(cells(doc)) == 2, "the cells arrive", 30)

        async def type_on() -> None:
            for number in range(30):
                cells(doc)[0]["source"].insert(0, f"{number} ")
                await asyncio.sleep(0.03)

        typing = asyncio.create_task(type_on())
        for number in range(3):
            text = file.read_text()
            title = json.loads(text)["cells"][1]["source"]
            file.write_text(text.replace(json.dumps(title), json.dumps(f"# Title {number}")))
            wanted = f"# Title {number}"
            await eventually(partial(_reads, doc, wanted), "it arrives", 30)
        await typing
        await doc.saved(20)
        wanted = "".join(f"{number} " for number in reversed(range(30))) + "print(1)\n# é"
        assert sources(doc)[0] == wanted
        await eventually(
            lambda: "".join(json.loads(file.read_text())["cells"][0]["source"]) == wanted, "the file has all", 30
        )


async def test_a_file_without_ids_or_content(place: Place) -> None:
    """No cell is deleted for it, and opening it changes no byte."""
    file = place.file("bare.ipynb")
    bare = STRANGE.replace(' "id": "one",', "").replace(' "id": "two",', "")
    file.write_text(bare)
    async with place.client.document(place.project, "bare.ipynb", create=True) as doc:
        await eventually(lambda: len(cells(doc)) == 2, "the cells arrive", 30)
        await eventually(lambda: doc.document_id in (place.home / record.PATH).read_text(), "it is remembered", 30)
        assert file.read_text() == bare
        ids = [cell["id"] for cell in cells(doc)]
        file.write_text("")
        await eventually(lambda: "is empty" in doc.file_problem, "the reason", 30)
        cells(doc)[0]["source"].insert(0, "typed ")
        await doc.saved(20)
        file.write_text(bare.replace("# Title", "# Other"))
        await eventually(lambda: _reads(doc, "# Other"), "the file is written again", 30)
        await eventually(lambda: "typed print(1)" in file.read_text(), "what was typed is in the file", 30)
        assert [cell["id"] for cell in cells(doc)] == ids
        assert '"id"' not in file.read_text()
        assert not doc.file_problem


def test_random_edits_of_notebooks_are_small_and_right() -> None:
    old = notebook_text.parse(STRANGE, "f")
    doc: Doc[Any] = Doc()
    notebook.write(doc, old)
    for change in ("source", "outputs", "cells", "metadata"):
        wanted = json.loads(json.dumps(old))
        if change == "source":
            wanted["cells"][0]["source"] += "!"
        elif change == "outputs":
            wanted["cells"][0]["outputs"] = wanted["cells"][0]["outputs"][:1]
        elif change == "cells":
            wanted["cells"].reverse()
        else:
            wanted["metadata"]["a"] = "other"
        notebook.write(doc, wanted)
        assert notebook.read(doc) == wanted
