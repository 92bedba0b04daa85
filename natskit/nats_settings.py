"""Settings of nats-server: what those who run it set, with type, unit, default and source.

A source that is a name such as ``jetstream.max_file_store`` is nats-server's own, described at docs.nats.io,
"Configuration", and read by ``server/opts.go`` of nats-io/nats-server 2.15; which of them people set was taken from
``helm/charts/nats/values.yaml`` of nats-io/k8s. ``None`` leaves the server's own default, which the meaning names.
What ``nats-server -t`` accepts and the server refuses when it starts (``validateOptions`` in ``server/server.go``) is
refused here, with the server's reason.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from natskit.setting_types import (
    Address,
    Bytes,
    Count,
    Host,
    HostPath,
    Listed,
    Name,
    Port,
    Seconds,
    Structured,
    Unit,
)

Compression = Literal["off", "accept", "s2_auto", "s2_fast", "s2_better", "s2_best"]
Section = Literal["tls", "websocket", "cluster", "leafnodes", "gateway", "mqtt", "resolver", "jetstream"]
Tag = Annotated[str, Field(pattern=r"^[^\s\"A-Z]+$")]
"""Lower case, as nats-server makes it."""
NatsAccount = Annotated[str, Field(pattern=r"^(PLATFORM|AUTH|SYS|A[A-Z2-7]{55})$")]
"""One of the platform's NATS accounts by name, or any by its public key."""
LeafUrl = Annotated[str, Field(pattern=r"^(nats|tls|ws|wss|nats-leaf)://[A-Za-z0-9.-]+(:[0-9]{1,5})?(/[^\s\"@]*)?$")]
GatewayUrl = Annotated[str, Field(pattern=r"^(nats|tls)://[A-Za-z0-9.-]+:[0-9]{1,5}$")]
Fingerprint = Annotated[str, Field(pattern=r"^[A-Fa-f0-9]{64}$")]

LEAST_LEAFNODE = (2, 8, 0)


class Part(BaseModel):
    """A setting that has settings of its own."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Tls(Part):
    """TLS of a listener where it differs from the platform's own."""

    certificate: HostPath | None = None
    """A certificate on the host (PEM) that nats-server's user may read. Clients and WebSockets get it when they ask
    for one of its names, since the platform's own programs need the host's; the other listeners have it alone.
    Source: tls.cert_file, tls.certs."""
    key: HostPath | None = None
    """Its key. Source: tls.key_file."""
    timeout: Annotated[float, Field(gt=0, le=60), Unit("seconds")] | None = None
    """How long a handshake may take; nats_auth_timeout unless told. Source: tls.timeout."""
    min_version: Literal["1.2", "1.3"] | None = None
    """Oldest version of TLS; the server's own is 1.2. Source: tls.min_version."""

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key go together: give both or none")
        return self


class PeerTls(Tls):
    """TLS of a listener where both ends show a certificate."""

    ca: HostPath | None = None
    """Certificates on the host of those who may sign the other end's; the platform's CA unless told.
    Source: tls.ca_file."""
    pinned_certs: Annotated[list[Fingerprint], Listed] | None = None
    """SHA-256 of the public keys (SubjectPublicKeyInfo, DER, hex) that alone are let in. Source: tls.pinned_certs."""


class OutsideTls(PeerTls):
    """TLS of a listener for others than the platform's own programs."""

    verify: bool = False
    """Let in only who shows a certificate signed by ca. Source: tls.verify."""


class LeafnodeTls(OutsideTls):
    """TLS of the listener for leafnodes."""

    handshake_first: bool = False
    """Shake hands before the server says anything: needed behind some proxies, and by leafnodes that are told the same.
    Source: tls.handshake_first."""


class LeafRemote(Part):
    """A server that this one joins as a leafnode."""

    urls: Annotated[list[LeafUrl], Field(min_length=1)]
    """Where it listens: tls://HOST:7422, or wss://HOST for all of them. Source: leafnodes.remotes.urls."""
    account: NatsAccount = "PLATFORM"
    """NATS account here whose subjects it shares: PLATFORM, AUTH, SYS, or a public key.
    Source: leafnodes.remotes.account."""
    credentials: Path | None = None
    """Creds file on the control machine, from whoever runs the other server; uploaded so that nats-server alone reads
    it. Source: leafnodes.remotes.credentials."""
    ca: HostPath | None = None
    """Certificates on the host of who may sign the other server's; the system's unless told.
    Source: leafnodes.remotes.tls.ca_file."""
    handshake_first: bool = False
    """As the other server's tls.handshake_first. Source: leafnodes.remotes.tls.handshake_first."""
    hub: bool = False
    """This server is the hub of the pair, although it is the one that connects. Source: leafnodes.remotes.hub."""
    deny_imports: Annotated[list[str], Listed] = []
    """Subjects that do not come in. Source: leafnodes.remotes.deny_imports."""
    deny_exports: Annotated[list[str], Listed] = []
    """Subjects that do not go out. Source: leafnodes.remotes.deny_exports."""
    compression: Compression | None = None
    """The server's own is s2_auto. Source: leafnodes.remotes.compression."""

    @model_validator(mode="after")
    def _one_protocol(self) -> Self:
        if len({url.startswith(("ws://", "wss://")) for url in self.urls}) > 1:
            raise ValueError("urls: nats-server does not take a mix of ws(s):// and other URLs: make it two remotes")
        if (self.ca or self.handshake_first) and any(url.startswith("ws://") for url in self.urls):
            raise ValueError("urls: ws:// is without TLS, for which ca and handshake_first are: write wss://")
        return self


class Gateway(Part):
    """Another cluster of the supercluster."""

    name: Name
    """Its cluster name. Source: gateway.gateways.name."""
    urls: Annotated[list[GatewayUrl], Field(min_length=1)]
    """Where its gateways listen: tls://HOST:7222. Source: gateway.gateways.urls."""


class BatchLimits(Part):
    """Limits of atomic batches."""

    max_inflight_per_stream: Count | None = None
    """The server's own is 50. Source: jetstream.limits.batch.max_inflight_per_stream."""
    max_inflight_total: Count | None = None
    """The server's own is 1,000. Source: jetstream.limits.batch.max_inflight_total."""
    max_msgs: Count | None = None
    """Messages of one batch; the server's own is 1,000. Source: jetstream.limits.batch.max_msgs."""
    timeout: Seconds | None = None
    """How long a batch may stay unfinished; the server's own is 10. Source: jetstream.limits.batch.timeout."""


class JetStreamLimits(Part):
    """What a stream or consumer may ask for."""

    max_ack_pending: Count | None = None
    """Unacknowledged messages of one consumer; the server's own is no limit.
    Source: jetstream.limits.max_ack_pending."""
    max_ha_assets: Count | None = None
    """Replicated streams and consumers placed on one server; the server's own is no limit.
    Source: jetstream.limits.max_ha_assets."""
    max_request_batch: Count | None = None
    """Messages one pull may ask for; the server's own is no limit. Source: jetstream.limits.max_request_batch."""
    duplicate_window: Seconds | None = None
    """How long a stream may remember message ids; the server's own is no limit.
    Source: jetstream.limits.duplicate_window."""
    batch: BatchLimits | None = None
    """Limits of atomic batches. Source: jetstream.limits.batch."""


class NatsSettings(Part):
    """nats-server, on each host of the group nats."""

    nats_version: Annotated[str, Field(pattern=r"^[0-9]+\.[0-9]+\.[0-9]+$")] = "2.15.1"
    """The version systemd runs; an older one stays beside a newer one, so this is also the way back."""

    # ---- listeners
    nats_host: Host | None = None
    """Address to listen on; every interface of a host that others reach, unless told. Source: listen."""
    nats_port: Port = 4222
    """For clients. Source: listen."""
    nats_client_advertise: Address | None = None
    """HOST:PORT that clients are told to come back to; nothing unless told, since they have the list from the deploy.
    Source: client_advertise."""
    nats_websocket_port: Port = 5004
    """For the proxy. Source: websocket.listen."""
    nats_monitor_port: Port = 8222
    """Always on loopback: monitoring names every connection and its subjects. Source: http."""
    nats_client_tls: Annotated[Tls | None, Structured] = None
    """A further certificate for clients from outside. Source: tls."""
    nats_websocket_tls: Annotated[Tls | None, Structured] = None
    """The same for WebSockets; only the proxy gets in, by the CA that is its own. Source: websocket.tls."""
    nats_tls_timeout: Annotated[float, Field(gt=0, le=60), Unit("seconds")] = 5
    """How long a handshake between servers may take. Not the server's 2: all of them come back at once.
    Source: cluster.tls.timeout."""

    # ---- the cluster
    nats_cluster_name: Name = "natskit"
    """The same on all servers of a cluster, and its name among gateways. Source: cluster.name, gateway.name."""
    nats_cluster_port: Port = 6222
    """Where the nats-servers of a platform meet each other; only used where there are several.
    Source: cluster.listen."""
    nats_cluster_routes: Annotated[list[Address], Listed] = []
    """HOST:PORT of servers of this cluster that are not in the inventory. Source: cluster.routes."""
    nats_cluster_advertise: Address | None = None
    """HOST:PORT where other servers reach this one, if not where it listens. Source: cluster.advertise."""
    nats_cluster_no_advertise: bool = True
    """Do not tell clients of the other servers: whoever connects has the list of all from the deploy, by the addresses
    that work for it. As in nats-io/k8s; the server's own is false. Source: cluster.no_advertise."""
    nats_cluster_pool_size: Annotated[int, Field(ge=-1)] | None = None
    """Connections to each other server, which NATS accounts share; the server's own is 3, -1 is a single one.
    Source: cluster.pool_size."""
    nats_cluster_compression: Compression | None = None
    """The server's own is accept: compress only if the other asks for it. Source: cluster.compression."""
    nats_cluster_tls: Annotated[PeerTls | None, Structured] = None
    """Where it differs from the platform's; always mutual. Source: cluster.tls."""

    # ---- leafnodes: another door, closed unless asked for
    nats_leafnode_port: Port | None = None
    """Let leafnodes in here, with creds of a NATS account; 7422 is usual. Source: leafnodes.listen."""
    nats_leafnode_advertise: Address | None = None
    """HOST:PORT that leafnodes are told to come back to. Source: leafnodes.advertise."""
    nats_leafnode_compression: Compression | None = None
    """The server's own is s2_auto: by the time an answer takes. Source: leafnodes.compression."""
    nats_leafnode_min_version: Annotated[str, Field(pattern=r"^[0-9]+\.[0-9]+\.[0-9]+$")] | None = None
    """Oldest nats-server let in as a leafnode, 2.8.0 at the least. Source: leafnodes.min_version."""
    nats_leafnode_tls: Annotated[LeafnodeTls | None, Structured] = None
    """Where it differs from the platform's. Source: leafnodes.tls."""
    nats_leafnode_remotes: Annotated[list[LeafRemote], Structured] = []
    """Servers that this one joins as a leafnode. Source: leafnodes.remotes."""

    # ---- gateways: closed unless asked for
    nats_gateway_port: Port | None = None
    """Be part of a supercluster, by the name nats_cluster_name; 7222 is usual. Source: gateway.listen."""
    nats_gateway_advertise: Address | None = None
    """HOST:PORT where other clusters reach this server, if not where it listens. Source: gateway.advertise."""
    nats_gateways: Annotated[list[Gateway], Structured] = []
    """The other clusters. Source: gateway.gateways."""
    nats_gateway_reject_unknown: bool = False
    """Let in only clusters that are in nats_gateways. Source: gateway.reject_unknown_cluster."""
    nats_gateway_tls: Annotated[PeerTls | None, Structured] = None
    """Where it differs from the platform's; always mutual, so the clusters need a CA in common.
    Source: gateway.tls."""

    # ---- MQTT: closed unless asked for
    nats_mqtt_port: Port | None = None
    """Let MQTT 3.1.1 clients in here, with a bearer JWT as their password; 1883 is usual. Source: mqtt.listen."""
    nats_mqtt_tls: Annotated[OutsideTls | None, Structured] = None
    """Where it differs from the platform's. Source: mqtt.tls."""
    nats_mqtt_ack_wait: Seconds | None = None
    """Time after which a QoS 1 message is sent again; the server's own is 30. Source: mqtt.ack_wait."""
    nats_mqtt_max_ack_pending: Annotated[int, Field(ge=0, le=65_535)] | None = None
    """Unacknowledged QoS 1 messages of one subscription; the server's own is 1,024. Source: mqtt.max_ack_pending."""
    nats_mqtt_stream_replicas: Annotated[int, Field(ge=1, le=5)] | None = None
    """Copies of the sessions and messages of MQTT; the server's own is 3 on a cluster, less where there are fewer.
    Source: mqtt.stream_replicas."""
    nats_mqtt_domain: Name | None = None
    """JetStream domain that keeps them. Source: mqtt.js_domain."""

    # ---- who may connect
    nats_auth_timeout: Annotated[float, Field(gt=0, le=30), Unit("seconds")] = 3
    """How long a client may take to say who it is, the auth callout included. Not the server's 2: after a restart
    thousands of clients wait for the same two hubs, which turn away within 1.5 s whom they cannot serve; and not more:
    who is let in a moment before the hubs are back waits for all of it. Source: authorization.timeout, tls.timeout."""
    nats_resolver: Literal["full", "cache", "memory"] = "full"
    """Where the JWTs of NATS accounts are: full keeps all of them on disk and exchanges them with other servers; cache
    keeps those in use and asks a full one for the others; memory has those of this platform in its configuration.
    Source: resolver.type."""
    nats_resolver_allow_delete: bool = False
    """Let whoever holds the operator's key delete NATS accounts over the bus; full only.
    Source: resolver.allow_delete."""
    nats_resolver_interval: Seconds | None = None
    """How often full ones compare what they have; 120 unless told. Not the server's 60: what changes is pushed to all,
    and this finds only what was missed. Source: resolver.interval."""
    nats_resolver_limit: Count | None = None
    """NATS accounts kept; 1,000 unless told, as the server's own for cache. Source: resolver.limit."""
    nats_resolver_ttl: Seconds | None = None
    """How long a cache keeps one before it asks again; the server's own is for ever. Source: resolver.ttl."""
    nats_resolver_timeout: Annotated[float, Field(gt=0, le=30), Unit("seconds")] | None = None
    """How long a server waits for another's answer about a NATS account; the server's own is 1.9.
    Source: resolver.timeout."""

    # ---- limits
    nats_max_connections: Count = 65_536
    """Clients at once. The server's own default. Source: max_connections."""
    nats_max_subscriptions: Annotated[int, Field(ge=0)] | None = None
    """Subscriptions of one connection; the server's own, 0, is no limit. Source: max_subscriptions."""
    nats_max_subscription_tokens: Annotated[int, Field(ge=1, le=255)] | None = None
    """Tokens a subscription may have; the server's own is no limit. Source: max_subscription_tokens."""
    nats_max_payload: Annotated[int, Field(ge=65_536, le=64 * 1024**2), Unit("bytes")] = 1024 * 1024
    """The server's own default, and 64 MiB its maximum; larger messages hold up everybody behind them.
    Source: max_payload."""
    nats_max_control_line: Annotated[int, Field(ge=512, le=2**31 - 1), Unit("bytes")] = 4096
    """The server's own default; the longest subject of ours has 90. Source: max_control_line."""
    nats_max_pending: Annotated[int, Field(ge=1024**2), Unit("bytes")] = 64 * 1024 * 1024
    """What the server holds for a reader that is too slow before it is cut off: the server's own default.
    Source: max_pending."""
    nats_max_closed_clients: Annotated[int, Field(ge=0)] | None = None
    """Closed connections that monitoring still knows; the server's own is 10,000. Source: max_closed_clients."""
    nats_no_fast_producer_stall: bool = False
    """Do not slow down who sends faster than others read; they are cut off sooner. Source: no_fast_producer_stall."""
    nats_write_deadline: Seconds = 10
    """How long a write to a client may take: the server's own default. Source: write_deadline."""
    nats_ping_interval: Seconds = 5
    """Not the server's 120: until two pings are unanswered, a hub whose host lost its power or its network is still
    given requests, and a browser looks present. Source: ping_interval."""
    nats_ping_max: Count = 2
    """Pings without an answer before a connection is closed: the server's own default. Source: ping_max."""
    nats_lame_duck_duration: Annotated[int, Field(ge=30), Unit("seconds")] = 30
    """How long clients are moved away before the server stops. Not the server's 120, but its minimum: a deploy waits
    for it on each host. Source: lame_duck_duration."""
    nats_lame_duck_grace_period: Annotated[int, Field(ge=0), Unit("seconds")] = 5
    """How long the server waits before it moves the first one; its own is 10. Source: lame_duck_grace_period."""
    nats_memory_limit: Annotated[int, Field(ge=64 * 1024**2), Unit("bytes")] | None = None
    """Memory nats-server may use on a host: GOMEMLIMIT makes it collect garbage before that is reached.
    Source: go.dev/doc/gc-guide."""

    # ---- JetStream
    nats_jetstream: bool = True
    """Off on servers of a cluster that only pass messages on; the platform's state needs as many others as it has
    copies. Source: jetstream.enabled."""
    nats_jetstream_directory: HostPath | None = None
    """Where streams are kept, best on a disk of its own, which nothing else can fill; platform_root/nats/jetstream
    unless told. Source: jetstream.store_dir."""
    nats_jetstream_domain: Name | None = None
    """Name of this JetStream among others that leafnodes connect; the same on all servers. Source: jetstream.domain."""
    nats_jetstream_max_file: Bytes = 10 * 1024**3
    """All streams on the disk together. Below what the disk has, so that JetStream says no to one write instead of
    ending on this server (docs/jetstream.md). Source: jetstream.max_file_store."""
    nats_jetstream_reserve: Bytes = 1024**3
    """Must be free on the disk beyond nats_jetstream_max_file, or a deploy ends before nats-server is touched; 0 does
    not look."""
    nats_jetstream_max_memory: Bytes = 256 * 1024**2
    """All streams in memory together. Source: jetstream.max_memory_store."""
    nats_sync_interval: Annotated[str, Field(pattern=r"^(always|[1-9][0-9]*(ms|s|m))$")] = "always"
    """Not the server's 2m, which loses acknowledged writes at power loss (Jepsen, NATS 2.12.1, 2025).
    Source: jetstream.sync_interval."""
    nats_jetstream_limits: Annotated[JetStreamLimits, Structured] = JetStreamLimits()
    """What a stream or consumer may ask for. Source: jetstream.limits."""
    nats_jetstream_max_outstanding_catchup: Bytes | None = None
    """On their way to a server that catches up; the server's own is 64 MiB.
    Source: jetstream.max_outstanding_catchup."""
    nats_jetstream_max_buffered_msgs: Count | None = None
    """Messages that wait to be written to one stream, beyond which publishers are refused; the server's own is 100,000.
    Source: jetstream.max_buffered_msgs."""
    nats_jetstream_max_buffered_size: Annotated[int, Field(ge=1), Unit("bytes")] | None = None
    """The same in bytes; the server's own is 128 MiB. Source: jetstream.max_buffered_size."""
    nats_jetstream_request_queue_limit: Count | None = None
    """Requests to JetStream's API that wait before all of them are dropped; the server's own is 10,000.
    Source: jetstream.request_queue_limit."""
    nats_jetstream_unique_tag: Tag | None = None
    """Prefix of a tag, such as az:, of which no two copies of a stream share the value.
    Source: jetstream.unique_tag."""
    nats_jetstream_cipher: Literal["chachapoly", "aes"] | None = None
    """Encryption of what JetStream writes; needs nats_jetstream_key_file, which alone means chachapoly.
    Source: jetstream.cipher."""
    nats_jetstream_key_file: Path | None = None
    """File on the control machine with the key: one line of at least 32 letters, digits, +, /, =, _, - (openssl rand
    -base64 32). It reaches nats-server by its environment; the configuration has only its name. What was written
    before stays readable as it is. Source: jetstream.key."""
    nats_jetstream_previous_key_file: Path | None = None
    """The key before, until nats-server has restarted with the new one. For a server alone: on a cluster nats-server
    cannot use it (docs/jetstream.md says what to do there). Source: jetstream.prev_key."""
    nats_server_tags: Annotated[list[Tag], Listed] = []
    """Say what kind of server this is (az:a, disk:ssd), so that streams can be placed by it. Source: server_tags."""
    nats_server_metadata: Annotated[dict[str, str], Structured] = {}
    """More about the server, for people and monitoring. Source: server_metadata."""

    # ---- logging
    nats_debug: bool = False
    """Log what the server does, connection by connection. Source: debug."""
    nats_trace: bool = False
    """Log every message: what people say lands in the log. Source: trace."""
    nats_max_traced_msg_len: Annotated[int, Field(ge=1), Unit("bytes")] | None = None
    """How much of a message nats_trace logs; the server's own is all of it. Source: max_traced_msg_len."""
    nats_log_to_file: bool = False
    """Log to platform_root/nats/log/nats-server.log, not to the service manager. Source: logfile."""
    nats_log_size_limit: Annotated[int, Field(ge=1024), Unit("bytes")] | None = None
    """The file is put aside and begun anew when it has this size; the server's own is no limit.
    Source: logfile_size_limit."""
    nats_log_max_files: Annotated[int, Field(ge=1)] | None = None
    """How many are kept; the server's own is all of them. Source: logfile_max_num."""
    nats_logtime_utc: bool = False
    """Times in UTC. Source: logtime_utc."""
    nats_connect_error_reports: Annotated[int, Field(ge=1)] | None = None
    """Log every n-th failure to reach a server that never was there; the server's own is 3,600, about an hour.
    Source: connect_error_reports."""
    nats_reconnect_error_reports: Annotated[int, Field(ge=1)] | None = None
    """The same for one that was there; the server's own is 1. Source: reconnect_error_reports."""

    # ---- anything else
    nats_section_extra: Annotated[dict[Section, str], Structured] = {}
    """What nats-server knows and we do not model, by the section it belongs to: {"jetstream": "meta_compact: 1000"}."""
    nats_extra: str = ""
    """The same outside of any section, appended to the configuration as it is."""

    @model_validator(mode="after")
    def _accepted(self) -> Self:
        problem = next(iter(self._problems()), None)
        if problem:
            raise ValueError(problem)
        return self

    def _problems(self) -> Iterable[str]:
        if self.nats_max_payload > self.nats_max_pending:
            yield "nats_max_payload must not be higher than nats_max_pending: nats-server would not start"
        if self.nats_lame_duck_grace_period >= self.nats_lame_duck_duration:
            yield (
                "nats_lame_duck_grace_period must be shorter than nats_lame_duck_duration: nats-server would not start"
            )
        yield from self._doors()
        yield from self._resolver_problems()
        yield from self._jetstream_problems()
        if not self.nats_log_to_file:
            for key in ("nats_log_size_limit", "nats_log_max_files"):
                if getattr(self, key) is not None:
                    yield f"{key} is for a log file, and there is none: set nats_log_to_file"

    def _doors(self) -> Iterable[str]:
        for port, keys in (
            ("nats_leafnode_port", ("advertise", "compression", "min_version", "tls")),
            ("nats_gateway_port", ("advertise", "tls")),
            ("nats_mqtt_port", ("tls", "ack_wait", "max_ack_pending", "stream_replicas", "domain")),
        ):
            for key in keys:
                name = f"{port.removesuffix('port')}{key}"
                if getattr(self, port) is None and getattr(self, name) is not None:
                    yield f"{name} has no effect while {port} is not set: nats-server would not listen"
        if self.nats_gateways and self.nats_gateway_port is None:
            yield "nats_gateways needs nats_gateway_port: nats-server would not start, its gateway has no port"
        twice = [name for name, number in Counter(gateway.name for gateway in self.nats_gateways).items() if number > 1]
        if twice:
            yield f"nats_gateways names {twice[0]} twice: put all of its URLs into one"
        remotes = [(tuple(remote.urls), remote.account, remote.credentials) for remote in self.nats_leafnode_remotes]
        if len(set(remotes)) < len(remotes):
            yield "nats_leafnode_remotes has the same URLs, account and credentials twice: nats-server would not start"
        least = self.nats_leafnode_min_version
        if least is not None and tuple(map(int, least.split("."))) < LEAST_LEAFNODE:
            yield f"nats_leafnode_min_version = {least}: nats-server takes 2.8.0 at the least"

    def _resolver_problems(self) -> Iterable[str]:
        for key, kinds in {
            "allow_delete": ("full",),
            "interval": ("full",),
            "ttl": ("cache",),
            "limit": ("full", "cache"),
            "timeout": ("full", "cache"),
        }.items():
            name = f"nats_resolver_{key}"
            if getattr(self, name) not in (None, False) and self.nats_resolver not in kinds:
                yield f"{name} is for the resolver {' or '.join(kinds)}, and nats_resolver is {self.nats_resolver}"

    def _jetstream_problems(self) -> Iterable[str]:
        if self.nats_jetstream_cipher and not self.nats_jetstream_key_file:
            yield "nats_jetstream_cipher encrypts nothing without a key: set nats_jetstream_key_file"
        if self.nats_jetstream_previous_key_file and not self.nats_jetstream_key_file:
            yield "nats_jetstream_previous_key_file is the key before nats_jetstream_key_file, which is not set"
        if self.nats_jetstream_key_file and self.nats_jetstream_key_file == self.nats_jetstream_previous_key_file:
            yield "nats_jetstream_key_file and nats_jetstream_previous_key_file are the same file"
        if self.nats_jetstream_key_file and re.search(r"\bNATS_JS_(PREVIOUS_)?KEY\s*[:=]", self.nats_extra):
            yield "nats_extra defines NATS_JS_KEY, which would win over nats_jetstream_key_file"
        tag = self.nats_jetstream_unique_tag
        if tag and not any(own.startswith(tag) for own in self.nats_server_tags):
            yield (
                f"nats_jetstream_unique_tag = {tag!r}: no tag in nats_server_tags begins with it, and nats-server "
                "would place no stream here"
            )
