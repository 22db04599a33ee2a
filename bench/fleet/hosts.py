"""The fleet: a simulated provider, Redis, two `dandolo serve` and HAProxy, each on an address of its own.

Hosts are addresses of the loopback network (127.0.1.1, 127.0.1.2), so no privilege is needed; HAProxy runs with the
file that is shipped, `systemd/haproxy.cfg`, and only told where things are. Everything is ended by its own number.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from bench.load.processes import descendants
from dandolo.sim import Script, SimProvider, SimThread

RECIPE = Path(__file__).parents[2] / "systemd" / "haproxy.cfg"
SCRIPT = Script(latency_s=0.02, first_token_s=0.01, tokens_per_s=200.0, tokens=20, jitter=0.5)
PATIENCE_S = 30.0
T = TypeVar("T")


class Missing(Exception):
    """A program that is needed is not here."""


def needed() -> tuple[str, str]:
    """Paths of HAProxy and Redis. Raises Missing."""
    haproxy = shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin:/usr/local/sbin")
    redis = shutil.which("redis-server") or shutil.which("valkey-server")
    if haproxy is None or redis is None:
        raise Missing("HAProxy and Redis are needed; on Debian and Ubuntu: apt-get install haproxy redis-server")
    return haproxy, redis


def until(true: Callable[[], T], what: str, patience_s: float = PATIENCE_S) -> T:
    """Poll until something is true, and return it."""
    end = time.monotonic() + patience_s
    while not (found := true()):
        if time.monotonic() > end:
            raise TimeoutError(f"not within {patience_s:g} s: {what}")
        time.sleep(0.01)
    return found


def free_port(host: str) -> int:
    with socket.socket() as sock:
        sock.bind((host, 0))
        return int(sock.getsockname()[1])


class Program:
    """A started program with its log."""

    def __init__(self, argv: list[str], log: Path, **environ: str) -> None:
        self.log = log
        kept = {
            name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR", "PYTHONPATH") if name in os.environ
        }
        with log.open("ab") as sink:
            self.process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                env={**kept, **environ},
                start_new_session=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        # Workers outlive the process that started them: that is what they are for, and here it is not wanted.
        family = descendants(self.process.pid)
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for pid in family:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and wait for the end; the exit code."""
        self.process.send_signal(number)
        return self.process.wait(PATIENCE_S)


class Host:
    """One host: an address, a configuration, and `dandolo serve` on it while it is up."""

    def __init__(self, folder: Path, address: str, provider: str, redis_port: int, drain_delay_s: float) -> None:
        folder.mkdir()
        self.name, self.folder, self.address = folder.name, folder, address
        self.port, self.admin = free_port(address), free_port(address)
        self.program: Program | None = None
        (folder / "dandolo.toml").write_text(
            f'[server]\nlisten = ["{address}:{self.port}"]\nadmin = "{address}:{self.admin}"\n'
            f'state_dir = "{folder}/state"\ndrain_delay = "{drain_delay_s:g}s"\ndrain_timeout = "20s"\n'
            'proxy_protocol = true\ntrusted_proxies = ["127.0.0.0/8"]\n'
            f'[[providers]]\nname = "sim"\nbase_url = "{provider}"\n'
            '[cache]\nlevels = ["memory", "redis"]\nsecret = { env = "CACHE_SECRET" }\n'
            f'[cache.redis]\nurl = "redis://127.0.0.1:{redis_port}/0"\n'
        )

    def start(self) -> None:
        """Up, and until it says so."""
        argv = [sys.executable, "-m", "dandolo", "serve", "--config", str(self.folder / "dandolo.toml")]
        self.program = Program(argv, self.folder / "log", CACHE_SECRET="c" * 32)
        until(self._ready, f"{self.name} is ready")

    def stop(self) -> int:
        """Drain it; the exit code."""
        assert self.program is not None
        return self.program.end()

    def ask(self, path: str, method: str = "GET", body: object = None) -> tuple[int, bytes]:
        """Of its admin listener."""
        connection = http.client.HTTPConnection(self.address, self.admin, timeout=10)
        try:
            given = None if body is None else json.dumps(body)
            head = {"Host": f"localhost:{self.admin}", "Content-Type": "application/json"}
            connection.request(method, path, given, head)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def served(self) -> int:
        """Requests that it answered since it was started, as its log has them."""
        lines = (self.folder / "log").read_bytes().splitlines()
        return sum(b'"status":' in line for line in lines)

    def _ready(self) -> bool:
        assert self.program is not None
        if self.program.process.poll() is not None:
            raise RuntimeError(f"{self.name} ended: {self.program.log.read_text()[-2000:]}")
        try:
            return self.ask("/readyz")[0] == 200
        except OSError:
            return False


class Fleet:
    """All of it, running. `port` is HAProxy's, on 127.0.0.1."""

    def __init__(self, folder: Path, *, drain_delay_s: float = 5.0) -> None:
        self._haproxy, self._redis = needed()
        self._folder = folder
        self._drain_delay_s = drain_delay_s
        self._stack = ExitStack()
        self.sim = SimProvider("sim", script=SCRIPT)
        self.port = free_port("127.0.0.1")
        self.hosts: list[Host] = []

    def __enter__(self) -> Self:
        try:
            self._stack.enter_context(SimThread(self.sim))
            redis_port = free_port("127.0.0.1")
            argv = [self._redis, "--port", str(redis_port), "--save", "", "--dir", str(self._folder)]
            self._stack.enter_context(Program(argv, self._folder / "redis.log"))
            until(lambda: _listens(redis_port), "Redis listens")
            for number in (1, 2):
                place = self._folder / f"edge-{number}"
                host = Host(place, f"127.0.1.{number}", self.sim.base_url, redis_port, self._drain_delay_s)
                self._stack.callback(_kill, host)
                host.start()
                self.hosts.append(host)
            haproxy = Program(
                [self._haproxy, "-db", "-f", str(RECIPE)],
                self._folder / "haproxy.log",
                HAPROXY_SOCKET=str(self._folder / "haproxy.sock"),
                DANDOLO_BIND=f"127.0.0.1:{self.port}",
                **{f"DANDOLO_{n}": f"{one.address}:{one.port}" for n, one in enumerate(self.hosts, 1)},
            )
            self._stack.enter_context(haproxy)
            until(
                lambda: haproxy.process.poll() is not None or self.states() == ["UP", "UP"], "HAProxy sees both hosts"
            )
            if haproxy.process.poll() is not None:
                raise RuntimeError(f"HAProxy ended: {haproxy.log.read_text()[-2000:]}")
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stack.close()

    def states(self) -> list[str]:
        """What HAProxy thinks of each host: UP, DOWN, MAINT, …"""
        with socket.socket(socket.AF_UNIX) as sock:
            try:
                sock.settimeout(5.0)
                sock.connect(str(self._folder / "haproxy.sock"))
                sock.sendall(b"show stat -1 4 -1\n")
                text = b"".join(iter(lambda: sock.recv(65536), b"")).decode()
            except OSError:
                return []
        rows = [line.split(",") for line in text.splitlines() if line.startswith("dandolo,edge-")]
        return [row[17].partition(" ")[0] for row in rows]


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1.0).close()
    except OSError:
        return False
    return True


def _kill(host: Host) -> None:
    if host.program is not None:
        host.program.__exit__(None, None, None)
