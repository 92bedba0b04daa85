"""The story of a deploy. Run it with: pyinfra INVENTORY deploy.py"""

from pyinfra import host, inventory

from roles import hub, nats, platform, proxy, runner, service, streams
from roles.files import stage

settings, site = platform.validate(host, inventory)
identity = platform.identity(settings)

service.install(settings)
stage(name="The nats-servers", what="hubs need them")
if "nats" in host.groups:
    nats.deploy(settings, site, identity)
stage(name="The streams", what="hubs may not make them")
streams.deploy(settings, site, identity)
stage(name="The hubs", what="everybody else is let in by them")
if "hub" in host.groups:
    hub.deploy(settings, site, identity, runner.known_runners(site, identity))
stage(name="The proxy and the runners", what="they need the hubs")
if "proxy" in host.groups:
    proxy.deploy(settings, site, identity)
if "runner" in host.groups:
    runner.deploy(settings, site, identity)
stage(name="What was replaced", what="all programs are those of this version")
nats.end_earlier_rights(site, identity)
service.tidy(settings)
platform.describe(site, identity)
