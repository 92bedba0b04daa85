"""The whole platform: the role and address of each host, and the rules that span several hosts."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from natskit.bus.permissions import BUCKETS
from natskit.config import referenced_files
from natskit.config.settings import HubSettings, Settings, load
from natskit.errors import SettingsError
from natskit.validation.addresses import is_ip_address

ROLES = ("nats", "hub", "proxy", "runner")
"""The groups of an inventory. A host has the role of each of its groups."""
OPTIONAL_ROLES = ("monitoring",)
"""Groups that an inventory may do without."""

Hosts = Iterable[tuple[str, Iterable[str], Mapping[str, Any]]]

PLATFORM_WIDE = (
    "proxy_name",
    "proxy_port",
    "platform_control",
    "platform_tls",
    "nats_cluster_name",
    "metrics_token_file",
)
"""Settings with one value for all hosts: set them in group_data/all.py."""


@dataclass(frozen=True)
class Topology:
    """The settings of the hosts of each role, in the inventory's order."""

    nats: tuple[Settings, ...]
    hub: tuple[Settings, ...]
    proxy: tuple[Settings, ...]
    runner: tuple[Settings, ...]
    monitoring: tuple[Settings, ...] = ()

    @property
    def exporter(self) -> tuple[Settings, ...]:
        """The hosts that show metrics: all, or none without a token."""
        every = {one.platform_name: one for role in (*ROLES, *OPTIONAL_ROLES) for one in getattr(self, role)}
        return tuple(settings for settings in every.values() if settings.metrics_token_file)

    @property
    def scrapers(self) -> list[str]:
        """The addresses and networks that may read metrics."""
        named = {network for settings in self.exporter for network in settings.metrics_scrapers}
        return sorted(named | {address for one in self.monitoring if is_ip_address(address := one.platform_address)})

    @property
    def nats_urls(self) -> list[str]:
        """The URL of each nats-server."""
        return [settings.nats_url for settings in self.nats]

    @property
    def url(self) -> str:
        """The site's address, which is also its origin."""
        return self.proxy[0].url

    @property
    def replicas(self) -> int:
        """Replicas of JetStream's streams. The state survives as long as a majority of them is left."""
        return self.hub[0].hub_state_replicas or min(3, sum(settings.nats_jetstream for settings in self.nats))

    def nats_urls_for(self, settings: Settings) -> list[str]:
        """The URLs for the programs of one host. The host's own nats-server, if it has one, comes first."""
        return sorted(self.nats_urls, key=lambda url: url != settings.nats_url)

    def routes_for(self, settings: Settings) -> list[str]:
        """The routes to the other nats-servers; empty for a single one."""
        return [
            f"{other.platform_address}:{other.nats_cluster_port}"
            for other in self.nats
            if other.platform_name != settings.platform_name
        ]

    def hub_label(self, settings: Settings, program: str) -> str:
        """A hub's name in answers and metrics: its program, its host, or both, whichever is needed to be unique."""
        return self._label(settings, program, settings.hub_count)

    def keeper_label(self, settings: Settings, program: str) -> str:
        """A keeper's name, likewise. Keepers run on the hosts of hubs."""
        label = self._label(settings, program, settings.keeper_count)
        return label if "keeper" in label else f"{label}-keeper"

    def _label(self, settings: Settings, program: str, count: int) -> str:
        if len(self.hub) == 1:
            return program
        host = settings.platform_name.replace(".", "-")  # the name is part of subjects, where dots separate tokens
        return host if count == 1 else f"{host}-{program}"


def validate(hosts: Hosts) -> tuple[Topology, dict[str, Settings]]:
    """The result of :func:`assemble`, after also checking the files that settings name, as a deploy needs them.

    Raises :class:`SettingsError` with a line for each problem and its hosts.
    """
    site, known = assemble(hosts)
    problems = list(referenced_files.problems(site, now=time.time()))
    refuse(problems)
    return site, known


def assemble(hosts: Hosts) -> tuple[Topology, dict[str, Settings]]:
    """The platform, and the settings of each host, from the hosts' names, groups and data.

    Raises :class:`SettingsError` with a line for each problem and its hosts.
    """
    problems: list[str] = []
    known: dict[str, Settings] = {}
    roles: dict[str, list[Settings]] = {role: [] for role in (*ROLES, *OPTIONAL_ROLES)}
    for name, groups, data in hosts:
        own = {"platform_name": name, "platform_address": name} | dict(data)
        try:
            known[name] = load(own, f"inventory, host {name}")
        except SettingsError as error:
            problems.append(str(error))
            continue
        for role in roles:
            if role in groups:
                roles[role].append(known[name])
    if not problems:
        problems = [*_whole(roles), *_nats(roles["nats"], _state_bytes(roles["hub"])), *_monitoring(roles)]
        problems += [*_agree(known), *_differ(known)]
    refuse(problems)
    return Topology(**{role: tuple(settings) for role, settings in roles.items()}), known


HUB_WIDE = (
    "hub_state_replicas",
    "hub_state_max_bytes",
    "hub_session_sliding",
    "hub_session_absolute",
    "hub_audit_days",
    "hub_audit_bytes",
    "keeper_max_bytes",
    "keeper_max_project_bytes",
    "hub_administrators",
    "hub_backends",
    *(key for key in HubSettings.model_fields if key.startswith("hub_oidc_")),
)
"""Settings that must be the same on all hubs, because any hub may answer a request."""


def of_hosts(problems: Iterable[tuple[str, str]]) -> Iterator[tuple[list[str], str]]:
    """Group (host, problem) pairs: each problem once, with all its hosts."""
    found: dict[str, list[str]] = {}
    for host, problem in problems:
        found.setdefault(problem, []).append(host)
    return ((hosts, problem) for problem, hosts in found.items())


_OF_A_HOST = re.compile(r"inventory, host (\S+): (.*)")


def refuse(problems: Iterable[str]) -> None:
    """Raise :class:`SettingsError` if there are problems. A problem of several hosts is reported once."""
    lines = [line for problem in problems for line in problem.splitlines()]
    split = [(found[1], found[2]) if (found := _OF_A_HOST.fullmatch(line)) else ("", line) for line in lines]
    said = [
        f"inventory, host{'s' if len(hosts) > 1 else ''} {', '.join(hosts)}: {problem}" if hosts[0] else problem
        for hosts, problem in of_hosts(split)
    ]
    if said:
        raise SettingsError("\n".join(said))


def _whole(roles: Mapping[str, list[Settings]]) -> Iterable[str]:
    for role in ("nats", "hub", "proxy"):
        if not roles[role]:
            yield f"inventory: the group {role} has no host: add at least one"
    if len(roles["nats"]) in (2, 4):
        yield (
            f"inventory: {len(roles['nats'])} hosts are in the group nats: a majority of them must run, so an even "
            "number survives no more failures than one host less; use 1, 3 or 5"
        )
    for key in HUB_WIDE:
        if len({str(getattr(settings, key)) for settings in roles["hub"]}) > 1:
            yield f"inventory: {key} differs between hubs: set it in group_data/all.py"
    copies = {settings.hub_state_replicas for settings in roles["hub"]}
    with_streams = sum(settings.nats_jetstream for settings in roles["nats"])
    for number in copies - {None}:
        if number is not None and number > with_streams:
            yield f"inventory: hub_state_replicas = {number}: only {with_streams} nats-servers have JetStream; lower it"


NATS_WIDE = (
    "nats_jetstream_domain",
    "nats_jetstream_unique_tag",
    "nats_max_payload",
    "nats_gateways",
    "nats_gateway_reject_unknown",
)
"""Settings that must be the same on all nats-servers of a cluster: set them in group_data/nats.py."""


def _state_bytes(hubs: list[Settings]) -> int:
    """Bytes that JetStream reserves for the state's buckets, the audit log, the documents and the probe's bucket."""
    of_each = (
        len(BUCKETS) * settings.hub_state_max_bytes + settings.hub_audit_bytes + settings.keeper_max_bytes
        for settings in hubs
    )
    return max(of_each, default=0) + 1024**2


def _nats(servers: list[Settings], state_bytes: int) -> Iterable[str]:
    """The rules that span several nats-servers."""
    for key in NATS_WIDE:
        yield from _same(key, {settings.platform_name: getattr(settings, key) for settings in servers})
    doors = {settings.platform_name: "open" if settings.nats_gateway_port else "closed" for settings in servers}
    if len(set(doors.values())) > 1:
        without = next(name for name, door in doors.items() if door == "closed")
        yield (
            f"inventory: nats_gateway_port is not set on {without}: in a supercluster every server of a cluster needs "
            "it; otherwise messages of its clients do not reach other clusters"
        )
    if servers and not any(settings.nats_resolver == "full" for settings in servers):
        cache = [settings.platform_name for settings in servers if settings.nats_resolver == "cache"]
        if cache:
            yield (
                f"inventory, host {cache[0]}: nats_resolver = 'cache' needs another nats-server with nats_resolver "
                "= 'full', and there is none"
            )
    yield from _jetstream(servers, state_bytes)


def _jetstream(servers: list[Settings], state_bytes: int) -> Iterable[str]:
    with_streams = [settings for settings in servers if settings.nats_jetstream]
    for settings in with_streams:
        clustered = len(servers) > 1 or bool(settings.nats_cluster_routes)
        if settings.nats_gateway_port and not clustered:
            yield (
                f"inventory, host {settings.platform_name}: with nats_gateway_port and JetStream, a nats-server "
                "without routes does not start (JetStream cluster requires configured routes); set nats_cluster_routes"
            )
        if settings.nats_jetstream_max_file < state_bytes:
            yield (
                f"inventory, host {settings.platform_name}: nats_jetstream_max_file = "
                f"{settings.nats_jetstream_max_file}: hub_state_max_bytes, hub_audit_bytes and keeper_max_bytes "
                f"reserve {state_bytes} bytes for the state, the audit log and the documents; raise it, or lower those"
            )
        if settings.nats_jetstream_previous_key_file and clustered:
            yield (
                f"inventory, host {settings.platform_name}: nats_jetstream_previous_key_file: on a cluster, "
                "nats-server cannot open its own state with it and does not start; see docs/how-to/jetstream.md"
            )
    if servers and not with_streams:
        yield "inventory: nats_jetstream is off on all nats-servers, but the platform's state needs it: turn it on"
    for settings in with_streams:
        replicas = settings.nats_mqtt_stream_replicas
        if replicas and replicas > len(with_streams):
            yield (
                f"inventory, host {settings.platform_name}: nats_mqtt_stream_replicas = {replicas}: only "
                f"{len(with_streams)} nats-servers have JetStream; lower it"
            )
    tag = with_streams[0].nats_jetstream_unique_tag if with_streams else None
    if tag:
        values = {own for settings in with_streams for own in settings.nats_server_tags if own.startswith(tag)}
        copies = min(3, len(with_streams))
        if len(values) < copies:
            yield (
                f"inventory: nats_jetstream_unique_tag = {tag!r} has {len(values)} values in nats_server_tags: the "
                f"{copies} replicas of the state need {copies} different values"
            )


def _same(key: str, values: Mapping[str, Any]) -> Iterable[str]:
    (here, one), *others = values.items() if values else [("", None)]
    for there, other in others:
        if other != one:
            yield f"inventory: {key} is {one} on {here} and {other} on {there}: it must be the same on all nats-servers"
            return


def _monitoring(roles: Mapping[str, list[Settings]]) -> Iterable[str]:
    """The rules of metrics and of the hosts that read them."""
    every = {settings.platform_name: settings for of_role in roles.values() for settings in of_role}
    for settings in every.values():
        where = f"inventory, host {settings.platform_name}"
        here = settings in roles["monitoring"]
        if here and settings.platform_manager != "systemd":
            yield f"{where}: the group monitoring needs hosts with systemd; docs/how-to/monitor.md says how without"
        if here and settings.metrics_token_file is None:
            yield f"{where}: the group monitoring needs metrics_token_file: set it in group_data/all.py"
        if here and not is_ip_address(settings.platform_address):
            yield (
                f"{where}: platform_address = {settings.platform_address!r}: hosts of the group monitoring need an IP "
                "address, by which the others know their Prometheus"
            )
        named = settings.metrics_scrapers or any(is_ip_address(one.platform_address) for one in roles["monitoring"])
        if settings.metrics_token_file and not named:
            yield (
                f"{where}: metrics_token_file is set, and nobody may read metrics: set metrics_scrapers to the address "
                "of your Prometheus"
            )


def _agree(known: Mapping[str, Settings]) -> Iterable[str]:
    for name, settings in known.items():
        if settings.platform_control is None and settings.platform_manager == "systemd":
            yield f"inventory, host {name}: platform_control is not set: set a local folder for the platform's keys"
    for key in PLATFORM_WIDE:
        values: dict[str, str] = {}
        for name, settings in known.items():
            values.setdefault(str(getattr(settings, key)), name)
        if len(values) > 1:
            (one, here), (other, there) = list(values.items())[:2]
            yield f"inventory: {key} is {one} on {here} and {other} on {there}: it must be the same on all hosts"


def _differ(known: Mapping[str, Settings]) -> Iterable[str]:
    for key in ("platform_name", "platform_address", "runner_uuid"):
        seen: dict[str, str] = {}
        for name, settings in known.items():
            value = str(getattr(settings, key))
            if value in seen:
                yield f"inventory: {key} is {value} on {seen[value]} and on {name}: each host needs its own"
            seen[value] = name
    if len(known) > 1:
        for name, settings in known.items():
            if settings.listen == "127.0.0.1":
                yield (
                    f"inventory, host {name}: platform_address = {settings.platform_address!r}: other hosts cannot "
                    "reach this address; set one that they can"
                )
            elif not settings.platform_tls:
                yield f"inventory, host {name}: platform_tls is off, but traffic between hosts needs it: turn it on"
