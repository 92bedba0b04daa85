"""A hub accepts new signing keys without a restart, and then accepts or refuses clients by the right keys."""

from __future__ import annotations

import signal
import time
import uuid
from dataclasses import replace

from natskit.identity import claims, nkey
from natskit.identity.identity import HubKeys
from tests.hub.site import Site, cookie_of
from tests.hub.test_hub_api import person
from tests.kit.wait import eventually


async def use(site: Site, keys: HubKeys) -> None:
    """Give a hub other keys, as a deploy does, and wait until it signs with them."""
    path = site.root / "hub-1" / "keys.json"
    path.write_text(keys.to_json())
    process, _ = site.hubs["hub-1"]
    said = site.log("hub-1").count("signing keys")
    process.send_signal(signal.SIGHUP)

    async def heard() -> bool:
        return site.log("hub-1").count("signing keys") > said

    await eventually(heard, "the hub reads its keys again")
    assert process.poll() is None


async def slide(site: Site, cookie: str) -> tuple[int, str]:
    """The hub's answer to a cookie, and the key that signed the new cookie."""
    answer = await site.http("hub-1", "GET", "/api/session", cookie=cookie)
    return answer.status_code, str(claims.decode(cookie_of(answer))["iss"]) if answer.status_code == 200 else ""


async def test_a_cookie_is_exchanged_while_its_key_counts(site: Site) -> None:
    _, _, cookie = await person(site, await site.admin())
    old = site.identity.hub_keys()
    old_key, seed = nkey.public_key(old.auth_signing_seed), nkey.create_seed("account")
    new_key = nkey.public_key(seed)
    both = replace(old, auth_signing_seed=seed, accepted={old_key: int(time.time()) + 60})
    assert await slide(site, cookie) == (200, old_key)
    await use(site, replace(old, accepted={new_key: 0}))
    assert await slide(site, cookie) == (200, old_key)
    await use(site, both)
    assert await slide(site, cookie) == (200, new_key)
    await use(site, replace(both, accepted={old_key: int(time.time()) - 1}))
    assert (await slide(site, cookie))[0] == 401
    await use(site, replace(both, accepted={}))
    assert (await slide(site, cookie))[0] == 401
    await use(site, old)
    assert await slide(site, cookie) == (200, old_key)


async def test_keys_that_cannot_be_read_change_nothing(site: Site) -> None:
    _, _, cookie = await person(site, await site.admin())
    path = site.root / "hub-1" / "keys.json"
    good = path.read_text()
    path.write_text("{")
    process, _ = site.hubs["hub-1"]
    process.send_signal(signal.SIGHUP)

    async def complained() -> bool:
        return "the old signing keys stay in use" in site.log("hub-1")

    await eventually(complained, "the hub says so")
    assert (await slide(site, cookie))[0] == 200
    path.write_text(good)


async def test_a_runner_may_come_with_either_key_while_the_hub_is_told_so(site: Site) -> None:
    runner, old, new = str(uuid.uuid4()), nkey.create_seed("user"), nkey.create_seed("user")

    def creds(seed: str) -> str:
        body = claims.auth_user_claims(
            subject=nkey.public_key(seed),
            name=runner,
            tags=["kind:runner"],
            auth_account=site.identity.account_public_key("AUTH"),
            issued_at=int(time.time()) - 60,
        )
        signer = nkey.key_pair(site.identity.signing_seed("AUTH", "hub"))
        return claims.format_creds(claims.encode(body, signer), seed)

    async def restart(**keys: str) -> None:
        for name in ("hub-1", "hub-2"):
            site.kill_hub(name)
            site.start_hub(name, runners={runner: {"name": "r", **keys}})
            await site.healthy(name)

    await restart(public_key=nkey.public_key(new), retiring_key=nkey.public_key(old))
    both = [await site.connect("runner", creds(seed), runner) for seed in (old, new)]
    await restart(public_key=nkey.public_key(new))

    async def one_is_out() -> bool:
        return not both[0].is_connected and both[1].is_connected

    await eventually(one_is_out, "the old key is out, and the new one is not cut")
