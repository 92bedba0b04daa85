"""The doors of the one-machine platform are as tight on the cluster: `site` is the cluster here."""

from tests.platform.test_doors import *  # noqa: F403
