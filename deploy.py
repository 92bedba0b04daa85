"""The story of a deploy. Run it with: natskit deploy INVENTORY"""

import sys
from pathlib import Path

from pyinfra import host, inventory

sys.path.insert(0, str(Path(__file__).resolve().parent))  # roles/ is beside this file, wherever the deploy is run

import natskit.bus.nats_without_aiohttp  # noqa: F401 - must come first
from roles import exporter, hub, keeper, monitoring, nats, platform, proxy, runner, service, streams
from roles.files import stage

settings, site = platform.validate(host, inventory)
identity = platform.identity(settings)

service.install(settings)
exporter.prepare(settings)
stage(name="The nats-servers", what="the hubs need them")
if "nats" in host.groups:
    nats.deploy(settings, site, identity)
stage(name="The streams", what="the hubs may not create them")
streams.deploy(settings, site, identity)
stage(name="The hubs and keepers", what="hubs let in everyone else")
if "hub" in host.groups:
    hub.deploy(settings, site, identity, runner.known_runners(site, identity))
    keeper.deploy(settings, site, identity)
stage(name="The proxy and the runners", what="they need the hubs")
if "proxy" in host.groups:
    proxy.deploy(settings, site, identity)
if "runner" in host.groups:
    runner.deploy(settings, site, identity)
stage(name="The metrics", what="they show all other programs")
exporter.deploy(settings, site, identity)
if "monitoring" in host.groups:
    monitoring.deploy(settings, site, identity)
else:
    monitoring.retire(settings)
stage(name="The earlier version", what="all programs now run this version")
nats.end_earlier_rights(site, identity)
service.tidy(settings)
stage(name="The record", what="all hosts are done")
platform.describe(site, identity)
