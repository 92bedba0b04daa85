"""Push the JWT of a NATS account to a running nats-server, and see that it uses it. No connection is lost.

    python -m natskit.resolver NATS_URL SYS_ADMIN_CREDS JWT_FILE…

Exits 0 when the server has each of them, 1 with the reason when it does not.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterable
from pathlib import Path

import nats

from natskit.errors import NatskitError
from natskit.identity import claims
from natskit.permissions import inbox_prefix

TIMEOUT = 5.0


async def push(url: str, creds: Path, tokens: Iterable[str]) -> None:
    """Raises :class:`NatskitError` if the server refuses one, or still answers with another afterwards."""
    client = await nats.connect(
        url,
        user_credentials=str(creds),
        inbox_prefix=inbox_prefix("admin").encode(),
        allow_reconnect=False,
        connect_timeout=TIMEOUT,
    )
    try:
        for token in tokens:
            account = claims.decode(token)["sub"]
            answer = json.loads((await client.request("$SYS.REQ.CLAIMS.UPDATE", token.encode(), timeout=TIMEOUT)).data)
            if "error" in answer:
                raise NatskitError(f"nats-server refuses NATS account {account}: {answer['error']['description']}")
            lookup = f"$SYS.REQ.ACCOUNT.{account}.CLAIMS.LOOKUP"
            if (await client.request(lookup, b"", timeout=TIMEOUT)).data.decode() != token:
                raise NatskitError(f"nats-server still has another JWT of NATS account {account}")
    finally:
        await client.close()


if __name__ == "__main__":
    try:
        asyncio.run(push(sys.argv[1], Path(sys.argv[2]), [Path(name).read_text().strip() for name in sys.argv[3:]]))
    except (NatskitError, nats.errors.Error, OSError, TimeoutError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
