"""Keys, cookies and passwords are only in their files. The tests search everything that a platform prints and shows."""

from __future__ import annotations

import os
import re
import shutil
import stat
import tempfile
import threading
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.kit.wait import wait_for
from tests.platform.raw import ClosedError, RawClient
from tests.platform.site import LocalSite, World

pytestmark = pytest.mark.platform

SEED = re.compile(rb"\bS[OAUX][A-Z2-7]{56}\b")
"""An nkey's seed (ADR-14)."""
PRIVATE_KEY = re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----\s+(.+?)\s+-----END", re.DOTALL)
EMAIL = "secrets@example.org"
PASSWORD, WRONG_PASSWORD = f"right {uuid.uuid4()}", f"wrong {uuid.uuid4()}"
PIECE = 40
"""Of a longer secret, this much gives it away already."""


def secrets_in(data: bytes) -> set[bytes]:
    """The secrets that must stay in their places."""
    keys = {line for block in PRIVATE_KEY.findall(data) for line in block.split() if len(line) >= PIECE}
    return set(SEED.findall(data)) | {key[-PIECE:] for key in keys}


def files(root: Path) -> Iterator[Path]:
    for folder, _, names in os.walk(root):
        yield from (path for name in names if (path := Path(folder) / name).is_file() and not path.is_symlink())


def is_open_to_others(path: Path, root: Path) -> bool:
    """Whether another user can reach and read a file."""
    folders = [folder for folder in path.parents if folder == root or root in folder.parents]
    return bool(path.stat().st_mode & 0o077) and all(folder.stat().st_mode & 0o011 for folder in folders)


def shown_processes() -> dict[str, bytes]:
    """The command line and environment of every process of this user."""
    shown: dict[str, bytes] = {}
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # ended meanwhile, or another user's
            line = (process / "cmdline").read_bytes()
            shown[f"argv of {line[:200]!r}"] = line
            shown[f"environment of {line[:200]!r}"] = (process / "environ").read_bytes()
    return shown


@contextmanager
def watched_processes() -> Iterator[dict[str, bytes]]:
    """The same during the block, including short-lived processes as far as they can be caught."""
    seen: dict[str, bytes] = {}
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.005):
            seen.update(shown_processes())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()


@pytest.fixture(scope="module")
def known(site: LocalSite, world: World) -> dict[bytes, str]:
    """Every secret of the platform, and its place."""
    found = dict.fromkeys(secrets_in(site.project_creds(world.names["p"]).encode()), "a project")
    assert found
    for path in files(site.root):
        found |= dict.fromkeys(secrets_in(path.read_bytes()), str(path.relative_to(site.root)))
    for kind in (b"SO", b"SA", b"SU"):
        assert any(secret.startswith(kind) for secret in found), f"the search for seeds {kind!r} finds nothing"
    assert any(path.endswith(".key") for path in found.values())
    return found | {PASSWORD.encode(): EMAIL, WRONG_PASSWORD.encode(): "somebody who guesses"}


def assert_none(known: Mapping[bytes, str], said: Mapping[str, bytes]) -> None:
    """Check that a text has none of the secrets. The report names a secret by its place."""
    found = {(place, origin) for place, text in said.items() for secret, origin in known.items() if secret in text}
    assert not found, f"(where it was found, where it belongs): {found}"


def test_what_is_searched_for_would_be_found(known: dict[bytes, str]) -> None:
    secret, origin = next(iter(known.items()))
    with pytest.raises(AssertionError, match=re.escape(origin)):
        assert_none(known, {"a log": b"before " + secret + b" after"})


def test_a_deploy_says_and_shows_no_secret(site: LocalSite, known: dict[bytes, str]) -> None:
    """The first deploy, which makes all keys, and one that has to write them again."""
    assert "Render nats-server.conf" in site.first_deploy
    for name in ("hub-1/keys.json", "hub-1/platform.creds", "nats/state-probe.creds"):
        (site.root / name).unlink()
    with watched_processes() as seen:
        again = site.deploy("-vvv", "--debug")
    assert again.returncode == 0, again.stderr[-5000:]
    assert (site.root / "hub-1" / "keys.json").exists()
    site.natskit("ready")
    assert len(seen) > 100, "a deploy starts many processes, and their like must have been seen"
    assert_none(known, {"first deploy": site.first_deploy.encode()} | seen)
    assert_none(known, {"second deploy": (again.stdout + again.stderr).encode()})


def test_use_of_the_platform_leaves_no_secret_behind(site: LocalSite, world: World, known: dict[bytes, str]) -> None:
    """After signing in, failing to, working, and errors of many kinds, the test searches logs, processes and
    answers."""
    said: dict[str, bytes] = {}
    with watched_processes() as seen:
        site.natskit("account", "add", EMAIL, "--password-stdin", stdin=PASSWORD)
    session = site.sign_in(EMAIL, PASSWORD)
    cookie = session.cookie.partition("=")[2].encode()
    everything = known | {cookie[-PIECE:]: "a cookie"}
    with site.http() as http:
        for name, email, password in (
            ("wrong password", EMAIL, WRONG_PASSWORD),
            ("nobody", "nobody@example.org", WRONG_PASSWORD),
        ):
            answer = http.post("/api/sign-in", json={"email": email, "password": password})
            assert answer.status_code == 401
            said[name] = answer.content + str(answer.headers).encode()
        headers = {"Cookie": session.cookie}
        change = {"current_password": WRONG_PASSWORD, "new_password": PASSWORD}
        for method, params in (("change_password", change), ("no_such_method", {}), ("ping", {"password": "x"})):
            body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
            said[method] = http.post("/api/rpc", json=body, headers=headers).content
        bad = session.cookie[:-6] + "AAAAAA"
        said["bad cookie"] = http.get("/api/session", headers={"Cookie": bad}).content
    for cookie_header in (bad, session.cookie):
        with suppress(ClosedError):
            client = RawClient.websocket(
                site.websocket_url, ca_file=site.ca_file, cookie=cookie_header, origin=site.url
            )
            said[f"NATS errors {len(said)}"] = " ".join(client.publish("hub.admin", b"x")).encode()
    said |= _errors_of_the_command(site)
    site.natskit("exec", world.names["p"], "--", "sh", "-c", "env; exit 3", check=False)
    for path in [*site.root.rglob("*.log"), *site.root.rglob("*.log.*")]:
        said[str(path)] = path.read_bytes()
    assert any("hub-1.log" in name for name in said)
    assert any("nats.log" in name for name in said)
    assert_none(everything, said)
    assert_none(everything, seen | shown_processes())


def _errors_of_the_command(site: LocalSite) -> dict[str, bytes]:
    """``natskit``'s errors about broken credentials and a damaged identity."""
    said = {}
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for name in ("platform.json", "identity"):
            source = site.root / name
            shutil.copytree(source, copy / name) if source.is_dir() else shutil.copy(source, copy / name)
        text = (copy / "platform.json").read_text().replace(str(site.root / "identity"), str(copy / "identity"))
        (copy / "platform.json").write_text(text)
        for path in [*(copy / "identity").rglob("*.creds"), *(copy / "identity").rglob("*.nk")]:
            path.chmod(0o600)
            path.write_bytes(SEED.sub(lambda seed: seed[0][:-9], path.read_bytes()))
        for words in (
            ("--platform", str(copy), "account", "list"),
            ("render", "natskit-hub.service", "--identity", str(copy / "identity")),
            ("render", "nats-server.conf", "--identity", str(copy / "identity")),
        ):
            done = site.natskit(*words, check=False)
            said[" ".join(words)] = (done.stdout + done.stderr).encode()
            assert "Traceback" not in done.stderr
        assert b"holds no JWT with its seed" in said[f"--platform {copy} account list"]
    return said


def test_no_file_with_a_secret_is_open_to_others(site: LocalSite, known: dict[bytes, str]) -> None:
    """Nor does a deploy leave one in its temporary places."""
    shared = [Path(tempfile.gettempdir()), Path("/tmp"), Path("/dev/shm")]
    left = [
        path for folder in shared for path in folder.glob("*") if path.is_file() and path.stat().st_uid == os.getuid()
    ]
    for path in [*files(site.root), *left]:
        with suppress(FileNotFoundError):
            if path in left or is_open_to_others(path, site.root):
                data = path.read_bytes() if path.stat().st_size < 50_000_000 else b""
                assert_none(known, {f"{path} ({stat.filemode(path.stat().st_mode)})": data})


def test_programs_that_hold_keys_leave_no_core_dump(site: LocalSite, world: World) -> None:
    site.natskit("project", "start", world.names["p"])
    (supervisord,) = [int((site.root / "supervisor" / "supervisord.pid").read_text())]
    programs = wait_for(lambda: descendants(supervisord), "the programs")
    assert len(programs) >= 7, "nats-server, two hubs, nginx and its workers, the runner, agents"
    for pid in [supervisord, *programs]:
        with suppress(FileNotFoundError):
            limits = Path(f"/proc/{pid}/limits").read_text()
            line = next(line for line in limits.splitlines() if line.startswith("Max core file size"))
            assert line.split()[4:6] == ["0", "0"], (pid, Path(f"/proc/{pid}/cmdline").read_bytes(), line)


def descendants(pid: int) -> list[int]:
    """The processes that a process has started, directly or indirectly."""
    found = []
    with suppress(FileNotFoundError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found += [int(child), *descendants(int(child))]
    return found
