"""Settings of nats-server that operators use, with type, unit, default and source.

A source such as ``jetstream.max_file_store`` is nats-server's name of the option, described at docs.nats.io,
"Configuration", and read by ``server/opts.go`` of nats-io/nats-server 2.15. The choice of options follows
``helm/charts/nats/values.yaml`` of nats-io/k8s. ``None`` leaves the server's default, which the description names.

The validators here also refuse values that ``nats-server -t`` accepts but that keep the server from starting
(``validateOptions`` in ``server/server.go``), with the server's reason.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from natskit.config.types import Address, Bytes, Count, Host, HostPath, Listed, Name, Port, Seconds, Structured, Unit

Compression = Literal["off", "accept", "s2_auto", "s2_fast", "s2_better", "s2_best"]
Section = Literal["tls", "websocket", "cluster", "leafnodes", "gateway", "mqtt", "resolver", "jetstream"]
Tag = Annotated[str, Field(pattern=r"^[^\s\"A-Z]+$")]
"""Lower case, because nats-server converts tags to lower case."""
NatsAccount = Annotated[str, Field(pattern=r"^(PLATFORM|AUTH|SYS|A[A-Z2-7]{55})$")]
"""The name of one of the platform's NATS accounts, or the public key of any NATS account."""
LeafUrl = Annotated[str, Field(pattern=r"^(nats|tls|ws|wss|nats-leaf)://[A-Za-z0-9.-]+(:[0-9]{1,5})?(/[^\s\"@]*)?$")]
GatewayUrl = Annotated[str, Field(pattern=r"^(nats|tls)://[A-Za-z0-9.-]+:[0-9]{1,5}$")]
Fingerprint = Annotated[str, Field(pattern=r"^[A-Fa-f0-9]{64}$")]

LEAST_LEAFNODE = (2, 8, 0)


class Part(BaseModel):
    """A setting with settings of its own."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Tls(Part):
    """TLS of a listener, where it differs from the platform's own."""

    certificate: HostPath | None = None
    """A certificate on the host (PEM) that nats-server's user can read. Clients and WebSockets get it when they ask for
    one of its names, because the platform's own programs need the host's certificate. Other listeners use only this
    certificate. Source: tls.cert_file, tls.certs."""
    key: HostPath | None = None
    """The certificate's key. Source: tls.key_file."""
    timeout: Annotated[float, Field(gt=0, le=60), Unit("seconds")] | None = None
    """Maximum time of a handshake. Default: nats_auth_timeout. Source: tls.timeout."""
    min_version: Literal["1.2", "1.3"] | None = None
    """Oldest accepted version of TLS. Server default: 1.2. Source: tls.min_version."""

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key go together: set both or neither")
        return self


class PeerTls(Tls):
    """TLS of a listener where both ends present a certificate (mutual TLS)."""

    ca: HostPath | None = None
    """File on the host with the CAs that may sign the other end's certificate. Default: the platform's CA. Source:
    tls.ca_file."""
    pinned_certs: Annotated[list[Fingerprint], Listed] | None = None
    """SHA-256 hashes of the only public keys to accept (SubjectPublicKeyInfo, DER, hex). Source: tls.pinned_certs."""


class OutsideTls(PeerTls):
    """TLS of a listener for clients other than the platform's own programs."""

    verify: bool = False
    """Require a client certificate signed by ca. Source: tls.verify."""


class LeafnodeTls(OutsideTls):
    """TLS of the listener for leafnodes."""

    handshake_first: bool = False
    """Start the TLS handshake before the server's INFO. Some proxies need this; leafnodes must use the same value.
    Source: tls.handshake_first."""


class LeafRemote(Part):
    """A server that this one connects to as a leafnode."""

    urls: Annotated[list[LeafUrl], Field(min_length=1)]
    """The server's URLs: tls://HOST:7422, or wss://HOST for all of them. Source: leafnodes.remotes.urls."""
    account: NatsAccount = "PLATFORM"
    """The local NATS account whose subjects it shares: PLATFORM, AUTH, SYS, or a public key. Source:
    leafnodes.remotes.account."""
    credentials: Path | None = None
    """Creds file on the control machine, from the operator of the other server. It is uploaded so that only nats-server
    can read it. Source: leafnodes.remotes.credentials."""
    ca: HostPath | None = None
    """File on the host with the CAs that may sign the other server's certificate. Default: the system's CAs. Source:
    leafnodes.remotes.tls.ca_file."""
    handshake_first: bool = False
    """Must equal the other server's tls.handshake_first. Source: leafnodes.remotes.tls.handshake_first."""
    hub: bool = False
    """Make this server the hub of the pair, although it opens the connection. Source: leafnodes.remotes.hub."""
    deny_imports: Annotated[list[str], Listed] = []
    """Subjects that are not imported. Source: leafnodes.remotes.deny_imports."""
    deny_exports: Annotated[list[str], Listed] = []
    """Subjects that are not exported. Source: leafnodes.remotes.deny_exports."""
    compression: Compression | None = None
    """Compression of the connection. Server default: s2_auto. Source: leafnodes.remotes.compression."""

    @model_validator(mode="after")
    def _one_protocol(self) -> Self:
        if len({url.startswith(("ws://", "wss://")) for url in self.urls}) > 1:
            raise ValueError("urls: nats-server does not accept a mix of ws(s):// and other URLs: use two remotes")
        if (self.ca or self.handshake_first) and any(url.startswith("ws://") for url in self.urls):
            raise ValueError("urls: ca and handshake_first need TLS, which ws:// does not have: use wss://")
        return self


class Gateway(Part):
    """Another cluster of the supercluster."""

    name: Name
    """The other cluster's name. Source: gateway.gateways.name."""
    urls: Annotated[list[GatewayUrl], Field(min_length=1)]
    """The URLs of its gateways: tls://HOST:7222. Source: gateway.gateways.urls."""


class BatchLimits(Part):
    """Limits of atomic batches."""

    max_inflight_per_stream: Count | None = None
    """Concurrent batches per stream. Server default: 50. Source: jetstream.limits.batch.max_inflight_per_stream."""
    max_inflight_total: Count | None = None
    """Concurrent batches in total. Server default: 1,000. Source: jetstream.limits.batch.max_inflight_total."""
    max_msgs: Count | None = None
    """Messages of one batch. Server default: 1,000. Source: jetstream.limits.batch.max_msgs."""
    timeout: Seconds | None = None
    """Maximum time until a batch is finished. Server default: 10. Source: jetstream.limits.batch.timeout."""


class JetStreamLimits(Part):
    """Limits of streams and consumers."""

    max_ack_pending: Count | None = None
    """Unacknowledged messages of one consumer. Server default: no limit. Source: jetstream.limits.max_ack_pending."""
    max_ha_assets: Count | None = None
    """Replicated streams and consumers on one server. Server default: no limit. Source:
    jetstream.limits.max_ha_assets."""
    max_request_batch: Count | None = None
    """Messages per pull request. Server default: no limit. Source: jetstream.limits.max_request_batch."""
    duplicate_window: Seconds | None = None
    """Maximum duplicate window of a stream. Server default: no limit. Source: jetstream.limits.duplicate_window."""
    batch: BatchLimits | None = None
    """Limits of atomic batches. Source: jetstream.limits.batch."""


class NatsSettings(Part):
    """nats-server, on each host of the group nats."""

    nats_version: Annotated[str, Field(pattern=r"^[0-9]+\.[0-9]+\.[0-9]+$")] = "2.15.1"
    """The version that systemd runs. Older versions stay installed, so this setting can also go back to one."""

    # ---- listeners
    nats_host: Host | None = None
    """Address to listen on. Default: every interface on a host that others reach, otherwise loopback. Source:
    listen."""
    nats_port: Port = 4222
    """Port for clients. Source: listen."""
    nats_client_advertise: Address | None = None
    """HOST:PORT that clients should reconnect to. Default: none, because the deploy gives clients the list of servers.
    Source: client_advertise."""
    nats_websocket_port: Port = 5004
    """Port for WebSockets, used by the proxy. Source: websocket.listen."""
    nats_monitor_port: Port = 8222
    """Port for monitoring, always on loopback because it shows every connection and its subjects. Source: http."""
    nats_client_tls: Annotated[Tls | None, Structured] = None
    """A second certificate, for clients outside the platform. Source: tls."""
    nats_websocket_tls: Annotated[Tls | None, Structured] = None
    """A second certificate for WebSockets. Only the proxy can connect, with a certificate of its own CA. Source:
    websocket.tls."""
    nats_tls_timeout: Annotated[float, Field(gt=0, le=60), Unit("seconds")] = 5
    """Maximum time of a handshake between servers. Longer than the server's 2, because all servers reconnect at once.
    Source: cluster.tls.timeout."""

    # ---- the cluster
    nats_cluster_name: Name = "natskit"
    """Name of the cluster, also for gateways. Must be the same on all its servers. Source: cluster.name,
    gateway.name."""
    nats_cluster_port: Port = 6222
    """Port for routes between the platform's nats-servers. Used only if there are several. Source: cluster.listen."""
    nats_cluster_routes: Annotated[list[Address], Listed] = []
    """HOST:PORT of further servers of this cluster that are not in the inventory. Source: cluster.routes."""
    nats_cluster_advertise: Address | None = None
    """HOST:PORT that other servers use to reach this one, if it differs from the listen address. Source:
    cluster.advertise."""
    nats_cluster_no_advertise: bool = True
    """Do not advertise the other servers to clients: the deploy gives each client the addresses that work for it. As in
    nats-io/k8s. Server default: false. Source: cluster.no_advertise."""
    nats_cluster_pool_size: Annotated[int, Field(ge=-1)] | None = None
    """Connections to each other server, shared by NATS accounts; -1 means a single one. Server default: 3. Source:
    cluster.pool_size."""
    nats_cluster_compression: Compression | None = None
    """Compression between servers. Server default: accept, which compresses only if the other server asks for it.
    Source: cluster.compression."""
    nats_cluster_tls: Annotated[PeerTls | None, Structured] = None
    """TLS of routes, if it differs from the platform's. Always mutual. Source: cluster.tls."""

    # ---- leafnodes: off by default
    nats_leafnode_port: Port | None = None
    """Port for leafnodes, which connect with creds of a NATS account. The usual port is 7422. Source:
    leafnodes.listen."""
    nats_leafnode_advertise: Address | None = None
    """HOST:PORT that leafnodes should reconnect to. Source: leafnodes.advertise."""
    nats_leafnode_compression: Compression | None = None
    """Compression of leafnodes. Server default: s2_auto, which depends on the round-trip time. Source:
    leafnodes.compression."""
    nats_leafnode_min_version: Annotated[str, Field(pattern=r"^[0-9]+\.[0-9]+\.[0-9]+$")] | None = None
    """Oldest accepted version of a leafnode, at least 2.8.0. Source: leafnodes.min_version."""
    nats_leafnode_tls: Annotated[LeafnodeTls | None, Structured] = None
    """TLS of leafnodes, if it differs from the platform's. Source: leafnodes.tls."""
    nats_leafnode_remotes: Annotated[list[LeafRemote], Structured] = []
    """Servers that this one connects to as a leafnode. Source: leafnodes.remotes."""

    # ---- gateways: off by default
    nats_gateway_port: Port | None = None
    """Port for gateways. Setting it joins a supercluster under the name nats_cluster_name. The usual port is 7222.
    Source: gateway.listen."""
    nats_gateway_advertise: Address | None = None
    """HOST:PORT that other clusters use to reach this server, if it differs from the listen address. Source:
    gateway.advertise."""
    nats_gateways: Annotated[list[Gateway], Structured] = []
    """The other clusters. Source: gateway.gateways."""
    nats_gateway_reject_unknown: bool = False
    """Accept only clusters in nats_gateways. Source: gateway.reject_unknown_cluster."""
    nats_gateway_tls: Annotated[PeerTls | None, Structured] = None
    """TLS of gateways, if it differs from the platform's. Always mutual, so the clusters need a common CA. Source:
    gateway.tls."""

    # ---- MQTT: off by default
    nats_mqtt_port: Port | None = None
    """Port for MQTT 3.1.1 clients, which use a bearer JWT as password. The usual port is 1883. Source: mqtt.listen."""
    nats_mqtt_tls: Annotated[OutsideTls | None, Structured] = None
    """TLS of MQTT, if it differs from the platform's. Source: mqtt.tls."""
    nats_mqtt_ack_wait: Seconds | None = None
    """Time until a QoS 1 message is sent again. Server default: 30. Source: mqtt.ack_wait."""
    nats_mqtt_max_ack_pending: Annotated[int, Field(ge=0, le=65_535)] | None = None
    """Unacknowledged QoS 1 messages of one subscription. Server default: 1,024. Source: mqtt.max_ack_pending."""
    nats_mqtt_stream_replicas: Annotated[int, Field(ge=1, le=5)] | None = None
    """Replicas of MQTT's sessions and messages. Server default: 3 on a cluster, fewer if there are fewer servers.
    Source: mqtt.stream_replicas."""
    nats_mqtt_domain: Name | None = None
    """JetStream domain of MQTT's sessions and messages. Source: mqtt.js_domain."""

    # ---- authentication
    nats_auth_timeout: Annotated[float, Field(gt=0, le=30), Unit("seconds")] = 3
    """Maximum time for a client to authenticate, including the auth callout. Longer than the server's 2, because after
    a restart thousands of clients wait for the same two hubs, which refuse within 1.5 s those that they cannot serve.
    Not longer, because a client that connects just before the hubs are back waits for all of it. Source:
    authorization.timeout, tls.timeout."""
    nats_resolver: Literal["full", "cache", "memory"] = "full"
    """Resolver of NATS accounts: full stores all JWTs on disk and exchanges them with other servers; cache stores the
    JWTs in use and fetches others from a full resolver; memory has the platform's JWTs in its configuration. Source:
    resolver.type."""
    nats_resolver_allow_delete: bool = False
    """Accept requests over NATS, signed with the operator's key, that delete NATS accounts; full only. Source:
    resolver.allow_delete."""
    nats_resolver_interval: Seconds | None = None
    """Interval at which full resolvers compare their JWTs. Default: 120. Longer than the server's 60, because natskit
    pushes changes to all servers and this only finds missed ones. Source: resolver.interval."""
    nats_resolver_limit: Count | None = None
    """Maximum number of stored NATS accounts. Default: 1,000, which is the server's default for cache. Source:
    resolver.limit."""
    nats_resolver_ttl: Seconds | None = None
    """Lifetime of a cached NATS account. Server default: unlimited. Source: resolver.ttl."""
    nats_resolver_timeout: Annotated[float, Field(gt=0, le=30), Unit("seconds")] | None = None
    """How long a server waits for another server's answer about a NATS account. Server default: 1.9. Source:
    resolver.timeout."""

    # ---- limits
    nats_max_connections: Count = 65_536
    """Maximum number of clients. This is the server's default. Source: max_connections."""
    nats_max_subscriptions: Annotated[int, Field(ge=0)] | None = None
    """Subscriptions per connection. Server default: 0, no limit. Source: max_subscriptions."""
    nats_max_subscription_tokens: Annotated[int, Field(ge=1, le=255)] | None = None
    """Tokens per subscription. Server default: no limit. Source: max_subscription_tokens."""
    nats_max_payload: Annotated[int, Field(ge=65_536, le=64 * 1024**2), Unit("bytes")] = 1024 * 1024
    """Maximum size of a message. This is the server's default; its maximum is 64 MiB. Larger messages delay all others
    behind them. Below 340,000 an account can have fewer than 4,000 projects (731 with 65,536), because a hub's
    authorization names all projects in one message. Source: max_payload."""
    nats_max_control_line: Annotated[int, Field(ge=512, le=2**31 - 1), Unit("bytes")] = 4096
    """Maximum length of a protocol line. This is the server's default; natskit's longest subject has 90. Source:
    max_control_line."""
    nats_max_pending: Annotated[int, Field(ge=1024**2), Unit("bytes")] = 64 * 1024 * 1024
    """Data that the server buffers for a slow consumer before it disconnects it. This is the server's default. A hub
    that reads all its state gets the list of its keys at once: about 100 bytes for each project of each account, up to
    10 MB. Source: max_pending."""
    nats_max_closed_clients: Annotated[int, Field(ge=0)] | None = None
    """Closed connections that monitoring still shows. Server default: 10,000. Source: max_closed_clients."""
    nats_no_fast_producer_stall: bool = False
    """Do not slow down fast publishers. Slow consumers are then disconnected sooner. Source: no_fast_producer_stall."""
    nats_write_deadline: Seconds = 10
    """Maximum time of a write to a client. This is the server's default. Source: write_deadline."""
    nats_ping_interval: Seconds = 5
    """Interval between pings. Shorter than the server's 120, because a hub whose host lost power or network still
    receives requests until two pings are unanswered, and a browser still looks connected. Source: ping_interval."""
    nats_ping_max: Count = 2
    """Unanswered pings before a connection is closed. This is the server's default. Source: ping_max."""
    nats_lame_duck_duration: Annotated[int, Field(ge=30, le=1200), Unit("seconds")] = 30
    """Time in which clients are disconnected before the server stops (lame duck mode). The server's minimum instead of
    its default of 120, because a deploy and a machine's shutdown wait for it on each host. A server in lame duck mode
    ignores SIGTERM; `systemctl kill -s INT natskit-nats` stops it at once. Source: lame_duck_duration."""
    nats_lame_duck_grace_period: Annotated[int, Field(ge=0), Unit("seconds")] = 5
    """Time before lame duck mode disconnects the first client. Server default: 10. Source: lame_duck_grace_period."""
    nats_memory_limit: Annotated[int, Field(ge=64 * 1024**2), Unit("bytes")] | None = None
    """Memory limit of nats-server on a host. GOMEMLIMIT makes it collect garbage before it reaches the limit. Source:
    go.dev/doc/gc-guide."""

    # ---- JetStream
    nats_jetstream: bool = True
    """JetStream on this server. Off for servers of a cluster that only route messages; the platform's state needs at
    least as many servers with JetStream as it has replicas. Source: jetstream.enabled."""
    nats_jetstream_directory: HostPath | None = None
    """Folder of the streams, preferably on a separate disk that nothing else can fill. Default:
    platform_root/nats/jetstream. Source: jetstream.store_dir."""
    nats_jetstream_domain: Name | None = None
    """Name of this JetStream domain among those that leafnodes connect. The same on all servers. Source:
    jetstream.domain."""
    nats_jetstream_max_file: Bytes = 10 * 1024**3
    """Maximum size of all streams on disk. Must be below the disk's size, so that JetStream refuses a write instead of
    shutting down on this server (docs/how-to/jetstream.md). Source: jetstream.max_file_store."""
    nats_jetstream_reserve: Bytes = 1024**3
    """Free disk space required in addition to nats_jetstream_max_file. With less, a deploy stops before it changes
    nats-server; 0 turns the check off."""
    nats_jetstream_max_memory: Bytes = 256 * 1024**2
    """Maximum size of all streams in memory. Source: jetstream.max_memory_store."""
    nats_sync_interval: Annotated[str, Field(pattern=r"^(always|[1-9][0-9]*(ms|s|m))$")] = "always"
    """How often writes are synced to disk. The server's default of 2m loses acknowledged writes at power loss (Jepsen,
    NATS 2.12.1, 2025). Source: jetstream.sync_interval."""
    nats_jetstream_limits: Annotated[JetStreamLimits, Structured] = JetStreamLimits()
    """Limits of streams and consumers. Source: jetstream.limits."""
    nats_jetstream_max_outstanding_catchup: Bytes | None = None
    """Unacknowledged data sent to a server that catches up. Server default: 64 MiB. Source:
    jetstream.max_outstanding_catchup."""
    nats_jetstream_max_buffered_msgs: Count | None = None
    """Messages buffered for one stream before publishers are refused. Server default: 100,000. Source:
    jetstream.max_buffered_msgs."""
    nats_jetstream_max_buffered_size: Annotated[int, Field(ge=1), Unit("bytes")] | None = None
    """Data buffered for one stream before publishers are refused. Server default: 128 MiB. Source:
    jetstream.max_buffered_size."""
    nats_jetstream_request_queue_limit: Count | None = None
    """Queued JetStream API requests before all of them are dropped. Server default: 10,000. Source:
    jetstream.request_queue_limit."""
    nats_jetstream_unique_tag: Tag | None = None
    """Prefix of a tag, such as az:, whose value differs between all replicas of a stream. Source:
    jetstream.unique_tag."""
    nats_jetstream_cipher: Literal["chachapoly", "aes"] | None = None
    """Cipher of JetStream's data on disk. Needs nats_jetstream_key_file. Default with a key: chachapoly. Source:
    jetstream.cipher."""
    nats_jetstream_key_file: Path | None = None
    """File on the control machine with the key: one line of at least 32 letters, digits, +, /, =, _, - (openssl rand
    -base64 32). nats-server gets it in its environment; the configuration has only the variable's name. Data written
    earlier stays unencrypted and readable. Source: jetstream.key."""
    nats_jetstream_previous_key_file: Path | None = None
    """The previous key, until nats-server has restarted with the new one. Only for a single server; on a cluster,
    follow docs/how-to/jetstream.md. Source: jetstream.prev_key."""
    nats_server_tags: Annotated[list[Tag], Listed] = []
    """Tags that describe the server (az:a, disk:ssd), for the placement of streams. Source: server_tags."""
    nats_server_metadata: Annotated[dict[str, str], Structured] = {}
    """Further information about the server, for people and monitoring. Source: server_metadata."""

    # ---- logging
    nats_debug: bool = False
    """Log debug messages about each connection. Source: debug."""
    nats_trace: bool = False
    """Log every message. The log then contains your users' data. Source: trace."""
    nats_max_traced_msg_len: Annotated[int, Field(ge=1), Unit("bytes")] | None = None
    """Maximum length of a message in nats_trace's log. Server default: unlimited. Source: max_traced_msg_len."""
    nats_log_to_file: bool = False
    """Log to platform_root/nats/log/nats-server.log instead of the service manager. Source: logfile."""
    nats_log_size_limit: Annotated[int, Field(ge=1024), Unit("bytes")] | None = None
    """Size at which the log file is rotated. Server default: no limit. Source: logfile_size_limit."""
    nats_log_max_files: Annotated[int, Field(ge=1)] | None = None
    """Number of log files to keep. Server default: all. Source: logfile_max_num."""
    nats_logtime_utc: bool = False
    """Log times in UTC. Source: logtime_utc."""
    nats_connect_error_reports: Annotated[int, Field(ge=1)] | None = None
    """Log every n-th failed attempt to connect to a server for the first time. Server default: 3,600, about an hour.
    Source: connect_error_reports."""
    nats_reconnect_error_reports: Annotated[int, Field(ge=1)] | None = None
    """Log every n-th failed attempt to reconnect to a server. Server default: 1. Source: reconnect_error_reports."""

    # ---- anything else
    nats_section_extra: Annotated[dict[Section, str], Structured] = {}
    """Options of nats-server without a setting here, by section: {"jetstream": "meta_compact: 1000"}."""
    nats_extra: str = ""
    """Further configuration outside of all sections, appended unchanged."""

    @model_validator(mode="after")
    def _accepted(self) -> Self:
        problem = next(iter(self._problems()), None)
        if problem:
            raise ValueError(problem)
        return self

    def _problems(self) -> Iterable[str]:
        if self.nats_max_payload > self.nats_max_pending:
            yield "nats_max_payload must not be higher than nats_max_pending: nats-server does not start with that"
        if self.nats_lame_duck_grace_period >= self.nats_lame_duck_duration:
            yield (
                "nats_lame_duck_grace_period must be shorter than nats_lame_duck_duration: nats-server does not start "
                "with that"
            )
        own = re.search(r"\blame_duck_(duration|grace_period)\b", self.nats_extra, re.IGNORECASE)
        if own:
            key = own[0].lower()
            yield f"nats_extra sets {key}: set nats_{key} instead, because the stop timeout is derived from it"
        yield from self._listener_problems()
        yield from self._resolver_problems()
        yield from self._jetstream_problems()
        if not self.nats_log_to_file:
            for key in ("nats_log_size_limit", "nats_log_max_files"):
                if getattr(self, key) is not None:
                    yield f"{key} needs a log file: set nats_log_to_file"

    def _listener_problems(self) -> Iterable[str]:
        for port, keys in (
            ("nats_leafnode_port", ("advertise", "compression", "min_version", "tls")),
            ("nats_gateway_port", ("advertise", "tls")),
            ("nats_mqtt_port", ("tls", "ack_wait", "max_ack_pending", "stream_replicas", "domain")),
        ):
            for key in keys:
                name = f"{port.removesuffix('port')}{key}"
                if getattr(self, port) is None and getattr(self, name) is not None:
                    yield f"{name} has no effect without {port}: set {port}, or remove {name}"
        if self.nats_gateways and self.nats_gateway_port is None:
            yield "nats_gateways needs nats_gateway_port: nats-server does not start without a gateway port"
        twice = [name for name, number in Counter(gateway.name for gateway in self.nats_gateways).items() if number > 1]
        if twice:
            yield f"nats_gateways has {twice[0]} twice: list all of its URLs in one entry"
        remotes = [(tuple(remote.urls), remote.account, remote.credentials) for remote in self.nats_leafnode_remotes]
        if len(set(remotes)) < len(remotes):
            yield "nats_leafnode_remotes has the same URLs, account and credentials twice: remove one of them"
        least = self.nats_leafnode_min_version
        if least is not None and tuple(map(int, least.split("."))) < LEAST_LEAFNODE:
            yield f"nats_leafnode_min_version = {least}: nats-server accepts 2.8.0 or later"

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
                yield f"{name} needs nats_resolver = {' or '.join(kinds)}, and it is {self.nats_resolver}"

    def _jetstream_problems(self) -> Iterable[str]:
        if self.nats_jetstream_cipher and not self.nats_jetstream_key_file:
            yield "nats_jetstream_cipher encrypts nothing without a key: set nats_jetstream_key_file"
        if self.nats_jetstream_previous_key_file and not self.nats_jetstream_key_file:
            yield "nats_jetstream_previous_key_file needs nats_jetstream_key_file, which is not set"
        if self.nats_jetstream_key_file and self.nats_jetstream_key_file == self.nats_jetstream_previous_key_file:
            yield "nats_jetstream_key_file and nats_jetstream_previous_key_file are the same file: name two files"
        if self.nats_jetstream_key_file and re.search(r"\bNATS_JS_(PREVIOUS_)?KEY\s*[:=]", self.nats_extra):
            yield "nats_extra defines NATS_JS_KEY, which would override nats_jetstream_key_file: remove it"
        tag = self.nats_jetstream_unique_tag
        if tag and not any(own.startswith(tag) for own in self.nats_server_tags):
            yield (
                f"nats_jetstream_unique_tag = {tag!r}: no tag in nats_server_tags begins with it, so nats-server "
                "would place no stream here; add such a tag"
            )
