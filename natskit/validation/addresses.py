"""Normalize host names and origins as browsers do.

A browser converts the host name of a URL to lower case and IDNs to punycode, and omits the default port (WHATWG URL,
"host parsing"; RFC 6454, 6.2). A value that is compared with an ``Origin`` header must have the same form.
"""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import urlsplit

import idna

_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
LONGEST = 253
"""RFC 1035, 2.3.4: characters of a DNS name."""
_DEFAULT_PORTS = {"https": 443, "http": 80}


def host_name(text: str) -> str:
    """A DNS name or IPv4 address in the form of browsers: lower case, ASCII, without a final dot.

    Raises :class:`ValueError` with the correct form in its message.
    """
    if "/" in text or ":" in text:
        raise ValueError(_of_a_url(text))
    name = text if text.isascii() else _in_ascii(text)
    name = name.lower().removesuffix(".")
    labels = name.split(".")
    if len(name) > LONGEST or not all(_LABEL.fullmatch(label) for label in labels):
        raise ValueError(
            "not a host name: use labels of letters, digits and inner hyphens, at most 63 characters each, with dots "
            "in between"
        )
    # Whatever ends in a number is an IPv4 address for a browser, which makes 127.0.0.1 of 127.1.
    if _NUMBER.fullmatch(labels[-1]):
        try:
            ipaddress.IPv4Address(name)
        except ValueError:
            raise ValueError("not an IPv4 address: write it as four numbers, such as 192.0.2.1") from None
    return name


def is_ip_address(text: str) -> bool:
    """Whether it is an IP address, and no name."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _in_ascii(text: str) -> str:
    try:
        return idna.encode(text, uts46=True).decode()
    except idna.IDNAError as error:
        raise ValueError(f"not a host name: {error}") from None


def _of_a_url(text: str) -> str:
    try:
        host = urlsplit(text if "//" in text else f"//{text}").hostname
    except ValueError:
        host = None
    if host is None or ":" in host:
        return "not a host name: use a DNS name or an IPv4 address (IPv6 addresses are not supported)"
    return f"not a host name alone: leave out scheme, port and path, and write {host}"


def origin(url: str) -> str:
    """The origin of an http or https URL in the form of browsers.

    Raises :class:`ValueError` with the problem in its message.
    """
    parts = urlsplit(url.strip())
    if parts.scheme not in _DEFAULT_PORTS or not parts.hostname:
        raise ValueError("write it with its scheme, such as https://localhost:4043")
    if parts.username is not None or parts.password is not None:
        raise ValueError("leave out the user name and the password")
    host = f"[{ipaddress.IPv6Address(parts.hostname)}]" if ":" in parts.hostname else host_name(parts.hostname)
    port = parts.port
    return f"{parts.scheme}://{host}" + (f":{port}" if port not in (None, _DEFAULT_PORTS[parts.scheme]) else "")
