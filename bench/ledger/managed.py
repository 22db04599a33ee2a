"""`dandolo serve` as a service manager runs it: started again a moment after its main process has ended, whatever its
workers do meanwhile. Here its processes are killed, too."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

RESTART_S = 0.2
START_S = 30.0
STOP_S = 30.0
KILLS = ("worker", "control", "both", "everybody")
"""What is killed: one worker, the control process alone, it and a worker at once, it and all workers."""


class Managed:
    """`watch` runs it until cancelled; `kill` ends what it names, with SIGKILL."""

    def __init__(self, config: Path, port: int, errors: Path, chance: random.Random) -> None:
        self.starts = 0
        self._config, self._port, self._errors, self._chance = config, port, errors, chance
        self._process: subprocess.Popen[bytes] | None = None
        self._seen: set[int] = set()

    async def watch(self) -> None:
        """Start it, and again each time it ends."""
        while True:
            if self._process is None or self._process.poll() is not None:
                if self.starts:
                    await asyncio.sleep(RESTART_S)
                self._start()
            await asyncio.sleep(0.02)

    def _start(self) -> None:
        self.starts += 1
        with self._errors.open("ab") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "dandolo", "serve", "--config", str(self._config)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                # Whatever is left over at the end is of its group.
                process_group=0,
            )

    async def serving(self, workers: int) -> None:
        """Wait until it has all its workers and somebody listens. Raises TimeoutError."""
        async with asyncio.timeout(START_S):
            while len(self.workers()) < workers or not self._listens() or not self._ready():
                await asyncio.sleep(0.02)

    def workers(self) -> list[int]:
        """The processes of the workers that the control process of this moment has."""
        process = self._process
        if process is None or process.poll() is not None:
            return []
        try:
            text = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
        except OSError:
            return []
        found = list(map(int, text.split()))
        self._seen.update(found)
        return found

    def kill(self, what: str) -> None:
        """End one of KILLS."""
        workers, process = self.workers(), self._process
        assert process is not None
        self._chance.shuffle(workers)
        killed = {"worker": workers[:1], "control": [], "both": workers[:1], "everybody": workers}[what]
        if what != "worker":
            # It first, or it would notice the others' end.
            killed = [process.pid, *killed]
        for pid in killed:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if what != "worker":
            process.wait()

    def stop(self) -> int:
        """Ask it to end; the exit code."""
        process = self._process
        assert process is not None
        process.send_signal(signal.SIGINT)
        return process.wait(STOP_S)

    def clear(self) -> None:
        """Leave nothing behind."""
        if self._process is not None and self._process.poll() is None:
            self._seen.update(self.workers())
            self._process.kill()
            self._process.wait()
        for pid in self._seen:
            if b"dandolo" in _command(pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def _ready(self) -> bool:
        return self._errors.read_bytes().count(b" ready in ") >= self.starts

    def _listens(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self._port), 1.0).close()
        except OSError:
            return False
        return True


def free_port() -> int:
    """A port that is free now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


async def until(true: object, patience_s: float, what: str) -> None:
    """Wait until something is true. Raises TimeoutError."""
    assert callable(true)
    end = time.monotonic() + patience_s
    while not true():
        if time.monotonic() > end:
            raise TimeoutError(what)
        await asyncio.sleep(0.05)


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
