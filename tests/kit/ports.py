"""The one source of ports for what tests and measurements start.

A port that the kernel picks (``bind`` to 0) is free at that moment only: once it is closed, the next ``bind`` to 0 or
any outgoing connection may get the same. So these ports lie outside the kernel's range for outgoing connections
(``ip_local_port_range``, ip(7)), and a process holds what it gives out until it ends, against all others on the
machine.
"""

from __future__ import annotations

import itertools
import os
import random
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

LOWEST = 10_000
"""Below are the ports that services, natskit's own included, have by default."""
BLOCK = 32
"""A process holds ports in blocks of this size, with one file descriptor each: it often may have 1,024 in all."""


def free_port() -> int:
    """A port on which nobody listens, and that no other caller gets while this process lives."""
    return free_ports(1)[0]


def free_ports(count: int) -> list[int]:
    """Up to ``BLOCK`` such ports in a row, as several hubs need them."""
    return _SOURCE.take(count)


def ephemeral_ports() -> range:
    """The ports that the kernel picks from."""
    low, high = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
    return range(int(low), int(high) + 1)


def claim(name: str) -> bool:
    """Take a name for as long as this process lives; whether no other process has it.

    It is a name of an abstract Unix socket (unix(7)): like ports, those belong to a network namespace and to no user,
    and the kernel frees them whichever way a process ends.
    """
    held = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        held.bind(f"\0natskit-tests/{name}")
    except OSError:
        held.close()
        return False
    _CLAIMED[name] = held
    return True


def release(name: str) -> None:
    """Release a name that this process has claimed."""
    _CLAIMED.pop(name).close()


class _Source:
    """Gives out the ports of the blocks that this process holds."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._left = range(0)
        os.register_at_fork(after_in_child=self._forget)

    def take(self, count: int) -> list[int]:
        assert 1 <= count <= BLOCK, count
        with self._lock:
            while True:
                found = self._left[:count]
                if len(found) < count:
                    self._left = self._new_block()
                elif taken := [port for port in found if not _is_free(port)]:
                    self._left = range(taken[-1] + 1, self._left.stop)
                else:
                    self._left = self._left[count:]
                    return list(found)

    def _new_block(self) -> range:
        blocks = list(_blocks())
        random.SystemRandom().shuffle(blocks)
        for block in blocks:
            if claim(f"ports/{block.start}"):
                return block
        raise AssertionError(f"all {len(blocks) * BLOCK:,} ports that tests may use are held by running tests")

    def _forget(self) -> None:
        """Have a child process claim its own blocks: the parent gives out the rest of the current one."""
        self._lock = threading.Lock()
        self._left = range(0)


def _blocks() -> Iterator[range]:
    ephemeral = ephemeral_ports()
    below, above = range(LOWEST, min(ephemeral.start, 65536)), range(max(ephemeral.stop, LOWEST), 65536)
    outside = list(itertools.chain(_parts(below), _parts(above)))
    # Where the kernel may pick any port, connections of clients can still take one; other tests cannot.
    yield from outside or _parts(range(LOWEST, 65536))


def _parts(ports: range) -> Iterator[range]:
    """The whole blocks in a range. They are the same for all processes, so that a process that holds one excludes all
    others."""
    for start in range(-(-ports.start // BLOCK) * BLOCK, ports.stop - BLOCK + 1, BLOCK):
        yield range(start, start + BLOCK)


def _is_free(port: int) -> bool:
    """Whether a server could listen there at any address: an ended process may have left a server behind."""
    for family, address in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
        if family == socket.AF_INET6 and not _HAS_IPV6:
            continue
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            if family == socket.AF_INET6:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            try:
                probe.bind((address, port))
            except OSError:
                return False
    return True


def _binds_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as probe:
            probe.bind(("::", 0))
    except OSError:
        return False
    return True


_CLAIMED: dict[str, socket.socket] = {}
_HAS_IPV6 = _binds_ipv6()
_SOURCE = _Source()
