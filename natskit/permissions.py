"""Who may publish and subscribe where: the one source of every permission in natskit.

The scoped signing keys of the NATS accounts, the table in the docs and the permission tests are all derived from
this module. Only allow-lists: in nats-server deny rules are the weaker tool.

A scope's ``{{tag(x)}}`` is expanded by nats-server from the tags of the user JWT, once for each tag ``x:value``
(nats-server, ``processUserPermissionsTemplate``; ADR-14 and the docs' "Scoped signing keys"). A subject whose tag is
missing is dropped from the list, so a user without tags gets nothing, never everything.

Nobody has ``allow_responses``. It lets a user publish to whatever reply subject a message that reached it names, and
nats-server lets any publisher name any subject there: whoever may write to a project, and has the project's
credentials, could write ``hub.admin`` as the reply subject and then publish there as the project. So answers have
subjects of their own (:func:`answer_prefix`), and the hub, which may publish to every inbox and to its buckets,
answers nowhere but in the inbox of who asked.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from natskit.errors import NatskitError

Role = Literal["browser", "project", "runner", "hub", "admin", "probe"]
NatsAccount = Literal["SYS", "AUTH", "PLATFORM"]

MAX_PROJECTS_PER_ACCOUNT = 4000
"""nats-server expands a template to at most 4,096 subjects a list and refuses the connect beyond that; the rest of
the room is for the fixed subjects and for a few grants made by two hubs at the same moment."""

BUCKETS = ("accounts", "projects", "memberships", "sessions", "runners")
"""The JetStream KV buckets that hold the platform's state."""

PROBE_BUCKET = "probe"
"""The bucket of :mod:`natskit.gate`, which holds nothing but the last random value written at each nats-server."""

AUDIT_STREAM = "AUDIT"
"""The stream of :mod:`natskit.hub.audit`; its subjects are ``audit.{kind}.{account, or -}``."""

_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")

_SERVED = re.compile(r"(?:projects|runners)\.([^.]+)\.")


@dataclass(frozen=True)
class Permissions:
    """The subjects a role may publish to and subscribe to; a subscribe entry may name a queue group after a space."""

    publish: tuple[str, ...]
    subscribe: tuple[str, ...]
    connection_types: tuple[str, ...] = ()
    """Where the role may connect (``STANDARD``, ``WEBSOCKET``); empty means anywhere."""


STREAMS = (*(f"KV_{bucket}" for bucket in (*BUCKETS, PROBE_BUCKET)), AUDIT_STREAM)
"""What :mod:`natskit.streams` makes, and nobody deletes."""


def state_subject(bucket: str) -> str:
    """Where nats-server publishes each change of a bucket once more, for the hubs: their key follows."""
    return f"state.{bucket}."


def _state_publish(bucket: str) -> tuple[str, ...]:
    """What a hub publishes to use one bucket: write a key, read a message by its sequence, look at the stream.

    No other verb, and nothing whose answer is a message as it was stored. nats-server does not ask whether somebody
    may publish to the reply subject they name, and sends the answer there itself: with DIRECT.GET, or a consumer's
    deliver subject, an empty message becomes the request ``STREAM.DELETE`` of any stream. The answers to these are JSON
    that no such request takes (tests/nats/test_streams.py). Nor may a hub configure a stream, which makes it a copy of
    any other (``sources``), or the voice of anybody (``republish``).
    """
    stream = f"KV_{bucket}"
    return f"$KV.{bucket}.>", f"$JS.API.STREAM.INFO.{stream}", f"$JS.API.STREAM.MSG.GET.{stream}"


def _probe_publish() -> tuple[str, ...]:
    """What :mod:`natskit.gate` publishes: it uses its own bucket, and asks how the state's streams are.

    DIRECT.GET is for this server's own replica. It is safe here alone, on a nats-server's host, where the streams are
    files anyway.
    """
    stream = f"KV_{PROBE_BUCKET}"
    return (
        f"$KV.{PROBE_BUCKET}.>",
        f"$JS.API.DIRECT.GET.{stream}.>",
        *(f"$JS.API.STREAM.INFO.KV_{bucket}" for bucket in (PROBE_BUCKET, *BUCKETS)),
    )


_MAKE_STREAMS = tuple(f"$JS.API.STREAM.{verb}.{stream}" for stream in STREAMS for verb in ("INFO", "CREATE", "UPDATE"))
"""The control machine makes the streams and changes them. Nobody has DELETE, PURGE, MSG.DELETE or RESTORE."""

SYSTEM_SERVICES = ("$SYS.REQ.SERVER.PING", "$SYS.REQ.SERVER.PING.CONNZ", "$SYS.REQ.SERVER.*.KICK")
"""What PLATFORM imports from SYS: hubs look which servers there are, list PLATFORM's connections, and cut some.

Hubs have no user in SYS: on a cluster, any request there with ``$JS.API.ACCOUNT.PURGE.{NATS account}`` as its reply
subject makes the answering server delete all streams of that NATS account. What is imported is answered in PLATFORM,
where JetStream refuses that (tests/nats/test_streams.py)."""

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
        publish=(
            "hub.project.{{tag(project)}}",
            "events.project.{{tag(project)}}.>",
            "_INBOX.account.*.{{tag(project)}}.>",
            "_INBOX.hub.{{tag(project)}}.>",
            "_INBOX.admin.{{tag(project)}}.>",
        ),
        subscribe=("projects.{{tag(project)}}.>", "_INBOX.project.{{tag(project)}}.>"),
    ),
    "runner": Permissions(
        publish=("hub.runner.{{tag(runner)}}", "_INBOX.hub.{{tag(runner)}}.>"),
        subscribe=("runners.{{tag(runner)}}.>", "_INBOX.runner.{{tag(runner)}}.>"),
    ),
    "hub": Permissions(
        publish=(
            "events.account.*.>",
            "runners.*.api",
            "projects.*.api",
            "_INBOX.account.>",
            "_INBOX.project.>",
            "_INBOX.runner.>",
            "_INBOX.admin.>",
            *(subject for bucket in BUCKETS for subject in _state_publish(bucket)),
            "audit.>",
            *SYSTEM_SERVICES,
        ),
        subscribe=(
            "hub.api.* hub",
            "hub.project.* hub",
            "hub.runner.* hub",
            "hub.admin hub",
            "_INBOX.hub.>",
            *(f"{state_subject(bucket)}>" for bucket in BUCKETS),
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
            *_MAKE_STREAMS,
            f"$JS.API.DIRECT.GET.{AUDIT_STREAM}",
            *(subject for verb in _SERVICE_VERBS for subject in (f"$SRV.{verb}", f"$SRV.{verb}.>")),
        ),
        subscribe=("_INBOX.admin.>",),
    ),
    "probe": Permissions(publish=_probe_publish(), subscribe=("_INBOX.probe.>",)),
}
"""The scoped signing keys of the NATS account PLATFORM, by role."""

SYSTEM_SCOPES: Mapping[Literal["admin"], Permissions] = {
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
"""The scoped signing keys of the NATS account SYS: look at the servers, and push and compare claims."""

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


def answer_prefix(own_inbox: str, subject: str) -> str:
    """Where in one's own inbox the answer to a request on ``subject`` has to arrive.

    A project and a runner may answer in the part of an inbox that carries their id, and nowhere else.
    """
    served = _SERVED.match(subject)
    return f"{own_inbox}.{served[1]}" if served else own_inbox


def account_of_inbox(subject: str) -> str | None:
    """The account in whose inbox a subject is, if it is in one of an account's."""
    words = subject.split(".")
    return words[2] if words[:2] == ["_INBOX", "account"] and len(words) > 3 else None


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
