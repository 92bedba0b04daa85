"""The parts of pyinfra's output that `natskit deploy` shows."""

from __future__ import annotations

from natskit.cli.deploy_output import Digest


def digest(told: str) -> tuple[list[str], bool]:
    """The lines that it shows, and whether pyinfra printed its results."""
    found = Digest()
    shown = [text for line in told.splitlines() for text in found.feed(line)]
    return [*shown, *found.end()], found.complete


def test_what_several_hosts_say_is_shown_once() -> None:
    told = """\
--> Connecting to hosts...
    [@docker/a] Connected
--> Starting operation: Make folder /srv
    [a]   Success
    [bb]  No changes
--> Starting serial operation: Render nats-server.conf
    [a]   nats-server: candidate:86:1: unknown field "x"
    [a]
    [a]   Error: executed 0 commands
    [bb]  nats-server: candidate:86:1: unknown field "x"
    [bb]  Error: executed 0 commands
    [c]   No changes
--> Starting operation: Run nats
    [c]   Success
--> Results:
    [c] whatever
"""
    shown, complete = digest(told)
    assert complete
    assert shown == [
        "  Make folder /srv",
        "  Render nats-server.conf failed:",
        '    [a, bb] nats-server: candidate:86:1: unknown field "x"',
        "    [a, bb] Error: executed 0 commands",
        "  Run nats",
        "2 changes",
    ]


def test_a_run_that_was_cut_short_is_not_complete() -> None:
    assert digest("--> Starting operation: Make folder /srv\n    [a]   Success\n") == (
        ["  Make folder /srv", "1 changes"],
        False,
    )


def test_nothing_to_change_and_what_pyinfra_complains_of() -> None:
    quiet = "--> Starting operation: X\n    [a]   No changes\n--> Results:\n    [a] 1 no change\n"
    assert digest(quiet) == (["nothing to change"], True)
    assert digest("--> An error occurred:\nno such host\n") == (["--> An error occurred:", "no such host"], False)
