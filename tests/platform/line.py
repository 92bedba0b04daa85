"""A connection between a browser and a site that is slow, or that a test can hold up."""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self


class Line:
    """Forwards TCP connections to a port of this machine, through a port of its own."""

    def __init__(self, port: int, delay: float = 0.0) -> None:
        self.delay = delay
        """Seconds that everything takes, each way."""
        self._to = port
        self._open = threading.Event()
        self._open.set()
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._connected: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self.port = int(self._listening.getsockname()[1])

    def hold(self) -> None:
        """Hold the site's data back, and forward the browser's."""
        self._open.clear()

    def release(self) -> None:
        """Forward the held data, in order."""
        self._open.set()

    def __enter__(self) -> Self:
        self._run(self._accept)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()
        for one in (self._listening, *self._connected):
            with contextlib.suppress(OSError):  # it may have ended
                one.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for one in (self._listening, *self._connected):
            one.close()

    def _run(self, work: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                browser, _ = self._listening.accept()
            except OSError:
                return
            site = socket.create_connection(("127.0.0.1", self._to))
            self._connected += [browser, site]
            always = threading.Event()
            always.set()
            self._pass(browser, site, always)
            self._pass(site, browser, self._open)

    def _pass(self, source: socket.socket, to: socket.socket, gate: threading.Event) -> None:
        on_its_way: queue.Queue[tuple[float, bytes]] = queue.Queue()
        self._run(_read, source, on_its_way)
        self._run(self._write, to, on_its_way, gate)

    def _write(self, to: socket.socket, on_its_way: queue.Queue[tuple[float, bytes]], gate: threading.Event) -> None:
        data = b"-"
        while data:
            sent_at, data = on_its_way.get()
            time.sleep(max(0.0, sent_at + self.delay - time.monotonic()))
            gate.wait()
            try:
                to.sendall(data) if data else to.shutdown(socket.SHUT_WR)
            except OSError:
                return


def _read(source: socket.socket, on_its_way: queue.Queue[tuple[float, bytes]]) -> None:
    data = b"-"
    while data:
        try:
            data = source.recv(65536)
        except OSError:
            data = b""
        on_its_way.put((time.monotonic(), data))
