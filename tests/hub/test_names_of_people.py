"""Accounts and titles that look alike, or are typed alike, with two real hubs."""

from __future__ import annotations

import asyncio
import hashlib
import time
import unicodedata
import uuid
from typing import Any

import argon2
import pytest

from natskit.bus.connection import Connection
from natskit.hub.state.records import Account, EmailClaim
from natskit.rpc import RpcError, decode_response, encode_request
from tests.hub.conftest import PASSWORD
from tests.hub.site import Site, call
from tests.hub.test_hub_api import person
from tests.kit.wait import eventually

WORDS = "pässwörter sind lang"


async def add(admin: Connection, email: str, password: str = PASSWORD) -> str:
    made = await call(admin, "hub.admin", "account_add", email=email, password=password)
    return str(made["account_id"])


def some() -> str:
    return uuid.uuid4().hex[:8]


async def ask(site: Site, cookie: str, method: str, **params: Any) -> Any:
    answer = await site.http("hub-2", "POST", "/api/rpc", encode_request(method, params), cookie=cookie)
    return decode_response(answer.content)


async def test_an_address_is_the_same_however_it_is_typed(site: Site) -> None:
    admin, name = await site.admin(), some()
    account_id = await add(admin, f"jos\u00e9.{name}@B\u00fccher.example", WORDS)
    for typed in (
        f"jose\u0301.{name}@bu\u0308cher.example",
        f" JOS\u00c9.{name}@xn--bcher-kva.example. ",
        f"jos\u00e9.{name}\uff20b\u00fccher\u3002example",
    ):
        for hub in ("hub-1", "hub-2"):
            assert (await site.sign_in(hub, typed, WORDS))[0] == account_id
            assert (await site.sign_in(hub, typed, unicodedata.normalize("NFD", WORDS)))[0] == account_id
        with pytest.raises(RpcError, match="there is already an account"):
            await add(admin, typed)
    _, _, owner = await person(site, admin)
    project = (await ask(site, owner, "create_project", title="P"))["project_id"]
    shared = await ask(site, owner, "share_project", project_id=project, email=f"jose\u0301.{name}@bücher.example")
    assert account_id in {member["account_id"] for member in shared["collaborators"]}
    gone = await call(admin, "hub.admin", "account_remove", email=f"JOSE\u0301.{name}@xn--bcher-kva.example")
    assert gone["account_id"] == account_id
    await add(admin, f"jose\u0301.{name}@bücher.example")


@pytest.mark.parametrize(
    ("one", "other"),
    [("coco", "сосо"), ("strasse", "straße"), ("admin", "admın"), ("fine", "ﬁne"), ("a-b", "a\u2010b")],
)
async def test_addresses_that_look_the_same_are_one_account(site: Site, one: str, other: str) -> None:
    admin, domain = await site.admin(), f"{some()}.example"
    await add(admin, f"{one}@{domain}")
    with pytest.raises(RpcError, match="there is already an account with the e-mail"):
        await add(admin, f"{other}@{domain}")

    async def listed() -> list[str]:
        rows = await call(admin, "hub.admin", "account_list")
        return [row["email"] for row in rows if row["email"].endswith(domain)]

    assert len(await eventually(listed, "the hub that is asked knows the account")) == 1


@pytest.mark.parametrize("unseen", ["\u200b", "\u202e", "\u00ad", "\u2066", "\ufeff", "\u3164", "\ue000"])
async def test_what_cannot_be_seen_is_refused(site: Site, unseen: str) -> None:
    admin = await site.admin()
    email, account_id, cookie = await person(site, admin)
    for hidden in (f"ada{unseen}{email}", f"{email}{unseen}"):
        with pytest.raises(RpcError, match="which cannot be seen") as refused:
            await add(admin, hidden)
        assert refused.value.kind == "invalid_params"
    with pytest.raises(RpcError, match="cannot be seen"):
        await add(admin, f"{some()}@example.org", f"{PASSWORD}{unseen}" if unseen != "\ue000" else "a\x07" * 9)
    project = (await ask(site, cookie, "create_project", title="Plain"))["project_id"]
    # What is for private use may be seen somewhere, beside something that is seen everywhere.
    for title in (unseen, f"Pl{unseen}ain") if unseen != "\ue000" else (unseen,):
        with pytest.raises(RpcError, match=r"can be seen|cannot be seen"):
            await ask(site, cookie, "create_project", title=title)
        with pytest.raises(RpcError, match=r"can be seen|cannot be seen"):
            await ask(site, cookie, "rename_project", project_id=project, title=title)
    with pytest.raises(RpcError, match="cannot be seen"):
        await ask(site, cookie, "share_project", project_id=project, email=f"nobody{unseen}@example.org")
    assert [p["title"] for p in await ask(site, cookie, "list_projects")] == ["Plain"]
    assert (await ask(site, cookie, "whoami"))["account_id"] == account_id


async def test_two_hubs_asked_at_once_make_one_account_of_two_spellings(site: Site) -> None:
    admin = await site.admin()
    for _ in range(3):
        name = f"é{some()}"
        spellings = [f"{unicodedata.normalize(form, name)}@example.org" for form in ("NFC", "NFD", "NFC", "NFD")]
        made = await asyncio.gather(*(add(admin, email) for email in spellings), return_exceptions=True)
        assert [type(outcome) for outcome in made].count(str) == 1, made


async def test_accounts_of_older_hubs_go_on_as_they_are(site: Site) -> None:
    """An address that hubs refuse today, a claim under another key, and a password that was not normalised."""
    admin, hub = await site.admin(), await site.state()
    domain = f"{some()}.example"
    old = unicodedata.normalize("NFD", f"Zoé@{domain}")
    emails = (old, f"ada\u200b@{domain}", f"ada@{domain}")
    hasher = argon2.PasswordHasher(time_cost=1, memory_cost=1024)
    ids = {}
    for email in emails:
        ids[email] = account_id = str(uuid.uuid4())
        raw = hasher.hash(unicodedata.normalize("NFD", WORDS).encode())
        account = Account(email=email, password_hash=raw, created_at=time.time())
        key = "email." + hashlib.sha256(email.strip().lower().encode()).hexdigest()
        for where, record in ((key, EmailClaim(account_id=account_id)), (account_id, account)):
            await hub.request(f"$KV.accounts.{where}", record.to_json(), timeout=2)

    async def known() -> bool:
        rows = await call(admin, "hub.admin", "account_list")
        return len([row for row in rows if row["email"].endswith(domain)]) == len(emails)

    await eventually(known, "the hubs know them")
    for email in emails:
        assert (await site.sign_in("hub-1", email, WORDS))[0] == ids[email]
    assert (await site.sign_in("hub-2", unicodedata.normalize("NFC", old), WORDS))[0] == ids[old], "typed elsewhere"
    for email in (*emails, unicodedata.normalize("NFC", old)):
        with pytest.raises(RpcError, match=r"already an account|cannot be seen"):
            await add(admin, email)
    for email in (unicodedata.normalize("NFC", old), f"ada\u200b@{domain}", f"ADA@{domain}"):
        gone = await call(admin, "hub.admin", "account_remove", email=email)
        assert gone["account_id"] in ids.values()
    await add(admin, f"ada@{domain}")
    await add(admin, old)


async def test_a_title_that_an_older_hub_took_is_no_empty_row(site: Site) -> None:
    admin = await site.admin()
    _, account_id, cookie = await person(site, admin)
    project = (await ask(site, cookie, "create_project", title="Plain"))["project_id"]
    hub = await site.state()
    await hub.request(f"$KV.projects.{project}", b'{"title": "\xe2\x80\x8b", "created_at": 1}', timeout=2)

    async def shown() -> bool:
        return bool((await ask(site, cookie, "list_projects"))[0]["title"] == "(no title)")

    await eventually(shown, "something is shown")
    assert account_id


async def test_a_runner_is_found_by_its_name_however_it_is_typed(site: Site) -> None:
    admin = await site.admin()
    for name in ("LOCAL", "local.", "ｌｏｃａｌ"):
        await call(admin, "hub.admin", "runner_allow", name=name)
    with pytest.raises(RpcError, match="there is no runner"):
        await call(admin, "hub.admin", "runner_allow", name="locals")
