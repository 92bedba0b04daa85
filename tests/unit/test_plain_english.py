"""Tracked text uses plain English (CONTRIBUTING.md). This test finds its most frequent violations."""

import re
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
BANNED = {
    r"\bwhoever\b": "name the actor: a client, a user, an attacker",
    r"\bunless told\b": "write the default: 'Default: ...'",
}
"""Phrases of translated English, as regular expressions, and the advice for each."""
NOT_OURS = {"CHANGELOG.md", "LICENSE", "tests/unit/test_plain_english.py"}
"""Released notes are not rewritten; the other two are a legal text and this list."""


def _texts() -> dict[str, str]:
    names = subprocess.run(
        ["git", "ls-files", "-z"], cwd=REPOSITORY, check=True, capture_output=True, text=True
    ).stdout.split("\0")
    texts = {}
    for name in set(filter(None, names)) - NOT_OURS:
        try:
            texts[name] = (REPOSITORY / name).read_text()
        except (UnicodeDecodeError, FileNotFoundError, IsADirectoryError):  # an image, or a file removed but tracked
            continue
    return texts


@pytest.mark.parametrize(("phrase", "advice"), BANNED.items())
def test_tracked_text_has_no_banned_phrase(phrase: str, advice: str) -> None:
    found = [
        f"{name}:{number}: {line.strip()[:100]}"
        for name, text in _texts().items()
        for number, line in enumerate(text.splitlines(), 1)
        if re.search(phrase, line, re.IGNORECASE)
    ]
    assert not found, f"{advice}:\n" + "\n".join(found)
