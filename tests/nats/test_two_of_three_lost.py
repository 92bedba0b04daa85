"""Two of three nats-servers are lost with their disks: the way back of docs/how-to/manage-hosts.md, on real servers.

Both empty ones have to be there: one alone gets nothing, since an empty nats-server 2.15 waits for the whole cluster.
"""

from __future__ import annotations

import json
import shutil
import urllib.request
from pathlib import Path

import nats.errors
import pytest

from natskit.bus.jetstream import api
from natskit.errors import StateError
from natskit.ops.stream_provisioning import StreamSettings, wanted
from tests.kit.wait import eventually
from tests.nats.test_restart_gate import Cluster, started

RECORDS = 200
SURVIVOR, *LOST = "nats-1", "nats-2", "nats-3"


def copy(cluster: Cluster, name: str) -> tuple[int, str]:
    """How many records a server has of the accounts, and which server leads them as far as it knows."""
    url = f"http://127.0.0.1:{cluster.ports[name, 'monitor']}/jsz?streams=1&accounts=1"
    with urllib.request.urlopen(url, timeout=5) as answer:
        accounts = json.load(answer).get("account_details", [])
    found = [one for account in accounts for one in account.get("stream_detail", []) if one["name"] == "KV_accounts"]
    return (found[0]["state"]["messages"], found[0]["cluster"].get("leader", "")) if found else (0, "")


async def write(cluster: Cluster, *keys: str) -> None:
    hub = await cluster.connect("hub", SURVIVOR)
    try:
        for key in keys:
            answer = await hub.request(f"$KV.accounts.{key}", b"{}", timeout=2)
            assert b'"seq"' in answer.data, answer.data
    finally:
        await hub.close()


async def test_the_survivor_gives_everything_to_two_empty_ones(tmp_path: Path) -> None:
    with started(tmp_path) as cluster:
        await cluster.make_bucket()
        admin = await cluster.admin()
        (accounts,) = (each for each in wanted(StreamSettings(replicas=3)) if each["name"] == "KV_accounts")
        await api(admin, "STREAM.CREATE.KV_accounts", accounts)
        await admin.close()
        await write(cluster, *(f"a{number}" for number in range(RECORDS)))
        await eventually(lambda: copy(cluster, SURVIVOR)[0] == RECORDS, "the survivor has everything")

        for name in LOST:
            cluster.servers[name].kill()
            shutil.rmtree(tmp_path / name)
        await eventually(lambda: copy(cluster, SURVIVOR)[1] == "", "nobody leads", 60)
        with pytest.raises((nats.errors.Error, StateError, TimeoutError)):
            await write(cluster, "refused")

        for name in LOST:
            cluster.start(name)

        def has_everything() -> bool:
            copies = [copy(cluster, name) for name in (SURVIVOR, *LOST)]
            return all(number == RECORDS and leader for number, leader in copies)

        await eventually(has_everything, f"all three have everything\n{cluster.log()}", 90)

        async def written() -> bool:
            await write(cluster, "after")  # the survivor may have yet to hear who leads
            return True

        await eventually(written, "a client can write again", 30)
        for name in (SURVIVOR, *LOST):
            assert cluster.gate(name) == "", cluster.log()
