"""The permissions of the one-machine platform, cell by cell, hold on the cluster too: `site` is the cluster here."""

from tests.platform.test_permissions import *  # noqa: F403
