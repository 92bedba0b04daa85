"""Another platform has taken the port since the deploy looked: its nats-server answers, and knows none of our keys."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from natskit.bus.connection import connect
from natskit.bus.credentials import CredsText
from natskit.bus.permissions import inbox_prefix
from natskit.bus.servers import NatsServers
from natskit.errors import ConnectionLostError
from natskit.identity.identity import Identity
from tests.hub.site import Site


async def test_who_meets_another_platform_is_told_so(tmp_path: Path) -> None:
    ours = Identity.ensure(tmp_path / "ours", now=int(time.time()))
    (tmp_path / "theirs").mkdir()
    async with Site.without_hubs(tmp_path / "theirs") as theirs:
        url = f"nats://127.0.0.1:{theirs.nats_port}"
        with pytest.raises(ConnectionLostError, match="another platform took its port") as told:
            await connect(
                NatsServers(urls=[url]),
                name="ours",
                inbox_prefix=inbox_prefix("admin"),
                creds=CredsText(ours.creds("PLATFORM", "admin")),
                timeout=3,
            )
        assert url in str(told.value)
        # As a deploy asks, which prints what it says.
        asked = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-m", "natskit.ops.stream_provisioning", "--settings", json.dumps({}), url],
            input=ours.creds("PLATFORM", "admin"),
            capture_output=True,
            text=True,
            check=False,
        )
        assert asked.returncode == 1
        assert "stop that platform" in asked.stderr
