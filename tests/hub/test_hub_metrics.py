"""A hub shows its metrics to a scraper that is neither the proxy nor on its host."""

from __future__ import annotations

import hashlib
import ssl
import time
from pathlib import Path

import httpx

from natskit.identity.tls import ensure_ca, ensure_host_certificate
from tests.hub.site import Site
from tests.kit.ports import free_port
from tests.kit.wait import eventually

TOKEN = "x" * 40


async def test_by_token_and_tls(tmp_path: Path) -> None:
    site, now = Site(tmp_path), int(time.time())
    ensure_host_certificate(tmp_path, "hub", ["127.0.0.1", "hub.natskit"], now=now)
    hosts, port = tmp_path / "tls" / "hosts", free_port()
    access = {
        "port": port,
        "token_sha256": hashlib.sha256(TOKEN.encode()).hexdigest(),
        "networks": ["127.0.0.1"],
        "tls": {"certificate": str(hosts / "hub.crt"), "key": str(hosts / "hub.key")},
    }
    context = ssl.create_default_context(cafile=ensure_ca(tmp_path, now=now))
    try:
        site.start_server()
        site.start_hub("hub-1", metrics=access)
        await site.healthy("hub-1")
        async with httpx.AsyncClient(verify=context, base_url=f"https://127.0.0.1:{port}") as scraper:
            refused = await scraper.get("/metrics")
            assert (refused.status_code, "natskit_hub" in refused.text) == (401, False)
            shown = await scraper.get("/metrics", headers={"Authorization": f"Bearer {TOKEN}"})
            assert "natskit_hub_healthy 1.0" in shown.text
            assert "natskit_hub_state_accounts_keys" in shown.text
            site.server.kill()

            async def unhealthy() -> bool:
                answer = await scraper.get("/metrics", headers={"Authorization": f"Bearer {TOKEN}"})
                return "natskit_hub_healthy 0.0" in answer.text

            await eventually(unhealthy, "the hub says that it does not work")
    finally:
        await site.close()
