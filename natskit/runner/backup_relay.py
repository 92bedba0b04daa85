"""``python -m natskit.runner.backup_relay SOCKET REMOTE``: what restic starts in the place of ``rclone serve restic``.

It passes bytes between restic, which speaks HTTP/2 on its standard input and output, and the runner's socket. REMOTE is
what restic adds to each command of rclone.
"""

from __future__ import annotations

import os
import socket
import sys
import threading

PIECE_BYTES = 256 * 1024


def main() -> None:
    """Pass bytes on until one side ends."""
    with socket.socket(socket.AF_UNIX) as runner:
        folder, _, name = sys.argv[1].rpartition("/")
        os.chdir(folder)  # a socket's path may have 108 bytes
        runner.connect(name)
        threading.Thread(target=_upwards, args=(runner,), daemon=True).start()
        while data := runner.recv(PIECE_BYTES):
            _write(data)


def _upwards(runner: socket.socket) -> None:
    while data := os.read(0, PIECE_BYTES):
        runner.sendall(data)
    runner.close()
    os._exit(0)  # restic waits for this program, and wants no more answers


def _write(data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(1, view) :]


if __name__ == "__main__":
    main()
