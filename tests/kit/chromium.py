#!/usr/bin/env python3
"""Start Chromium so that it sends nothing by itself and does not watch network interfaces. Takes Chromium's arguments.

Network interfaces come and go with the machines in Docker, which run beside the browser tests. Chromium learns of each
change over netlink. It then drops its HTTP/2 connections, and those that it is just opening (ERR_NETWORK_CHANGED). No
switch turns this off. Without netlink sockets, Chromium assumes that it is online and keeps its connections. So a
seccomp filter refuses netlink sockets (EAFNOSUPPORT), as a kernel without netlink does.
"""

import ctypes
import errno
import os
import socket
import struct
import sys

CHROMIUM = "/usr/bin/chromium"
QUIET = [
    "--no-sandbox",  # the tests may run as root
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-quic",
    "--no-first-run",
]
SOCKET = {"x86_64": 41, "aarch64": 198}
"""The number of the system call socket() by machine."""
PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2
LOAD, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06  # of classic BPF
NUMBER, FIRST_ARGUMENT = 0, 16  # offsets in struct seccomp_data
ALLOW, FAIL = 0x7FFF0000, 0x00050000


class Program(ctypes.Structure):
    """struct sock_fprog of linux/filter.h"""

    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def refuse_netlink() -> None:
    instructions = [
        (LOAD, 0, 0, NUMBER),
        (JUMP_IF_EQUAL, 0, 3, SOCKET[os.uname().machine]),
        (LOAD, 0, 0, FIRST_ARGUMENT),
        (JUMP_IF_EQUAL, 0, 1, socket.AF_NETLINK),
        (RETURN, 0, 0, FAIL | errno.EAFNOSUPPORT),
        (RETURN, 0, 0, ALLOW),
    ]
    packed = b"".join(struct.pack("HBBI", *instruction) for instruction in instructions)
    libc = ctypes.CDLL(None, use_errno=True)
    program = Program(len(instructions), packed)
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(
        PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(program)
    ):
        sys.exit(f"the kernel takes no seccomp filter against netlink: {os.strerror(ctypes.get_errno())}")


if __name__ == "__main__":
    if os.uname().machine in SOCKET:
        refuse_netlink()
    os.execv(CHROMIUM, [CHROMIUM, *QUIET, *sys.argv[1:]])  # noqa: S606 — no shell is wanted
