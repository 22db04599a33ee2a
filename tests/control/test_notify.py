"""Datagrams for the service manager."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from dandolo.control.notify import Notifier, watchdog_interval_s


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, dict[str, str]]]:
    name = str(tmp_path / "notify") if request.param == "path" else f"@dandolo-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(name.replace("@", "\0") if request.param == "abstract" else name)
        sock.settimeout(5)
        yield sock, {"NOTIFY_SOCKET": name}


def test_each_state_is_one_datagram(manager: tuple[socket.socket, dict[str, str]]) -> None:
    sock, environ = manager
    notifier = Notifier(environ)
    assert notifier.ready("serving on 127.0.0.1:8080")
    assert sock.recv(4096) == b"READY=1\nSTATUS=serving on 127.0.0.1:8080\n"
    assert notifier.ready()
    assert sock.recv(4096) == b"READY=1\n"
    assert notifier.watchdog()
    assert sock.recv(4096) == b"WATCHDOG=1\n"
    assert notifier.stopping()
    assert sock.recv(4096) == b"STOPPING=1\n"
    assert notifier.reloading()
    assert re.fullmatch(rb"RELOADING=1\nMONOTONIC_USEC=\d+\n", sock.recv(4096))
    # Whoever is the main process from then on has no reload under way.
    assert notifier.main_pid(77)
    assert sock.recv(4096) == b"MAINPID=77\nREADY=1\n"
    assert notifier.status("a\nREADY=1")
    assert sock.recv(4096) == b"STATUS=a READY=1\n"


@pytest.mark.parametrize("address", ["", "@", "relative", "vsock:2:1", "/nowhere/at/all", "@nobody-listens", "/a\0b"])
def test_without_a_manager_nothing_happens(address: str) -> None:
    assert not Notifier({"NOTIFY_SOCKET": address}).ready()
    assert not Notifier({}).watchdog()


def test_a_manager_that_does_not_read_is_not_waited_for(manager: tuple[socket.socket, dict[str, str]]) -> None:
    _, environ = manager
    notifier = Notifier(environ)
    for _ in range(10_000):
        if not notifier.watchdog():
            return
    pytest.fail("the queue has no end")


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "7"}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "8"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "-1"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_the_watchdog_is_fed_twice_as_often_as_it_asks(environ: dict[str, str], expected: float | None) -> None:
    assert watchdog_interval_s(environ, 7) == expected
