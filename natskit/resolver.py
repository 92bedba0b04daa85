"""Push the JWT of a NATS account to a running nats-server, and see that it uses it. No connection is lost.

    python -m natskit.resolver [--ca FILE] NATS_URL[,NATS_URL…] JWT_FILE… <SYS_ADMIN_CREDS

Of several URLs, which are those of one cluster, any that answers will do: its server tells the others. ``--ca`` is the
CA of ``tls://`` URLs (PEM). The creds of ``SYS/admin`` come as input, since they may be in no file. Exits 0 when the
server has each JWT, 1 with the reason when it does not.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import nats.errors

from natskit.connection import Creds, CredsText, NatsServers, connect
from natskit.errors import NatskitError
from natskit.identity import claims
from natskit.permissions import inbox_prefix

TIMEOUT = 5.0


async def push(servers: NatsServers, creds: Creds, tokens: Iterable[str]) -> None:
    """Raises :class:`NatskitError` if the server refuses one, or still answers with another afterwards."""
    client = await connect(
        servers, name="natskit resolver", inbox_prefix=inbox_prefix("admin"), creds=creds, timeout=TIMEOUT
    )
    try:
        for token in tokens:
            account = claims.decode(token)["sub"]
            answer = json.loads((await client.request("$SYS.REQ.CLAIMS.UPDATE", token.encode(), timeout=TIMEOUT)).data)
            if "error" in answer:
                raise NatskitError(f"nats-server refuses NATS account {account}: {answer['error']['description']}")
            lookup = f"$SYS.REQ.ACCOUNT.{account}.CLAIMS.LOOKUP"
            deadline = time.monotonic() + TIMEOUT
            # Every server of a cluster answers, and another one may be the first, and may not have it yet.
            while (await client.request(lookup, b"", timeout=TIMEOUT)).data.decode() != token:
                if time.monotonic() > deadline:
                    raise NatskitError(f"nats-server still has another JWT of NATS account {account}")
                await asyncio.sleep(0.1)
    finally:
        await client.close()


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(prog="python -m natskit.resolver", allow_abbrev=False)
    parser.add_argument("--ca", type=Path)
    parser.add_argument("nats_urls", type=lambda text: text.split(","))
    parser.add_argument("jwts", type=Path, nargs="+")
    asked = parser.parse_args()
    try:
        servers = NatsServers(urls=asked.nats_urls, ca_file=asked.ca)
        asyncio.run(push(servers, CredsText(sys.stdin.read()), [path.read_text().strip() for path in asked.jwts]))
    except (NatskitError, nats.errors.Error, OSError, TimeoutError) as error:
        sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
