"""A program that signs in as a person: the CAs it trusts, forms of the address, and its session after its end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from natskit.client import Client
from natskit.errors import SignInError
from tests.platform.site import Site, World

PROGRAM = """
import asyncio, sys
from natskit.client import Client
from natskit.errors import SignInError

async def main():
    url, email, password = sys.argv[1:]
    async with await Client.sign_in(url, email, password) as client:
        print((await client.call_hub("whoami"))["email"])

asyncio.run(main())
"""


def run(site: Site, world: World, **environment: str) -> subprocess.CompletedProcess[str]:
    """A program that signs in without naming a CA."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("SSL_CERT_")}
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, site.url, world.email_a, world.password],
        env=own | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_program_trusts_the_cas_that_the_environment_names(site: Site, world: World) -> None:
    """As curl does, for HTTPS and for the WebSocket: only SSL_CERT_FILE has the CA."""
    done = run(site, world, SSL_CERT_FILE=site.ca_file)
    assert (done.stdout, done.returncode) == (f"{world.email_a}\n", 0), done.stderr


def test_a_certificate_that_is_not_trusted_is_refused_with_the_cas_that_were_asked(site: Site, world: World) -> None:
    done = run(site, world)
    assert done.returncode != 0
    assert "certificate verify failed" in done.stderr
    assert "the machine's list of CAs" in done.stderr


@pytest.mark.parametrize(
    "spelling", ["https://LOCALHOST:{port}", "https://localhost:{port}/", "https://localhost.:{port}"]
)
async def test_an_address_may_be_spelt_as_in_a_browser(site: Site, world: World, spelling: str) -> None:
    url = spelling.format(port=site.url.rpartition(":")[2])
    async with await Client.sign_in(url, world.email_a, world.password, ca_file=site.ca_file) as client:
        assert (await client.call_hub("whoami"))["email"] == world.email_a


async def test_a_program_at_another_address_is_told_the_one_of_the_site(site: Site, world: World) -> None:
    url = f"https://127.0.0.1:{site.url.rpartition(':')[2]}"  # its certificate is for that as well
    with pytest.raises(SignInError, match=f"the address of this site is {site.url}"):
        await Client.sign_in(url, world.email_a, world.password, ca_file=site.ca_file)


def sessions(site: Site, email: str) -> int:
    return len(site.natskit_json("account", "sessions", email))


async def test_a_program_ends_the_session_that_it_opened(site: Site) -> None:
    """However it ends: running it a hundred times does not sign a person's browser out."""
    password = "a password for programs"  # noqa: S105
    email = f"programs@{site.domain}"
    site.natskit("account", "add", email, "--password-stdin", stdin=password)
    site.sign_in(email, password)
    arguments = site.url, email, password
    async with await Client.sign_in(*arguments, ca_file=site.ca_file):
        assert sessions(site, email) == 2
    assert sessions(site, email) == 1
    with pytest.raises(ZeroDivisionError):
        async with await Client.sign_in(*arguments, ca_file=site.ca_file):
            1 / 0  # noqa: B018
    assert sessions(site, email) == 1
    client = await Client.sign_in(*arguments, ca_file=site.ca_file)
    await client.close()
    assert sessions(site, email) == 1


def test_a_program_that_is_interrupted_ends_its_session(site: Site, world: World) -> None:
    before = sessions(site, world.email_b)
    waits = PROGRAM.replace(
        'print((await client.call_hub("whoami"))["email"])', "print(flush=True); await asyncio.sleep(600)"
    )
    # A shell's background jobs ignore SIGINT, and so may these tests.
    listens = f"import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n{waits}"
    command = [sys.executable, "-c", listens, site.url, world.email_b, world.password]
    with subprocess.Popen(command, env=os.environ | {"SSL_CERT_FILE": site.ca_file}, stdout=subprocess.PIPE) as running:
        try:
            assert running.stdout is not None
            assert running.stdout.readline() == b"\n"
            assert sessions(site, world.email_b) == before + 1
            running.send_signal(signal.SIGINT)
            running.wait(20)
        finally:
            running.kill()
    assert sessions(site, world.email_b) == before
