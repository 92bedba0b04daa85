"""Who calls a method of the hub: the first parameter of every method, built-in or your own."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from natskit.hub.context import HubContext
from natskit.hub.state.records import Account
from natskit.rpc import RpcError

Kind = Literal["account", "project", "runner", "admin"]


@dataclass(frozen=True)
class Caller:
    """``id`` comes from the subject of the request, to which only this caller may publish, or from the session."""

    hub: HubContext
    kind: Kind
    id: str
    session_id: str | None = None
    """Known over HTTP alone."""

    @cached_property
    def key(self) -> str:
        """Its name among all callers."""
        return f"{self.kind}.{self.id}"

    @property
    def account(self) -> Account:
        """The calling account. Raises :class:`RpcError` if it was removed or disabled a moment ago."""
        account = self.hub.state.account(self.id)
        if account is None or account.disabled:
            raise RpcError("forbidden", "this account may not use the platform")
        return account
