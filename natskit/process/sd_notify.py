"""Tell systemd the state of a service: the protocol of ``sd_notify(3)``, without its library."""

from __future__ import annotations

import os
import socket


def tell_systemd(state: str) -> bool:
    """Send a line such as ``READY=1`` to the service manager. Returns false if none asked for it (``Type=notify``).

    A leading ``@`` of the address stands for the zero byte of an abstract socket.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as notify:
        notify.connect("\0" + address[1:] if address.startswith("@") else address)
        notify.sendall(state.encode())
    return True
