"""nats-server moves to an older version and back to the newest, and the hubs get a setting, one host at a time under
load."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.cluster.load import running, table
from tests.cluster.machines import UNITS, Machines
from tests.cluster.site import Cluster

OLD, NEW = "2.14.5", "2.15.1"
SERVERS = [machine for machine, unit in UNITS.items() if unit == "natskit-nats"]


@pytest.fixture(scope="module")
def machines(cluster: Cluster) -> Iterator[Machines]:
    """The cluster. Its settings are restored at the end."""
    machines = Machines.of(cluster)
    yield machines
    assert machines.deploy().returncode == 0


# The way back is a deploy too; it comes first, since the cluster has the newest: 2.14.5 reads what that has written.
@pytest.mark.parametrize(("version", "changes"), [(OLD, {}), (NEW, {"hub_session_sliding": "400000"})])
def test_nobody_notices(machines: Machines, version: str, changes: dict[str, str]) -> None:
    starts = machines.starts()
    with running(machines.target()) as load:
        since = time.monotonic()
        done = machines.deploy(nats_version=version, **changes)
        load.go_on()
        seen = load.seen(since)
    print("\n" + table([(f"to {version}", seen, load.written)]))
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-6000:]
    assert {m: machines.varz(m)["version"] for m in SERVERS} == dict.fromkeys(SERVERS, version)
    now = machines.starts()
    expected = {*SERVERS, *(("hub-1", "hub-2") if changes else ())}
    assert {m for m in UNITS if now[m] != starts[m]} == expected
    assert load.written is not None
    assert load.written.acknowledged > 500
    assert load.written.lost == []
    assert seen.failed("write") == 0
    assert seen.failed("request") == 0, seen.reasons()
    assert seen.reconnects >= 1
    assert seen.silence < 5
    assert seen.output == "whole"
