"""All hosts of a platform together: who plays which role, where each is reached, and what no host can be told alone."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from natskit import named_files
from natskit.errors import SettingsError
from natskit.permissions import BUCKETS
from natskit.settings import HubSettings, Settings, load

ROLES = ("nats", "hub", "proxy", "runner")
"""The groups of an inventory: a host plays the role of each that it is in."""

Hosts = Iterable[tuple[str, Iterable[str], Mapping[str, Any]]]

PLATFORM_WIDE = ("proxy_name", "proxy_port", "platform_control", "platform_tls", "nats_cluster_name")
"""Settings that are one value for all hosts: put them into group_data/all.py."""


@dataclass(frozen=True)
class Topology:
    """The settings of each host, by the roles it plays, in the inventory's order."""

    nats: tuple[Settings, ...]
    hub: tuple[Settings, ...]
    proxy: tuple[Settings, ...]
    runner: tuple[Settings, ...]

    @property
    def nats_urls(self) -> list[str]:
        """Where to connect: each nats-server."""
        return [settings.nats_url for settings in self.nats]

    @property
    def url(self) -> str:
        """The site's address, which is also its origin."""
        return self.proxy[0].url

    @property
    def replicas(self) -> int:
        """Copies of what JetStream holds: as many servers may be lost as are left beyond a majority of these."""
        return self.hub[0].hub_state_replicas or min(3, sum(settings.nats_jetstream for settings in self.nats))

    def nats_urls_for(self, settings: Settings) -> list[str]:
        """The same for a host; the nats-server of the host itself comes first, if it has one."""
        return sorted(self.nats_urls, key=lambda url: url != settings.nats_url)

    def routes_for(self, settings: Settings) -> list[str]:
        """Where a nats-server finds the others; none where it is alone."""
        return [
            f"{other.platform_address}:{other.nats_cluster_port}"
            for other in self.nats
            if other.platform_name != settings.platform_name
        ]

    def hub_label(self, settings: Settings, program: str) -> str:
        """What a hub is called in answers and metrics: its program where one host has all hubs, else its host."""
        if len(self.hub) == 1:
            return program
        host = settings.platform_name.replace(".", "-")  # it is part of subjects, where a dot separates
        return host if settings.hub_count == 1 else f"{host}-{program}"


def validate(hosts: Hosts) -> tuple[Topology, dict[str, Settings]]:
    """The platform as :func:`assemble` makes it, and as a deploy needs it: the files that settings name are there.

    Raises :class:`SettingsError` with a line for each thing that is wrong, and the hosts where it is.
    """
    site, known = assemble(hosts)
    problems = list(named_files.problems(site, now=time.time()))
    refuse(problems)
    return site, known


def assemble(hosts: Hosts) -> tuple[Topology, dict[str, Settings]]:
    """The platform, and the settings of each host, from the hosts' names, groups and data.

    Raises :class:`SettingsError` with a line for each thing that is wrong, and the hosts where it is.
    """
    problems: list[str] = []
    known: dict[str, Settings] = {}
    roles: dict[str, list[Settings]] = {role: [] for role in ROLES}
    for name, groups, data in hosts:
        own = {"platform_name": name, "platform_address": name} | dict(data)
        try:
            known[name] = load(own, f"inventory, host {name}")
        except SettingsError as error:
            problems.append(str(error))
            continue
        for role in ROLES:
            if role in groups:
                roles[role].append(known[name])
    if not problems:
        problems = [*_whole(roles), *_nats(roles["nats"], _state_bytes(roles["hub"])), *_agree(known), *_differ(known)]
    refuse(problems)
    return Topology(**{role: tuple(settings) for role, settings in roles.items()}), known


HUB_WIDE = (
    "hub_state_replicas",
    "hub_state_max_bytes",
    "hub_session_sliding",
    "hub_session_absolute",
    "hub_audit_days",
    "hub_audit_bytes",
    "hub_backends",
    *(key for key in HubSettings.model_fields if key.startswith("hub_oidc_")),
)
"""Settings that all hubs must have in common: whichever of them is asked has to give the same answer."""


def of_hosts(problems: Iterable[tuple[str, str]]) -> Iterator[tuple[list[str], str]]:
    """From a host and what is wrong with it, each: what is wrong, once, with all the hosts that have it."""
    found: dict[str, list[str]] = {}
    for host, problem in problems:
        found.setdefault(problem, []).append(host)
    return ((hosts, problem) for problem, hosts in found.items())


_OF_A_HOST = re.compile(r"inventory, host (\S+): (.*)")


def refuse(problems: Iterable[str]) -> None:
    """Raise :class:`SettingsError` if there are any. What is wrong on several hosts is said once."""
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
            yield f"inventory: no host is in the group {role}: a platform needs one"
    if len(roles["nats"]) in (2, 4):
        yield (
            f"inventory: {len(roles['nats'])} hosts are in the group nats: a majority of them must live, so the last "
            "one adds a way to fail and none to survive; use 1, 3 or 5"
        )
    for key in HUB_WIDE:
        if len({str(getattr(settings, key)) for settings in roles["hub"]}) > 1:
            yield f"inventory: {key} is not the same on all hubs: set it in group_data/all.py"
    copies = {settings.hub_state_replicas for settings in roles["hub"]}
    with_streams = sum(settings.nats_jetstream for settings in roles["nats"])
    for number in copies - {None}:
        if number is not None and number > with_streams:
            yield f"inventory: hub_state_replicas = {number}: there are only {with_streams} nats-servers with JetStream"


NATS_WIDE = (
    "nats_jetstream_domain",
    "nats_jetstream_unique_tag",
    "nats_max_payload",
    "nats_gateways",
    "nats_gateway_reject_unknown",
)
"""Settings that all nats-servers of a cluster must have in common: put them into group_data/nats.py."""


def _state_bytes(hubs: list[Settings]) -> int:
    """What JetStream sets aside for the buckets of the state, for the audit, and for the probe's bucket."""
    of_each = (len(BUCKETS) * settings.hub_state_max_bytes + settings.hub_audit_bytes for settings in hubs)
    return max(of_each, default=0) + 1024**2


def _nats(servers: list[Settings], state_bytes: int) -> Iterable[str]:
    """What nats-servers have to agree on, and what they need of each other."""
    for key in NATS_WIDE:
        yield from _same(key, {settings.platform_name: getattr(settings, key) for settings in servers})
    doors = {settings.platform_name: "open" if settings.nats_gateway_port else "closed" for settings in servers}
    if len(set(doors.values())) > 1:
        without = next(name for name, door in doors.items() if door == "closed")
        yield (
            f"inventory: nats_gateway_port is not set on {without}: in a supercluster every server of a cluster needs "
            "it, or what its clients say stays inside"
        )
    if servers and not any(settings.nats_resolver == "full" for settings in servers):
        cache = [settings.platform_name for settings in servers if settings.nats_resolver == "cache"]
        if cache:
            yield (
                f"inventory, host {cache[0]}: nats_resolver = 'cache' asks a full one for NATS accounts, and no "
                "nats-server is full"
            )
    yield from _jetstream(servers, state_bytes)


def _jetstream(servers: list[Settings], state_bytes: int) -> Iterable[str]:
    with_streams = [settings for settings in servers if settings.nats_jetstream]
    for settings in with_streams:
        clustered = len(servers) > 1 or bool(settings.nats_cluster_routes)
        if settings.nats_gateway_port and not clustered:
            yield (
                f"inventory, host {settings.platform_name}: nats_gateway_port and JetStream on a nats-server without "
                "routes: it would not start (JetStream cluster requires configured routes)"
            )
        if settings.nats_jetstream_max_file < state_bytes:
            yield (
                f"inventory, host {settings.platform_name}: nats_jetstream_max_file = "
                f"{settings.nats_jetstream_max_file}: the state and the audit may have {state_bytes} bytes, by "
                "hub_state_max_bytes and hub_audit_bytes: raise the one, or lower the others"
            )
        if settings.nats_jetstream_previous_key_file and clustered:
            yield (
                f"inventory, host {settings.platform_name}: nats_jetstream_previous_key_file: on a cluster nats-server "
                "cannot open its own state with it and would not start: docs/jetstream.md says how to change a key"
            )
    if servers and not with_streams:
        yield "inventory: nats_jetstream is off on all nats-servers, and the platform keeps its state in it"
    for settings in with_streams:
        replicas = settings.nats_mqtt_stream_replicas
        if replicas and replicas > len(with_streams):
            yield (
                f"inventory, host {settings.platform_name}: nats_mqtt_stream_replicas = {replicas}: JetStream runs on "
                f"{len(with_streams)} nats-servers"
            )
    tag = with_streams[0].nats_jetstream_unique_tag if with_streams else None
    if tag:
        values = {own for settings in with_streams for own in settings.nats_server_tags if own.startswith(tag)}
        copies = min(3, len(with_streams))
        if len(values) < copies:
            yield (
                f"inventory: nats_jetstream_unique_tag = {tag!r} has {len(values)} values in nats_server_tags: the "
                f"state has {copies} copies, each of which needs its own"
            )


def _same(key: str, values: Mapping[str, Any]) -> Iterable[str]:
    (here, one), *others = values.items() if values else [("", None)]
    for there, other in others:
        if other != one:
            yield f"inventory: {key} is {one} on {here} and {other} on {there}: it must be the same on all nats-servers"
            return


def _agree(known: Mapping[str, Settings]) -> Iterable[str]:
    for name, settings in known.items():
        if settings.platform_control is None and settings.platform_manager == "systemd":
            yield f"inventory, host {name}: platform_control is not set: name a folder here for the platform's keys"
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
                    f"inventory, host {name}: platform_address = {settings.platform_address!r}: the other hosts cannot "
                    "reach it there"
                )
            elif not settings.platform_tls:
                yield f"inventory, host {name}: platform_tls is off, and what goes between hosts would be readable"
