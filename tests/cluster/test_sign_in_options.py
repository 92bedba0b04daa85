"""The sign-in tests of the one-machine platform, on the cluster: here, `site` is the cluster."""

from tests.platform.test_sign_in_options import *  # noqa: F403
