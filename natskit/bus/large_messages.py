"""Large messages without copies: a part of a file fills one.

nats-py gathers what it receives in a buffer, and copies each message out of it twice. For large messages, that takes
more processor time than the system calls. Here, the rest of a large message goes from the socket into the block that
its reader gets. :class:`natskit.bus.payload.Pieces` does the same for messages that are sent.
"""

from __future__ import annotations

from typing import Any

from nats.errors import ProtocolError
from nats.protocol.parser import AWAITING_MSG_PAYLOAD, Parser

from natskit.bus.payload import JSON_HEADER
from natskit.bus.tcp_transport import TcpTransport

LARGE_BYTES = 128 * 1024
"""Messages below this size cost more in bookkeeping than in copies."""
_MARK, _END = JSON_HEADER.encode(), b"\r\n"


class LargeMessageParser(Parser):
    """nats-py's parser, which reads the rest of a message with data after its JSON past its own buffer.

    The content of such a message is a ``bytearray`` that nobody else has.
    """

    nc: Any

    async def parse(self, data: bytes = b"") -> None:
        """Take what was read, and read the rest of a large message."""
        await super().parse(data)
        if self._is_large():
            await self._take_rest()

    def _is_large(self) -> bool:
        """Whether the buffer holds the beginning of a large message and nothing else."""
        return (
            self.state == AWAITING_MSG_PAYLOAD
            and self.needed >= LARGE_BYTES
            and 0 < self.header_needed <= len(self.buf) < self.needed
            and _MARK in self.buf[: self.header_needed]
            and isinstance(self.nc._transport, TcpTransport)
        )

    async def _take_rest(self) -> None:
        arguments, transport = self.msg_arg, self.nc._transport
        header, first = bytes(self.buf[: self.header_needed]), bytes(self.buf[self.header_needed :])
        content = bytearray(self.needed - self.header_needed)
        self.reset()
        content[: len(first)] = first
        await transport.read_into(memoryview(content)[len(first) :])
        if await transport.readline() != _END:
            raise ProtocolError("nats: a message does not end where it should")
        await self.nc._process_msg(arguments["sid"], arguments["subject"], arguments["reply"], content, header)
