"""The cost of a password's hash follows the settings from each person's next sign-in on."""

from __future__ import annotations

import base64
import os
import signal
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from natskit.bus.connection import Connection
from natskit.bus.jetstream import api, ask
from natskit.hub.auth.passwords import cost_of
from natskit.hub.state.records import Account
from tests.hub.conftest import PASSWORD
from tests.hub.site import FAST_PASSWORDS, Site
from tests.hub.test_hub_api import person

STRONGER = {"argon2_concurrency": 1, "time_cost": 2, "memory_kib": 2048}
OLD_COST, NEW_COST = "$argon2id$v=19$m=1024,t=1,p=1", "$argon2id$v=19$m=2048,t=2,p=1"


async def stored(hub: Connection, account_id: str) -> Account:
    """The account's record in JetStream."""
    found = await ask(hub, "find", "accounts", {"last_by_subj": f"$KV.accounts.{account_id}"})
    return Account.from_json(base64.b64decode(found["message"]["data"]))


async def restart(site: Site, **password: Any) -> None:
    for name in list(site.hubs):
        site.kill_hub(name, signal.SIGTERM)
        site.start_hub(name, password=password)
    for name in site.hubs:
        await site.healthy(name)


def processor_seconds(site: Site, name: str) -> float:
    """The processor time of a hub (proc_pid_stat(5): utime and stime)."""
    fields = Path(f"/proc/{site.hubs[name][0].pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def sign_in(site: Site, email: str, password: str) -> int:
    answer = await site.http("hub-1", "POST", "/api/sign-in", {"email": email, "password": password})
    return answer.status_code


async def test_each_sign_in_brings_a_hash_up_to_the_settings(site: Site) -> None:
    admin = await site.admin()
    hub = await site.state()
    (email, account_id, _), (_, idle_id, _), (full, full_id, _) = [await person(site, admin) for _ in range(3)]
    assert cost_of((await stored(hub, account_id)).password_hash) == OLD_COST
    await restart(site, **STRONGER)

    before = await stored(hub, account_id)
    assert await sign_in(site, email, PASSWORD + "!") == 401
    assert await stored(hub, account_id) == before, "a wrong password changes nothing"
    assert await sign_in(site, email, PASSWORD) == 200
    after = await stored(hub, account_id)
    assert cost_of(after.password_hash) == NEW_COST
    assert after == replace(before, password_hash=after.password_hash), "nothing else has changed"
    assert await sign_in(site, email, PASSWORD) == 200
    assert await stored(hub, account_id) == after, "once is enough"
    assert await sign_in(site, email, PASSWORD + "!") == 401

    # JetStream takes no write to the accounts, but those to the sessions.
    streams = await site.streams_admin()
    stream = await api(streams, "STREAM.INFO.KV_accounts", {})
    await api(streams, "STREAM.UPDATE.KV_accounts", stream["config"] | {"max_msg_size": 100})
    try:
        assert await sign_in(site, full, PASSWORD) == 200
    finally:
        await api(streams, "STREAM.UPDATE.KV_accounts", stream["config"])
    assert cost_of((await stored(hub, full_id)).password_hash) == OLD_COST
    assert await sign_in(site, full, PASSWORD) == 200
    assert cost_of((await stored(hub, full_id)).password_hash) == NEW_COST
    assert f"the password of account {full_id} keeps its old hash" in site.log("hub-1")

    await restart(site, **FAST_PASSWORDS)
    assert await sign_in(site, email, PASSWORD) == 200
    assert cost_of((await stored(hub, account_id)).password_hash) == OLD_COST, "also to a lower cost"
    assert cost_of((await stored(hub, idle_id)).password_hash) == OLD_COST


async def test_the_time_does_not_tell_who_has_an_account(site: Site) -> None:
    """While there are hashes of two costs, which differ by a factor of 40 and more."""
    admin = await site.admin()
    old, _, _ = await person(site, admin)
    await restart(site, argon2_concurrency=1, time_cost=10, memory_kib=4096)
    new, _, _ = await person(site, admin)
    asked = {"old": old, "new": new, "unknown": "nobody@example.org"}
    taken: dict[str, list[float]] = {who: [] for who in asked}
    for _ in range(15):
        for who, email in asked.items():
            began = processor_seconds(site, "hub-1")
            assert await sign_in(site, email, "wrong password") == 401
            taken[who].append(processor_seconds(site, "hub-1") - began)
    await restart(site, **FAST_PASSWORDS)
    total = {who: sum(times) for who, times in taken.items()}
    assert max(total.values()) < 1.5 * min(total.values()), total
