"""What is decided about workers: how long to wait for the next one, whose sockets are whose."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import msgspec
import pytest

import dandolo
from dandolo.config.address import Listen
from dandolo.control import sockets
from dandolo.control.child import samples, told
from dandolo.control.provisions import Provisions
from dandolo.control.spawn import WORKER_WORD, command, spawn
from dandolo.control.workers import backoff_s
from dandolo.frames import Frames, Kind
from dandolo.net.succession import Given
from dandolo.provision import Document, Provision


@pytest.mark.parametrize(
    ("failures", "wait_s"), [(0, 0), (1, 0), (2, 0.5), (3, 1), (4, 2), (7, 16), (8, 30), (1000, 30)]
)
def test_a_crash_loop_is_slowed_down_to_half_a_minute(failures: int, wait_s: float) -> None:
    assert backoff_s(failures) == wait_s


def test_every_slot_has_a_socket_at_every_address() -> None:
    held = sockets.open_all([Listen("tcp", "127.0.0.1", 0)], 3)
    try:
        assert [one.slot for one in held] == [0, 1, 2]
        assert len({one.sock.getsockname() for one in held}) == 1
        assert len(sockets.addresses(held)) == 1
        with pytest.raises(OSError, match="in use"):
            sockets.open_all([Listen("tcp", *held[0].sock.getsockname())], 1)
    finally:
        sockets.close_all(held)


@pytest.mark.parametrize(("before", "slots", "expected"), [(2, 2, [0, 1]), (1, 3, [0, 1, 2]), (3, 2, [0, 1, 0])])
def test_sockets_of_a_predecessor_fit_another_number_of_workers(before: int, slots: int, expected: list[int]) -> None:
    first = sockets.open_all([Listen("tcp", "127.0.0.1", 0)], before)
    given = [Given(socket.socket(fileno=socket.dup(one.sock.fileno())), one.slot) for one in first]
    held = sockets.adopt(given, slots)
    try:
        assert [one.slot for one in held] == expected
        assert len({one.sock.getsockname() for one in held}) == 1
    finally:
        sockets.close_all(held)
        sockets.close_all(first)


def test_sockets_for_everybody_and_for_operators_are_told_apart() -> None:
    pairs = [socket.socketpair() for _ in range(2)]
    given = [Given(pairs[0][0], sockets.SHARED), Given(pairs[1][0], sockets.ADMIN)]
    assert sockets.adopt(given, 2) == [sockets.Held(pairs[0][0], sockets.SHARED)]
    for one, two in pairs:
        one.close()
        two.close()


def test_errors_of_workers_keep_their_status_and_code() -> None:
    error = told({"message": "no", "status": 404, "type": "invalid_request_error", "code": "model_not_found"})
    assert (error.message, error.status, error.code) == ("no", 404, "model_not_found")
    assert told("broken").status == 503


@pytest.mark.parametrize("value", [None, 3, [1], [["a"]], [["a", 1, [["x"]]]]])
def test_what_are_no_gauges_is_refused(value: object) -> None:
    with pytest.raises((TypeError, ValueError)):
        samples(value)


def test_a_worker_is_started_with_our_interpreter_and_options(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "warnoptions", ["error"])
    monkeypatch.setattr(sys, "_xoptions", {"dev": True, "importtime": "2"})
    words = command()
    assert words[0] == sys.executable
    assert words[-9:] == ["-W", "error", "-X", "dev", "-X", "importtime=2", "-m", "dandolo", WORKER_WORD]


def test_the_working_folder_does_not_decide_what_a_worker_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    home = str(Path(dandolo.__file__).parents[1])
    monkeypatch.setattr(sys, "path", ["/somewhere/bin", home])
    assert "-P" in command()
    monkeypatch.setattr(sys, "path", [home])
    assert "-P" not in command()


def test_a_worker_that_nobody_needs_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    spawned = spawn()
    spawned.abandon()
    with pytest.raises(ProcessLookupError):
        os.kill(spawned.pid, 0)
    left = spawn()
    left.channel.close()
    assert os.waitpid(left.pid, 0)[1] == 0
    os.close(left.pidfd)


def test_what_parts_prepare_for_a_worker_comes_with_its_first_frame() -> None:
    document = Document("x.toml", "[server]", {"/key": "sk-secret"})
    held = [sockets.Held(socket.socket(), 0), sockets.Held(socket.socket(), 1)]
    provisions = Provisions(document, 2, held, "json", "name")
    provisions.strings["journal"] = lambda slot, generation: f"/state/{slot}-{generation}"
    provisions.blobs["policy"] = lambda slot, generation: b"\x00keys"
    provisions.descriptors["board"] = lambda slot, generation: 1
    frame, descriptors = provisions.frame(1, 3)
    ((kind, payload),) = Frames().feed(frame)
    found = msgspec.msgpack.decode(payload, type=Provision)
    assert kind is Kind.PROVISION
    assert (found.slot, found.workers, found.generation, found.document) == (1, 2, 3, document)
    assert (found.strings, found.blobs) == ({"journal": "/state/1-3"}, {"policy": b"\x00keys"})
    assert (found.listeners, found.descriptors) == ((0, 1), ("board",))
    assert descriptors == [*(one.sock.fileno() for one in held), 1]
    assert "secret" not in repr(found)
    sockets.close_all(held)
