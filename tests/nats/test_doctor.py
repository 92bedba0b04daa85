"""The doctor's checks on servers, certificates and machines that the tests really break."""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from natskit.backup.record import FILE, Record
from natskit.bus.connection import Connection, connect
from natskit.bus.jetstream import api
from natskit.bus.permissions import DOCUMENT_STREAMS, PROBE_BUCKET
from natskit.bus.servers import NatsServers
from natskit.cli.doctor import _of_servers
from natskit.cli.platform import Platform
from natskit.doctor import backups, keys, machine, machine_probe, servers
from natskit.doctor.bundle import REDACTED, redacted
from natskit.doctor.finding import Finding, in_order
from natskit.identity import tls
from natskit.identity.identity import Identity
from natskit.ops.account_resolver import Servers
from natskit.ops.stream_provisioning import WITH_STREAMS, StreamSettings, apply
from tests.hub.site import Site
from tests.kit.nats import running
from tests.kit.ports import free_port
from tests.kit.wait import eventually
from tests.mounts import mounted
from tests.nats.test_restart_gate import NAMES, started

DEPLOY = "natskit deploy"
DAY = 86_400


async def test_copies_that_are_away_and_a_stream_without_a_leader(tmp_path: Path) -> None:
    """Also through the servers that are left, whichever is down, and in each NATS account with streams."""
    settings = StreamSettings(replicas=3)
    with started(tmp_path) as cluster:
        await cluster.make_bucket()
        for account in WITH_STREAMS:
            admin = await cluster.admin(account)
            await apply(admin, settings, account)
            await admin.close()
        content = {
            "nats": list(NAMES),
            "nats_urls": [cluster.url(name) for name in NAMES],
            "nats_ca_file": None,
            "resolvers": {},
            "streams": settings.model_dump(),
        }
        platform = Platform(tmp_path, content)

        async def whats() -> list[tuple[str, str]]:
            found = await _of_servers(platform, cluster.identity, DEPLOY)
            return [(one.severity, one.what) for one in found if "stream" in one.what]

        async def all_well() -> bool:
            return await whats() == []

        await eventually(all_well, "all copies are there", 60)
        cluster.servers["nats-1"].kill()

        async def one_lacks() -> bool:
            found = await whats()
            return all(
                ("soon", f"stream {stream} lacks a copy: that on nats-1") in found
                for stream in ("KV_accounts", *DOCUMENT_STREAMS)
            )

        await eventually(one_lacks, "the leaders notice", 60)
        cluster.servers["nats-2"].kill()

        async def no_leader() -> bool:
            found = await whats()
            return all(
                ("broken", f"stream {stream} has no leader") in found
                for stream in (f"KV_{PROBE_BUCKET}", *DOCUMENT_STREAMS)
            )

        await eventually(no_leader, "a majority is away", 60)


async def test_documents_that_nearly_fill_their_stream(tmp_path: Path) -> None:
    settings = StreamSettings(document_bytes=16 * 1024**2)
    async with Site.without_hubs(tmp_path) as site:
        admin = await site.connect("admin", site.identity.creds("DOCS", "admin"))
        keeper = await site.connect("keeper", site.identity.creds("DOCS", "keeper"))
        await apply(admin, settings, "DOCS")
        assert await servers.streams(admin, settings, DEPLOY, "DOCS") == []
        for _ in range(7):
            await keeper.request("doc.2.a.b", b"x" * 500_000, timeout=5)
        (found,) = await servers.streams(admin, settings, DEPLOY, "DOCS")
        assert (found.severity, found.what) == ("soon", "stream DOC_2 is nearly full")
        assert found.mend == "raise keeper_max_bytes in the inventory, and deploy"


async def test_a_bucket_that_is_nearly_full(tmp_path: Path) -> None:
    async with Site.without_hubs(tmp_path) as site:
        site.make_streams(state_bytes=100_000)
        hub = await site.state()
        admin, settings = await site.streams_admin(), StreamSettings(state_bytes=100_000)
        assert await servers.streams(admin, settings, DEPLOY) == []
        await hub.request("$KV.sessions.a", b"x" * 60_000, timeout=5)
        await hub.request("$KV.sessions.b", b"x" * 25_000, timeout=5)
        (found,) = await servers.streams(admin, settings, DEPLOY)
        assert (found.severity, found.what) == ("soon", "stream KV_sessions is nearly full")
        assert "at most 100000 bytes" in found.why
        await hub.request("$KV.sessions.c", b"x" * 12_000, timeout=5)
        (found,) = await servers.streams(admin, settings, DEPLOY)
        assert found.severity == "broken"


async def test_a_server_whose_jetstream_is_nearly_full(tmp_path: Path) -> None:
    port = free_port()
    configuration = f"""
        server_name: nats-1
        listen: "127.0.0.1:{port}"
        jetstream {{ store_dir: "{tmp_path}/jetstream", max_file_store: 100KB }}
        accounts {{
          SYS {{ users: [{{user: sys, password: sys}}] }}
          A {{ jetstream: enabled, users: [{{user: a, password: a}}] }}
        }}
        system_account: SYS
    """
    with running(tmp_path, configuration):
        async with as_user("sys", port) as system, as_user("a", port) as client:
            there = Servers(system, ["nats-1"])
            assert await servers.storage(there) == []
            await api(client, "STREAM.CREATE.S", {"name": "S", "subjects": ["s"], "storage": "file"})
            await client.request("s", b"x" * 85_000, timeout=5)
            (found,) = await servers.storage(there)
            assert (found.severity, found.what) == ("soon", "JetStream of nats-1 is nearly full")


@contextlib.asynccontextmanager
async def as_user(name: str, port: int) -> AsyncIterator[Connection]:
    url = f"nats://{name}:{name}@127.0.0.1:{port}"
    connection = await connect(NatsServers(urls=[url]), name=name, inbox_prefix=f"_INBOX.{name}", timeout=5)
    try:
        yield connection
    finally:
        await connection.close()


def test_certificates_that_end_soon_have_ended_or_are_gone(tmp_path: Path) -> None:
    now = int(time.time())
    place = tmp_path / "identity"
    Identity.ensure(place, now=now)
    tls.ensure_host_certificate(place, "good", ["good"], now=now)
    assert list(keys.expiring(place, None, now, DEPLOY)) == []
    then = now + (tls.CERTIFICATE_DAYS - 10) * DAY
    (found,) = keys.expiring(place, None, then, DEPLOY)
    assert (found.severity, found.mend) == ("soon", DEPLOY)
    assert found.what.startswith("certificate of host good: ends on ")
    (found,) = keys.expiring(place, None, then + 20 * DAY, DEPLOY)
    assert (found.severity, found.why.split()[-1]) == ("broken", "expired")
    jwt = place / "stores" / "natskit" / "accounts" / "PLATFORM" / "PLATFORM.jwt"
    jwt.write_text("damaged")
    (found,) = keys.expiring(place, None, now, DEPLOY)
    assert (found.severity, found.what) == ("broken", "JWT of NATS account PLATFORM: is damaged")
    assert found.mend == DEPLOY


@pytest.mark.parametrize(
    ("name", "authority", "aged", "why"),
    [
        ("localhost", "mine", 0, ""),
        ("elsewhere.example.org", "mine", 0, "Hostname mismatch"),
        ("localhost", "others", 0, "self-signed certificate in certificate chain|unable to get local issuer"),
        ("localhost", "mine", tls.CERTIFICATE_DAYS + 1, "certificate has expired"),
    ],
)
async def test_the_certificate_that_a_site_shows(
    tmp_path: Path, name: str, authority: str, aged: int, why: str
) -> None:
    now = int(time.time())
    for folder in ("mine", "others"):
        (tmp_path / folder).mkdir(mode=0o700)
        tls.ensure_ca(tmp_path / folder, now=now - 500 * DAY)
    certificate, key = tls.ensure_host_certificate(tmp_path / authority, "site", [name], now=now - aged * DAY)
    shown = tmp_path / "shown.pem"
    shown.write_text(certificate + key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(shown)
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", free_port(), ssl=context)
    async with server:
        port = server.sockets[0].getsockname()[1]
        ca = tmp_path / "mine" / "tls" / "ca.crt"
        url = f"https://localhost:{port}"
        found = await asyncio.to_thread(lambda: list(keys.served(url, ca, DEPLOY)))
    if not why:
        assert found == []
        return
    (one,) = found
    assert one.what == f"browsers refuse the certificate of {url}"
    assert any(reason in one.why for reason in why.split("|")), one.why


def of_disk(*places: Path) -> list[Finding]:
    """What is found of the file systems of these folders alone."""
    record = machine_probe.look([])
    return list(machine.findings(record | {"file_systems": machine_probe.file_systems([*map(str, places)])}))


def test_a_disk_that_is_nearly_full(tmp_path: Path) -> None:
    place = tmp_path / "disk"
    place.mkdir()
    with mounted(place, "size=16m"):
        free = os.statvfs(place)
        size = free.f_frsize * free.f_bavail
        assert of_disk(place) == []
        with (place / "file").open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, int(size * 0.92))
        found = of_disk(place, place)
        assert [one.severity for one in found] == ["soon"]
        assert "is 92% full" in found[0].what
        assert found[0].mend.startswith("du -xh ")


def test_a_disk_that_can_have_no_more_files(tmp_path: Path) -> None:
    place = tmp_path / "disk"
    place.mkdir()
    with mounted(place, "size=16m,nr_inodes=200"):
        for number in range(190):
            (place / str(number)).touch()
        found = [(one.severity, one.what) for one in of_disk(place)]
        assert found == [("soon", f"the disk of {place} can have hardly any more files")]
        for number in range(190, 199):
            (place / str(number)).touch()
        assert [one.severity for one in of_disk(place)] == ["broken"]


def test_a_disk_that_the_kernel_has_made_read_only(tmp_path: Path) -> None:
    place = tmp_path / "disk"
    place.mkdir()
    with mounted(place, "size=16m"):
        assert of_disk(place) == []
        subprocess.run(["mount", "-o", "remount,ro", place], check=True)
        found = [(one.severity, one.what) for one in of_disk(place)]
    assert found == [("broken", f"the disk of {place} is read-only")]


def test_a_disk_inside_the_folder(tmp_path: Path) -> None:
    place = tmp_path / "data" / "jet stream"
    place.mkdir(parents=True)
    with mounted(place, "size=16m"):
        subprocess.run(["mount", "-o", "remount,ro", place], check=True)
        found = of_disk(tmp_path / "data")
    assert [one.what for one in found] == [f"the disk of {place} is read-only"]


def test_watches_of_inotify(tmp_path: Path) -> None:
    """A user's own watches are counted, and compared with what the kernel allows this user."""
    with subprocess.Popen(
        [sys.executable, "-c", WATCHING, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        record = machine_probe.look([])
        process.communicate()
    me = str(os.geteuid())
    instances, watches = record["watches"]["users"][me]
    assert instances >= 1
    assert watches >= 2
    assert [int(Path(f"/proc/sys/fs/inotify/max_user_{kind}").read_text()) for kind in ("instances", "watches")] == (
        record["watches"]["most"]
    )
    record["watches"]["most"] = [10 * instances, watches]
    what = [one.what for one in machine.findings(record) if "inotify" in one.what]
    assert f"user {me} has nearly as many watches of inotify as one user may" in what
    assert f"user {me} has nearly as many instances of inotify as one user may" not in what


WATCHING = """
import ctypes, sys
libc = ctypes.CDLL(None)
number = libc.inotify_init()
for path, mask in ((sys.argv[1], 0x100), ("/", 0x200)):
    assert libc.inotify_add_watch(number, path.encode(), mask) > 0
print("watching", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"memory": {"MemTotal": 100, "MemAvailable": 4, "SwapTotal": 0, "SwapFree": 0}}, "hardly any memory is left"),
        (
            {"memory": {"MemTotal": 100, "MemAvailable": 50, "SwapTotal": 100, "SwapFree": 10}},
            "the swap space is nearly full",
        ),
        ({"open_files": [81, 0, 100]}, "nearly as many files and connections are open as the kernel allows"),
    ],
)
def test_limits_of_another_machine(changed: dict[str, object], what: str) -> None:
    record = machine_probe.look([])
    whole = {
        "memory": {"MemTotal": 100, "MemAvailable": 50, "SwapTotal": 100, "SwapFree": 30},
        "open_files": [9, 0, 99],
    }
    empty = {"watches": {"users": {}, "most": [1, 1]}}
    assert list(machine.findings(record | whole | empty, "nats-1")) == []
    (found,) = machine.findings(record | whole | empty | changed, "nats-1")
    assert found.what == f"nats-1: {what}"
    assert found.mend.startswith("on nats-1: ")


def test_keys_that_others_may_read(tmp_path: Path) -> None:
    identity = tmp_path / "the identity"
    identity.mkdir(mode=0o700)
    assert list(keys.readable(identity)) == []
    identity.chmod(0o750)
    (found,) = keys.readable(identity)
    assert found.severity == "broken"
    assert "has mode 0750" in found.why
    assert found.mend.startswith(f"chmod go= '{identity}'")


def test_a_site_without_an_address() -> None:
    assert list(keys.named("https://localhost:4043")) == []
    (found,) = keys.named("https://nobody.invalid:4043")  # RFC 2606: no resolver knows it
    assert (found.severity, found.what) == ("broken", "nobody.invalid has no address")


def test_backups_that_are_old_untried_or_gone(tmp_path: Path) -> None:
    now = datetime.now(UTC)

    def whats(**changes: object) -> list[str]:
        good = {"target": str(tmp_path), "backups": 1, "begun": now - timedelta(hours=35), "verified": now}
        Record.model_validate(good | changes).keep(tmp_path, None)
        return [one.what for one in backups.old(tmp_path, now)]

    assert list(backups.old(tmp_path, now)) == []  # none was taken here
    assert whats() == []
    assert whats(begun=now - timedelta(hours=37)) == ["the last backup is old"]
    assert whats(verified=None) == ["the backups are not tried"]
    assert whats(verified=now - timedelta(days=10)) == ["the backups are not tried"]
    assert whats(lacks={"runners": ["two"], "projects": 0, "files": 3}) == ["the last backup is not complete"]
    assert whats(target="rclone:elsewhere:backups") == []
    assert whats(target=str(tmp_path / "gone")) == ["the folder with all backups is gone"]
    (tmp_path / FILE).write_text("{")
    assert [one.what for one in backups.old(tmp_path, now)] == ["it is not known when the last backup was taken"]


def test_a_process_with_nearly_all_files_open() -> None:
    code = "import resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))\n"
    code += "held = [open('/dev/null') for _ in range(int(sys.argv[1]))]; print('open', flush=True); sys.stdin.read()"
    for number, wanted in ((10, []), (32, ["soon"])):
        with subprocess.Popen(
            [sys.executable, "-c", code, str(number)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            process.stdout.readline()
            found = list(machine.open_files({"hub-1": process.pid}))
            assert [one.severity for one in found] == wanted
            process.communicate()


def test_what_is_broken_comes_first() -> None:
    found = [Finding(severity, severity, "", "") for severity in ("untidy", "soon", "broken", "soon")]
    assert [one.severity for one in in_order(found)] == ["broken", "soon", "soon", "untidy"]


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("nats://ada:secret@127.0.0.1:4222 is down", f"nats://{REDACTED}@127.0.0.1:4222 is down"),
        ('{"password": "secret", "hub": "hub-1"}', f'{{"password": "{REDACTED}", "hub": "hub-1"}}'),
        ('client_secret="three words of it" x', f'client_secret="{REDACTED}" x'),
        ("nats://ada:p@ss@127.0.0.1:4222 is down", f"nats://{REDACTED}@127.0.0.1:4222 is down"),
        ('{"authorization": "Bearer secret"}\nnext', f'{{"authorization": {REDACTED}\nnext'),
        ("Cookie: __Host-natskit=secret; a=b\nnext", f"Cookie: {REDACTED}\nnext"),
        (
            "GET /api/oidc/callback?code=4/0Ab&state=x.y&session_state=z HTTP/1.1",
            f"GET /api/oidc/callback?code={REDACTED}&state={REDACTED}&session_state={REDACTED} HTTP/1.1",
        ),
        ('"url": "https://bus.example.org/?ticket=abc"', f'"url": "https://bus.example.org/?ticket={REDACTED}"'),
        ("GET /?page=2&encoding=utf-8 HTTP/1.1", None),
        ("SUAIBDPBAUTWCWBKIO6XHQNINK5FWJW4OHLXC3HQ2KFE4PEJUA44CNHTC4 x", f"{REDACTED} x"),
        ("UAIBDPBAUTWCWBKIO6XHQNINK5FWJW4OHLXC3HQ2KFE4PEJUA44CNHTC a public key", None),
        ("hub-1 answered in 2.1 ms", None),
    ],
)
def test_what_is_removed_from_a_bundle(text: str, kept: str | None) -> None:
    assert redacted(text) == (kept or text)
