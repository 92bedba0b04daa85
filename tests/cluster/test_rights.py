"""Rights of projects that are systemd units, each with credentials that do not change while it runs."""

from tests.platform.test_rights import (  # noqa: F401
    test_a_project_goes_on_without_the_key_that_a_guest_has_copied,
    test_keys_of_projects_are_rotated,
)
