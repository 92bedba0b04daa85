"""The examples in docs/how-to/render.md and docs/how-to/acme.md work."""

from __future__ import annotations

import getpass
import grp
import os
import re
import subprocess
import time
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from natskit.cli import cli
from natskit.config.render import names
from natskit.identity.identity import Identity
from tests.documents import REPOSITORY, block, blocks
from tests.kit.nats import PROGRAM
from tests.render.test_configs import give_certificate

RENDER = "docs/how-to/render.md"
OF_DEBIAN = {
    "natskit-prometheus.service": "ExecStart=/usr/bin/prometheus ",
    "natskit-alertmanager.service": "ExecStart=/usr/bin/prometheus-alertmanager ",
}


@pytest.fixture(scope="module")
def identity(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An identity directory."""
    directory = tmp_path_factory.mktemp("identity")
    Identity.ensure(directory, now=int(time.time()))
    return directory


def rendered(*words: str) -> str:
    """The output of ``natskit render``."""
    done = CliRunner().invoke(cli, ["render", *words], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_the_platform_in_one_file(tmp_path: Path, identity: Path) -> None:
    site = tmp_path / "site.yaml"
    site.write_text(block(RENDER, "The platform in one file", "yaml"))
    commands = block(RENDER, "The platform in one file", "sh").replace("site.yaml", str(site)).splitlines()
    nats, nginx, unit = (
        rendered(*command.replace("--identity identity", f"--identity {identity}").split()[2:]) for command in commands
    )
    assert 'routes: ["tls://10.0.0.2:6222", "tls://10.0.0.3:6222"]' in nats
    assert 'server_tags: ["az:a"]' in nats
    assert 'allowed_origins: ["https://bus.example.org"]' in nats
    assert re.findall(r"server (10\.\S+)", nginx) == [
        *(f"10.0.0.{host}:5004" for host in (1, 2, 3)),
        *(f"10.0.0.{host}:{port}" for host in (11, 12) for port in (8101, 8102)),
    ]
    assert "ExecStart=/opt/natskit/nats-server/2.15.1/nats-server -c /var/lib/natskit/nats/nats-server.conf" in unit


def test_the_file_that_the_page_names_is_the_one_it_shows() -> None:
    assert (REPOSITORY / "docs" / "how-to" / "site.yaml").read_text() == block(
        RENDER, "The platform in one file", "yaml"
    )


@pytest.mark.parametrize(("section", "host"), [("The platform in one file", "nats-2"), ("Use Helm", "nats-1")])
def test_nats_server_takes_what_is_rendered_for_a_host(tmp_path: Path, identity: Path, section: str, host: str) -> None:
    content = yaml.safe_load(block(RENDER, section, "yaml")) | {"platform_root": str(tmp_path)}
    (tmp_path / "site.yaml").write_text(yaml.safe_dump(content))
    words = ["nats-server.conf", "--settings", str(tmp_path / "site.yaml"), "--host", host, "--identity", str(identity)]
    give_certificate(identity, tmp_path / "nats")
    path = tmp_path / "nats.conf"
    path.write_text(rendered(*words))
    done = subprocess.run([PROGRAM, "-t", "-c", path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", names())
def test_every_template_renders_with_the_defaults(name: str, identity: Path) -> None:
    text = rendered(name, "--identity", str(identity))
    assert "None" not in text
    assert "/var/lib/natskit" in text


@pytest.mark.parametrize("name", [name for name in names() if name.endswith(".service")])
def test_units_are_what_systemd_reads(name: str) -> None:
    """Every line is a section, a setting, a comment or empty. The programs are in the places that the page names."""
    text = rendered(name, "--set", "python=/srv/env/bin/python", "--set", "nats_memory_limit=1073741824")
    for line in text.splitlines():
        assert re.fullmatch(r"(\[\w+\]|[A-Za-z]+=.*|#.*|)", line), line
    assert OF_DEBIAN.get(name, "/srv/env/bin/python") in text


def test_a_key_of_jetstream_is_in_the_unit_by_its_file(tmp_path: Path) -> None:
    assert "EnvironmentFile" not in rendered("natskit-nats.service")
    text = rendered("natskit-nats.service", "--set", f"nats_jetstream_key_file={tmp_path / 'key'}")
    assert "EnvironmentFile=/var/lib/natskit/nats/environment\n" in text


def test_a_disk_of_its_own_is_there_before_nats_server() -> None:
    assert "RequiresMountsFor" not in rendered("natskit-nats.service")
    text = rendered("natskit-nats.service", "--set", "nats_jetstream_directory=/srv/jetstream")
    assert "RequiresMountsFor=/srv/jetstream\n" in text
    assert "ReadWritePaths=/var/lib/natskit/nats/jwt /srv/jetstream /var/lib/natskit/nats/run\n" in text


def test_the_yaml_of_the_page_is_yaml() -> None:
    texts = [found.text for found in blocks("yaml") if found.page == RENDER]
    assert texts
    assert all(yaml.safe_load(text) for text in texts)


@pytest.mark.parametrize("client", ["certbot", "lego", "by hand"])
def test_the_hook_gives_nginx_a_renewed_certificate(tmp_path: Path, client: str) -> None:
    shell = block("docs/how-to/acme.md", "Install the hook", "sh")
    hook = tmp_path / "hook"
    hook.write_text(
        shell.split("<<'END'\n")[1]
        .split("END\n")[0]
        .replace("/var/lib/natskit/proxy", str(tmp_path / "proxy"))
        .replace("-o natskit-proxy -g natskit-proxy", f"-o {getpass.getuser()} -g {grp.getgrgid(os.getgid()).gr_name}")
    )
    for folder in ("proxy", "live", "bin"):
        (tmp_path / folder).mkdir()
    (tmp_path / "bin" / "systemctl").write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/said\n')
    (tmp_path / "bin" / "systemctl").chmod(0o755)
    certificate, key = tmp_path / "live" / "fullchain.pem", tmp_path / "live" / "privkey.pem"
    certificate.write_text("certificate")
    key.write_text("key")
    given = {
        "certbot": {"RENEWED_LINEAGE": str(tmp_path / "live")},
        "lego": {"LEGO_CERT_PATH": str(certificate), "LEGO_CERT_KEY_PATH": str(key)},
        "by hand": {},
    }[client]
    words = [str(certificate), str(key)] if client == "by hand" else []
    path = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    subprocess.run(["sh", str(hook), *words], check=True, env=path | given)
    assert (tmp_path / "proxy" / "tls.crt").read_text() == "certificate"
    assert (tmp_path / "proxy" / "tls.key").read_text() == "key"
    assert (tmp_path / "proxy" / "tls.key").stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in (tmp_path / "proxy").iterdir()) == ["tls.crt", "tls.key"]
    assert (tmp_path / "said").read_text() == "reload nginx\n"
