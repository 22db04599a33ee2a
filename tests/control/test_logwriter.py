"""The writer's thread, against pipes that stall, break and are full."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import time
from collections.abc import Iterator

import pytest

from dandolo.control import logwriter
from dandolo.control.logwriter import LogWriter, configure_logging


class Pipe:
    """A pipe of 4 KiB."""

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()
        fcntl.fcntl(self.writer, fcntl.F_SETPIPE_SZ, 4096)

    def read_until(self, end: bytes) -> bytes:
        data = b""
        while not data.endswith(end):
            piece = os.read(self.reader, 65536)
            assert piece, "the pipe ended"
            data += piece
        return data

    def close_reader(self) -> None:
        if self.reader >= 0:
            os.close(self.reader)
            self.reader = -1


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    pipe.close_reader()
    os.close(pipe.writer)


def ended(writer: LogWriter) -> None:
    if writer._thread is not None:
        writer._thread.join(10)
        assert not writer._thread.is_alive()


def test_lines_arrive_in_order_and_whole(pipe: Pipe) -> None:
    writer = LogWriter(pipe.writer)
    lines = [b"%05d\n" % n for n in range(500)]
    for line in lines:
        writer.write(line)
    assert pipe.read_until(lines[-1]) == b"".join(lines)
    writer.close()
    ended(writer)
    assert writer.dropped == 0


def test_a_later_line_wakes_the_thread_again(pipe: Pipe) -> None:
    writer = LogWriter(pipe.writer)
    for n in range(3):
        writer.write(b"%d\n" % n, urgent=True)
        assert pipe.read_until(b"\n") == b"%d\n" % n
    writer.close()
    ended(writer)


def test_close_writes_what_is_held_and_refuses_more(pipe: Pipe) -> None:
    writer = LogWriter(pipe.writer)
    writer.write(b"last\n")
    writer.close()
    ended(writer)
    writer.write(b"too late\n")
    assert os.read(pipe.reader, 100) == b"last\n"
    assert writer.dropped == 1


def test_a_writer_that_wrote_nothing_has_no_thread(pipe: Pipe) -> None:
    writer = LogWriter(pipe.writer)
    writer.close()
    assert writer._thread is None


def test_a_stalled_reader_costs_lines_and_never_time(pipe: Pipe) -> None:
    writer = LogWriter(pipe.writer, bytes_max=64 * 1024)
    line = b"x" * 999 + b"\n"
    written = 0
    while not writer.dropped:
        writer.write(line)
        written += 1
        assert written < 1000, "the buffer has no bound"
    for _ in range(9):
        writer.write(line)
    data = b""
    while b"dropped" not in data:
        data += os.read(pipe.reader, 65536)
    writer.close()
    ended(writer)
    notices = [json.loads(line) for line in data.splitlines() if line.startswith(b"{")]
    assert len(notices) == 1
    assert notices[0]["level"] == "warning"
    assert notices[0]["message"].startswith(f"{writer.dropped} log lines were dropped")


def test_close_gives_up_on_a_stalled_reader(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logwriter, "CLOSE_S", 0.05)
    writer = LogWriter(pipe.writer)
    for _ in range(20):
        writer.write(b"x" * 999 + b"\n")
    began = time.monotonic()
    writer.close()
    assert time.monotonic() - began < 1.0
    pipe.close_reader()
    ended(writer)


def test_a_descriptor_that_does_not_block_is_waited_for(pipe: Pipe) -> None:
    os.set_blocking(pipe.writer, False)
    writer = LogWriter(pipe.writer)
    lines = [b"%07d" % n + b"x" * 92 + b"\n" for n in range(1000)]
    for line in lines:
        writer.write(line)
    assert pipe.read_until(lines[-1]) == b"".join(lines)
    writer.close()
    ended(writer)


def test_close_gives_up_on_a_stalled_reader_that_does_not_block(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logwriter, "CLOSE_S", 0.05)
    os.set_blocking(pipe.writer, False)
    writer = LogWriter(pipe.writer)
    for _ in range(200):
        writer.write(b"x" * 999 + b"\n")
    writer.close()
    ended(writer)
    assert writer.dropped > 100


def test_a_reader_that_has_gone_is_no_error(pipe: Pipe) -> None:
    pipe.close_reader()
    writer = LogWriter(pipe.writer)
    writer.write(b"one\n")
    writer.close()
    ended(writer)
    assert writer.dropped == 1


def test_a_full_disk_is_no_error() -> None:
    descriptor = os.open("/dev/full", os.O_WRONLY)
    try:
        writer = LogWriter(descriptor)
        writer.write(b"one\n")
        writer.write(b"two\n")
        writer.close()
        ended(writer)
        assert writer.dropped == 2
    finally:
        os.close(descriptor)


def test_a_line_is_never_glued_to_half_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    out = bytearray()
    disk: Iterator[int | OSError] = iter([4, OSError(28, "No space left on device")])

    def write(descriptor: int, data: bytes) -> int:
        taken = next(disk, len(data))
        if isinstance(taken, OSError):
            raise taken
        out.extend(data[:taken])
        return taken

    monkeypatch.setattr(os, "write", write)
    writer = LogWriter(-1, form="text")
    assert not writer._put(b"first line\n")
    assert writer._put(b"second line\n")
    assert bytes(out) == b"firs\nsecond line\n"


def test_the_programs_own_lines_go_to_the_descriptor(pipe: Pipe) -> None:
    logger = logging.getLogger("dandolo")
    before = (list(logger.handlers), logger.level, logger.propagate)
    try:
        configure_logging("json", descriptor=pipe.writer)
        writer = configure_logging("logfmt", descriptor=pipe.writer)
        assert len(logger.handlers) == len(before[0]) + 1
        logging.getLogger("dandolo.net").warning("slow: %s", "a b")
        logger.debug("not said")
        line = pipe.read_until(b"\n").decode()
        assert line.endswith(' level=warning message="slow: a b"\n')
        writer.close()
        ended(writer)
    finally:
        for handler in set(logger.handlers) - set(before[0]):
            logger.removeHandler(handler)
            handler.close()
        logger.setLevel(before[1])
        logger.propagate = before[2]
