"""The unit files: what they promise, and that systemd takes them."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
from pathlib import Path

import pytest

UNITS = Path(__file__).parents[2] / "systemd"
ANALYZE = shutil.which("systemd-analyze")
EXPOSURE_MAX = 1.5


def unit(name: str) -> dict[str, dict[str, str]]:
    parser = configparser.RawConfigParser(strict=False)
    parser.optionxform = str  # type: ignore[method-assign, assignment]
    parser.read(UNITS / name)
    return {section: dict(parser[section]) for section in parser.sections()}


def test_the_service_says_how_it_starts_and_ends() -> None:
    service = unit("dandolo.service")["Service"]
    expected = {
        "Type": "notify",
        "ExecStart": "/opt/dandolo/bin/dandolo serve --config /etc/dandolo/dandolo.toml",
        "TimeoutStopSec": "45",
        "Restart": "on-failure",
        "KillMode": "process",
        "RuntimeDirectoryPreserve": "restart",
        "RestartPreventExitStatus": "78",
        "DynamicUser": "yes",
        "StateDirectory": "dandolo",
        "CapabilityBoundingSet": "",
        "LoadCredential": "key:/etc/dandolo/credentials",
    }
    assert {name: service.get(name) for name in expected} == expected
    assert float(service["WatchdogSec"]) > 0
    assert int(service["LimitNOFILE"]) > 10_000 * 2


def test_the_socket_is_the_services_own() -> None:
    assert unit("dandolo.socket")["Socket"]["ListenStream"] == "8080"
    assert unit("dandolo.service")["Unit"]["Requires"] == "dandolo.socket"


@pytest.mark.skipif(ANALYZE is None, reason="systemd-analyze is not here")
def test_systemd_takes_both_units(tmp_path: Path) -> None:
    assert ANALYZE is not None
    for name in ("dandolo.service", "dandolo.socket"):
        text = (UNITS / name).read_text()
        (tmp_path / name).write_text(text.replace("ExecStart=/opt/dandolo/bin/dandolo", "ExecStart=/bin/true"))
    paths = [str(tmp_path / "dandolo.service"), str(tmp_path / "dandolo.socket")]
    done = subprocess.run([ANALYZE, "verify", *paths], capture_output=True, text=True, timeout=60)
    ours = [line for line in (done.stdout + done.stderr).splitlines() if "dandolo" in line]
    assert ours == []


@pytest.mark.skipif(ANALYZE is None, reason="systemd-analyze is not here")
def test_the_service_can_do_little_harm() -> None:
    assert ANALYZE is not None
    path = str(UNITS / "dandolo.service")
    done = subprocess.run(
        [ANALYZE, "security", "--offline=true", "--no-pager", path], capture_output=True, text=True, timeout=60
    )
    found = re.search(r"exposure level for dandolo.service: ([0-9.]+)", done.stdout)
    if found is None:
        pytest.skip("this systemd-analyze does not judge files")
    assert float(found[1]) <= EXPOSURE_MAX
