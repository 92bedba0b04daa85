"""The commands of the documentation: they exist, a minimal Debian has them or the page says what to install, and each
of them runs in a test, or it is said why none can."""

from __future__ import annotations

import ast
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from natskit.cli import cli
from natskit.cli.terminal import ARGUMENTS, PassOn
from tests.documents import ELSEWHERE, REPOSITORY, Block, blocks, pages

KEYWORDS = {"for", "in", "do", "done", "if", "then", "fi", "while", "!", "{", "}"}
BUILTINS = {".", "alias", "cd", "echo", "export", "set", "true", "umask", "wait"}
OWN = ("make", ".venv/bin/", "natskit", "scripts/", "web/node_modules/.bin/")
ON_HOSTS = {"apt-get", "useradd", "systemctl", "install"}
"""Of root, on a Debian that is being set up."""
OF_THE_READER = {
    "kubectl": "Kubernetes",
    "helm": "Kubernetes",
    "npm": "releases of the browser module",
    "nats": "scripts/nats-tools",
    "nsc": "scripts/nats-tools",
    "nsc-bus": "the same, by an alias",
}
"""Commands that no Debian package is named for: who uses what is on the right has them."""
ASSUMED = ("README.md", "docs/tutorial/first-platform.md", "docs/how-to/deploy-to-hosts.md")
"""What these pages install, the others need not name again."""
MAKEFILE = (REPOSITORY / "Makefile").read_text()

SCRIPTS = [pytest.param(found, id=f"{found.id} {number}") for number, found in enumerate(blocks("sh"))]


def simple_commands(text: str) -> Iterator[list[str]]:
    """The words of each simple command of a shell script, without assignments, redirections and here-documents."""
    text = re.sub(r"<<'(\w+)'\n.*?\n\1$", "", text, flags=re.DOTALL | re.MULTILINE)
    script = re.sub(r"\\\n", " ", re.sub(r"(^|\s+)# .*$", "", text, flags=re.MULTILINE))
    lexer = shlex.shlex(script, posix=True, punctuation_chars="|&;<>()\n")
    lexer.whitespace, lexer.whitespace_split, lexer.commenters = " \t", True, ""
    words: list[str] = []
    redirects = skips = False
    for word in [*lexer, "\n"]:
        if re.fullmatch(r"[|&;()\n]+", word):
            if words:
                yield words
            words, redirects, skips = [], False, False
        elif re.fullmatch(r"[<>]+&?", word):
            redirects = True
        elif redirects:
            redirects = False
        elif not words and word == "for":
            skips = True
        elif not skips and (words or (word not in KEYWORDS and not re.match(r"\w+=", word))):
            words.append(word)


def commands(text: str) -> set[str]:
    """The first word of each simple command of a shell script."""
    return {words[0] for words in simple_commands(text)}


def named(words: list[str]) -> str:
    """A command's name, with the target of make or the subcommand of natskit."""
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", MAKEFILE, re.MULTILINE), f"make has no target {words[1]}"
        return " ".join(words[:2])
    if Path(words[0]).name == "natskit":
        return " ".join(["natskit", *subcommand(words[1:])])
    return Path(words[0]).name or words[0]  # `.` has no name


def subcommand(words: list[str]) -> list[str]:
    """The subcommand in the words after ``natskit``. Fails if it, or one of its options, does not exist."""
    command: click.Command = cli
    path: list[str] = []
    rest = iter(words)
    arguments = 0
    for word in rest:
        if word == "--":
            break
        if word.startswith("-") and is_for_another_program(command, arguments):
            break
        if word.startswith("-"):
            option, _, value = word.partition("=")
            found = next((parameter for parameter in command.params if option in parameter.opts), None)
            assert isinstance(found, click.Option), f"natskit {' '.join(path)} has no option {option}"
            if not (found.is_flag or found.count or value):
                next(rest)
        elif isinstance(command, click.Group):
            inner = command.get_command(click.Context(command), word)
            assert inner is not None, f"natskit {' '.join(path)} has no command {word}"
            command = inner
            path.append(word)
        else:
            arguments += 1
    return path


def is_for_another_program(command: click.Command, arguments: int) -> bool:
    """Whether an option after so many arguments is not natskit's own, as in `natskit deploy INVENTORY -v`
    and `natskit terminal PROJECT NAME top -d 1`."""
    if isinstance(command, PassOn):
        return arguments > ARGUMENTS
    return arguments > 0 and not command.context_settings.get("allow_interspersed_args", True)


def test_the_words_of_a_script_that_are_commands() -> None:
    script = "for x in a b; do curl -s $x | jq . > file; done  # or wget\numask 077 && A=1 tar \\\n  -x 2>&1\n"
    assert commands(script) == {"curl", "jq", "umask", "tar"}
    assert commands("cat > f <<'END'\nnot a command\nEND\nls\n") == {"cat", "ls"}


@pytest.mark.parametrize(
    "line", ["make upp", "natskit acount add x", "natskit exec p --strat -- ls", "natskit --platfrom x status"]
)
def test_a_misspelt_command_is_noticed(line: str) -> None:
    with pytest.raises(AssertionError, match="has no"):
        named(line.split())


def package_of(command: str) -> str:
    """The Debian package of a command, such as ``coreutils``; empty if this machine has none."""
    path = shutil.which(command) or f"/usr/bin/{command}"
    for place in {path, str(Path(path).resolve()), path.removeprefix("/usr")}:
        done = subprocess.run(["dpkg-query", "-S", place], capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return done.stdout.partition(":")[0]
    return ""


def essential() -> set[str]:
    """The packages that every Debian has."""
    query = ["dpkg-query", "-W", "-f", "${Essential} ${Priority} ${Package}\n"]
    lines = subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()
    return {line.split()[2] for line in lines if line.startswith("yes") or line.split()[1] == "required"}


def stated(*names: str) -> set[str]:
    """The packages that these pages tell the reader to install."""
    text = " ".join(found for name in names for found in re.findall(r"apt-get install([^`\n]*)", pages()[name]))
    return set(re.findall(r"[a-z0-9.+-]+", text))


@pytest.mark.skipif(not shutil.which("dpkg-query"), reason="only dpkg knows which package has a command")
@pytest.mark.parametrize("block", SCRIPTS)
def test_every_command_is_there_or_said_to_be_needed(block: Block) -> None:
    needed = {word for word in commands(block.text) if not word.startswith(OWN)} - BUILTINS - ON_HOSTS
    allowed = stated(*ASSUMED, block.page)
    unknown = needed - allowed - OF_THE_READER.keys()
    missing = {word: package_of(word) for word in unknown if package_of(word) not in allowed | essential()}
    assert missing == {}


def test_what_is_not_on_a_minimal_system_is_stated() -> None:
    assert {"make", "python3", "python3-venv", "openssh-client", "git"} <= stated(*ASSUMED)
    assert not {"curl", "jq"} & stated(*ASSUMED)


@pytest.mark.parametrize("block", SCRIPTS)
def test_every_block_is_a_script_of_commands_that_exist(block: Block) -> None:
    done = subprocess.run(["bash", "-n"], input=block.text, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    for words in simple_commands(block.text):
        named(words)


@pytest.mark.parametrize("page", pages())
def test_every_command_in_a_sentence_exists(page: str) -> None:
    prose = re.sub(r"^```.*?^```$", "", pages()[page], flags=re.DOTALL | re.MULTILINE)
    for code in re.findall(r"`((?:make|natskit|\.venv/bin/natskit) [^`…]+)", prose):
        named(code.split())


@pytest.mark.parametrize("section", ELSEWHERE)
def test_what_does_not_run_here_is_named_and_runs_elsewhere(section: str) -> None:
    """Fails when somebody adds a command to such a section, until they name the test that runs it."""
    elsewhere = ELSEWHERE[section]
    texts = [block.text for block in blocks("sh") if block.id == section]
    assert {named(words) for text in texts for words in simple_commands(text)} == elsewhere.commands
    assert bool(elsewhere.test) != bool(elsewhere.reason)
    if elsewhere.test:
        file, _, test = elsewhere.test.partition("::")
        tree = ast.parse((REPOSITORY / file).read_text())
        functions = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
        assert test in functions


@pytest.mark.skipif(not shutil.which("openssl"), reason="there is no openssl")
def test_the_key_that_openssl_makes_is_one_for_jetstream(tmp_path: Path) -> None:
    (text,) = [found.text for found in blocks("sh") if "openssl" in found.text]
    subprocess.run(["bash", "-e"], input=text, text=True, cwd=tmp_path, check=True)
    assert re.fullmatch(r"[A-Za-z0-9+/=_-]{32,}", (tmp_path / "nats-1.key").read_text().strip())
