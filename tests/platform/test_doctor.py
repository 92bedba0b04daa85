"""The doctor on a whole platform. The tests break one thing after the other, and fix it by the doctor's command."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from natskit.backup.platform_streams import Site as RunningSite
from natskit.bus.connection import connect
from natskit.bus.credentials import CredsText
from natskit.bus.jetstream import api
from natskit.bus.permissions import RESTORE_BACKUP
from natskit.bus.servers import NatsServers
from natskit.identity import claims, nkey
from natskit.identity.identity import Identity
from tests.kit.wait import wait_for
from tests.platform.site import LocalSite, deployed

pytestmark = pytest.mark.platform

SUPERVISORCTL = Path(sys.executable).with_name("supervisorctl")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalSite]:
    with deployed(Path(tmp_path_factory.mktemp("doctor")) / "local") as site:
        yield site


def findings(site: LocalSite) -> list[dict[str, Any]]:
    """The doctor's findings. It exits 1 exactly if something is broken."""
    done = site.natskit("doctor", "--json", check=False)
    found: list[dict[str, Any]] = json.loads(done.stdout)["findings"]
    assert done.returncode == int(any(one["severity"] == "broken" for one in found)), done.stderr
    return found


def finding(site: LocalSite, what: str) -> dict[str, Any]:
    """The only finding about this. There may be others that follow from it."""
    found = findings(site)
    matching = [one for one in found if what in one["what"]]
    assert len(matching) == 1, found
    return matching[0]


def is_well(site: LocalSite) -> bool:
    return findings(site) == []


def control(site: LocalSite, *words: str) -> None:
    configuration = site.root / "supervisor" / "supervisord.conf"
    subprocess.run([SUPERVISORCTL, "-c", configuration, *words], check=True, capture_output=True, timeout=60)


def identity(site: LocalSite) -> Identity:
    return Identity.load(site.root / "identity")


def running(site: LocalSite) -> RunningSite:
    return RunningSite(site.root / "identity", NatsServers(urls=site.info["nats_urls"]), tuple(site.info["nats"]), ())


def test_nothing_is_wrong_with_a_new_platform(site: LocalSite) -> None:
    assert site.natskit("doctor").stdout == "Nothing is wrong.\n"


def test_a_stopped_hub(site: LocalSite) -> None:
    control(site, "stop", "hub-2")
    found = finding(site, "hub-2 does not work")
    assert found["severity"] == "soon", "the other one answers"
    assert "supervisor says STOPPED" in found["why"]
    assert found["mend"].startswith(
        f"NATSKIT_LOCAL={site.root} natskit --platform {site.root} deploy inventories/local.py"
    )
    mended = subprocess.run(
        ["bash", "-c", found["mend"].replace(" natskit ", f" {Path(sys.executable).with_name('natskit')} ")],
        env=site.environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert mended.returncode == 0, mended.stdout + mended.stderr
    assert is_well(site)


def test_a_stopped_proxy(site: LocalSite) -> None:
    control(site, "stop", "proxy")
    assert finding(site, "proxy does not work")["severity"] == "broken"
    control(site, "start", "proxy")
    wait_for(lambda: is_well(site), "all is well again")


def test_a_file_that_was_edited_by_hand(site: LocalSite) -> None:
    path = site.root / "nats" / "nats-server.conf"
    text = path.read_text()
    path.write_text(text + "# by hand\n")
    found = finding(site, "@local differs from the inventory")
    assert "Render nats-server.conf" in found["why"]
    path.write_text(text)
    assert is_well(site)


def test_a_stream_that_was_changed_and_one_that_is_gone(site: LocalSite) -> None:
    async def damage() -> None:
        creds = CredsText(identity(site).creds("STATE", "admin"))
        servers = NatsServers(urls=site.info["nats_urls"])
        admin = await connect(servers, name="test", inbox_prefix="_INBOX.admin", creds=creds, timeout=5)
        config = (await api(admin, "STREAM.INFO.AUDIT", {}))["config"]
        await api(admin, "STREAM.UPDATE.AUDIT", config | {"max_bytes": 2_000_000})
        await admin.close()
        async with running(site).as_user("STATE", identity(site), RESTORE_BACKUP) as connection:
            await api(connection, "STREAM.DELETE.KV_probe", {})

    asyncio.run(damage())
    found = findings(site)
    assert [one["what"] for one in found] == ["stream KV_probe is missing", "stream AUDIT was changed by hand"]
    assert found[1]["why"].endswith("max_bytes")
    done = site.deploy()
    assert done.returncode == 0, done.stdout + done.stderr
    assert is_well(site)


def test_a_resolver_that_is_out_of_step(site: LocalSite) -> None:
    mine = identity(site)
    other = claims.decode(mine.account_jwt("PLATFORM"))
    del other["jti"]
    other["nats"]["limits"]["conn"] = 5000
    token = claims.encode(other, nkey.key_pair(mine.operator_signing_seed))

    async def push() -> None:
        async with running(site).resolvers(mine) as servers:
            await servers.push([token])

    asyncio.run(push())
    found = finding(site, "has another NATS account PLATFORM than the identity")
    assert found["severity"] == "broken"
    assert "limits.conn" in found["why"]
    assert found["mend"].endswith("natskit identity push")
    site.natskit("identity", "push")
    assert is_well(site)


def test_files_of_a_project_that_nobody_knows(site: LocalSite) -> None:
    folder = site.root / "runner" / "projects" / str(uuid.uuid4())
    folder.mkdir()
    found = finding(site, "the files of a project that does not exist are left")
    assert (found["severity"], found["mend"]) == ("untidy", f"look at them, then rm -r {folder}")
    folder.rmdir()
    assert is_well(site)


def test_a_program_of_another_version(site: LocalSite) -> None:
    path = site.root / "runner" / "runner.json"
    text = path.read_text()
    path.write_text(json.dumps(json.loads(text) | {"version": "0.0.7"}))
    control(site, "restart", "runner")
    found = wait_for(lambda: finding(site, "runner runs natskit 0.0.7"), "the hubs know its version")
    assert "this control machine has" in found["why"]
    path.write_text(text)
    control(site, "restart", "runner")
    wait_for(lambda: is_well(site), "all is well again")


def test_a_bundle_holds_no_secret(site: LocalSite, tmp_path: Path) -> None:
    seeds = [path.read_text().strip() for path in site.root.glob("identity/keys/keys/**/*.nk")]
    password = (site.root / "first-account.txt").read_text().splitlines()[1]
    keys = json.loads((site.root / "hub-1" / "keys.json").read_text())
    secrets = [*seeds, *keys["platform_seeds"].values(), password]
    secrets += [
        line for line in (site.root / "hub-1" / "platform.creds").read_text().splitlines() if line[:2] in ("ey", "SU")
    ]
    assert len(secrets) > 10
    leak = site.root / "log" / "leak.log"
    pem = (site.root / "identity" / "tls" / "ca.key").read_text()
    leak.write_text("\n".join([*secrets[:-2], f"Cookie: {secrets[-2]}", f'"password": "{password}"', pem]))
    file = tmp_path / "doctor.tar.gz"
    done = site.natskit("doctor", "--bundle", str(file))
    leak.unlink()
    assert "look at it before you send it" in done.stderr
    assert file.stat().st_mode & 0o077 == 0
    with tarfile.open(file) as archive:
        content = {entry.name: archive.extractfile(entry).read().decode() for entry in archive}  # type: ignore[union-attr]
    assert {
        "natskit-doctor/doctor.json",
        "natskit-doctor/status.json",
        "natskit-doctor/log/hub-1.log",
    } <= content.keys()
    assert "hub hub-1 is ready" in content["natskit-doctor/log/hub-1.log"]
    text = "\n".join(content.values())
    for secret in [*seeds, *keys["platform_seeds"].values(), *pem.splitlines()[1:-1]]:
        assert secret not in text
    for line in secrets:
        assert line == password or line not in text
    assert f'"password": "{password}"' not in text
    again = site.natskit("doctor", "--bundle", str(file), check=False)
    assert again.stderr.endswith(f"natskit: {file} exists already: choose another file\n")


def test_programs_that_outlived_their_supervisord(site: LocalSite) -> None:
    pid = int((site.root / "supervisor" / "supervisord.pid").read_text())
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not Path(f"/proc/{pid}").exists(), "supervisord is gone")
    found = findings(site)
    orphans = [one for one in found if "has outlived its supervisord" in one["what"]]
    assert len(orphans) >= 5
    assert any("nats-server" in one["why"] for one in orphans)
    assert "supervisor does not work" in [one["what"] for one in found]
    done = site.deploy()
    assert done.returncode == 0, done.stdout + done.stderr
    deadline = time.monotonic() + 60
    wait_for(lambda: is_well(site), "all is well again", deadline - time.monotonic())
