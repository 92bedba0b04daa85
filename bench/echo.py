"""A bare nats-py echo: ``python -m bench.echo URL CREDS SUBJECT``."""

from __future__ import annotations

import asyncio
import sys

import nats
from nats.aio.msg import Msg


async def main(url: str, creds: str, subject: str) -> None:
    """Answer until ended."""
    connection = await nats.connect(url, user_credentials=creds)  # noqa: TID251 - what is measured is nats-py

    async def answer(message: Msg) -> None:
        await message.respond(message.data)

    await connection.subscribe(subject, queue="echo", cb=answer)
    # Twice: nats-py 2.16 sends the PING of a flush before the SUB that is pending, and the second one after it.
    await connection.flush()
    await connection.flush()
    print("ready", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
