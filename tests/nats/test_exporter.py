"""What the exporter says of a real cluster of nats-servers, of which one after the other is killed."""

from __future__ import annotations

import time
from pathlib import Path

from natskit.exporter import nats_server
from natskit.exporter.certificates import Certificates
from natskit.exporter.config import Shown
from natskit.identity.identity import Identity
from natskit.ops.stream_provisioning import WITH_STREAMS, StreamSettings, apply
from tests.kit.ports import free_port
from tests.kit.wait import eventually
from tests.nats.test_restart_gate import NAMES, Cluster


async def test_streams_copies_and_leaders(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, Identity.ensure(tmp_path / "identity", now=int(time.time())), NAMES)
    accounts = [cluster.identity.account_public_key(account) for account in WITH_STREAMS]

    async def seen(name: str) -> dict[tuple[str, ...], float]:
        found = await nats_server.collect(f"http://127.0.0.1:{cluster.ports[name, 'monitor']}", accounts)
        return {(one.name, *one.labels.values()): one.value for metric in found for one in metric.samples}

    async def of_all() -> dict[tuple[str, ...], float]:
        """What the leaders say is in no other server's metrics."""
        return {key: value for name in NAMES for key, value in (await seen(name)).items()}

    try:
        for name in NAMES:
            cluster.start(name)
        await cluster.make_bucket()
        for account in WITH_STREAMS:
            admin = await cluster.admin(account)
            await apply(admin, StreamSettings(replicas=3), account)
            await admin.close()

        async def all_well() -> bool:
            found = await of_all()
            current = [value for key, value in found.items() if key[0] == "natskit_nats_stream_replica_current"]
            # Each of the platform's streams has two copies beside its leader's.
            return len(current) >= 20 and all(current) and found["natskit_nats_healthy",] == 1

        await eventually(all_well, "all copies are current", 60)
        found = await of_all()
        assert found["natskit_nats_routes",] >= 2
        assert found["natskit_nats_stream_limit_bytes", "KV_accounts"] == StreamSettings().state_bytes
        assert found["natskit_nats_stream_limit_bytes", "DOC_3"] == StreamSettings().document_bytes / 4
        assert ("natskit_nats_stream_limit_bytes", "AUDIT") not in found  # it discards its oldest instead
        assert found["natskit_nats_jetstream_meta_leader",] == 1
        cluster.servers["nats-3"].kill()

        async def one_lacks() -> bool:
            found = await of_all()
            current = "natskit_nats_stream_replica_current"
            return all(found.get((current, stream, "nats-3")) == 0 for stream in ("KV_accounts", "DOC_0"))

        await eventually(one_lacks, "the leader notices", 60)
        assert await seen("nats-3") == {("natskit_nats_healthy",): 0.0}
        cluster.servers["nats-2"].kill()

        async def no_leader() -> bool:
            found = await seen("nats-1")
            leads = [found["natskit_nats_stream_leader", stream] for stream in ("KV_accounts", "DOC_0")]
            return not any(leads) and not found["natskit_nats_healthy",]

        await eventually(no_leader, "a majority is away", 60)
    finally:
        for server in cluster.servers.values():
            server.kill()


async def test_a_port_that_shows_no_certificate_is_left_out() -> None:
    (metric,) = await Certificates([Shown(name="nobody", port=free_port())]).collect()
    assert metric.samples == []
