"""A real Firefox, driven by WebDriver BiDi (https://w3c.github.io/webdriver-bidi/) without another program."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import ClientConnection, connect

FIREFOX = Path("/usr/bin/firefox-esr")
NEEDED = pytest.mark.skipif(not FIREFOX.exists(), reason="firefox-esr is not installed: apt-get install firefox-esr")
ANSWER_SECONDS = 120.0
PREFERENCES = {
    # It sends nothing by itself.
    "app.normandy.enabled": False,
    "app.update.enabled": False,
    "browser.safebrowsing.malware.enabled": False,
    "browser.safebrowsing.phishing.enabled": False,
    "browser.safebrowsing.downloads.enabled": False,
    "browser.newtabpage.enabled": False,
    "browser.startup.page": 0,
    "browser.shell.checkDefaultBrowser": False,
    "datareporting.policy.dataSubmissionEnabled": False,
    "extensions.update.enabled": False,
    "network.captive-portal-service.enabled": False,
    "network.connectivity-service.enabled": False,
    "network.dns.disablePrefetch": True,
    "services.settings.server": "data:,",
    "toolkit.telemetry.enabled": False,
    # It saves downloads without asking.
    "browser.download.folderList": 2,
    "browser.download.useDownloadDir": True,
    "browser.download.always_ask_before_handling_new_types": False,
}


class BidiError(Exception):
    """Firefox refuses a command."""


class Firefox:
    """One page of a Firefox."""

    def __init__(self, socket: ClientConnection, downloads: Path) -> None:
        self.downloads = downloads
        """Where Firefox saves files."""
        self._socket, self._last = socket, 0
        self.command("session.new", capabilities={"alwaysMatch": {"acceptInsecureCerts": True}})
        self.page = str(self.command("browsingContext.getTree")["contexts"][0]["context"])

    def command(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command. Returns its result. Raises :class:`BidiError`."""
        sent = self._send(method, params)
        said = self._receive(lambda said: said.get("id") == sent)
        if said["type"] == "error":
            raise BidiError(f"{method}: {said['error']}: {said['message']}")
        return dict(said["result"])

    def _send(self, method: str, params: dict[str, Any]) -> int:
        self._last += 1
        self._socket.send(json.dumps({"id": self._last, "method": method, "params": params}))
        return self._last

    def _receive(self, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        deadline = time.monotonic() + ANSWER_SECONDS
        while True:
            said: dict[str, Any] = json.loads(self._socket.recv(timeout=deadline - time.monotonic()))
            if wanted(said):
                return said

    def go(self, address: str) -> None:
        """Open an address, until it is loaded, or saved instead."""
        self.command("browsingContext.navigate", context=self.page, url=address, wait="complete")

    def show_instead(self, address: str, headers: dict[str, str], body: bytes) -> None:
        """Open an address, and have this answer come from there."""
        subscribed = self.command("session.subscribe", events=["network.beforeRequestSent"])["subscription"]
        pattern = {"type": "string", "pattern": address}
        caught = self.command("network.addIntercept", phases=["beforeRequestSent"], urlPatterns=[pattern])["intercept"]
        opening = self._send("browsingContext.navigate", {"context": self.page, "url": address, "wait": "complete"})
        event = self._receive(lambda said: bool(said.get("params", {}).get("isBlocked")))
        self._send(
            "network.provideResponse",
            {
                "request": event["params"]["request"]["request"],
                "statusCode": 200,
                "reasonPhrase": "OK",
                "headers": [
                    {"name": name, "value": {"type": "string", "value": value}} for name, value in headers.items()
                ],
                "body": {"type": "base64", "value": base64.b64encode(body).decode()},
            },
        )
        said = self._receive(lambda said: said.get("id") == opening)
        self.command("network.removeIntercept", intercept=caught)
        self.command("session.unsubscribe", subscriptions=[subscribed])
        if said["type"] == "error":
            raise BidiError(f"{address}: {said['message']}")

    def evaluate(self, expression: str) -> Any:
        """What a JavaScript expression, or its promise, becomes in the page: anything that JSON can say."""
        found = self.command(
            "script.evaluate",
            expression=f"(async () => JSON.stringify((await ({expression})) ?? null))()",
            target={"context": self.page},
            awaitPromise=True,
        )
        if found["type"] != "success":
            raise BidiError(found["exceptionDetails"]["text"])
        return json.loads(found["result"]["value"])


@contextmanager
def running(folder: Path) -> Iterator[Firefox]:
    """A Firefox with a profile of its own."""
    profile, downloads = folder / "profile", folder / "downloads"
    for made in (profile, downloads):
        made.mkdir(parents=True)
    wanted = PREFERENCES | {"browser.download.dir": str(downloads)}
    lines = [f"user_pref({json.dumps(name)}, {json.dumps(value)});\n" for name, value in wanted.items()]
    (profile / "user.js").write_text("".join(lines))
    command = [str(FIREFOX), "--headless", "--no-remote", "--profile", str(profile), "--remote-debugging-port", "0"]
    log = folder / "firefox.log"
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env=os.environ | {"HOME": str(folder)})
    try:
        with connect(f"{_address(process, log)}/session", max_size=None, proxy=None) as socket:
            yield Firefox(socket, downloads)
    finally:
        process.terminate()
        process.wait()


def _address(process: subprocess.Popen[bytes], log: Path) -> str:
    deadline = time.monotonic() + ANSWER_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        if found := re.search(r"WebDriver BiDi listening on (ws://\S+)", log.read_text(errors="replace")):
            return found[1]
        time.sleep(0.05)
    raise TimeoutError(f"Firefox does not start: {log.read_text(errors='replace')[-2000:]}")
