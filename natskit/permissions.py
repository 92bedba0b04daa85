"""Who may publish and subscribe where: the one source of every permission in natskit.

The scoped signing keys of the NATS accounts, the table in the docs and the permission tests are all derived from
this module. Only allow-lists: in nats-server deny rules are the weaker tool.

A scope's ``{{tag(x)}}`` is expanded by nats-server from the tags of the user JWT, once for each tag ``x:value``
(nats-server, ``processUserPermissionsTemplate``; ADR-14 and the docs' "Scoped signing keys"). A subject whose tag is
missing is dropped from the list, so a user without tags gets nothing, never everything.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from natskit.errors import NatskitError

Role = Literal["browser", "project", "runner", "hub", "admin"]
NatsAccount = Literal["SYS", "AUTH", "PLATFORM"]

MAX_PROJECTS_PER_ACCOUNT = 4000
"""nats-server expands a template to at most 4,096 subjects a list and refuses the connect beyond that; the rest of
the room is for the fixed subjects and for a few grants made by two hubs at the same moment."""

BUCKETS = ("accounts", "projects", "memberships", "sessions", "runners")
"""The JetStream KV buckets that hold the platform's state."""

_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


@dataclass(frozen=True)
class Responses:
    """``allow_responses``: how many messages, for how long, may be sent to the reply subject of a received message.

    ``max`` is a count of messages, ``ttl`` is in seconds. nats-server starts both anew for a message with the same
    reply subject only when the right is over (client.go, ``deliverMsg``), so a long answer moves to a fresh reply
    subject in time: see natskit/stream.py.
    """

    max: int
    ttl: float


@dataclass(frozen=True)
class Permissions:
    """The subjects a role may publish to and subscribe to; a subscribe entry may name a queue group after a space."""

    publish: tuple[str, ...]
    subscribe: tuple[str, ...]
    responses: Responses | None = None
    connection_types: tuple[str, ...] = ()
    """Where the role may connect (``STANDARD``, ``WEBSOCKET``); empty means anywhere."""


def _kv_publish(bucket: str) -> tuple[str, ...]:
    """What a nats-py KV client publishes to use one bucket: its stream's API, never another stream's."""
    stream = f"KV_{bucket}"
    return (
        f"$KV.{bucket}.>",
        f"$JS.API.STREAM.INFO.{stream}",
        f"$JS.API.STREAM.CREATE.{stream}",
        f"$JS.API.STREAM.UPDATE.{stream}",
        f"$JS.API.STREAM.MSG.GET.{stream}",
        f"$JS.API.DIRECT.GET.{stream}.>",
        f"$JS.API.DIRECT.GET.{stream}",
        f"$JS.API.CONSUMER.CREATE.{stream}",
        f"$JS.API.CONSUMER.CREATE.{stream}.>",
        f"$JS.API.CONSUMER.INFO.{stream}.>",
        f"$JS.API.CONSUMER.DELETE.{stream}.>",
        f"$JS.FC.{stream}.>",
    )


_SERVICE_VERBS = ("PING", "INFO", "STATS")

SCOPES: Mapping[Role, Permissions] = {
    "browser": Permissions(
        publish=("hub.api.{{tag(account)}}", "projects.{{tag(project)}}.>"),
        subscribe=(
            "_INBOX.account.{{tag(account)}}.>",
            "events.account.{{tag(account)}}.>",
            "events.project.{{tag(project)}}.>",
        ),
        connection_types=("WEBSOCKET",),
    ),
    "project": Permissions(
        publish=("hub.project.{{tag(project)}}", "events.project.{{tag(project)}}.>"),
        subscribe=("projects.{{tag(project)}}.>", "_INBOX.project.{{tag(project)}}.>"),
        # The default, one message in two minutes, is not enough for the output of a command; nats-server keeps an
        # entry for each reply subject until the time is over, so it is short; acknowledgements bring new ones.
        responses=Responses(max=100_000, ttl=60),
    ),
    "runner": Permissions(
        publish=("hub.runner.{{tag(runner)}}",),
        subscribe=("runners.{{tag(runner)}}.>", "_INBOX.runner.{{tag(runner)}}.>"),
        responses=Responses(max=1, ttl=120),
    ),
    "hub": Permissions(
        publish=(
            "events.account.*.>",
            "runners.*.api",
            "projects.*.api",
            # Not allow_responses: at thousands of requests a second nats-server would keep as many reply entries.
            "_INBOX.account.>",
            "_INBOX.project.>",
            "_INBOX.runner.>",
            "_INBOX.admin.>",
            "$JS.API.INFO",
            *(subject for bucket in BUCKETS for subject in _kv_publish(bucket)),
        ),
        subscribe=(
            "hub.api.* hub",
            "hub.project.* hub",
            "hub.runner.* hub",
            "hub.admin hub",
            "_INBOX.hub.>",
            *(
                subject
                for verb in _SERVICE_VERBS
                for subject in (f"$SRV.{verb}", f"$SRV.{verb}.hub", f"$SRV.{verb}.hub.*")
            ),
        ),
    ),
    "admin": Permissions(
        publish=(
            "hub.admin",
            "projects.*.api",
            "projects.*.streams.*",
            *(subject for verb in _SERVICE_VERBS for subject in (f"$SRV.{verb}", f"$SRV.{verb}.>")),
        ),
        subscribe=("_INBOX.admin.>",),
    ),
}
"""The scoped signing keys of the NATS account PLATFORM, by role."""

SYSTEM_SCOPES: Mapping[Literal["hub", "admin"], Permissions] = {
    "hub": Permissions(
        publish=("$SYS.REQ.SERVER.PING", "$SYS.REQ.SERVER.PING.CONNZ", "$SYS.REQ.SERVER.*.KICK"),
        subscribe=("_INBOX.hub.>",),
    ),
    "admin": Permissions(
        publish=(
            "$SYS.REQ.SERVER.PING",
            "$SYS.REQ.SERVER.PING.>",
            "$SYS.REQ.ACCOUNT.PING.>",
            "$SYS.REQ.ACCOUNT.*.CLAIMS.LOOKUP",
            "$SYS.REQ.CLAIMS.>",
        ),
        subscribe=("_INBOX.admin.>",),
    ),
}
"""The scoped signing keys of the NATS account SYS: list and kick connections, and push and compare claims."""

CALLOUT = Permissions(
    publish=("$SYS._INBOX.>", "_INBOX.>"),
    subscribe=("$SYS.REQ.USER.AUTH hub",),
)
"""The one user of the NATS account AUTH that may do anything: a hub answering the auth callout."""


def inbox_prefix(role: Role, identifier: str = "") -> str:
    """The private inbox of a principal, for a client's ``inbox_prefix``; nobody else may subscribe to it."""
    match role:
        case "browser":
            return f"_INBOX.account.{identifier}"
        case "project" | "runner":
            return f"_INBOX.{role}.{identifier}"
        case _:
            return f"_INBOX.{role}"


def check_id(value: str, what: str) -> str:
    """Return ``value`` if it is a lower-case UUID, the only form of id natskit accepts.

    NATS lower-cases tags, so an upper-case id would name a subject nobody may use; anything with a dot or a wildcard
    would name somebody else's. Raises :class:`NatskitError`.
    """
    if not _UUID.fullmatch(value):
        raise NatskitError(
            f"{what} {value[:64]!r} is not a lower-case UUID such as 5f0c6f0e-7a3e-4c8e-9d5b-0c1f2e3d4a5b"
        )
    return value


def expand(subjects: Iterable[str], tags: Iterable[str]) -> list[str]:
    """What nats-server makes of a scope's subjects for a user with these ``name:value`` tags.

    The docs table and the permission tests use it; nats-server does its own expansion.
    """
    values: dict[str, list[str]] = {}
    for tag in tags:
        name, _, value = tag.partition(":")
        values.setdefault(name, []).append(value)
    out: list[str] = []
    for subject in subjects:
        found = re.search(r"\{\{tag\((\w+)\)\}\}", subject)
        if found is None:
            out.append(subject)
        else:
            out += [subject.replace(found[0], value) for value in values.get(found[1], [])]
    return out
