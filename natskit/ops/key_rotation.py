"""Rotate the keys of a running platform, step by step: add the new key, accept both, remove the old key.

:mod:`natskit.identity.rotation` defines what each step writes into the identity. This module brings the servers to the
state that the next step needs. Every step is recorded before it is carried out, and can be repeated, so that an
interrupted rotation can continue.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from typing import Protocol

from natskit.errors import NatskitError
from natskit.identity.identity import Identity
from natskit.identity.rotation import Kind, Step

_PROGRAMS = ("hub ", "keeper ")
"""How :meth:`Platform.holders` names the programs with creds files."""
HUBS_SECONDS = 30.0
"""Maximum time after a deploy until no hub uses its old creds any more."""


class Platform(Protocol):
    """The operations a rotation needs. Each raises :class:`NatskitError` if it fails."""

    def push(self, identity: Identity) -> None:
        """Make every nats-server use the identity's NATS accounts."""

    def deploy(self) -> None:
        """Deploy the identity's files to every host, and make the running programs read them."""

    def operator_keys(self, identity: Identity) -> dict[str, Collection[str]]:
        """The operator keys that each nats-server trusts."""

    def holders(self, identity: Identity) -> dict[str, int]:
        """The number of connections that use a retiring key, by client: ``hub NAME``, ``browsers`` and so on."""

    def renew_projects(self) -> None:
        """Give new creds to every running project, and make it use them."""

    def wait(self, seconds: float) -> None:
        """Sleep."""


Say = Callable[[str], None]


class Rotation:
    """One rotation, from its current step to its end."""

    def __init__(
        self,
        identity: Identity,
        platform: Platform,
        say: Say,
        *,
        cookie_seconds: int,
        patience: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """``cookie_seconds``: how long hubs exchange a cookie signed by the old key for a new one, over HTTP.

        ``patience``: seconds until connections that use an old key are disconnected.
        """
        self._identity = identity
        self._platform = platform
        self._say = say
        self._cookie_seconds = cookie_seconds
        self._patience = patience
        self._clock = clock

    def run(self, kind: Kind, *, urgent: bool) -> None:
        """Begin or continue the rotation. After a :class:`NatskitError` it can be run again."""
        pending = self._identity.pending_rotation
        if pending is None or pending["kind"] != kind:
            self._identity.begin_rotation(kind, now=self._now, urgent=urgent)
        else:
            self._say(f"continuing with the interrupted step: {pending['step']}")
            self._identity.sign_what_is_missing(now=self._now)
            if urgent and not pending["urgent"]:
                self._identity.hurry_rotation(now=self._now)
        while pending := self._identity.pending_rotation:
            self._act(kind, pending["step"], urgent=pending["urgent"])

    def _act(self, kind: Kind, step: Step, *, urgent: bool) -> None:
        match step:
            case "offer":
                self._offer(kind)
                self._identity.switch_keys(now=self._now, cookie_seconds=self._cookie_seconds)
            case "switch":
                self._switch(kind)
                self._identity.note_moved(now=self._now)
            case "move":
                if kind == "hub-keys":
                    self._wait_moved(0 if urgent else self._patience)
                self._identity.drop_old_keys(now=self._now)
            case "drop":
                self._drop(kind)
                self._identity.end_rotation(now=self._now)

    def _offer(self, kind: Kind) -> None:
        match kind:
            case "hub-keys":
                self._say("pushing the new keys, beside the old ones, to every nats-server")
                self._platform.push(self._identity)
                self._say("deploying the new keys to the hubs")
                self._platform.deploy()
            case "nats-account":
                self._say("pushing the new keys, beside the old ones, to every nats-server")
                self._platform.push(self._identity)
            case "operator-signing-key":
                self._say("restarting every nats-server, one after the other, to trust the new key as well")
                self._platform.deploy()
                self._check_operator(self._identity.operator_keys, "does not trust the new key yet")
            case "project-keys":
                pass

    def _switch(self, kind: Kind) -> None:
        match kind:
            case "hub-keys":
                self._say("switching the hubs to the new keys, one after the other; runners get creds signed by them")
                self._platform.deploy()
                self._check_hubs()
                self._say("giving projects creds signed by the new keys")
                self._platform.renew_projects()
            case "nats-account":
                self._say("giving hubs, keepers, the probe and this machine creds signed by the new keys")
                self._platform.deploy()
                self._check_hubs()
            case "operator-signing-key":
                self._say("pushing the NATS accounts, signed by the new key, to every nats-server")
                self._platform.push(self._identity)
            case "project-keys":
                self._say("giving the runners new creds; the hubs accept both")
                self._platform.deploy()
                self._say("giving projects new creds")
                self._platform.renew_projects()

    def _check_hubs(self) -> None:
        """Wait until no hub and no keeper uses old creds: one that missed the deploy could not reconnect after this
        rotation."""
        deadline = self._clock() + HUBS_SECONDS
        while hubs := sorted(who for who in self._platform.holders(self._identity) if who.startswith(_PROGRAMS)):
            if self._clock() > deadline:
                raise NatskitError(f"{', '.join(hubs)} still uses old creds: see its log, then run this command again")
            self._platform.wait(1.0)

    def _wait_moved(self, patience: float) -> None:
        """Wait until no client uses an old key. After ``patience``, the next step disconnects the rest."""
        until = self._clock() + patience
        reported: dict[str, int] | None = None
        while holders := self._platform.holders(self._identity):
            if self._clock() >= until:
                self._say(f"disconnecting the clients that still use old keys; they reconnect: {_count(holders)}")
                return
            if holders != reported:
                reported = holders
                self._say(f"still using the old keys: {_count(holders)}")
            self._platform.wait(1.0)

    def _drop(self, kind: Kind) -> None:
        match kind:
            case "hub-keys" | "nats-account":
                self._say("removing the old keys from every nats-server")
                self._platform.push(self._identity)
            case "operator-signing-key":
                self._say("restarting every nats-server, one after the other, to forget the old key")
                self._platform.deploy()
                self._check_operator(self._identity.operator_keys, "still trusts the old key", exactly=True)
            case "project-keys":
                self._say("the hubs now accept only the new creds of runners")
                self._platform.deploy()

    def _check_operator(self, keys: Collection[str], otherwise: str, *, exactly: bool = False) -> None:
        own = self._identity.operator_public_key
        for server, trusted in self._platform.operator_keys(self._identity).items():
            signing = set(trusted) - {own}
            if not (signing == set(keys) if exactly else signing >= set(keys)):
                raise NatskitError(f"{server} {otherwise}: restart it, since it reads the operator's JWT only at start")

    @property
    def _now(self) -> int:
        return int(self._clock())


def _count(holders: dict[str, int]) -> str:
    return ", ".join(f"{count} {who}" for who, count in sorted(holders.items()))
