"""natskit refuses a folder in which it cannot work before it installs anything, and accepts all others."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from natskit.config.local_paths import MAX_ROOT, unfit_checkout, unfit_root
from tests.platform.site import REPOSITORY


@pytest.mark.parametrize("name", ["two words", "ü 日本", "100%", "it's", "a;b", "a#b", "~", "a,b&c|d(e)!", "-x", ".a"])
def test_most_names_are_fine(name: str) -> None:
    assert unfit_root(Path("/home", name, ".local")) == ""
    assert unfit_checkout(Path("/home", name)) == ""


@pytest.mark.parametrize(
    ("name", "root", "checkout"),
    [
        ("a$b", "$, which", "$, which"),
        ("a\nb", "a control character", "a control character"),
        ("a\x7fb", "a control character", "a control character"),
        (os.fsdecode(b"caf\xe9"), "a control character, or a byte", "a control character, or a byte"),
        ("issue #5", "a space before", "a space before"),
        ("end ", "a space at the end", "a space at the end"),
        ("a\\b", "a backslash", "a backslash"),
        ("a[b]", "*, ?, [ or ]", ""),
        ("a*", "*, ?, [ or ]", ""),
        ('"a"', "", "a quote"),
        ("a:b", "", "a colon"),
        ("{x}", "", ""),
    ],
)
def test_what_no_configuration_can_say_is_refused(name: str, root: str, checkout: str) -> None:
    assert root in unfit_root(Path("/srv", name))
    assert bool(root) == bool(unfit_root(Path("/srv", name)))
    assert checkout in unfit_checkout(Path("/srv", name, "natskit"))
    assert bool(checkout) == bool(unfit_checkout(Path("/srv", name, "natskit")))


@pytest.mark.parametrize("letter", ["x", "ü", "日", "😀"])
def test_the_length_of_a_folder_counts_in_bytes(letter: str) -> None:
    most = (MAX_ROOT - len("/srv/")) // len(letter.encode())
    assert unfit_root(Path("/srv", letter * most)) == ""
    assert f"more than the {MAX_ROOT}" in unfit_root(Path("/srv", letter * (most + 1)))


@pytest.mark.parametrize(
    ("checkout", "local", "said"),
    [
        ("a $HOME", "", "a $HOME has $, which starts a variable in nginx: move the checkout to another folder"),
        ("new\nline", "", "new\\nline' has a control character, or a byte that is not UTF-8: move the checkout"),
        ("plain", "/srv/" + "ü" * 40, "has 85 bytes, more than the 72"),
        (
            "plain",
            "C #1",
            "C #1 has a space before ; or #, which starts a comment in supervisor: choose another",
        ),
    ],
)
def test_it_is_refused_before_anything_is_installed(tmp_path: Path, checkout: str, local: str, said: str) -> None:
    """By the script with which `make up` begins."""
    place = tmp_path / checkout
    (place / "natskit" / "config").mkdir(parents=True)
    shutil.copy(REPOSITORY / "natskit" / "config" / "local_paths.py", place / "natskit" / "config")
    shutil.copytree(REPOSITORY / "scripts", place / "scripts")
    shutil.copy(REPOSITORY / "Makefile", place)
    (place / "requirements").mkdir()
    for name in ("requirements/platform.lock", "pyproject.toml"):
        (place / name).touch()
    done = subprocess.run(
        ["make", ".venv/platform", f"PYTHON={sys.executable}"],
        cwd=place,
        env=os.environ | {"NATSKIT_LOCAL": local},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode != 0
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("natskit: ")]
    assert said in line
    assert not (place / ".venv").exists()
