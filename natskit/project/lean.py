"""Import nats-py without aiohttp, before anything else does.

nats-py imports aiohttp for its WebSocket transport whether it is used or not. An agent connects over TCP, there is one
for each project, and aiohttp is a quarter of its memory (11 of 47 MB, measured). Afterwards aiohttp can be imported
as usual, by a platform's own methods for example.
"""

from __future__ import annotations

import sys

if "aiohttp" not in sys.modules:
    sys.modules["aiohttp"] = None  # type: ignore[assignment]
    import nats.aio.client  # noqa: F401

    del sys.modules["aiohttp"]
