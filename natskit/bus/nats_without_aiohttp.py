"""Import nats-py without aiohttp, before anything else does.

nats-py imports aiohttp for its WebSocket transport even if the program uses TCP alone, as agents and the `natskit`
command do. Each project has an agent, and aiohttp takes a quarter of its memory (11 of 47 MB, measured). For a command
it is a third of the time until it begins. Later imports of aiohttp, such as in a platform's own methods or in
``natskit.bus.websocket_transport``, work as usual; nats-py's own WebSocket transport does not. So only programs of
natskit import this module, never the client that other programs use.
"""

from __future__ import annotations

from natskit.process.lean_import import import_without

import_without("nats.aio.client", "aiohttp")
