"""Who calls a method of the hub: the first parameter of every method, built-in or your own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from natskit.hub.records import Account
from natskit.rpc import RpcError

if TYPE_CHECKING:
    from natskit.hub.app import Hub


WITH_ONE_TIME_PASSWORD = frozenset(
    {"ping", "whoami", "change_password", "list_sessions", "end_session", "end_all_sessions"}
)
"""What an account may ask before it has chosen its own password."""


@dataclass(frozen=True)
class Caller:
    """``id`` comes from the subject of the request, which only its owner may publish to, or from the session."""

    hub: Hub
    kind: Literal["account", "project", "runner", "admin"]
    id: str
    session_id: str | None = None
    """Known only over HTTP."""

    @property
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

    async def check_may_ask(self, method: str) -> None:
        """Raises :class:`RpcError` if the calling account may not, at this moment, call this method."""
        if self.hub.state.account(self.id) is None:
            await self.hub.state.accounts.find(self.id)  # made through another hub a moment ago
        if self.account.one_time and method not in WITH_ONE_TIME_PASSWORD:
            raise RpcError(
                "must_change_password", "you signed in with a one-time password: change it first (change_password)"
            )
