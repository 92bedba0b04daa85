"""The console in Chromium on the cluster: those tests of the one-machine suite that depend on where programs run."""

from tests.platform.test_console import (  # noqa: F401
    browser,
    context,
    page,
    test_a_flood_leaves_the_page_alive,
    test_a_project_from_its_creation_to_its_end,
    test_files_are_edited_and_never_silently_overwritten,
    test_output_streams_while_the_command_runs_and_can_be_cancelled,
    test_sharing_reaches_the_guests_open_page,
    test_signing_in_and_out,
    test_the_page_survives_the_end_of_its_session,
)
