"""The files of GitHub, GitLab and pre-commit: they parse, and call only make targets and commands that exist."""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.platform.site import REPOSITORY

GITHUB = REPOSITORY / ".github" / "workflows" / "ci.yml"
GITLAB = REPOSITORY / ".gitlab-ci.yml"
PRE_COMMIT = REPOSITORY / ".pre-commit-config.yaml"
KEYWORDS = {"stages", "workflow", "variables", "default", "include"}
"""Keys at the top of .gitlab-ci.yml that are no jobs."""


def read(path: Path) -> dict[str, Any]:
    found = yaml.safe_load(path.read_text())
    assert isinstance(found, dict)
    return found


def jobs(path: Path) -> dict[str, list[str]]:
    """The lines of shell of each job."""
    content = read(path)
    if path == GITHUB:
        return {
            name: [line for step in job["steps"] for line in str(step.get("run", "")).splitlines()]
            for name, job in content["jobs"].items()
        }
    return {
        name: [*job.get("before_script", []), *job["script"]] for name, job in content.items() if name not in KEYWORDS
    }


def made(lines: list[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """The targets that a job makes, each with its variables."""
    for line in lines:
        words = shlex.split(line)
        if "make" not in words or "install" in words:
            continue
        words = words[words.index("make") + 1 :]
        variables = dict(word.split("=", 1) for word in words if "=" in word)
        for word in words:
            if "=" not in word:
                yield word, variables


def targets() -> set[str]:
    """Those that `make help` explains."""
    return set(re.findall(r"^([a-z-]+):.*## ", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))


@pytest.mark.parametrize("path", [GITHUB, GITLAB], ids=["github", "gitlab"])
def test_jobs_call_make_targets_that_exist(path: Path) -> None:
    for name, lines in jobs(path).items():
        called = [target for target, _ in made(lines)]
        assert called, f"{name} calls no make target"
        assert set(called) <= targets()


def test_both_run_the_same() -> None:
    github, gitlab = ({name: list(made(lines)) for name, lines in jobs(path).items()} for path in (GITHUB, GITLAB))
    assert github == gitlab
    assert github.keys() == {"lint", "test", "cluster"}


@pytest.mark.parametrize("path", [GITHUB, GITLAB], ids=["github", "gitlab"])
def test_every_folder_of_tests_is_run(path: Path) -> None:
    folders = [folder for lines in jobs(path).values() for _, given in made(lines) for folder in folders_of(given)]
    expected = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]["testpaths"]
    assert sorted(folders) == sorted([*expected, "tests/cluster"])


def folders_of(variables: dict[str, str]) -> list[str]:
    return variables.get("TESTS", "").split()


def test_the_oldest_and_the_newest_python_are_tested() -> None:
    classifiers = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["classifiers"]
    versions = sorted(re.findall(r"Python :: (3\.\d+)", " ".join(classifiers)))
    for images in (
        read(GITHUB)["jobs"]["test"]["strategy"]["matrix"]["image"],
        read(GITLAB)["test"]["parallel"]["matrix"][0]["IMAGE"],
    ):
        assert [image.split(":")[1].split("-")[0] for image in images] == [versions[0], versions[-1]]


def hooks() -> dict[str, dict[str, Any]]:
    (local,) = read(PRE_COMMIT)["repos"]
    return {hook["id"]: hook for hook in local["hooks"]}


def test_hooks_run_what_exists() -> None:
    for hook in hooks().values():
        program, *words = shlex.split(hook["entry"])
        if hook["language"] == "system" and program == "make":
            assert set(words) <= targets()
        elif hook["language"] == "system":
            assert (REPOSITORY / program).exists()


@pytest.mark.parametrize(
    ("message", "good"),
    [
        ("hub: refuse an empty title\n", True),
        ("cluster, preflight: find what a reboot left\n\nWhy: it was\nleft over.\n", True),
        ("area: " + "x" * 66 + "\n\nlong" + "x" * 100 + "\n", True),
        ("area: " + "x" * 67 + "\n", False),
        ("Fix things\n", False),
        ("Merge branch 'main'\n", True),
        ('Revert "hub: refuse"\n', True),
    ],
)
def test_subjects_are_checked(message: str, good: bool) -> None:
    """As pre-commit's pygrep does with --multiline: the hook fails if it finds the pattern."""
    found = re.search(hooks()["subject"]["entry"].encode(), message.encode(), re.MULTILINE | re.DOTALL)
    assert (found is None) is good


@pytest.mark.parametrize("path", sorted((REPOSITORY / ".github" / "ISSUE_TEMPLATE").glob("[!c]*.yml")), ids=str)
def test_issue_forms_have_what_github_asks_for(path: Path) -> None:
    """docs.github.com, "Syntax for issue forms": a name, a description, and a label for each field."""
    form = read(path)
    assert form["name"]
    assert form["description"]
    fields = [field for field in form["body"] if field["type"] != "markdown"]
    assert len({field["id"] for field in fields}) == len(fields) > 0
    for field in fields:
        assert field["type"] in {"textarea", "input", "dropdown", "checkboxes"}
        assert field["attributes"]["label"]
