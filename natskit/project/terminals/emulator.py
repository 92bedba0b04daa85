"""``python -m natskit.project.terminals.emulator FD``: keeps the screens of a project's terminals.

A process of its own, because libghostty-vt is native code that reads whatever programs print: a crash ends this
process, and neither the agent nor a program. It ends when the agent closes its socket. ``emulator_client.py`` is the
agent's end. Both send messages of a kind (one byte), the number of a terminal, the length of the rest, and the rest.
"""

from __future__ import annotations

import json
import socket
import sys

from natskit.project.terminals.messages import HEADER, Kind, message
from natskit.project.terminals.screen import Screen

READ_BYTES = 256 * 1024


class Emulator:
    """The screens by the numbers of their terminals."""

    def __init__(self, agent: socket.socket) -> None:
        self._agent = agent
        self._screens: dict[int, Screen] = {}

    def run(self) -> None:
        """Follow the agent's messages until it closes the socket."""
        data = bytearray()
        while received := self._agent.recv(READ_BYTES):
            data += received
            start = 0
            while len(data) - start >= HEADER.size:
                kind, terminal, length = HEADER.unpack_from(data, start)
                end = start + HEADER.size + length
                if end > len(data):
                    break
                self._handle(kind, terminal, bytes(data[start + HEADER.size : end]))
                start = end
            del data[:start]

    def _handle(self, kind: int, terminal: int, body: bytes) -> None:
        match kind:
            case Kind.OPEN:
                self._screens[terminal] = self._open(terminal, **json.loads(body))
            case Kind.FEED:
                self._screens[terminal].feed(body)
            case Kind.RESIZE:
                self._screens[terminal].resize(**json.loads(body))
            case Kind.DRAW:
                self._send(Kind.DRAWN, terminal, self._screens[terminal].draw(**json.loads(body)))
            case Kind.CLOSE:
                self._screens.pop(terminal).close()

    def _open(self, terminal: int, columns: int, rows: int, scrollback: int) -> Screen:
        return Screen(
            columns,
            rows,
            scrollback,
            answer=lambda data: self._send(Kind.ANSWER, terminal, data),
            titled=lambda title: self._send(Kind.TITLE, terminal, title.encode()),
        )

    def _send(self, kind: Kind, terminal: int, body: bytes) -> None:
        self._agent.sendall(message(kind, terminal, body))


def main() -> None:
    """Serve the socket whose descriptor is the only argument."""
    with socket.socket(fileno=int(sys.argv[1])) as agent:
        agent.setblocking(True)
        Emulator(agent).run()


if __name__ == "__main__":
    main()
