"""To which keeper requests about a document go.

Any keeper answers any request, and nats-server gives each request to one of them by chance. Two keepers that take the
updates of one document in turn overtake each other, and each has to read what the other stored. So a keeper's answer
names the keeper that the others prefer for the document, and clients ask that one from then on. If it is gone, any
other one answers.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Any

from natskit.errors import AbsentError, ConnectionLostError
from natskit.rpc import RpcError

KEEPER = "keeper"
"""The member of an answer that names the keeper to ask from now on."""
MOST_DOCUMENTS = 1000
SICK = ("unavailable", "internal_error")
"""Errors of a keeper that something is wrong with: another one may do better."""


class Affinity:
    """The keepers that a client was told to ask, by the subject of a document: ``docs.{who}.{project}.{document}``."""

    def __init__(self) -> None:
        self._keepers: OrderedDict[str, str] = OrderedDict()

    async def ask(self, subject: str, send: Callable[[str], Awaitable[Any]]) -> Any:
        """Send a request about a document to its keeper, or to any if none is known. ``send`` gets the subject.

        If its keeper is not there, or says that it can do nothing now, the request goes to any other one. Raises the
        errors of ``send``.
        """
        keeper = self._keepers.get(subject)
        if keeper is not None:
            try:
                return self._noted(subject, await send(f"{subject}.{keeper}"))
            except AbsentError:
                self._keepers.pop(subject, None)
            except ConnectionLostError:
                self._keepers.pop(subject, None)
                raise
            except RpcError as error:
                if error.kind in SICK:
                    self._keepers.pop(subject, None)
                if error.kind != "unavailable":
                    raise
        return self._noted(subject, await send(subject))

    def _noted(self, subject: str, answer: Any) -> Any:
        if isinstance(answer, dict) and isinstance(keeper := answer.get(KEEPER), str):
            self._keepers[subject] = keeper
            self._keepers.move_to_end(subject)
            while len(self._keepers) > MOST_DOCUMENTS:
                self._keepers.popitem(last=False)
        return answer


def named(answer: Any, keeper: str) -> Any:
    """An answer that names a keeper."""
    return answer | {KEEPER: keeper} if isinstance(answer, dict) else answer
