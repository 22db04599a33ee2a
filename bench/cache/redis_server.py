"""A redis-server (or valkey-server) that benches start, kill and stop."""

from __future__ import annotations

import shutil
import signal
import socket
import time
from pathlib import Path

from bench.load.processes import Child
from bench.load.targets import free_port

START_S = 10.0


class RedisServer:
    """On a port and a Unix socket of its own, on one core; it keeps nothing on the disk. `start` begins it again after
    `kill`."""

    def __init__(self, folder: Path, core: int) -> None:
        """Ends the program where there is no such server."""
        program = shutil.which("redis-server") or shutil.which("valkey-server")
        if program is None:
            raise SystemExit("redis-server is not here: apt-get install redis-server")
        self.port = free_port()
        self.path = str(folder / "redis.sock")
        self._core = core
        self._log = folder / "redis.log"
        self._argv = [
            program, "--port", str(self.port), "--bind", "127.0.0.1", "--unixsocket", self.path, "--save", "",
            "--appendonly", "no", "--dir", str(folder),
        ]  # fmt: skip
        self._child: Child | None = None

    def start(self) -> None:
        """Wait until it listens; ends the program when it does not."""
        child = self._child = Child(self._argv, self._core, self._log)
        until = time.monotonic() + START_S
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1.0).close()
                return
            except OSError:
                if not child.alive() or time.monotonic() > until:
                    raise SystemExit(f"redis-server did not start:\n{child.log_tail()}") from None
                time.sleep(0.01)

    def kill(self) -> None:
        """kill -9."""
        child, self._child = self._child, None
        if child is not None:
            child.process.kill()
            child.process.wait()

    def stand_still(self) -> None:
        """SIGSTOP."""
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """SIGCONT."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: int) -> None:
        assert self._child is not None, "it is not running"
        self._child.process.send_signal(number)
