"""When the certificates end that the ports of this host show: what is served counts, not what is in a file."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from collections.abc import Sequence

from cryptography import x509
from prometheus_client.core import GaugeMetricFamily, Metric

from natskit.exporter.config import Shown

SECONDS = 3.0
FRESH_SECONDS = 60.0
"""How long an answer is good for. Each look is a handshake of TLS at each port."""


class Certificates:
    """The certificates that some ports show."""

    def __init__(self, shown: Sequence[Shown]) -> None:
        self._shown = shown
        self._found: list[Metric] = []
        self._until = 0.0

    async def collect(self) -> list[Metric]:
        """The end of each certificate. A port that does not answer is left out: that its program is down is said
        elsewhere."""
        if time.monotonic() < self._until:
            return self._found
        family = GaugeMetricFamily(
            "natskit_certificate_end_seconds",
            "When the certificate that a port shows ends, in Unix seconds",
            labels=["port"],
        )
        ends = await asyncio.gather(*(_end(port) for port in self._shown))
        for port, end in zip(self._shown, ends, strict=True):
            if end is not None:
                family.add_metric([port.name], end)
        self._found, self._until = [family], time.monotonic() + FRESH_SECONDS
        return self._found


async def _end(port: Shown) -> float | None:
    try:
        return await asyncio.wait_for(_read(port), SECONDS)
    except (OSError, ValueError, TimeoutError):
        return None


async def _read(port: Shown) -> float | None:
    # Nothing is sent over the connection and nothing is believed: only the end of the certificate is read.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    reader, writer = await asyncio.open_connection(port.host, port.port)
    try:
        if port.protocol == "nats":
            await reader.readline()  # INFO
        await writer.start_tls(context, server_hostname=port.server_name or None)
        served = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        return x509.load_der_x509_certificate(served).not_valid_after_utc.timestamp() if served else None
    finally:
        with contextlib.suppress(OSError):
            writer.transport.abort()
