"""The story of a deploy. Run it with: pyinfra inventories/local.py deploy.py"""

from pyinfra import host

from roles import hub, nats, platform, proxy, runner, service

settings = platform.validate(host.data.dict())  # type: ignore[no-untyped-call]
identity = platform.identity(settings)

service.install(settings)
nats.deploy(settings, identity)
hub.deploy(settings, identity, runner.known_runners(settings, identity))
proxy.deploy(settings, identity)
runner.deploy(settings, identity)
platform.describe(settings, identity)
