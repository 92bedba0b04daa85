"""The nats-server of the host, as its monitoring port describes it: what of /varz, /jsz and /healthz matters.

Source of the fields: nats-server, server/monitor.go and server/jetstream_api.go.
"""

from __future__ import annotations

import asyncio
import json
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

SECONDS = 3.0
_HERE = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""The port is on loopback, whatever HTTP_PROXY says."""


async def collect(monitor: str, accounts: Sequence[str]) -> list[Metric]:
    """The metrics of a nats-server, and of the streams of some NATS accounts (their public keys): tenants may have any
    number of streams. When it does not answer, that it is not healthy. Raises :class:`ValueError` for answers of
    another program."""
    streams = [f"/jsz?acc={account}&accounts=true&streams=true&config=true" for account in accounts]
    try:
        health, server, *jetstream = await asyncio.gather(
            *(asyncio.to_thread(_get, monitor + path) for path in ("/healthz", "/varz", *streams))
        )
    except OSError:
        return [_healthy(False)]
    found = [_healthy(health.get("status") == "ok"), *_server(server)]
    with_streams = [answer for answer in jetstream if not answer.get("disabled")]
    if with_streams:
        found += [*_jetstream(with_streams[0]), *_streams(with_streams, server["server_name"])]
    return found


def _get(url: str) -> dict[str, Any]:
    """The answer, also that of /healthz with status 503. Raises :class:`OSError` and :class:`ValueError`."""
    try:
        with _HERE.open(url, timeout=SECONDS) as answer:
            content = answer.read()
    except urllib.error.HTTPError as error:
        content = error.read()
    parsed = json.loads(content)
    if not isinstance(parsed, dict):
        raise ValueError(f"{url} answers something else than nats-server")
    return parsed


def _healthy(value: bool) -> Metric:
    return GaugeMetricFamily(
        "natskit_nats_healthy",
        "Whether nats-server says so itself, with all its streams (/healthz)",
        value=float(value),
    )


def _server(server: dict[str, Any]) -> Iterator[Metric]:
    gauges = {
        "connections": ("connections", "Clients that are connected"),
        "subscriptions": ("subscriptions", "Subscriptions of its clients"),
        "routes": ("routes", "Connections to the other servers of the cluster"),
        "memory_bytes": ("mem", "Memory of the process"),
        "max_connections": ("max_connections", "The most clients that it takes"),
    }
    for name, (key, meaning) in gauges.items():
        yield GaugeMetricFamily(f"natskit_nats_{name}", meaning, value=float(server.get(key, 0)))
    counters = {
        "connections_opened": ("total_connections", "Connections since its start"),
        "in_messages": ("in_msgs", "Messages from clients"),
        "out_messages": ("out_msgs", "Messages to clients"),
        "in_bytes": ("in_bytes", "Bytes of messages from clients"),
        "out_bytes": ("out_bytes", "Bytes of messages to clients"),
        "slow_consumers": ("slow_consumers", "Clients that were cut off because they did not read"),
        "stale_connections": ("stale_connections", "Clients that were cut off because they did not answer"),
    }
    for name, (key, meaning) in counters.items():
        yield CounterMetricFamily(f"natskit_nats_{name}", meaning, value=float(server.get(key, 0)))
    started = datetime.fromisoformat(server["start"]).timestamp()
    yield GaugeMetricFamily("natskit_nats_start_seconds", "When it was started, in Unix seconds", value=started)


def _jetstream(jetstream: dict[str, Any]) -> Iterator[Metric]:
    limits = jetstream.get("config", {})
    values = {
        "storage_bytes": (jetstream.get("storage", 0), "Bytes of its streams on the disk"),
        "storage_limit_bytes": (limits.get("max_storage", 0), "The most bytes of streams on the disk"),
        "reserved_bytes": (jetstream.get("reserved_storage", 0), "Bytes that streams have reserved on the disk"),
        "pending_requests": (jetstream.get("api", {}).get("inflight", 0), "Requests to JetStream that wait"),
    }
    for name, (value, meaning) in values.items():
        yield GaugeMetricFamily(f"natskit_nats_jetstream_{name}", meaning, value=float(value))
    errors = jetstream.get("api", {}).get("errors", 0)
    yield CounterMetricFamily("natskit_nats_jetstream_errors", "Requests to JetStream that failed", value=float(errors))
    if meta := jetstream.get("meta_cluster"):
        yield GaugeMetricFamily(
            "natskit_nats_jetstream_meta_leader",
            "Whether this server knows a leader of the cluster's JetStream",
            value=float(bool(meta.get("leader"))),
        )


def _streams(answers: list[dict[str, Any]], server: str) -> list[Metric]:
    labels = ["stream"]
    messages = GaugeMetricFamily("natskit_nats_stream_messages", "Messages of a stream's copy here", labels=labels)
    size = GaugeMetricFamily("natskit_nats_stream_bytes", "Bytes of a stream's copy here", labels=labels)
    limit = GaugeMetricFamily(
        "natskit_nats_stream_limit_bytes", "The most bytes of a stream that refuses writes then", labels=labels
    )
    leader = GaugeMetricFamily(
        "natskit_nats_stream_leader", "Whether a stream has a leader, as its copy here knows", labels=labels
    )
    lag = GaugeMetricFamily(
        "natskit_nats_stream_replica_lag",
        "Operations that a copy on another server is behind; only the leader says so",
        labels=[*labels, "replica"],
    )
    current = GaugeMetricFamily(
        "natskit_nats_stream_replica_current",
        "Whether a copy on another server is there and up to date; only the leader says so",
        labels=[*labels, "replica"],
    )
    for jetstream in answers:
        for stream in _details(jetstream):
            of = [str(stream["name"])]
            messages.add_metric(of, float(stream["state"]["messages"]))
            size.add_metric(of, float(stream["state"]["bytes"]))
            config = stream.get("config") or {}
            if config.get("discard") == "new" and config.get("max_bytes", -1) > 0:
                limit.add_metric(of, float(config["max_bytes"]))
            cluster = stream.get("cluster") or {}
            # A single server leads all of its streams, and does not say so.
            leader.add_metric(of, float(bool(cluster.get("leader")) or "meta_cluster" not in jetstream))
            for replica in cluster.get("replicas") or () if cluster.get("leader") == server else ():
                which = [*of, str(replica["name"])]
                lag.add_metric(which, float(replica.get("lag", 0)))
                current.add_metric(which, float(bool(replica.get("current")) and not replica.get("offline")))
    return [messages, size, limit, leader, lag, current]


def _details(jetstream: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for account in jetstream.get("account_details") or ():
        yield from account.get("stream_detail") or ()
