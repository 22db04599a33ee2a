"""A simulated provider: its listener, its connections and what it remembers of the requests it received."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
from collections import deque
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from dandolo.sim.answer import Charge
from dandolo.sim.connection import Connection, Received
from dandolo.sim.limits import RateLimit
from dandolo.sim.script import Dialect, FaultQueue, Script

if TYPE_CHECKING:
    from ssl import SSLContext

REQUESTS_MAX: Final = 1_000
"""Requests remembered; the oldest is forgotten first."""

RECORDED_BYTES_MAX: Final = 256 << 20
"""Bodies remembered, in bytes; beyond it the oldest requests are forgotten earlier."""

CHARGES_MAX: Final = 100_000
"""Charges remembered; the oldest is forgotten first."""

PROTOCOL_ERRORS_MAX: Final = 100
BACKLOG: Final = 1_024
CLOSE_TURNS_MAX: Final = 1_000
"""Turns of the loop that leaving waits for aborted connections to be reported lost."""


class SimProvider:
    """A provider on a real socket: `async with SimProvider(...) as p`, or inside a `SimThread`.

    `name` appears in its answers, `dialect` decides envelopes, costs and headers, `script` its conduct
    (assign `p.script` at any time: limits and the list of faults start anew). `key` (one or several) is
    demanded if given. It listens on `host`:`port` (0: any free port) or on the Unix socket `unix`, with TLS
    if `ssl` is given. `models` are listed; any other name is served too unless `script.strict_models`.

    Reading `requests` and the counters and assigning `script` are safe from other threads; `kill` and
    `revive` belong to the loop's thread (`SimThread` has its own).
    """

    def __init__(
        self,
        name: str = "sim",
        dialect: Dialect = "openai",
        script: Script | None = None,
        *,
        key: str | Sequence[str] | None = None,
        models: Sequence[str] = ("sim-small", "sim-large"),
        ssl: SSLContext | None = None,
        unix: str | os.PathLike[str] | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
        base_path: str = "/v1",
    ) -> None:
        self.name = name
        self.dialect: Dialect = dialect
        self.models = tuple(models)
        self.keys = (key,) if isinstance(key, str) else tuple(key or ())
        self.host = host
        self.port = port
        self.unix = os.fspath(unix) if unix is not None else None
        self.base_path = base_path
        self.limit = RateLimit()
        self.stored: dict[str, bytes] = {}
        self._ssl = ssl
        self._lock = threading.Lock()
        self._requests: list[Received] = []
        self._charges: deque[Charge] = deque(maxlen=CHARGES_MAX)
        self._recorded_bytes = 0
        self._protocol_errors: list[str] = []
        self._sequence = 0
        self._opened = 0
        self._in_flight = 0
        self._connections: set[Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self.play = _play(script or Script())

    # What tests and benches look at.

    @property
    def url(self) -> str:
        """Scheme, host and port, e.g. "http://127.0.0.1:8001"; of a Unix socket "unix:" and its path."""
        if self.unix is not None:
            return f"unix:{self.unix}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self._ssl else 'http'}://{host}:{self.port}"

    @property
    def base_url(self) -> str:
        """What an OpenAI client takes as its base URL; Anthropic's takes `url`."""
        return self.url + self.base_path

    @property
    def script(self) -> Script:
        return self.play[0]

    @script.setter
    def script(self, script: Script) -> None:
        self.limit = RateLimit()
        self.play = _play(script)

    @property
    def requests(self) -> list[Received]:
        """The last requests, oldest first (a copy of the list; its items go on being filled in)."""
        with self._lock:
            return list(self._requests)

    @property
    def bill(self) -> list[Charge]:
        """What it charged for the last answers, oldest first: each as soon as it was asked (a copy)."""
        with self._lock:
            return list(self._charges)

    @property
    def protocol_errors(self) -> list[str]:
        """What clients did against HTTP, the last hundred."""
        with self._lock:
            return list(self._protocol_errors)

    @property
    def connections_opened(self) -> int:
        return self._opened

    @property
    def connections_open(self) -> int:
        return len(self._connections)

    @property
    def in_flight(self) -> int:
        """Requests received in full and not yet answered."""
        return self._in_flight

    @property
    def received(self) -> int:
        """All requests since the start, remembered or not."""
        return self._sequence

    def forget(self) -> None:
        """Forget the requests received so far; the bill, counters and sequence numbers go on."""
        with self._lock:
            self._requests.clear()
            self._recorded_bytes = 0

    # Life.

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Listen. Raises `OSError` if the address is taken."""
        assert self._server is None, "already listening"
        loop = asyncio.get_running_loop()
        if self.unix is not None:
            _unlink(self.unix)
            self._server = await loop.create_unix_server(
                lambda: Connection(self), self.unix, ssl=self._ssl, backlog=BACKLOG
            )
            return
        self._server = await loop.create_server(
            lambda: Connection(self), self.host, self.port, ssl=self._ssl, backlog=BACKLOG
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Kill, and wait until nothing of this provider is left on the loop."""
        self.kill()
        tasks = list(self._tasks)
        if tasks:
            await asyncio.gather(*tasks, return_exceptions=True)
        for _ in range(CLOSE_TURNS_MAX):
            if not self._connections:
                break
            await asyncio.sleep(0)

    def kill(self) -> None:
        """Close the listener and abort every connection, as a crash would. Requests under way are lost."""
        server, self._server = self._server, None
        if server is not None:
            server.close()
        if self.unix is not None:
            _unlink(self.unix)
        for connection in list(self._connections):
            connection.abort()

    async def revive(self) -> None:
        """Listen again on the same address after `kill`."""
        if self._server is None:
            await self.start()

    # What connections need (`connection.House`).

    def opened(self, connection: Connection) -> int | None:
        """Register a connection: its number, or None if the provider is dead."""
        if self._server is None:
            return None  # accepted by the loop before the listener closed
        self._opened += 1
        self._connections.add(connection)
        return self._opened

    def closed(self, connection: Connection) -> None:
        self._connections.discard(connection)

    def next_sequence(self) -> int:
        self._sequence += 1
        return self._sequence

    def record(self, received: Received) -> None:
        with self._lock:
            self._requests.append(received)
            self._recorded_bytes += len(received.body)
            while len(self._requests) > REQUESTS_MAX or (
                self._recorded_bytes > RECORDED_BYTES_MAX and len(self._requests) > 1
            ):
                self._recorded_bytes -= len(self._requests.pop(0).body)

    def charge(self, charge: Charge) -> None:
        with self._lock:
            self._charges.append(charge)

    def begun(self) -> int:
        self._in_flight += 1
        return self._in_flight

    def ended(self) -> None:
        self._in_flight -= 1

    def note_protocol_error(self, message: str) -> None:
        with self._lock:
            self._protocol_errors.append(message)
            del self._protocol_errors[:-PROTOCOL_ERRORS_MAX]

    def spawn(self, connection: Connection, received: Received) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(connection.answer(received))
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        return task

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            # A mistake of the simulation itself: said aloud, never mistaken for a provider's fault.
            task.get_loop().call_exception_handler(
                {"message": f"simulated provider {self.name!r} failed", "exception": error, "task": task}
            )


def _play(script: Script) -> tuple[Script, FaultQueue]:
    return script, FaultQueue(script)


def _unlink(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def free_port(host: str = "127.0.0.1") -> int:
    """A port on which nothing listens now, for tests of a refused connect."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port
