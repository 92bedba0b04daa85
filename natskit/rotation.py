"""Exchange the keys of a running platform, step by step: new key in, both accepted, old key out.

:mod:`natskit.identity.rotation` says what each step writes into the identity; here is what has to be true on the
servers before the next one. Every step is written before it is acted upon and may be acted upon twice, so a rotation
that was interrupted anywhere goes on when it is started again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from typing import Protocol

from natskit.errors import NatskitError
from natskit.identity import Identity
from natskit.identity.rotation import Kind, Step

HUBS_SECONDS = 30.0
"""How long after a deploy a hub or another program of the operator may still be seen with its old creds."""


class Platform(Protocol):
    """What a rotation does to a platform. Everything raises :class:`NatskitError` when it did not succeed."""

    def push(self, identity: Identity) -> None:
        """Every nats-server uses the identity's NATS accounts."""

    def deploy(self) -> None:
        """Every host has the files of the identity, and what runs has read them."""

    def operator_keys(self, identity: Identity) -> dict[str, Collection[str]]:
        """Which keys of the operator each nats-server believes."""

    def holders(self, identity: Identity) -> dict[str, int]:
        """How many connections there are by keys that retire, by who has them: ``hub NAME``, ``browsers`` and so on."""

    def renew_projects(self) -> None:
        """Every project that runs has new creds, and uses them."""

    def wait(self, seconds: float) -> None:
        """Let time pass."""


Say = Callable[[str], None]


class Rotation:
    """One rotation, from where it is to its end."""

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
        """``cookie_seconds``: how long a cookie by an old key may be exchanged for one by the new key, over HTTP.

        ``patience``: how many seconds connections by an old key are waited for until they are cut.
        """
        self._identity = identity
        self._platform = platform
        self._say = say
        self._cookie_seconds = cookie_seconds
        self._patience = patience
        self._clock = clock

    def run(self, kind: Kind, *, urgent: bool) -> None:
        """Begin, or go on. Raises :class:`NatskitError` where it cannot go on now; then it can be run again."""
        pending = self._identity.pending_rotation
        if pending is None or pending["kind"] != kind:
            self._identity.begin_rotation(kind, now=self._now, urgent=urgent)
        else:
            self._say(f"goes on where it was interrupted: {pending['step']}")
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
                self._say("the new keys are pushed to every nats-server, beside the old ones")
                self._platform.push(self._identity)
                self._say("the hubs are told of them")
                self._platform.deploy()
            case "nats-account":
                self._say("the new keys are pushed to every nats-server, beside the old ones")
                self._platform.push(self._identity)
            case "operator-signing-key":
                self._say("every nats-server is restarted, one after the other, to believe the new key as well")
                self._platform.deploy()
                self._check_operator(self._identity.operator_keys, "does not believe the new key yet")
            case "project-keys":
                pass

    def _switch(self, kind: Kind) -> None:
        match kind:
            case "hub-keys":
                self._say("the hubs get the new keys, one after the other; runners get creds by them")
                self._platform.deploy()
                self._check_hubs()
                self._say("projects get creds by them")
                self._platform.renew_projects()
            case "nats-account":
                self._say("hubs, the probe and this machine get creds by the new keys")
                self._platform.deploy()
                self._check_hubs()
            case "operator-signing-key":
                self._say("the NATS accounts, signed by the new key, are pushed to every nats-server")
                self._platform.push(self._identity)
            case "project-keys":
                self._say("the runners get new creds, and the hubs let in both")
                self._platform.deploy()
                self._say("projects get new creds")
                self._platform.renew_projects()

    def _check_hubs(self) -> None:
        """Hubs that go on with old creds would be cut, and never come back: the deploy has not reached them."""
        deadline = self._clock() + HUBS_SECONDS
        while hubs := sorted(who for who in self._platform.holders(self._identity) if who.startswith("hub ")):
            if self._clock() > deadline:
                raise NatskitError(
                    f"{', '.join(hubs)}: still connected with old creds: see its log, and run this again"
                )
            self._platform.wait(1.0)

    def _wait_moved(self, patience: float) -> None:
        """Until nobody is connected by an old key; who still is when time is up is cut."""
        until = self._clock() + patience
        said: dict[str, int] | None = None
        while holders := self._platform.holders(self._identity):
            if self._clock() >= until:
                self._say(f"cut, and back by themselves with the new keys: {_count(holders)}")
                return
            if holders != said:
                said = holders
                self._say(f"still by the old keys: {_count(holders)}")
            self._platform.wait(1.0)

    def _drop(self, kind: Kind) -> None:
        match kind:
            case "hub-keys" | "nats-account":
                self._say("the old keys are taken from every nats-server")
                self._platform.push(self._identity)
            case "operator-signing-key":
                self._say("every nats-server is restarted, one after the other, to forget the old key")
                self._platform.deploy()
                self._check_operator(self._identity.operator_keys, "still believes the old key", exactly=True)
            case "project-keys":
                self._say("the hubs let in the new creds of runners alone")
                self._platform.deploy()

    def _check_operator(self, keys: Collection[str], otherwise: str, *, exactly: bool = False) -> None:
        own = self._identity.operator_public_key
        for server, believed in self._platform.operator_keys(self._identity).items():
            signing = set(believed) - {own}
            if not (signing == set(keys) if exactly else signing >= set(keys)):
                raise NatskitError(f"{server} {otherwise}: it reads the operator's JWT when it starts; restart it")

    @property
    def _now(self) -> int:
        return int(self._clock())


def _count(holders: dict[str, int]) -> str:
    return ", ".join(f"{count} {who}" for who, count in sorted(holders.items()))
