"""Every cell of the permission matrix, allowed and forbidden, as the server answers a raw client.

The table is written out by hand from the design, not derived from ``natskit.bus.permissions``: a right that slips into
the scopes has to be noticed here. ``{a}``/``{b}`` are two accounts, ``{p}`` is a project of a, ``{q}`` one of b.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest

from natskit import rpc
from tests.kit.wait import wait_for
from tests.platform.raw import ClosedError, RawClient
from tests.platform.site import Site, World

ALLOWED: dict[str, dict[str, list[str]]] = {
    "browser": {
        "publish": [
            "hub.api.{a}",
            "projects.{p}.api",
            "projects.{p}.streams.1",
            "projects.{p}.a.b.c",
            "docs.{a}.{p}.x",
            "docs.{a}.{p}.x.y",
        ],
        "subscribe": [
            "_INBOX.account.{a}.>",
            "_INBOX.account.{a}.x.y",
            "events.account.{a}.>",
            "events.project.{p}.>",
            "events.project.{p}.news",
            "events.project.{p}.files",
        ],
    },
    "project": {
        "publish": [
            "hub.project.{p}",
            "events.project.{p}.news",
            "events.project.{p}.files",
            "_INBOX.account.{a}.{p}.1",
            "_INBOX.hub.{p}.1.0",
            "_INBOX.admin.{p}.1",
            "docs.disk.{p}.x",
            "docs.disk.{p}.-",
            "docs.disk.{p}.x.y",
        ],
        "subscribe": [
            "projects.{p}.>",
            "projects.{p}.api",
            "_INBOX.project.{p}.>",
            "events.project.{p}.doc.*",
            "events.project.{p}.doc.x",
            "events.project.{p}.documents.changed",
        ],
    },
    "runner": {
        "publish": ["hub.runner.{r}", "_INBOX.hub.{r}.1", "_INBOX.admin.{r}.1"],
        "subscribe": ["runners.{r}.>", "_INBOX.runner.{r}.>"],
    },
    "hub": {
        "publish": [
            "events.account.{a}.projects",
            "runners.{r}.api",
            "projects.{p}.api",
            "_INBOX.account.{a}.1",
            "_INBOX.project.{p}.1",
            "_INBOX.runner.{r}.1",
            "$SYS.REQ.SERVER.PING",
            "$SYS.REQ.SERVER.PING.CONNZ",
            "$SYS.REQ.SERVER.x.KICK",
        ],
        "subscribe": [
            "hub.api.* hub",
            "hub.project.* hub",
            "hub.runner.* hub",
            "hub.admin hub",
            "_INBOX.hub.>",
            "connections.opened",
            "connections.closed",
        ],
    },
    "hub in AUTH": {
        "publish": [
            "info.accounts",
            "find.sessions",
            "read.memberships",
            "audit.sign_in.{a}",
            "_INBOX.hub.x",
        ],
        "subscribe": [
            "$SYS.REQ.USER.AUTH hub",
            "_INBOX.hub.>",
            "state.accounts.>",
            "state.sessions.x",
        ],
    },
    "keeper": {
        "publish": [
            "_INBOX.account.{a}.1",
            "_INBOX.admin.1",
            "_INBOX.project.{p}.1",
            "events.project.{p}.presence.x",
            "events.project.{p}.documents.changed",
            "keepers.x",
        ],
        "subscribe": ["docs.*.*.* keeper", "docs.*.*.*.x keeper", "keepers.*", "_INBOX.keeper.>"],
    },
    "keeper in DOCS": {
        "publish": [
            "info.memberships",
            "find.memberships",
            "read.memberships",
            "info.projects",
            "find.projects",
            "read.projects",
            "$JS.API.STREAM.INFO.DOC_0",
        ],
        "subscribe": ["_INBOX.keeper.>", "state.memberships.>", "state.projects.x", "events.project.*.doc.*"],
    },
    "admin": {
        "publish": [
            "hub.admin",
            "docs.admin.{p}.x",
            "projects.{p}.api",
            "runners.{r}.move",
            "runners.{r}.backup",
            "$SRV.PING",
            "$SRV.STATS.hub",
        ],
        "subscribe": ["_INBOX.admin.>", "events.project.*.doc.*", "events.project.{p}.presence.x"],
    },
    "admin in STATE": {
        "publish": [
            "$JS.API.STREAM.INFO.AUDIT",
            "$JS.API.STREAM.CREATE.AUDIT",
            "$JS.API.STREAM.UPDATE.AUDIT",
            "$JS.API.STREAM.INFO.KV_accounts",
            "$JS.API.STREAM.CREATE.KV_probe",
            "$JS.API.STREAM.UPDATE.KV_sessions",
            "$JS.API.DIRECT.GET.AUDIT",
        ],
        "subscribe": ["_INBOX.admin.>"],
    },
    "probe": {
        "publish": [
            "$KV.probe.nats-1",
            "$KV.probe.nats-1.nats-2",
            "$JS.API.STREAM.INFO.KV_probe",
            "$JS.API.STREAM.INFO.KV_accounts",
            "$JS.API.STREAM.INFO.KV_projects",
            "$JS.API.STREAM.INFO.KV_memberships",
            "$JS.API.STREAM.INFO.KV_sessions",
            "$JS.API.STREAM.INFO.KV_runners",
            "$JS.API.DIRECT.GET.KV_probe.$KV.probe.nats-1",
        ],
        "subscribe": ["_INBOX.probe.>"],
    },
}

_EVERYBODYS_BUSINESS = [
    "info.accounts",
    "find.sessions",
    "read.memberships",
    "$JS.API.>",
    "$JS.API.INFO",
    "$JS.API.STREAM.NAMES",
    "$JS.API.STREAM.CREATE.mine",
    "$JS.API.STREAM.INFO.KV_accounts",
    "$JS.API.DIRECT.GET.KV_sessions.$KV.sessions.x",
    "$JS.API.CONSUMER.CREATE.KV_accounts",
    "$JS.API.STREAM.MSG.GET.KV_accounts",
    "$JS.API.STREAM.PURGE.KV_accounts",
    "$JS.API.STREAM.DELETE.KV_accounts",
    "$JS.ACK.KV_accounts.c.1.1.1.1.1",
    "$KV.accounts.{a}",
    "$KV.sessions.x",
    "$KV.memberships.{a}.{q}",
    # What nats-server says here, hubs believe.
    "state.accounts.{a}",
    "state.memberships.{a}.{q}",
    "connections.opened",
    "connections.closed",
    # What keepers and nats-server say of documents.
    "events.project.{p}.doc.x",
    "events.project.{p}.presence.x",
    "events.project.{p}.documents.changed",
    "docs.{b}.{q}.x",
    "docs.admin.{p}.x",
    "docs.disk.{q}.x",
    "docs.{b}.{q}.x.y",
    "docs.admin.{p}.x.y",
    "keepers.x",
    "docs",
    "doc.0.{p}.x",
    "audit.sign_in.{a}",
    "$JS.API.STREAM.CREATE.AUDIT",
    "$JS.API.STREAM.INFO.AUDIT",
    "$JS.API.STREAM.UPDATE.AUDIT",
    "$JS.API.DIRECT.GET.AUDIT",
    "$SYS.REQ.USER.AUTH",
    "$SYS.REQ.SERVER.PING",
    "$SYS.REQ.SERVER.PING.CONNZ",
    "$SYS.REQ.ACCOUNT.PING.CONNZ",
    "$SYS.REQ.CLAIMS.UPDATE",
    "$SYS.ACCOUNT.x.DISCONNECT",
    "$SRV.PING.other",
    "anything",
    "a.b.c",
]

FORBIDDEN_PUBLISH: dict[str, list[str]] = {
    "browser": [
        *_EVERYBODYS_BUSINESS,
        "hub.api.{b}",
        "hub.api",
        "hub.api.{a}.more",
        "hub.admin",
        "hub.project.{p}",
        "hub.runner.{r}",
        "projects.{q}.api",
        "projects.{q}.streams.1",
        "projects.api",
        "events.account.{a}.projects",
        "events.account.{b}.projects",
        "events.project.{p}.news",
        "events.project.{q}.news",
        # The author of what comes from a project's files.
        "docs.disk.{p}.x",
        "runners.{r}.api",
        "runners.{r}.move",
        "runners.{r}.backup",
        "_INBOX.account.{b}.x",
        "_INBOX.account.{a}.x",
        "_INBOX.project.{p}.x",
        "_INBOX.hub.x",
        "_INBOX.x",
        "$SRV.PING",
    ],
    "project": [
        *_EVERYBODYS_BUSINESS,
        "hub.project.{q}",
        "hub.api.{a}",
        "hub.runner.{r}",
        "hub.admin",
        "projects.{p}.api",
        "projects.{q}.api",
        "events.project.{q}.news",
        "events.project.{q}.files",
        # A project writes as its disk, and as nobody else.
        "docs.{a}.{p}.x",
        "docs.{p}.{p}.x",
        "docs.disk.{p}",
        "docs.disk.{p}.x.y.z",
        "docs.disk.{q}.x.y",
        "events.account.{a}.projects",
        "_INBOX.account.{a}.x",
        "_INBOX.account.{a}.{q}.x",
        "_INBOX.project.{q}.x",
        "_INBOX.hub.x",
        "_INBOX.hub.{q}.x",
        "_INBOX.admin.x",
        "runners.{r}.api",
        "runners.{r}.move",
        "runners.{r}.backup",
        "$SRV.PING",
    ],
    "runner": [
        *_EVERYBODYS_BUSINESS,
        "hub.runner.{p}",
        "hub.api.{a}",
        "hub.project.{p}",
        "hub.admin",
        "projects.{p}.api",
        "events.project.{p}.news",
        "runners.{r}.api",
        "runners.{r}.move",
        "runners.{r}.backup",
        "_INBOX.hub.x",
        "_INBOX.admin.x",
        "_INBOX.admin.{p}.x",
        "_INBOX.runner.{r}.x",
        "$SRV.PING",
    ],
    "hub": [
        *[s for s in _EVERYBODYS_BUSINESS if not s.startswith("$SYS.REQ.SERVER.PING")],
        "runners.{r}.move",
        "runners.{r}.backup",
        "$SYS.REQ.SERVER.PING.VARZ",
        "$SYS.REQ.SERVER.x.RELOAD",
        "$SYS.REQ.SERVER.x.LDM",
        "$SRV.PING",
        "hub.api.{a}",
        "hub.admin",
        "events.project.{p}.news",
    ],
    "hub in AUTH": [
        *[
            s
            for s in _EVERYBODYS_BUSINESS
            if not s.startswith(("$KV.", "info.", "find.", "read.", "audit.")) and s != "$SYS.REQ.USER.AUTH"
        ],
        "$JS.API.INFO",
        "$JS.API.STREAM.NAMES",
        "$JS.API.STREAM.CREATE.mine",
        # A stream whose configuration, or whose answers, a hub may choose would be its way to every other stream.
        "$JS.API.STREAM.CREATE.KV_accounts",
        "$JS.API.STREAM.UPDATE.KV_accounts",
        "$JS.API.STREAM.PURGE.KV_accounts",
        "$JS.API.STREAM.DELETE.KV_accounts",
        "$JS.API.STREAM.MSG.DELETE.KV_accounts",
        "$JS.API.STREAM.SNAPSHOT.KV_accounts",
        "$JS.API.STREAM.RESTORE.KV_accounts",
        "$JS.API.DIRECT.GET.KV_accounts",
        "$JS.API.DIRECT.GET.KV_sessions.$KV.sessions.x",
        "$JS.API.CONSUMER.CREATE.KV_accounts",
        "$JS.API.CONSUMER.CREATE.KV_accounts.x",
        "$JS.API.CONSUMER.CREATE.KV_accounts.x.$KV.accounts.x",
        "$JS.API.CONSUMER.DURABLE.CREATE.KV_accounts.x",
        "$JS.API.CONSUMER.INFO.KV_accounts.x",
        "$JS.API.CONSUMER.DELETE.KV_accounts.x",
        "$JS.API.CONSUMER.MSG.NEXT.KV_accounts.x",
        "$JS.FC.KV_accounts.x.y",
        "$JS.ACK.KV_accounts.c.1.1.1.1.1",
        "$JS.API.STREAM.INFO.KV_probe",
        "$JS.API.STREAM.CREATE.KV_probe",
        "$JS.API.STREAM.UPDATE.KV_probe",
        "$JS.API.STREAM.DELETE.KV_probe",
        "$JS.API.STREAM.MSG.GET.KV_probe",
        "$JS.API.STREAM.INFO.other",
        "state.accounts.{a}",
        "state.sessions.x",
        # An attacker in a hub can add to the audit log, but not remove from it.
        "$JS.API.STREAM.CREATE.AUDIT",
        "$JS.API.STREAM.INFO.AUDIT",
        "$JS.API.STREAM.UPDATE.AUDIT",
        "$JS.API.STREAM.DELETE.AUDIT",
        "$JS.API.STREAM.PURGE.AUDIT",
        "$JS.API.STREAM.MSG.DELETE.AUDIT",
        "$JS.API.STREAM.MSG.GET.AUDIT",
        "$JS.API.STREAM.SNAPSHOT.AUDIT",
        "$JS.API.STREAM.RESTORE.AUDIT",
        "$JS.API.STREAM.PEER.REMOVE.AUDIT",
        "$JS.API.STREAM.LEADER.STEPDOWN.AUDIT",
        "$JS.API.DIRECT.GET.AUDIT",
        "$JS.API.DIRECT.GET.AUDIT.audit.sign_in.{a}",
        "$JS.API.CONSUMER.CREATE.AUDIT",
        "$JS.API.CONSUMER.CREATE.AUDIT.x",
        "$JS.API.STREAM.CREATE.AUDIT2",
        "$KV.other.x",
        "$KV.probe.nats-1",
        "$JS.API.ACCOUNT.PURGE.x",
        "$JS.API.META.LEADER.STEPDOWN",
        "info.probe",
        "read.probe",
        "read.AUDIT",
        "find.other",
        "$SYS.REQ.USER.AUTH",
        "hub.admin",
        "runners.{r}.move",
    ],
    "keeper": [
        *[
            s
            for s in _EVERYBODYS_BUSINESS
            if s not in ("events.project.{p}.presence.x", "events.project.{p}.documents.changed", "keepers.x")
        ],
        "docs.{a}.{p}.x",
        "docs.disk.{p}.x",
        "events.account.{a}.projects",
        "events.project.{p}.news",
        "hub.api.{a}",
        "hub.admin",
        "projects.{p}.api",
        "runners.{r}.api",
        "runners.{r}.move",
        "runners.{r}.backup",
        "_INBOX.hub.x",
        "$KV.memberships.{a}.{p}",
        "$SRV.PING",
    ],
    "keeper in DOCS": [
        *[s for s in _EVERYBODYS_BUSINESS if s not in ("read.memberships", "doc.0.{p}.x")],
        "$KV.memberships.{a}.{p}",
        "read.accounts",
        "find.sessions",
        "info.runners",
        "$JS.API.STREAM.MSG.GET.KV_sessions",
        "$JS.API.DIRECT.GET.KV_memberships",
        "$JS.API.STREAM.UPDATE.KV_memberships",
        "$JS.API.STREAM.UPDATE.DOC_0",
        "$JS.API.STREAM.DELETE.DOC_0",
        "docs.{a}.{p}.x",
        "$SRV.PING",
    ],
    "admin": [
        "docs.{a}.{p}.x",
        "docs.disk.{p}.x",
        "events.project.{p}.doc.x",
        "hub.api.{a}",
        "hub.runner.{r}",
        "$JS.API.STREAM.INFO.KV_accounts",
        "$JS.API.STREAM.UPDATE.KV_accounts",
        "$JS.API.DIRECT.GET.AUDIT",
        "info.accounts",
        "$KV.accounts.{a}",
        "audit.sign_in.{a}",
        "state.accounts.{a}",
        "$SYS.REQ.SERVER.PING",
        "_INBOX.account.{a}.x",
        "events.account.{a}.projects",
        "runners.{r}.api",
        "runners.{r}.move.x",
        "runners.{r}.x",
        "_INBOX.runner.{r}.x",
        "_INBOX.admin.{r}.x",
        "anything",
    ],
    "admin in STATE": [
        "$JS.API.INFO",
        "$KV.accounts.{a}",
        "audit.sign_in.{a}",
        "$JS.API.STREAM.DELETE.AUDIT",
        "$JS.API.STREAM.PURGE.AUDIT",
        "$JS.API.STREAM.MSG.DELETE.AUDIT",
        "$JS.API.STREAM.RESTORE.AUDIT",
        "$JS.API.STREAM.DELETE.KV_accounts",
        "$JS.API.STREAM.DELETE.KV_probe",
        "$JS.API.STREAM.PURGE.KV_accounts",
        "$JS.API.STREAM.MSG.GET.KV_accounts",
        "$JS.API.DIRECT.GET.KV_accounts",
        "$JS.API.CONSUMER.CREATE.KV_accounts",
        "$JS.API.CONSUMER.CREATE.AUDIT",
        "$JS.API.STREAM.CREATE.mine",
        "state.accounts.{a}",
        "info.accounts",
        "hub.admin",
        "anything",
    ],
    "probe": [
        *[s for s in _EVERYBODYS_BUSINESS if s != "$JS.API.STREAM.INFO.KV_accounts"],
        "$JS.API.STREAM.INFO.other",
        "$JS.API.STREAM.CREATE.KV_accounts",
        "$JS.API.STREAM.UPDATE.KV_accounts",
        # A stream's configuration can copy another stream or publish in another client's name.
        "$JS.API.STREAM.CREATE.KV_probe",
        "$JS.API.STREAM.UPDATE.KV_probe",
        "$JS.API.STREAM.DELETE.KV_probe",
        "$JS.API.STREAM.PURGE.KV_probe",
        "$JS.API.STREAM.MSG.GET.KV_probe",
        "$JS.API.DIRECT.GET.KV_accounts",
        "$JS.API.DIRECT.GET.KV_accounts.$KV.accounts.{a}",
        "$JS.API.CONSUMER.CREATE.KV_probe",
        "$JS.API.CONSUMER.CREATE.KV_sessions",
        "$JS.API.STREAM.LEADER.STEPDOWN.KV_accounts",
        "hub.api.{a}",
        "hub.admin",
        "hub.project.{p}",
        "hub.runner.{r}",
        "projects.{p}.api",
        "runners.{r}.api",
        "runners.{r}.move",
        "runners.{r}.backup",
        "events.account.{a}.projects",
        "events.project.{p}.news",
        "_INBOX.account.{a}.x",
        "_INBOX.account.{a}.{p}.x",
        "_INBOX.hub.x",
        "_INBOX.admin.x",
        "_INBOX.probe.x",
        "$SRV.PING",
    ],
}

_NOBODY_SUBSCRIBES = [
    ">",
    "*",
    "*.>",
    "*.*",
    "*.*.*",
    "_INBOX.>",
    "_INBOX.*.>",
    "_INBOX.account.>",
    "_INBOX.account.*.>",
    "_INBOX.account.{b}.>",
    "_INBOX.account.{b}.x.y",
    "_INBOX.project.{q}.>",
    "_INBOX.project.>",
    "events.>",
    "events.account.>",
    "events.account.*.>",
    "events.account.{b}.>",
    "events.project.{q}.>",
    "events.project.{q}.files",
    "events.project.*.>",
    "hub.>",
    "hub.api.*",
    "hub.api.{b}",
    "projects.>",
    "projects.*.api",
    "projects.*.>",
    "projects.{q}.>",
    "runners.>",
    "docs.>",
    "docs.*.*.*",
    "docs.*.*.*.*",
    "docs.{a}.{p}.x",
    "docs.disk.{p}.x",
    "keepers.*",
    "keepers.x",
    "events.project.{q}.doc.x",
    "events.project.{q}.documents.changed",
    "doc.>",
    "$SYS.>",
    "$SYS.REQ.USER.AUTH",
    "$SYS.ACCOUNT.>",
    "$JS.>",
    "$JS.API.>",
    "$JS.EVENT.ADVISORY.>",
    "$KV.>",
    "$KV.accounts.>",
    "state.>",
    "state.*.>",
    "state.probe.>",
    "connections.>",
    "connections.*",
    "anything",
]
_NO_HUB = [*_NOBODY_SUBSCRIBES, "state.accounts.>", "state.sessions.x", "connections.opened", "connections.closed"]

FORBIDDEN_SUBSCRIBE: dict[str, list[str]] = {
    "browser": [
        *_NO_HUB,
        "hub.api.{a}",
        "hub.admin",
        "projects.{p}.>",
        "projects.{p}.api",
        "_INBOX.hub.>",
        "_INBOX.project.{p}.>",
        "_INBOX.admin.>",
        "_INBOX.runner.{r}.>",
        "$SRV.>",
        "$SRV.PING",
        "$SRV.PING.hub",
    ],
    "project": [
        *_NO_HUB,
        "events.project.{p}.>",
        "events.project.{p}.*",
        "events.project.{p}.files",
        "events.project.{p}.presence.x",
        "events.project.*.doc.x",
        "hub.project.{p}",
        "hub.project.*",
        "_INBOX.account.{a}.>",
        "_INBOX.hub.>",
        "_INBOX.runner.{r}.>",
        "$SRV.>",
        "$SRV.PING",
    ],
    "runner": [
        *_NO_HUB,
        "projects.{p}.>",
        "_INBOX.project.{p}.>",
        "_INBOX.account.{a}.>",
        "hub.runner.{r}",
        "events.project.{p}.>",
        "$SRV.>",
        "$SRV.PING",
    ],
    "hub": [
        *[s for s in _NOBODY_SUBSCRIBES if not s.startswith(("hub.api.*",))],
        "hub.api.*",
        "_INBOX.account.{a}.>",
        "_INBOX.admin.>",
        "$SRV.>",
        "$SRV.PING.other",
        "state.accounts.>",
        "state.sessions.x",
    ],
    "hub in AUTH": [
        *_NOBODY_SUBSCRIBES,
        "connections.opened",
        "hub.admin",
        "_INBOX.account.{a}.>",
        "_INBOX.keeper.>",
        "audit.>",
        "read.accounts",
        "info.accounts",
    ],
    "keeper": [
        *[s for s in _NO_HUB if not s.startswith(("docs.", "keepers."))],
        "docs.*.*.*",
        "docs.*.*.*.*",
        "docs.>",
        "state.accounts.>",
        "events.project.{p}.>",
        "events.project.{p}.doc.x",
        "hub.admin",
        "projects.{p}.>",
        "_INBOX.account.{a}.>",
        "_INBOX.hub.>",
        "$SRV.>",
        "$SRV.PING.hub",
    ],
    "keeper in DOCS": [
        *[s for s in _NO_HUB if not s.startswith("events.project.{q}.doc.x")],
        "state.accounts.>",
        "state.runners.x",
        "_INBOX.hub.>",
        "$KV.memberships.>",
    ],
    "admin": [
        *[s for s in _NO_HUB if s != "events.project.{q}.doc.x"],  # it reads the documents of all projects
        "events.project.{p}.>",
        "hub.admin",
        "_INBOX.hub.>",
        "_INBOX.account.{a}.>",
        "$SRV.>",
        "$SRV.PING",
    ],
    "admin in STATE": [*_NO_HUB, "_INBOX.hub.>", "$KV.accounts.>", "audit.>"],
    "probe": [
        *_NO_HUB,
        "$KV.probe.>",
        "hub.admin",
        "hub.api.{a}",
        "_INBOX.hub.>",
        "_INBOX.admin.>",
        "_INBOX.account.{a}.>",
        "_INBOX.project.{p}.>",
        "_INBOX.runner.{r}.>",
        "projects.{p}.>",
        "events.project.{p}.>",
        "events.account.{a}.>",
        "$SRV.>",
        "$SRV.PING",
    ],
}

Connect = Callable[[str], RawClient]
ROLES = sorted(ALLOWED)


@pytest.fixture(scope="module")
def client_of(site: Site, world: World) -> Iterator[Connect]:
    """One raw connection for each role, open for the whole module."""
    clients: dict[str, RawClient] = {}

    def connect(role: str) -> RawClient:
        # The tests of the other roles took so long that nats-server missed this one's PONGs.
        if role in clients and _is_stale(clients[role]):
            clients.pop(role).close()
        if role not in clients:
            # On the cluster something was killed a moment ago: while servers elect, hubs let nobody in.
            clients[role] = wait_for(lambda: world.connect(site, role), f"{role} is let in", 60)
            clients[role].kept = True
        return clients[role]

    yield connect
    for client in clients.values():
        client.close()


def _is_stale(client: RawClient) -> bool:
    try:
        client.ping()
    except ClosedError as closed:
        if str(closed) != "Stale Connection":
            raise
        return True
    return False


def _cells(table: dict[str, list[str]]) -> list[tuple[str, str]]:
    return [(role, subject) for role in ROLES for subject in table[role]]


def is_refused(errors: list[str], verb: str) -> bool:
    """Whether nats-server refused a ``Publish`` or a ``Subscription``."""
    return any(error.startswith(f"Permissions Violation for {verb}") for error in errors)


@pytest.mark.parametrize(("role", "subject"), _cells({role: ALLOWED[role]["publish"] for role in ROLES}))
def test_may_publish(client_of: Connect, world: World, role: str, subject: str) -> None:
    assert client_of(role).publish(world.name(subject)) == []


@pytest.mark.parametrize(("role", "subject"), _cells({role: ALLOWED[role]["subscribe"] for role in ROLES}))
def test_may_subscribe(client_of: Connect, world: World, role: str, subject: str) -> None:
    if subject.startswith("hub.") or subject == "$SYS.REQ.USER.AUTH hub":
        pytest.skip("a second subscriber in the hubs' queue group would take real requests: proved by the hubs")
    name, _, queue = world.name(subject).partition(" ")
    client = client_of(role)
    assert client.subscribe(name, queue) == []
    client.unsubscribe_all()


@pytest.mark.parametrize(("role", "subject"), _cells(FORBIDDEN_PUBLISH))
def test_may_not_publish(client_of: Connect, world: World, role: str, subject: str) -> None:
    assert is_refused(client_of(role).publish(world.name(subject), b"{}"), "Publish")


@pytest.mark.parametrize(("role", "subject"), _cells(FORBIDDEN_SUBSCRIBE))
def test_may_not_subscribe(client_of: Connect, world: World, role: str, subject: str) -> None:
    assert is_refused(client_of(role).subscribe(world.name(subject)), "Subscription")


@pytest.mark.parametrize(("role", "subject"), _cells(FORBIDDEN_SUBSCRIBE))
@pytest.mark.parametrize("queue", ["hub", "q"])
def test_may_not_subscribe_in_a_queue_group(
    client_of: Connect, world: World, role: str, subject: str, queue: str
) -> None:
    if queue == "hub" and ((role == "hub" and subject.startswith("hub.api.")) or subject == "$SYS.REQ.USER.AUTH"):
        pytest.skip("this is the hub's own right")
    assert is_refused(client_of(role).subscribe(world.name(subject), queue), "Subscription")


@pytest.mark.parametrize(
    "reply",
    ["_INBOX.account.{b}.spoof", "events.account.{b}.x", "_INBOX.project.{q}.x", "$KV.accounts.x", "projects.{q}.api"],
)
def test_the_hub_answers_in_the_inbox_of_who_asks_alone(site: Site, world: World, reply: str) -> None:
    """The hub may publish to every inbox and to its buckets. Nobody can use that by a reply subject."""
    mine, own = world.connect(site, "browser"), world.name("_INBOX.account.{a}.me")
    subject = world.name(reply)
    seen = _witness(site, world, reply)
    before = seen()
    assert mine.subscribe(own) == []
    # They share the requests, and both have had their turn in the end; as have servers that hear of a witness later.
    for _ in range(20):
        for body in (rpc.encode_request("ping"), rpc.encode_request("list_projects"), b"no JSON"):
            mine.publish(world.name("hub.api.{a}"), body, subject)
        # What was asked later is answered, so what was asked before would have been.
        mine.request(world.name("hub.api.{a}"), rpc.encode_request("list_projects"), own)
    assert seen() == before


def _witness(site: Site, world: World, reply: str) -> Callable[[], int]:
    """The number of messages on a subject, counted by a principal that may see them: its owner, or the bucket
    itself."""
    if reply.startswith("$KV."):
        hub, inbox = world.connect(site, "hub in AUTH"), "_INBOX.hub.witness"
        assert hub.subscribe(inbox) == []

        def last_sequence() -> int:
            answer = hub.request("info.accounts", b"", inbox)
            return int(json.loads(answer)["state"]["last_seq"])

        return last_sequence
    owner = "other project" if "{q}" in reply else "other browser"
    watcher = world.connect(site, owner)
    assert watcher.subscribe(world.name(reply)) == []

    def received() -> int:
        watcher.ping()
        return len(watcher.messages)

    return received


@pytest.mark.parametrize(
    "reply", ["hub.admin", "hub.api.{b}", "$KV.accounts.x", "$JS.API.STREAM.INFO.KV_accounts", "_INBOX.account.{b}.x"]
)
def test_a_reply_subject_gives_a_project_no_right(site: Site, world: World, reply: str) -> None:
    """A caller with the project's credentials could name any reply subject and answer there."""
    mine, project = world.connect(site, "browser"), world.connect(site, "project")
    assert project.subscribe(world.name("projects.{p}.x")) == []
    project.hear_from(mine, world.name("projects.{p}.x"), b"", world.name(reply))
    assert is_refused(project.publish(world.name(reply), b"{}"), "Publish")
    mine.close()
    project.close()


def test_the_hub_knows_the_caller_by_the_subject_alone(site: Site, world: World) -> None:
    mine = world.connect(site, "browser")
    inbox = world.name("_INBOX.account.{a}.me")
    assert mine.subscribe(inbox) == []
    answer = mine.request(world.name("hub.api.{a}"), rpc.encode_request("whoami"), inbox)
    assert rpc.decode_response(answer)["account_id"] == world.names["a"]
    listed = rpc.decode_response(mine.request(world.name("hub.api.{a}"), rpc.encode_request("list_projects"), inbox))
    assert [project["project_id"] for project in listed] == [world.names["p"]]
    mine.close()


@pytest.mark.parametrize("method", ["rename_project", "delete_project", "share_project", "start_project"])
def test_the_hub_refuses_a_project_of_somebody_else(site: Site, world: World, method: str) -> None:
    mine = world.connect(site, "browser")
    inbox = world.name("_INBOX.account.{a}.foreign")
    assert mine.subscribe(inbox) == []
    params = {"project_id": world.names["q"]}
    params |= {"rename_project": {"title": "mine now"}, "share_project": {"email": world.email_a}}.get(method, {})
    answer = mine.request(world.name("hub.api.{a}"), rpc.encode_request(method, params), inbox)
    mine.close()
    with pytest.raises(rpc.RpcError, match="project") as refused:
        rpc.decode_response(answer)
    assert refused.value.kind in {"not_found", "forbidden"}


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", rpc.PARSE_ERROR),
        (b"\xff\xfe", rpc.PARSE_ERROR),
        (b"[" * 100_000, rpc.PARSE_ERROR),
        (b"[]", rpc.INVALID_REQUEST),
        (b"null", rpc.INVALID_REQUEST),
        (b'{"jsonrpc":"1.0","id":1,"method":"ping"}', rpc.INVALID_REQUEST),
        (b'{"jsonrpc":"2.0","id":1,"method":5}', rpc.INVALID_REQUEST),
        (b'{"jsonrpc":"2.0","id":{},"method":"ping"}', rpc.INVALID_REQUEST),
        (b'{"jsonrpc":"2.0","id":1,"method":"ping","params":[1]}', rpc.INVALID_REQUEST),
        (b'{"jsonrpc":"2.0","id":1e999,"method":"ping"}', rpc.INVALID_REQUEST),
        (b'{"jsonrpc":"2.0","id":NaN,"method":"ping"}', rpc.INVALID_REQUEST),
        (b'{"jsonrpc":"2.0","id":1,"method":"__init__"}', rpc.METHOD_NOT_FOUND),
        (b'{"jsonrpc":"2.0","id":1,"method":"ping","params":{"x":1}}', rpc.INVALID_PARAMS),
        (b'{"jsonrpc":"2.0","id":1,"method":"create_project","params":{"title":5}}', rpc.INVALID_PARAMS),
    ],
)
@pytest.mark.parametrize("subject", ["hub.api.{a}", "projects.{p}.api"])
def test_malformed_json_rpc_gets_an_error_and_harms_nothing(
    client_of: Connect, world: World, subject: str, body: bytes, code: int
) -> None:
    client = client_of("browser")
    inbox = world.name("_INBOX.account.{a}.{p}.malformed")
    assert client.subscribe(inbox) == []
    answer = client.request(world.name(subject), body, inbox)
    with pytest.raises(rpc.RpcError) as refused:
        rpc.decode_response(answer)
    expected = {code, rpc.METHOD_NOT_FOUND} if "create_project" in body.decode("latin-1") else {code}
    assert refused.value.code in expected
    assert rpc.decode_response(client.request(world.name(subject), rpc.encode_request("ping"), inbox))
    client.unsubscribe_all()
