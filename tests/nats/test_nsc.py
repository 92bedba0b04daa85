"""The real nsc: it reads natskit's exports, and natskit imports nsc's identities."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from natskit.bus.permissions import DOCUMENT_SCOPES, SCOPES, STATE_SCOPES, SYSTEM_SCOPES
from natskit.cli import cli
from natskit.errors import IdentityError
from natskit.identity import claims
from natskit.identity.identity import NATS_ACCOUNTS, STATIC_USERS, Identity
from natskit.identity.tls import ensure_server_certificate
from tests.hub.site import Site
from tests.kit.nats_tools import Tool, needs
from tests.platform.raw import RawClient

pytestmark = needs("nsc")

RUNNER = "5f0c6f0e-7a3e-4c8e-9d5b-0c1f2e3d4a5b"


@pytest.fixture(scope="module")
def identity(tmp_path_factory: pytest.TempPathFactory) -> Identity:
    """An identity after a deploy with one runner. Tests do not change it."""
    now = int(time.time())
    identity = Identity.ensure(tmp_path_factory.mktemp("platform") / "identity", now=now)
    identity.runner_creds(RUNNER, now=now)
    ensure_server_certificate(identity.files, "proxy", ["localhost"], now=now)
    return identity


@pytest.fixture
def exported(identity: Identity, tmp_path: Path) -> Path:
    """The output of ``natskit identity export`` for it."""
    natskit("export", tmp_path / "exported", "--identity", identity.directory)
    return tmp_path / "exported"


def natskit(*arguments: str | Path) -> Result:
    """Run ``natskit identity …``. Raises the error that a user would see."""
    done = CliRunner().invoke(cli, ["identity", *map(str, arguments)])
    if done.exception:
        raise done.exception
    return done


def nsc(folder: Path) -> Tool:
    """nsc with its stores and keys in ``folder``."""
    home = folder.with_name(f"{folder.name}-home")
    home.mkdir(exist_ok=True)
    places = (f"--data-dir={folder}/stores", f"--keystore-dir={folder}/keys", f"--config-dir={home}/nsc")
    return Tool("nsc", home, places)


def copied_by_nsc(exported: Path, target: Path) -> Tool:
    """nsc with its own store, into which it has imported everything from an export."""
    tool, store = nsc(target), exported / "stores" / "natskit"
    tool.run("add", "operator", "--url", store / "natskit.jwt")
    tool.run("import", "keys", "--recurse", "--dir", exported / "keys" / "keys")
    for account in NATS_ACCOUNTS:
        tool.run("import", "account", "--file", store / "accounts" / account / f"{account}.jwt")
    for user in store.glob("accounts/*/users/*.jwt"):
        tool.run("import", "user", "--file", user)
    return tool


def made_by_nsc(target: Path) -> Tool:
    """nsc with an operator that nsc made, of natskit's name."""
    tool = nsc(target)
    tool.run("add", "operator", "--name", "natskit", "--generate-signing-key", "--sys")
    tool.run("add", "account", "--name", "AUTH")
    tool.run("add", "account", "--name", "PLATFORM")
    return tool


def contents(directory: Path) -> dict[str, bytes]:
    files = (path for path in directory.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(directory)): path.read_bytes() for path in files}


def test_nsc_finds_nothing_wrong_with_an_export_and_describes_it(identity: Identity, exported: Path) -> None:
    tool = nsc(exported)
    tool.run("validate", "--all-accounts")
    operator = tool.json("describe", "operator")
    assert operator["sub"] == identity.operator_public_key
    assert operator["nats"]["system_account"] == identity.account_public_key("SYS")
    scopes = {
        "SYS": set(SYSTEM_SCOPES),
        "AUTH": set(),
        "PLATFORM": set(SCOPES),
        "STATE": set(STATE_SCOPES),
        "DOCS": set(DOCUMENT_SCOPES),
    }
    for name in NATS_ACCOUNTS:
        account = tool.json("describe", "account", name)
        assert account["sub"] == identity.account_public_key(name)
        signing = account["nats"]["signing_keys"]
        assert {key["role"] for key in signing if isinstance(key, dict)} == scopes[name]
    for account_name, user in STATIC_USERS:
        found = tool.json("describe", "user", "--account", account_name, user)
        assert found == claims.decode(identity.creds(account_name, user).splitlines()[1])


def test_nsc_has_every_key_of_an_export(exported: Path) -> None:
    """nsc lists the keys in the JWTs, and marks those whose seed it found."""
    listed = nsc(exported).run("list", "keys", "--all").stdout
    rows = [[cell.strip() for cell in line.split("|")] for line in listed.splitlines()]
    stored = {row[2]: row[4] for row in rows if len(row) == 6 and row[2].isalnum() and len(row[2]) == 56}
    assert stored == {path.stem: "*" for path in exported.rglob("*.nk")}


@pytest.mark.parametrize("user", ["/".join(user) for user in STATIC_USERS])
def test_nsc_writes_the_same_creds_files_as_an_export_has(exported: Path, tmp_path: Path, user: str) -> None:
    account, _, name = user.partition("/")
    nsc(exported).run("generate", "creds", "--account", account, "--name", name, "--output-file", tmp_path / "creds")
    assert (tmp_path / "creds").read_text() == (exported / f"keys/creds/natskit/{user}.creds").read_text()


def test_what_nsc_has_imported_natskit_imports_as_the_same_identity(
    identity: Identity, exported: Path, tmp_path: Path
) -> None:
    copied_by_nsc(exported, tmp_path / "copy").run("validate", "--all-accounts")
    done = natskit("import", tmp_path / "copy", tmp_path / "again")
    assert f"copy tls, routes and proxy from its identity to {tmp_path / 'again'}" in done.stderr
    shutil.copytree(identity.directory / "tls", tmp_path / "again" / "tls")
    assert contents(tmp_path / "again") == contents(identity.directory)


def test_the_export_itself_comes_back_with_its_certificates(identity: Identity, exported: Path, tmp_path: Path) -> None:
    nsc(exported).run("list", "accounts")
    assert natskit("import", exported, tmp_path / "again").stderr == ""
    assert contents(tmp_path / "again") == contents(identity.directory)


def test_a_user_that_nsc_has_revoked_stays_revoked(identity: Identity, exported: Path, tmp_path: Path) -> None:
    nsc(exported).run("revocations", "add-user", "--account", "STATE", "--name", "probe")
    natskit("import", exported, tmp_path / "again")
    again = Identity.ensure(tmp_path / "again", now=int(time.time()))
    (revoked,) = claims.decode(again.account_jwt("STATE"))["nats"]["revocations"]
    assert revoked == claims.decode(identity.creds("STATE", "probe").splitlines()[1])["sub"]


def test_a_copy_without_the_users_is_refused(exported: Path, tmp_path: Path) -> None:
    copied_by_nsc(exported, tmp_path / "copy").run("delete", "user", "--account", "PLATFORM", "--name", "admin")
    with pytest.raises(IdentityError, match=r"PLATFORM/users/admin\.jwt is missing: copy the users as well"):
        natskit("import", tmp_path / "copy", tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_an_operator_of_another_name_is_refused(tmp_path: Path) -> None:
    nsc(tmp_path / "other").run("add", "operator", "--name", "ACME", "--generate-signing-key", "--sys")
    with pytest.raises(IdentityError, match="has the operator ACME, not natskit"):
        natskit("import", tmp_path / "other", tmp_path / "identity")


def test_an_operator_without_a_signing_key_is_refused(tmp_path: Path) -> None:
    nsc(tmp_path / "plain").run("add", "operator", "--name", "natskit", "--sys")
    with pytest.raises(IdentityError, match="0 signing keys"):
        natskit("import", tmp_path / "plain", tmp_path / "identity")


async def test_hubs_and_a_nats_server_run_with_an_operator_that_nsc_made(tmp_path: Path) -> None:
    tool = made_by_nsc(tmp_path / "made")
    made = {name: tool.json("describe", "account", name)["sub"] for name in ("SYS", "AUTH", "PLATFORM")}
    natskit("import", tmp_path / "made", tmp_path / "identity")
    site = Site(tmp_path)
    try:
        assert {name: site.identity.account_public_key(name) for name in made} == made
        assert site.identity.operator_public_key == tool.json("describe", "operator")["sub"]
        site.start_server()
        site.start_hub("hub-1")
        await site.healthy("hub-1")
        assert RawClient.tcp("127.0.0.1", site.nats_port, site.identity.creds("SYS", "admin")).ping() == []
    finally:
        await site.close()
