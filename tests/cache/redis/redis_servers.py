"""Real servers: started on free ports in a temporary folder, ended by their own ids."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from dandolo.wire.resp import Reply, ReplyReader, encode

PROGRAM = shutil.which("redis-server") or shutil.which("valkey-server")
START_S = 15.0


def free_port(most: int = 65535) -> int:
    """A port of loopback that nobody listens on, at most `most`."""
    for _ in range(1000):
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            port = int(sock.getsockname()[1])
        if port <= most:
            return port
    raise AssertionError("no free port")


def wait_for(condition: Callable[[], object], what: str) -> None:
    end = time.monotonic() + START_S
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.01)


class RealRedis:
    """One server. Its port and Unix socket stay the same when it is started again."""

    def __init__(self, folder: Path, *arguments: str, port: int | None = None, unix: bool = True) -> None:
        self.port = free_port() if port is None else port
        self.folder = folder / f"redis-{self.port}"
        self.folder.mkdir()
        # A socket's path has at most 107 bytes; pytest's folders are long.
        self.path = str(self.folder / "s")
        self._arguments = [
            str(PROGRAM), "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no",
            "--dir", str(self.folder), "--logfile", str(self.folder / "log"), *arguments,
        ]  # fmt: skip
        if unix:
            self._arguments += ["--unixsocket", self.path]
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._process is not None:
            self.kill()

    def start(self) -> None:
        """Start it and wait until it answers."""
        self._process = subprocess.Popen(
            self._arguments, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        wait_for(self._answers, f"redis-server does not answer: {self._log()}")

    def kill(self) -> None:
        """kill -9."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        self._process = None

    def signal(self, number: int) -> None:
        """Send it a signal (SIGSTOP, SIGCONT)."""
        assert self._process is not None
        self._process.send_signal(number)

    def ask(self, *parts: bytes | str | int) -> Reply:
        """One command's reply, over its Unix socket."""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(START_S)
            sock.connect(self.path)
            sock.sendall(encode(*(part if isinstance(part, bytes) else str(part).encode() for part in parts)))
            reader = ReplyReader()
            while True:
                replies = reader.feed(sock.recv(65536))
                if replies:
                    return replies[0]

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, f"redis-server ended: {self._log()}"
        try:
            self.ask("PING")
        except OSError:
            return False
        return True

    def _log(self) -> str:
        log = self.folder / "log"
        return log.read_text(errors="replace")[-2000:] if log.exists() else ""


class RealCluster:
    """Three masters that share the slots evenly."""

    def __init__(self, folder: Path) -> None:
        # The bus listens 10,000 above.
        self.nodes = [
            RealRedis(
                folder, "--cluster-enabled", "yes", "--cluster-config-file", "nodes.conf",
                "--cluster-node-timeout", "1000", "--cluster-require-full-coverage", "no", port=free_port(55535),
            )
            for _ in range(3)
        ]  # fmt: skip

    def __enter__(self) -> Self:
        try:
            for node in self.nodes:
                node.start()
            for index, node in enumerate(self.nodes):
                first, last = index * 16384 // 3, (index + 1) * 16384 // 3
                assert node.ask("CLUSTER", "ADDSLOTS", *range(first, last)) == b"OK"
                assert node.ask("CLUSTER", "MEET", "127.0.0.1", self.nodes[0].port) == b"OK"
            wait_for(lambda: all(map(self._knows_all, self.nodes)), "the cluster did not come together")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        for node in self.nodes:
            node.__exit__()

    def owner(self, slot: int) -> RealRedis:
        """Who has a slot at the start."""
        return next(node for index, node in enumerate(self.nodes) if slot < (index + 1) * 16384 // 3)

    def name(self, node: RealRedis) -> bytes:
        """A node's name in the cluster."""
        name = node.ask("CLUSTER", "MYID")
        assert isinstance(name, bytes)
        return name

    def _knows_all(self, node: RealRedis) -> bool:
        info: Any = node.ask("CLUSTER", "INFO")
        slots: Any = node.ask("CLUSTER", "SLOTS")
        return b"cluster_state:ok" in info and b"cluster_slots_ok:16384" in info and len(slots) == 3
