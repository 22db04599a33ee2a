"""The commands that install Dandolo as a service, run in a folder instead of /, and what then starts."""

import re
import shutil
import socket
import stat
import subprocess
from pathlib import Path

import pytest

from dandolo.config import parse
from dandolo.sim import SimProvider, SimThread

UNITS = Path(__file__).parents[2] / "systemd"
SERVICE = (UNITS / "dandolo.service").read_text()
ACTIVATE = shutil.which("systemd-socket-activate")


def commands():
    """The indented lines of the unit's first comment block."""
    return re.findall(r"^#   (.*)$", SERVICE.partition("# The first credential")[0], re.MULTILINE)


def run(command, root):
    """One of them, with `root` in front of /etc and without sudo."""
    text = command.replace(" /etc/", f" {root}/etc/")
    script = 'sudo() { "$@"; }\nset -euo pipefail\n' + text
    environ = {"PATH": "/usr/bin:/bin", "VENICE_API_KEY": "venice-key-0123456789"}
    subprocess.run(["bash", "-c", script], cwd=UNITS.parent, env=environ, check=True, timeout=60)


@pytest.fixture
def installed(tmp_path):
    root = tmp_path / "root"
    first, *between, last = commands()
    assert len(between) == 3
    assert first == "sudo python3 -m venv /opt/dandolo && sudo /opt/dandolo/bin/pip install -q ."
    assert last == "sudo systemctl enable --now dandolo.socket dandolo.service"
    (root / "etc/systemd/system").mkdir(parents=True)
    for command in between:
        run(command, root)
    return root


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not here")
def test_five_commands_install_it(installed):
    etc = installed / "etc"
    keys = {path.name: path.read_text() for path in (etc / "dandolo/credentials").iterdir()}
    assert keys["venice"] == "venice-key-0123456789"
    assert re.fullmatch(r"dnd_[0-9a-f]{48}", keys["client"])
    for name in keys:
        assert stat.S_IMODE((etc / "dandolo/credentials" / name).stat().st_mode) == 0o600
    for name in ("dandolo.service", "dandolo.socket"):
        assert (etc / "systemd/system" / name).read_text() == (UNITS / name).read_text()
    config = (etc / "dandolo/dandolo.toml").read_text()
    # systemd.exec(5): of a folder, each file is a credential named by the id, an underscore and the file.
    identifier = re.search(r"^LoadCredential=(\w+):/etc/dandolo/credentials$", SERVICE, re.MULTILINE)[1]
    assert set(re.findall(r'credential = "(\w+)"', config)) == {f"{identifier}_{name}" for name in keys}


def test_the_configuration_of_the_service_is_whole_as_it_is(tmp_path):
    for name in ("venice", "client"):
        (tmp_path / f"key_{name}").write_text(f"dnd_{name}-0123456789abcdef")
    config = parse((UNITS / "dandolo.toml").read_text(), "d", {"CREDENTIALS_DIRECTORY": str(tmp_path), "HOME": "/h"})
    assert config.providers[0].base_url.startswith("https://api.venice.ai")


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not here")
@pytest.mark.skipif(ACTIVATE is None, reason="systemd-socket-activate is not here")
def test_what_was_installed_starts_behind_its_socket(installed, begin, tmp_path, eventually):
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    for path in (installed / "etc/dandolo/credentials").iterdir():
        (credentials / f"key_{path.name}").write_bytes(path.read_bytes())
    with socket.socket() as free, SimThread(SimProvider("venice", key="venice-key-0123456789")) as sims:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        config = installed / "etc/dandolo/dandolo.toml"
        text = config.read_text().replace('admin = "127.0.0.1:9180"', 'admin = "127.0.0.1:0"')
        config.write_text(
            text.replace('name = "venice"\n', f'name = "venice"\nbase_url = "{sims["venice"].base_url}"\n')
        )
        free.close()
        served = begin(
            *("serve", "--config", config),
            through=(
                *(ACTIVATE, f"--listen=127.0.0.1:{port}", "--fdname=http"),
                # It passes on nothing that is not named.
                *("-E", "PYTHONPATH", "-E", "CREDENTIALS_DIRECTORY", "-E", "STATE_DIRECTORY"),
            ),
            env={"CREDENTIALS_DIRECTORY": str(credentials), "STATE_DIRECTORY": str(tmp_path / "state")},
        )
        served.port = port
        served.says(f"Listening on 127.0.0.1:{port}")
        key = (credentials / "key_client").read_text()
        body = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
        status, _, _ = served.ask("/v1/chat/completions", body)
        assert status == 401
        status, _, _ = served.ask("/v1/chat/completions", body, [("Authorization", f"Bearer {key}")])
        assert status == 200
        served.kill()
        served.wait()
    assert key not in served.err + served.out
