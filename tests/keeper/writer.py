"""People who edit documents by the bare protocol, as a client in any language would."""

from __future__ import annotations

import uuid
from base64 import b64decode, b64encode
from dataclasses import dataclass, field
from typing import Any

from pycrdt import Doc, Text

from natskit.bus.connection import Connection
from tests.hub.conftest import PASSWORD
from tests.hub.site import Site, call


@dataclass
class Person:
    """A signed-in account with its connection."""

    account: str
    email: str
    connection: Connection

    async def ask(self, project: str, document: str, method: str, **params: Any) -> Any:
        """One request about a document, or, with ``-``, about a project."""
        subject = f"docs.{self.account}.{project}.{document}"
        return await call(self.connection, subject, method, **params)

    async def hub(self, method: str, **params: Any) -> Any:
        return await call(self.connection, f"hub.api.{self.account}", method, **params)


@dataclass
class Copy:
    """One copy of a document, which sends each edit at once."""

    person: Person
    project: str
    document: str
    doc: Doc[Any] = field(default_factory=Doc)
    number: int = 0

    @property
    def text(self) -> Text:
        found: Text = self.doc.get("text", type=Text)
        return found

    async def pull(self) -> dict[str, Any]:
        opened: dict[str, Any] = await self.person.ask(
            self.project, self.document, "open", state_vector=encoded(self.doc.get_state())
        )
        self.doc.apply_update(b64decode(opened["update"]))
        return opened

    async def type(self, position: int, text: str) -> dict[str, Any]:
        before = self.doc.get_state()
        self.text.insert(position, text)
        return await self.send(self.doc.get_update(before))

    async def send(self, update: bytes, number: int | None = None) -> dict[str, Any]:
        self.number = number or self.number + 1
        stored: dict[str, Any] = await self.person.ask(
            self.project,
            self.document,
            "update",
            update=encoded(update),
            client=self.doc.client_id,
            number=self.number,
        )
        return stored


def encoded(data: bytes) -> str:
    return b64encode(data).decode()


async def person(site: Site) -> Person:
    """A new account, signed in."""
    admin = await site.admin()
    email = f"{uuid.uuid4().hex[:8]}@example.org"
    await call(admin, "hub.admin", "account_add", email=email, password=PASSWORD)
    account, cookie = await site.sign_in("hub-1", email, PASSWORD)
    return Person(account, email, await site.browser(account, cookie))


async def project_of(someone: Person) -> str:
    """A new project."""
    return str((await someone.hub("create_project", title="Documents"))["project_id"])


async def opened(someone: Person, project: str, path: str, text: str = "") -> Copy:
    """A copy of a document, which is made if there is none."""
    found = await someone.ask(project, "-", "open", path=path, create=True, text=text)
    copy = Copy(someone, project, found["document_id"])
    copy.doc.apply_update(b64decode(found["update"]))
    return copy
