"""tests/kit/ports.py: the same port is never given twice."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

from tests.kit.ports import BLOCK, claim, ephemeral_ports, free_port, free_ports

EACH = 150
PROGRAM = f"""
import json, os, sys
from tests.kit.ports import free_port
free_port()
os.fork()
line = json.dumps([free_port() for _ in range({EACH})]) + "\\n"
os.write(1, line.encode())  # in one piece: both write to the same pipe
sys.stdin.read()
"""


def all_different(ports: list[int]) -> bool:
    return len(set(ports)) == len(ports)


def test_processes_and_their_forks_that_run_at_once_get_different_ports() -> None:
    with ExitStack() as stack:
        command = [sys.executable, "-c", PROGRAM]
        processes = [
            stack.enter_context(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
            for _ in range(6)
        ]
        given = [free_port() for _ in range(EACH)]
        for process in processes * 2:
            assert process.stdout is not None
            given += json.loads(process.stdout.readline())
        assert len(given) == EACH * 13
        assert all_different(given)


def test_threads_get_different_ports() -> None:
    with ThreadPoolExecutor(8) as pool:
        assert all_different([port for some in pool.map(free_ports, [7] * 100) for port in some])


def test_ports_of_one_call_follow_one_another() -> None:
    for count in (1, 2, 5, BLOCK):
        ports = free_ports(count)
        assert ports == list(range(ports[0], ports[0] + count))


def test_no_connection_of_a_client_gets_one() -> None:
    assert not set(ephemeral_ports()) & {free_port() for _ in range(BLOCK)}


def test_what_somebody_listens_on_is_left_out() -> None:
    """An ended process may have left a server behind."""
    first = free_ports(BLOCK - 1)[0]
    for address in ("127.0.0.1", "0.0.0.0"):
        with socket.create_server((address, first + BLOCK - 1)):
            assert free_port() != first + BLOCK - 1
        first = free_ports(BLOCK - 1)[0]


def test_a_name_is_taken_until_its_process_ends() -> None:
    name = f"test_ports/{free_port()}"
    program = f"import sys; from tests.kit.ports import claim; print(claim({name!r}), flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"True\n"
        assert not claim(name)
    assert claim(name)
