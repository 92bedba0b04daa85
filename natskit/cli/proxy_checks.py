"""Checks through the proxy: the console with all its files, NATS over a WebSocket, and whether the proxy reaches each
hub and each nats-server. (For users' requests it chooses one that it reaches.)"""

from __future__ import annotations

import asyncio
import base64
import re
import secrets
from collections.abc import Sequence
from html.parser import HTMLParser
from urllib.parse import urljoin, urlsplit

import httpcore
import httpx

TIMEOUT = 3.0
LONGEST_HEADER = 10
"""Bytes of the header of a WebSocket frame from a server, at most."""
NOT_REACHED = {502: "connection refused", 504: "no answer in time"}
"""nginx' status codes for an upstream that it does not reach, and their meaning."""
_IMPORT = re.compile(r"""(?:\bfrom|\bimport)\s*\(?\s*["'](\.{0,2}/[^"']+)["']""")


class _Links(HTMLParser):
    """The files that a page needs: its scripts, styles and icons."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        wanted = {"script": "src", "link": "href", "img": "src"}.get(tag)
        self.found += [value for name, value in attrs if name == wanted and value]


async def console(client: httpx.AsyncClient, url: str) -> str:
    """Fetch the site's front page with all its files and the modules its scripts import.

    Returns the first problem that would keep a browser from showing the page; empty if there is none.
    """
    seen, waiting = set[str](), [f"{url}/"]
    while waiting:
        address = waiting.pop()
        if address in seen or urlsplit(address).netloc != urlsplit(url).netloc:
            continue
        seen.add(address)
        try:
            answer = await client.get(address)
        except httpx.HTTPError as error:
            return f"{address} does not answer ({type(error).__name__})"
        kind = answer.headers.get("Content-Type", "")
        if answer.status_code != httpx.codes.OK or not answer.content:
            return f"{address} answers {answer.status_code}" + ("" if answer.content else " with an empty body")
        waiting += [urljoin(address, link) for link in _links(kind, answer.text)]
    return "" if len(seen) > 1 else f"{url}/ is not the console"


def _links(kind: str, text: str) -> list[str]:
    if kind.startswith("text/html"):
        page = _Links()
        page.feed(text)
        return page.found
    return _IMPORT.findall(text) if kind.startswith("text/javascript") else []


async def websocket(client: httpx.AsyncClient, url: str, path: str) -> tuple[int, str]:
    """Open a WebSocket. Returns the HTTP status and the problem; empty if nats-server sends its INFO.

    Only the greeting is read, from the stream that httpx hands over after the upgrade (httpcore, "Network Streams"): to
    import a library for WebSockets would take longer than all checks together.
    """
    address = url.replace("https://", "wss://", 1) + path
    upgrade = {
        "Origin": url,
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": base64.b64encode(secrets.token_bytes(16)).decode(),
    }
    try:
        async with asyncio.timeout(TIMEOUT), client.stream("GET", url + path, headers=upgrade) as answer:
            if answer.status_code != httpx.codes.SWITCHING_PROTOCOLS:
                return answer.status_code, f"{address} answers {answer.status_code}"
            greeting = await _first_payload(answer.extensions["network_stream"])
    except (httpx.HTTPError, httpcore.NetworkError, httpcore.TimeoutException, TimeoutError) as error:
        return 0, f"{address} does not answer ({type(error).__name__})"
    return 101, "" if greeting.startswith(b"INFO ") else f"{address} is not a nats-server"


async def _first_payload(stream: httpcore.AsyncNetworkStream) -> bytes:
    """The begin of the first frame's payload (RFC 6455, section 5.2; a server does not mask it)."""
    data = b""
    while len(data) < LONGEST_HEADER + len(b"INFO ") and (chunk := await stream.read(4096, TIMEOUT)):
        data += chunk
    length = data[1] & 0x7F if len(data) > 1 else 0
    return data[{126: 4, 127: LONGEST_HEADER}.get(length, 2) :]


async def unreached(client: httpx.AsyncClient, url: str, hubs: Sequence[str], servers: Sequence[str]) -> dict[str, str]:
    """The hubs and nats-servers that the proxy does not reach, by name, with the reason. A proxy of an earlier version
    does not support this check and answers 404."""
    asked = [_hub_status(client, f"{url}/reach/hub/{number}") for number in range(1, len(hubs) + 1)]
    upgrades = [websocket(client, url, f"/reach/nats/{number}") for number in range(1, len(servers) + 1)]
    statuses, opened = await asyncio.gather(asyncio.gather(*asked), asyncio.gather(*upgrades))
    of_hubs = zip(hubs, statuses, strict=True)
    of_servers = zip(servers, (status for status, _ in opened), strict=True)
    return {name: NOT_REACHED[status] for name, status in [*of_hubs, *of_servers] if status in NOT_REACHED}


async def _hub_status(client: httpx.AsyncClient, address: str) -> int:
    try:
        return (await client.get(address)).status_code
    except httpx.HTTPError:
        return 0  # the proxy itself does not answer, which another check reports
