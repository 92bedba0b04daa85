"""A real OpenID provider (the certified npm package oidc-provider) as a process, and a browser that signs in there."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import httpx

from tests.kit.ports import free_port
from tests.kit.wait import wait_for
from tests.platform.site import REPOSITORY

SECRET = "the client's secret, & more: 50%"  # noqa: S105


class Provider:
    """The provider. ``server.mjs`` beside this file defines its users by the name with which somebody signs in."""

    def __init__(self, folder: Path, redirect_url: str) -> None:
        self._folder = folder
        self._port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self.issuer = f"http://127.0.0.1:{self._port}"
        self.redirect_url = redirect_url
        self.secret_file = folder / "client-secret.key"
        self.secret_file.touch(mode=0o600)
        self.secret_file.write_text(f"{SECRET}\n")
        self._config = folder / "provider.json"
        self._config.write_text(json.dumps({"redirect_uri": redirect_url, "secret": SECRET}))

    def start(self) -> None:
        """Start it, with new keys."""
        with (self._folder / "provider.log").open("ab") as log:
            command = [str(REPOSITORY / "scripts" / "oidc-provider"), str(self._port), str(self._config)]
            self._process = subprocess.Popen(command, stdout=log, stderr=log)

    def wait(self) -> None:
        """Wait until it answers. The first start may have to install it."""
        url = f"{self.issuer}/.well-known/openid-configuration"
        wait_for(lambda: httpx.get(url).status_code == 200, f"the provider\n{self.log()}", 90)

    def stop(self) -> None:
        """Stop it, and forget all codes and keys."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(10)
            self._process = None

    def log(self) -> str:
        path = self._folder / "provider.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def visit(self, url: str, name: str) -> str:
        """Sign in at the provider and consent. Returns the address to which it redirects the browser."""
        with httpx.Client(timeout=20) as browser:
            answer = browser.get(url)
            for _ in range(12):
                if answer.status_code in (302, 303):
                    target = answer.url.join(answer.headers["location"])
                    if str(target).startswith(self.redirect_url):
                        return str(target)
                    answer = browser.get(target)
                    continue
                found = re.search(r'<form[^>]*action="([^"]+)".*name="prompt" value="(\w+)"', answer.text, re.DOTALL)
                assert found, f"{answer.status_code} {answer.text}"
                answer = browser.post(found[1], data={"prompt": found[2], "login": name, "password": "any"})
        raise AssertionError(f"the provider goes round in circles: {answer.url}")
