"""Several hosts: messages cross servers, projects move between runners, and one hub is enough."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator

import pytest

from natskit import rpc
from natskit.client import Client
from tests.cluster.site import HUBS, NATS, RUNNERS, Cluster
from tests.kit.wait import wait_for
from tests.platform.raw import ClosedError, RawClient
from tests.platform.site import Session, World

PASSWORD = "several machines of one platform"  # noqa: S105
STREAM_BYTES = 50_000_000


@pytest.fixture(scope="module")
def email(cluster: Cluster) -> str:
    """An account with projects on all machines."""
    email = f"everywhere@{cluster.domain}"
    cluster.natskit("account", "add", email, "--password-stdin", stdin=PASSWORD)
    return email


@pytest.fixture(scope="module")
def spread(cluster: Cluster, email: str) -> dict[str, str]:
    """A running project on each runner's machine."""
    found: dict[str, str] = {}
    wait_for(
        lambda: all(runner["alive"] for runner in cluster.natskit_json("runner", "list")),
        "runners that are alive",
    )
    # A project is placed where the fewest are, running or not: other tests may have left all of theirs on one machine.
    for number in range(len(cluster.natskit_json("project", "list")) + len(RUNNERS)):
        project_id = cluster.natskit_json("project", "create", email, f"Number {number}")["project_id"]
        cluster.natskit("project", "start", project_id)
        found.setdefault(cluster.machine_of(project_id), project_id)
        if found.keys() == set(RUNNERS):
            return found
    raise AssertionError(f"projects are on {list(found)} alone")


@pytest.fixture
def session(cluster: Cluster, email: str, spread: dict[str, str]) -> Session:  # noqa: ARG001
    """Sign in as an account that may use the projects."""
    return cluster.sign_in(email, PASSWORD)


def connect(cluster: Cluster, session: Session) -> RawClient:
    """Connect as a browser: a WebSocket through the proxy."""
    return RawClient.websocket(
        cluster.websocket_url, ca_file=cluster.ca_file, cookie=session.cookie, origin=cluster.url
    )


def ask(client: RawClient, subject: str, inbox: str, method: str = "ping") -> dict[str, str]:
    """Call a method. Returns the result."""
    result: dict[str, str] = rpc.decode_response(client.request(subject, rpc.encode_request(method), inbox))
    return result


def test_the_state_is_on_all_servers(cluster: Cluster) -> None:
    streams = cluster.streams()
    assert {"KV_accounts", "KV_projects", "KV_memberships", "KV_sessions", "KV_runners"} <= streams.keys()
    assert {name: servers for name, servers in streams.items() if servers != set(NATS)} == {}


@pytest.mark.parametrize("server", NATS)
def test_what_a_project_says_at_any_server_reaches_the_browser(
    cluster: Cluster, session: Session, spread: dict[str, str], server: str
) -> None:
    browser = connect(cluster, session)
    for project_id in spread.values():
        subject = f"events.project.{project_id}.news"
        assert browser.subscribe(subject) == []
        project = cluster.tcp(cluster.project_creds(project_id), server)
        assert project.info["server_name"] == server
        assert browser.hear_from(project, subject, server.encode()) == server.encode()


def test_both_hubs_answer_and_projects_on_all_machines(
    cluster: Cluster, session: Session, spread: dict[str, str]
) -> None:
    browser = connect(cluster, session)
    inbox = f"_INBOX.account.{session.account_id}.x"
    assert browser.subscribe(inbox) == []
    subject = f"hub.api.{session.account_id}"
    hubs = wait_for(
        lambda: both if len(both := {ask(browser, subject, inbox)["hub"] for _ in range(20)}) > 1 else None,
        "an answer of each hub",
    )
    assert hubs == set(HUBS)
    for project_id in spread.values():
        own = f"_INBOX.account.{session.account_id}.{project_id}.x"
        assert browser.subscribe(own) == []
        assert ask(browser, f"projects.{project_id}.api", own)


@pytest.mark.parametrize("runner", RUNNERS)
async def test_a_long_output_streams_whole_through_the_proxy(
    cluster: Cluster, email: str, spread: dict[str, str], runner: str
) -> None:
    line = b"0123456789abcdef\n"
    expected = (line * (STREAM_BYTES // len(line) + 1))[:STREAM_BYTES]
    digest, machine = hashlib.sha256(), b""
    async with await Client.sign_in(cluster.url, email, PASSWORD, ca_file=cluster.ca_file) as client:
        async with client.exec(spread[runner], command="hostname") as run:
            async for _, data in run:
                machine += data
        async with client.exec(spread[runner], command=f"yes 0123456789abcdef | head -c {STREAM_BYTES}") as run:
            async for _, data in run:
                digest.update(data)
    assert run.exit_code == 0
    assert digest.digest() == hashlib.sha256(expected).digest()
    assert machine.decode().strip() == runner


def starts(cluster: Cluster) -> dict[str, str]:
    """The start time of each unit of the platform, by machine and unit."""
    shown = "systemctl show --property=Id,ExecMainStartTimestampMonotonic 'natskit-*' nginx.service"
    return {machine: cluster.sh(machine, shown).stdout for machine in cluster.machines}


def test_a_second_deploy_changes_nothing(cluster: Cluster) -> None:
    before, loaded = starts(cluster), cluster.variables("config_load_time")
    done = cluster.deploy("--json")
    assert done.changes == {}
    totals = done.results["totals"]
    assert (totals["success"], totals["error"]) == (0, 0)
    assert totals["no_change"] > len(cluster.machines)
    assert starts(cluster) == before
    assert cluster.variables("config_load_time") == loaded


@contextlib.contextmanager
def stopped(cluster: Cluster, hub: str) -> Iterator[None]:
    """Stop one hub during the block, as an operator does."""
    cluster.sh(hub, "systemctl stop natskit-hub-1")
    try:
        yield
    finally:
        cluster.sh(hub, "systemctl start natskit-hub-1")
        wait_until_whole(cluster)


def wait_until_whole(cluster: Cluster) -> None:
    """Wait until every part works, without a warning."""
    wait_for(lambda: cluster.natskit_json("status")["state"] == "ok", "the platform to be whole again", 60)


@pytest.mark.parametrize("hub", HUBS)
def test_people_sign_in_through_either_hub(cluster: Cluster, email: str, hub: str) -> None:
    (other,) = set(HUBS) - {hub}
    with stopped(cluster, other):
        with cluster.http() as http:
            assert http.get("/healthz").json()["hub"] == hub
        session = cluster.sign_in(email, PASSWORD)
        browser = connect(cluster, session)
        inbox = f"_INBOX.account.{session.account_id}.x"
        assert browser.subscribe(inbox) == []
        assert ask(browser, f"hub.api.{session.account_id}", inbox)["hub"] == hub


@pytest.mark.parametrize("victim", HUBS)
def test_a_hub_that_is_killed_loses_at_most_what_was_in_flight(cluster: Cluster, session: Session, victim: str) -> None:
    browser = connect(cluster, session)
    inbox = f"_INBOX.account.{session.account_id}.load"
    assert browser.subscribe(inbox) == []
    answered: dict[str, int] = dict.fromkeys(HUBS, 0)
    lost = 0
    for count in range(300):
        if count == 100:
            cluster.sh(victim, "systemctl kill --signal=SIGKILL natskit-hub-1")
        try:
            body = rpc.encode_request("ping", identifier=count)
            answered[rpc.decode_response(browser.request(f"hub.api.{session.account_id}", body, inbox, 2))["hub"]] += 1
        except TimeoutError:
            lost += 1
    assert lost <= 1
    assert all(answered.values()), answered
    wait_until_whole(cluster)


def test_a_session_is_cut_wherever_it_is_connected(cluster: Cluster, world: World) -> None:
    """The proxy spreads connections over the servers. The hub that ends a session finds them all."""
    session = cluster.sign_in(world.email_a, world.password)
    clients: dict[str, RawClient] = {}
    for _ in range(30):
        client = connect(cluster, session)
        clients.setdefault(client.info["server_name"], client)
        if clients.keys() == set(NATS):
            break
    assert clients.keys() == set(NATS)
    with cluster.http() as http:
        assert http.post("/api/sign-out", headers={"Cookie": session.cookie}).status_code == 204
    for client in clients.values():
        client.wait_closed()
    with pytest.raises(ClosedError):
        connect(cluster, session)
