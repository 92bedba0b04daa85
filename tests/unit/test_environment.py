"""The parts of a shell's environment that commands of projects get."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

import pytest

from natskit.config.settings import load
from natskit.errors import SettingsError
from natskit.project.environment import DEFAULT_PATH, machine_path, of_command


def test_no_virtual_environment_is_on_the_path(tmp_path: Path) -> None:
    for name in ("a/bin", "b/bin", "tools/bin"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("a", "b"):
        (tmp_path / name / "pyvenv.cfg").touch()
    (tmp_path / "link").symlink_to("b/bin")
    given = f"{tmp_path}/a/bin:{tmp_path}/link:{tmp_path}/b/bin/:.venv/bin::{tmp_path}/tools/bin:/gone/bin:/usr/bin"
    assert machine_path(given) == f"{tmp_path}/tools/bin:/gone/bin:/usr/bin"
    assert machine_path(f"{tmp_path}/a/bin") == DEFAULT_PATH


def test_a_user_without_a_name_still_has_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(uid: int) -> pwd.struct_passwd:
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", nobody)
    for own, name in (({}, str(os.getuid())), ({"USER": "p2abc"}, "p2abc")):
        found = of_command(own, home="/h", directory="/h", project_id="x", setting={})
        assert (found["USER"], found["LOGNAME"]) == (name, name)
        assert os.access(found["SHELL"], os.X_OK)


@pytest.mark.parametrize("shell", ["/usr/sbin/nologin", "/bin/false", "", "/no/such/shell"])
def test_a_shell_that_lets_nobody_in_is_not_the_shell(monkeypatch: pytest.MonkeyPatch, shell: str) -> None:
    entry = pwd.struct_passwd(("service", "x", os.getuid(), 0, "", "/", shell))
    monkeypatch.setattr(pwd, "getpwuid", lambda _: entry)
    found = of_command({}, home="/h", directory="/h", project_id="x", setting={})
    assert found["SHELL"] in ("/bin/bash", "/bin/sh")


@pytest.mark.parametrize("name", ["HOME", "USER", "LOGNAME", "PWD", "NATSKIT_PROJECT_ID", "NATSKIT_X", "A-B", "1A", ""])
def test_a_setting_may_not_have_every_name(name: str) -> None:
    with pytest.raises(SettingsError, match=rf"^here: runner_project_environment\.{name}"):
        load({"runner_project_environment": {name: "value"}}, "here")


def test_the_setting_comes_as_json_as_well() -> None:
    settings = load({"runner_project_environment": '{"no_proxy": "localhost,.example.org"}'}, "here")
    assert settings.runner_project_environment == {"no_proxy": "localhost,.example.org"}
    with pytest.raises(SettingsError, match=r"runner_project_environment.*A = 'a\\x00b'"):
        load({"runner_project_environment": {"A": "a\0b"}}, "here")
