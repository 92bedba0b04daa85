"""The clients' tables, in Python and in the browser, agree with the declarations of the methods."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from natskit import methods

REPOSITORY = Path(__file__).parents[2]


def test_the_tables_are_what_the_methods_declare() -> None:
    command = [sys.executable, "scripts/methods", "--check"]
    checked = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr


def test_they_say_what_clients_rely_on() -> None:
    assert {"create_project", "delete_project"} <= methods.IDEMPOTENT & methods.CHANGES_RIGHTS
    assert "change_password" in methods.OVER_HTTP - methods.IDEMPOTENT
    assert "exec" not in methods.IDEMPOTENT
