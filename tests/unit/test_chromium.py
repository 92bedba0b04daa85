"""The Chromium of the tests keeps its connections when network interfaces change."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.kit import chromium

TRY = """
import errno, socket
from tests.kit import chromium
chromium.refuse_netlink()
for family in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX, socket.AF_NETLINK):
    try:
        socket.socket(family, socket.SOCK_DGRAM).close()
    except OSError as error:
        print(family.name, errno.errorcode[error.errno])
"""


@pytest.mark.skipif(os.uname().machine not in chromium.SOCKET, reason="its system calls have other numbers")
def test_it_gets_no_netlink_socket_and_all_others() -> None:
    done = subprocess.run([sys.executable, "-c", TRY], capture_output=True, text=True, check=True)
    assert done.stdout == "AF_NETLINK EAFNOSUPPORT\n"
