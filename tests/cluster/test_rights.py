"""Where projects are units of systemd, each with credentials that do not change while it runs."""

from tests.platform.test_rights import test_keys_of_projects_are_rotated  # noqa: F401
