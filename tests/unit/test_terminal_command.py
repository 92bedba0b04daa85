"""``natskit terminal``: which words belong to the command, and which to the program on the terminal."""

from __future__ import annotations

import pytest

from natskit.cli.terminal import terminal


@pytest.mark.parametrize(
    ("words", "name", "command", "others"),
    [
        (["p"], "main", (), {}),
        (["p", "--list"], "main", (), {"wants_list": True}),
        (["p", "n", "--end"], "n", (), {"wants_end": True}),
        (["p", "n", "top", "-d", "1"], "n", ("top", "-d", "1"), {}),
        (["p", "n", "ls", "--list", "--end"], "n", ("ls", "--list", "--end"), {"wants_list": False}),
        (["--record", "x", "p", "n", "top", "-d", "1"], "n", ("top", "-d", "1"), {"record": "x"}),
        (["p", "--detach-key", "ctrl-a", "n", "sh", "-c", "x"], "n", ("sh", "-c", "x"), {"detach_key": b"\x01"}),
        (["p", "--detach-key=ctrl-a", "n", "sh", "-c", "x"], "n", ("sh", "-c", "x"), {"detach_key": b"\x01"}),
        (["p", "n", "--", "top", "-d", "1"], "n", ("top", "-d", "1"), {}),
        (["p", "n", "cat", "--", "-x"], "n", ("cat", "--", "-x"), {}),
        (["p", "n", "--read-only", "cat", "-"], "n", ("cat", "-"), {"read_only": True}),
    ],
)
def test_what_follows_the_name_belongs_to_the_program(
    words: list[str], name: str, command: tuple[str, ...], others: dict[str, object]
) -> None:
    params = terminal.make_context("terminal", list(words)).params
    assert (params["project"], params["name"], params["command"]) == ("p", name, command)
    for option, value in others.items():
        assert params[option] == value
