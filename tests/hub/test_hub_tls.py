"""A hub with TLS accepts only clients with a certificate of the proxy's CA, or with its own, and reloads renewed
files."""

from __future__ import annotations

import asyncio
import json
import signal
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from cryptography import x509

from natskit.bus.tls_trust import client_context
from natskit.identity.tls import ensure_ca, ensure_host_certificate, ensure_server_certificate
from tests.hub.site import Site
from tests.kit.wait import eventually

ADDRESS = "127.0.0.1"
Files = tuple[Path, Path, Path]


def issue(folder: Path, name: str, **options: int) -> Files:
    """Write the CA, certificate and key of a host, as a deploy does."""
    now = options.pop("now", int(time.time()))
    ensure_host_certificate(folder, name, [ADDRESS], now=now, **options)
    hosts = folder / "tls" / "hosts"
    return ensure_ca(folder, now=now), hosts / f"{name}.crt", hosts / f"{name}.key"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Site]:
    site = Site(tmp_path_factory.mktemp("tls"))
    ca, certificate, key = issue(site.root, "hub-1")
    proxy_ca, *shown = issue(site.root / "proxy", "proxy")
    site.shows = (ca, shown[0], shown[1])
    try:
        site.start_server()
        site.start_hub("hub-1", tls={"certificate": str(certificate), "key": str(key), "ca": str(proxy_ca)})
        await site.healthy("hub-1")
        yield site
    finally:
        await site.close()
        print(f"---- hub-1\n{site.log('hub-1')}")


async def knock(site: Site, context: ssl.SSLContext | None) -> int:
    """Connect as a client that the hub accepts. Returns the serial number of the hub's certificate."""
    # TLS 1.3 refuses a client certificate after the client's side of the handshake is over: only a byte of an answer
    # says that it was let in.
    reader, writer = await asyncio.open_connection(ADDRESS, site.hubs["hub-1"][1], ssl=context)
    try:
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: hub\r\n\r\n")
        if not (line := await asyncio.wait_for(reader.readline(), 5)):
            raise ConnectionResetError("closed without an answer")
        assert line.startswith(b"HTTP/1.1 200"), line
        if context is None:
            return 0
        served = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        return x509.load_der_x509_certificate(served).serial_number
    finally:
        writer.transport.abort()


def trusting(site: Site) -> ssl.SSLContext:
    assert site.shows is not None
    return client_context(site.shows[0], None, None)


def nats_connections(site: Site) -> list[int]:
    with urllib.request.urlopen(f"http://{ADDRESS}:{site.monitor_port}/connz") as answer:
        return sorted(c["cid"] for c in json.load(answer)["connections"] if c["name"].startswith("hub-1"))


async def test_the_proxy_is_let_in(site: Site) -> None:
    assert (await site.http("hub-1", "GET", "/healthz")).status_code == 200
    assert site.shows is not None
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        context = client_context(*site.shows)
        context.minimum_version = context.maximum_version = version
        assert await knock(site, context)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("who", ["nobody", "foreign", "another host", "expired", "a server only"])
async def test_everybody_else_is_refused_in_the_handshake(
    site: Site, tmp_path: Path, who: str, version: ssl.TLSVersion
) -> None:
    context = trusting(site)
    context.minimum_version = context.maximum_version = version
    if who == "foreign":
        context.load_cert_chain(*issue(tmp_path, "proxy")[1:])
    elif who == "another host":  # of the CA that signed the hub's own
        context.load_cert_chain(*issue(site.root, "hub-2")[1:])
    elif who == "expired":
        context.load_cert_chain(*issue(site.root / "proxy", "expired", now=1_000_000_000)[1:])
    elif who == "a server only":
        ensure_server_certificate(site.root / "proxy", "proxy", [ADDRESS], now=int(time.time()))
        files = site.root / "proxy" / "tls"
        context.load_cert_chain(files / "proxy.crt", files / "proxy.key")
    # asyncio resets the connection without an alert, so the client does not hear why.
    with pytest.raises((ssl.SSLError, ConnectionResetError)):
        await knock(site, context)


async def test_without_tls_and_with_an_old_one_nobody_gets_in(site: Site) -> None:
    with pytest.raises(ConnectionResetError):
        await knock(site, None)
    assert site.shows is not None
    context = client_context(*site.shows)
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await knock(site, context)


def test_the_deploy_waits_for_its_health(site: Site) -> None:
    """On the hub's host, with the hub's own certificate."""
    ca, certificate, key = map(str, issue(site.root, "hub-1"))
    url = f"https://{ADDRESS}:{site.hubs['hub-1'][1]}/healthz"

    def wait(*options: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "natskit.ops.health_wait", *options, url, "1"]
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)

    good = wait("--ca", ca, "--cert", certificate, "--key", key)
    assert (good.returncode, good.stderr) == (0, "")
    for options in (["--ca", ca], ["--cert", certificate, "--key", key], []):
        assert wait(*options).returncode == 1
    other = wait("--ca", ca, "--cert", certificate, "--key", str(site.root / "tls" / "ca.key"))
    assert other.returncode == 1
    assert "does not match the others" in other.stderr


async def test_a_renewed_certificate_is_served_after_sighup(site: Site) -> None:
    assert site.shows is not None
    process, port = site.hubs["hub-1"]
    old, connected = await knock(site, client_context(*site.shows)), nats_connections(site)
    assert len(connected) == 4  # state, requests, callouts, files
    reader, writer = await asyncio.open_connection(ADDRESS, port, ssl=client_context(*site.shows))

    async def ask() -> None:
        """Send a request on a connection that was open before."""
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: hub\r\n\r\n")
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
        assert head.startswith(b"HTTP/1.1 200")
        length = next(line for line in head.lower().splitlines() if line.startswith(b"content-length:"))
        await reader.readexactly(int(length.split()[1]))

    await ask()
    _, certificate, _ = issue(site.root, "hub-1", renew_days=500)
    process.send_signal(signal.SIGHUP)

    async def renewed() -> int:
        assert site.shows is not None
        serial = await knock(site, client_context(*site.shows))
        return serial if serial != old else 0

    serial = await eventually(renewed, "the new certificate")
    assert serial == x509.load_pem_x509_certificate(certificate.read_bytes()).serial_number
    await ask()

    # Another certificate and a key that is not its own: the hub says so and goes on with what it has.
    good = certificate.read_text()
    certificate.write_text(site.shows[1].read_text())
    process.send_signal(signal.SIGHUP)

    async def said() -> bool:
        return "the old certificate stays in use" in site.log("hub-1")

    await eventually(said, "the refusal in the log")
    assert await knock(site, client_context(*site.shows)) == serial
    certificate.write_text(good)
    await ask()
    writer.close()
    assert nats_connections(site) == connected
    assert process.poll() is None


def test_files_that_do_not_fit_are_refused_at_start(site: Site, tmp_path: Path) -> None:
    settings = json.loads((site.root / "hub-1" / "hub.json").read_text())
    settings["http"]["tls"]["key"] = str(site.root / "tls" / "ca.key")
    path = tmp_path / "hub.json"
    path.write_text(json.dumps(settings))
    command = [sys.executable, "-m", "natskit.hub", "--settings", str(path)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert ended.returncode == 2
    assert "ca.key" in ended.stderr
    assert "Traceback" not in ended.stderr
