"""natskit: plain Linux hosts become a multi-tenant NATS platform."""

from importlib.metadata import version

__version__ = version("natskit")
