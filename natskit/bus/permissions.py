"""The subjects each role may publish to and subscribe to: the one source of every permission in natskit.

The scoped signing keys of the NATS accounts, the table in the docs and the permission tests are all derived from
this module. It uses allow-lists only: in nats-server deny rules are the weaker tool.

A scope's ``{{tag(x)}}`` is expanded by nats-server from the tags of the user JWT, once for each tag ``x:value``
(nats-server, ``processUserPermissionsTemplate``; ADR-14 and the docs' "Scoped signing keys"). A subject whose tag is
missing is dropped from the list, so a user without tags gets nothing, never everything.

No role has ``allow_responses``. It lets a user publish to the reply subject of any message it received, and nats-server
lets a publisher name any subject there: an attacker who may write to a project, and has the project's credentials,
could name ``hub.admin`` as the reply subject and then publish there as the project. So answers have subjects of their
own (:func:`answer_prefix`), and the hub, which may publish to every inbox, answers only in the inbox of the caller.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from natskit.errors import NatskitError

Role = Literal["browser", "project", "runner", "hub", "keeper", "admin", "probe"]
NatsAccount = Literal["SYS", "AUTH", "PLATFORM", "STATE", "DOCS"]
Answers = Literal["Singleton", "Stream"]
"""Whether a service answers with one message or with several (jwt v2, ``ResponseType``)."""

MAX_PROJECTS_PER_ACCOUNT = 4000
"""nats-server expands a template to at most 4,096 subjects per list, and refuses the connect beyond that. The remaining
96 are for the fixed subjects, and for grants that two hubs make at the same moment."""

ANSWER_BYTES, ANSWER_BYTES_PER_PROJECT = 4096, 84
"""The size of a hub's answer to the auth callout: everything but the projects, at most, and a tag for each project. The
tags are in a JWT within a JWT, both in base64."""


def projects_that_fit(max_payload: int) -> int:
    """The most projects an account can connect with, if a message may have ``max_payload`` bytes."""
    return (max_payload - ANSWER_BYTES) // ANSWER_BYTES_PER_PROJECT


BUCKETS = ("accounts", "projects", "memberships", "sessions", "runners")
"""The JetStream KV buckets that hold the platform's state."""

PROBE_BUCKET = "probe"
"""The bucket of :mod:`natskit.ops.restart_gate`, which holds nothing but the last random value written at each
nats-server."""

AUDIT_STREAM = "AUDIT"
"""The stream of :mod:`natskit.hub.audit.events`; its subjects are ``audit.{kind}.{account, or -}``."""

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
"""The streams of the NATS account STATE, which :mod:`natskit.ops.stream_provisioning` makes."""


def state_subject(bucket: str) -> str:
    """The prefix of the subjects on which nats-server republishes each change of a bucket to hubs and keepers; the key
    follows."""
    return f"state.{bucket}."


StateVerb = Literal["read", "find", "info"]

_STATE_VERBS: Mapping[StateVerb, tuple[str, Answers]] = {
    "read": ("DIRECT.GET", "Stream"),
    "find": ("STREAM.MSG.GET", "Singleton"),
    "info": ("STREAM.INFO", "Singleton"),
}


def state_service(verb: StateVerb, bucket: str) -> str:
    """The subject of a service of STATE, where it is imported: ``read`` many messages of a bucket, from any replica;
    ``find`` one, and ask for ``info`` about the stream, both from its leader.

    It is not that of JetStream's API, which answers in every NATS account
    (findings/nats-server-imported-jetstream-api-answers-twice.sh)."""
    return f"{verb}.{bucket}"


def _exported(verb: StateVerb, bucket: str) -> str:
    return f"$JS.API.{_STATE_VERBS[verb][0]}.KV_{bucket}"


def _state_publish(bucket: str) -> tuple[str, ...]:
    """The subjects a hub needs for one bucket: write a key, read messages, and ask about the stream."""
    return f"$KV.{bucket}.>", *(state_service(verb, bucket) for verb in _STATE_VERBS)


def _probe_publish() -> tuple[str, ...]:
    """The subjects :mod:`natskit.ops.restart_gate` needs: its own bucket, and the health of the state's streams.

    DIRECT.GET reads this server's own replica. The probe runs on a nats-server's host, which has the streams as files.
    """
    stream = f"KV_{PROBE_BUCKET}"
    return (
        f"$KV.{PROBE_BUCKET}.>",
        f"$JS.API.DIRECT.GET.{stream}.>",
        *(f"$JS.API.STREAM.INFO.KV_{bucket}" for bucket in (PROBE_BUCKET, *BUCKETS)),
    )


_MAKE_STREAMS = tuple(f"$JS.API.STREAM.{verb}.{stream}" for stream in STREAMS for verb in ("INFO", "CREATE", "UPDATE"))
"""The control machine makes the streams and changes them. No role has DELETE, PURGE, MSG.DELETE or RESTORE
there; a keeper has PURGE for the streams of DOCS."""

STATE_SCOPES: Mapping[Literal["admin", "probe"], Permissions] = {
    "admin": Permissions(publish=(*_MAKE_STREAMS, f"$JS.API.DIRECT.GET.{AUDIT_STREAM}"), subscribe=("_INBOX.admin.>",)),
    "probe": Permissions(publish=_probe_publish(), subscribe=("_INBOX.probe.>",)),
}
"""The scoped signing keys of the NATS account STATE, which holds the state and the audit log, and nothing else.

Hubs and keepers have no user there: they use what their own NATS accounts import (:data:`IMPORTED_SERVICES`). A service
sends its answer to the reply subject that its caller names, and nats-server does not check whether the caller may
publish there. For an imported service that subject is one of the importing NATS account, and nats-server hands such an
answer to subscribers alone, never to another import or to JetStream (tests/nats/test_stream_provisioning.py). So an
answer can neither configure a stream nor write a key. Where hubs import, only hubs subscribe: in AUTH, and not in
PLATFORM, where a stored value could so become a request to anybody.

``probe`` is a user of STATE, and writes and reads its own bucket: with such a reply subject, its creds can configure or
delete each stream. They are only on hosts of nats-servers, which have the streams as files."""

SYSTEM_SERVICES = ("$SYS.REQ.SERVER.PING", "$SYS.REQ.SERVER.PING.CONNZ", "$SYS.REQ.SERVER.*.KICK")
"""The services PLATFORM imports from SYS: hubs find the servers, list PLATFORM's connections, and disconnect clients.

Hubs have no user in SYS: on a cluster, any request there with ``$JS.API.ACCOUNT.PURGE.{NATS account}`` as its reply
subject makes the answering server delete all streams of that NATS account. Imported services answer in PLATFORM, which
has no JetStream (tests/nats/test_stream_provisioning.py)."""

CONNECTION_EVENTS = {"opened": "CONNECT", "closed": "DISCONNECT"}
"""What nats-server says of the connections of a NATS account in SYS, on ``$SYS.ACCOUNT.{account}.CONNECT`` and
``.DISCONNECT``. PLATFORM imports what is said of itself, as :func:`connections_subject` (the third word is the account
that may import: ``account_token_position``, jwt v2 ``Export``)."""


def connections_subject(event: str) -> str:
    """Where hubs hear of connections that were ``opened`` and ``closed``."""
    return f"connections.{event}"


_SERVICE_VERBS = ("PING", "INFO", "STATS")


def _service(name: str) -> tuple[str, ...]:
    """The subjects on which a service of the NATS micro framework is found (ADR-32)."""
    return tuple(
        subject
        for verb in _SERVICE_VERBS
        for subject in (f"$SRV.{verb}", f"$SRV.{verb}.{name}", f"$SRV.{verb}.{name}.*")
    )


DOCUMENT_SHARDS = 4
"""The number of streams that hold all documents. A project's documents are in one of them: the CRC-32 of the project's
id, modulo this. So it is no setting: with another number, keepers would look for documents where they are not."""

DOCUMENT_STREAMS = tuple(f"DOC_{number}" for number in range(DOCUMENT_SHARDS))
"""The streams of the NATS account DOCS."""

DOCUMENT_KINDS = ("doc", "snap", "mark", "map")
"""The first words of subjects in DOCS: updates, snapshots, names of versions, and the paths of a project's documents.
The shard, the project and, but for ``map``, the document follow."""

DOCUMENT_EVENTS = "events.project.*.doc.*"
"""On which nats-server republishes each stored update in DOCS. PLATFORM imports it. A project may not publish there: it
could show its members updates that nobody stored, with authors who did not write them."""

DISK = "disk"
"""In the place of an account: the project's agent, which asks for the documents of its own project alone. What it makes
of the changes of files has this author (:mod:`natskit.project.bound`)."""

KEEPER_BEATS = "keepers.*"
"""On ``keepers.{id}`` a keeper says that it is there, so that all of them prefer the same one for a document. Nobody
else may: clients would be sent to a keeper that is none (:mod:`natskit.bus.affinity`)."""

_READ_BUCKETS = ("memberships", "projects")
"""The buckets of the state that a keeper follows, to know who may use which project."""

_KEEP_DOCUMENTS = ("DIRECT.GET", "STREAM.MSG.GET", "STREAM.INFO", "STREAM.PURGE")

_READ_STATE = tuple(state_service(verb, bucket) for bucket in _READ_BUCKETS for verb in _STATE_VERBS)

DOCUMENT_SCOPES: Mapping[Literal["keeper", "admin", "probe"], Permissions] = {
    "keeper": Permissions(
        publish=(
            *(f"{kind}.>" for kind in DOCUMENT_KINDS),
            *(f"$JS.API.{verb}.{stream}" for stream in DOCUMENT_STREAMS for verb in _KEEP_DOCUMENTS),
            *_READ_STATE,
        ),
        subscribe=(
            "_INBOX.keeper.>",
            DOCUMENT_EVENTS,
            *(f"{state_subject(bucket)}>" for bucket in _READ_BUCKETS),
        ),
    ),
    "admin": Permissions(
        publish=tuple(f"$JS.API.STREAM.{verb}.{s}" for s in DOCUMENT_STREAMS for verb in ("INFO", "CREATE", "UPDATE")),
        subscribe=("_INBOX.admin.>",),
    ),
    # A description of a stream says nothing of what is in it.
    "probe": Permissions(
        publish=tuple(f"$JS.API.STREAM.INFO.{stream}" for stream in DOCUMENT_STREAMS),
        subscribe=("_INBOX.probe.>",),
    ),
}
"""The scoped signing keys of the NATS account DOCS, which holds the documents and nothing else. A keeper may purge a
document, and so all of them. Of the state it can read who may use which project, and can change nothing."""

SCOPES: Mapping[Role, Permissions] = {
    "browser": Permissions(
        publish=("hub.api.{{tag(account)}}", "projects.{{tag(project)}}.>", "docs.{{tag(author)}}.>"),
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
            "events.project.{{tag(project)}}.*",
            "_INBOX.account.*.{{tag(project)}}.>",
            "_INBOX.hub.{{tag(project)}}.>",
            "_INBOX.admin.{{tag(project)}}.>",
            f"docs.{DISK}.{{{{tag(project)}}}}.*",
            f"docs.{DISK}.{{{{tag(project)}}}}.*.*",
        ),
        subscribe=(
            "projects.{{tag(project)}}.>",
            "_INBOX.project.{{tag(project)}}.>",
            "events.project.{{tag(project)}}.doc.*",
            "events.project.{{tag(project)}}.documents.changed",
        ),
    ),
    "runner": Permissions(
        publish=("hub.runner.{{tag(runner)}}", "_INBOX.hub.{{tag(runner)}}.>", "_INBOX.admin.{{tag(runner)}}.>"),
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
            *SYSTEM_SERVICES,
        ),
        subscribe=(
            "hub.api.* hub",
            "hub.project.* hub",
            "hub.runner.* hub",
            "hub.admin hub",
            "_INBOX.hub.>",
            *(connections_subject(event) for event in CONNECTION_EVENTS),
            *_service("hub"),
        ),
    ),
    "keeper": Permissions(
        publish=(
            "_INBOX.account.>",
            "_INBOX.admin.>",
            "_INBOX.project.>",
            "events.project.*.presence.*",
            "events.project.*.documents.changed",
            KEEPER_BEATS,
        ),
        subscribe=(
            "docs.*.*.* keeper",
            "docs.*.*.*.* keeper",
            KEEPER_BEATS,
            "_INBOX.keeper.>",
            *_service("keeper"),
        ),
    ),
    "admin": Permissions(
        publish=(
            "hub.admin",
            "projects.*.api",
            "projects.*.streams.*",
            "runners.*.move",
            "runners.*.backup",
            "docs.admin.>",
            *(subject for verb in _SERVICE_VERBS for subject in (f"$SRV.{verb}", f"$SRV.{verb}.>")),
        ),
        subscribe=("_INBOX.admin.>", "events.project.*.doc.*", "events.project.*.presence.*"),
    ),
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
"""The scoped signing keys of the NATS account SYS: query the servers, and push and compare claims."""

SCOPES_OF: Mapping[NatsAccount, Mapping[str, Permissions]] = {
    "SYS": dict(SYSTEM_SCOPES.items()),
    "PLATFORM": dict(SCOPES.items()),
    "STATE": dict(STATE_SCOPES.items()),
    "DOCS": dict(DOCUMENT_SCOPES.items()),
}
"""The scoped signing keys, by NATS account. AUTH has none: its only user with rights is :data:`HUB_IN_AUTH`."""

HUB_IN_AUTH = Permissions(
    publish=(
        "$SYS._INBOX.>",
        "_INBOX.>",
        *(subject for bucket in BUCKETS for subject in _state_publish(bucket)),
        "audit.>",
    ),
    subscribe=(
        "$SYS.REQ.USER.AUTH hub",
        "_INBOX.hub.>",
        *(f"{state_subject(bucket)}>" for bucket in BUCKETS),
    ),
)
"""The only user of the NATS account AUTH with any rights: a hub, which answers the auth callout there, and uses the
state."""


class Import(NamedTuple):
    """A subject of another NATS account, and its name in the one that imports it."""

    account: NatsAccount
    subject: str
    here: str


_STATE_SERVICES: Mapping[str, Answers] = {
    **{f"$KV.{bucket}.>": "Singleton" for bucket in BUCKETS},
    **{_exported(verb, b): answers for b in BUCKETS for verb, (_, answers) in _STATE_VERBS.items()},
    "audit.>": "Singleton",
}

EXPORTED_SERVICES: Mapping[NatsAccount, Mapping[str, Answers]] = {
    # Every server answers, not one.
    "SYS": dict.fromkeys(SYSTEM_SERVICES, "Stream"),
    "STATE": _STATE_SERVICES,
}
"""The services that NATS accounts offer to each other, by the subject there."""

EXPORTED_STREAMS: Mapping[NatsAccount, tuple[str, ...]] = {
    "STATE": tuple(f"{state_subject(bucket)}>" for bucket in BUCKETS),
    "DOCS": (DOCUMENT_EVENTS,),
}
"""The messages that NATS accounts let each other follow."""


def _read_services(buckets: Iterable[str]) -> Iterable[Import]:
    for bucket in buckets:
        yield from (Import("STATE", _exported(verb, bucket), state_service(verb, bucket)) for verb in _STATE_VERBS)


IMPORTED_SERVICES: Mapping[NatsAccount, tuple[Import, ...]] = {
    "AUTH": (
        *(Import("STATE", subject, subject) for subject in (*(f"$KV.{bucket}.>" for bucket in BUCKETS), "audit.>")),
        *_read_services(BUCKETS),
    ),
    "PLATFORM": tuple(Import("SYS", service, service) for service in SYSTEM_SERVICES),
    "DOCS": tuple(_read_services(_READ_BUCKETS)),
}
"""The services of others that users of a NATS account can call."""

IMPORTED_STREAMS: Mapping[NatsAccount, tuple[Import, ...]] = {
    "AUTH": tuple(Import("STATE", f"{state_subject(b)}>", f"{state_subject(b)}>") for b in BUCKETS),
    "PLATFORM": (Import("DOCS", DOCUMENT_EVENTS, DOCUMENT_EVENTS),),
    "DOCS": tuple(Import("STATE", f"{state_subject(b)}>", f"{state_subject(b)}>") for b in _READ_BUCKETS),
}
"""The messages of others that users of a NATS account can follow. PLATFORM also follows what SYS says of its own
connections (:data:`CONNECTION_EVENTS`)."""


BACKUP_INBOX = "_INBOX.backup"
"""The inbox prefix of those who back up and restore. Only they may subscribe to it."""

TAKE_BACKUP = Permissions(
    publish=("$JS.API.STREAM.LIST", "$JS.API.STREAM.SNAPSHOT.*", "$JS.SNAPSHOT.ACK.>"),
    subscribe=(f"{BACKUP_INBOX}.>",),
)
"""`natskit backup create`, in each NATS account of the identity: list the streams, read all of each, change nothing."""

RESTORE_BACKUP = Permissions(
    publish=(
        "$JS.API.STREAM.LIST",
        *(f"$JS.API.STREAM.{verb}.*" for verb in ("INFO", "DELETE", "RESTORE", "UPDATE", "MSG.GET")),
        "$JS.SNAPSHOT.RESTORE.>",
    ),
    subscribe=(f"{BACKUP_INBOX}.>",),
)
"""`natskit backup restore`: replace streams. The control machine signs both users with the NATS account's own key for
the one command, and they expire; no file has their creds."""


def inbox_prefix(role: Role, identifier: str = "") -> str:
    """The private inbox of a principal, for a client's ``inbox_prefix``. No other principal may subscribe to it."""
    match role:
        case "browser":
            return f"_INBOX.account.{identifier}"
        case "project" | "runner":
            return f"_INBOX.{role}.{identifier}"
        case _:
            return f"_INBOX.{role}"


def answer_prefix(own_inbox: str, subject: str) -> str:
    """The part of the caller's own inbox to which the answer to a request on ``subject`` is published.

    A project or a runner may answer only in the part of an inbox that carries its id.
    """
    served = _SERVED.match(subject)
    return f"{own_inbox}.{served[1]}" if served else own_inbox


def account_of_inbox(subject: str) -> str | None:
    """The account that owns the inbox a subject is in; ``None`` if no account's inbox contains it."""
    words = subject.split(".")
    return words[2] if words[:2] == ["_INBOX", "account"] and len(words) > 3 else None


def owner_of_inbox(subject: str) -> str:
    """The account that owns the inbox a subject is in, or what else it belongs to, such as ``_INBOX.admin``."""
    return account_of_inbox(subject) or ".".join(subject.split(".")[:2])


def check_id(value: str, what: str) -> str:
    """Return ``value`` if it is a lower-case UUID, the only form of id natskit accepts.

    NATS lower-cases tags, so an upper-case id would name a subject that no role may use. An id with a dot or a wildcard
    would name subjects of others. Raises :class:`NatskitError`.
    """
    if not _UUID.fullmatch(value):
        raise NatskitError(
            f"{what} {value[:64]!r} is not a lower-case UUID such as 5f0c6f0e-7a3e-4c8e-9d5b-0c1f2e3d4a5b"
        )
    return value


def expand(subjects: Iterable[str], tags: Iterable[str]) -> list[str]:
    """Expand a scope's subjects as nats-server does for a user with these ``name:value`` tags.

    The docs table and the permission tests use this; nats-server does its own expansion.
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
