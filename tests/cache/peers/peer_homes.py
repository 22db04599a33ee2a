"""Processes that share a cache, as far as a test needs one, and peers that do not do what they should."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from dandolo.cache.generations import Purge
from dandolo.cache.peers.frames import Frame, FrameReader, Ping, Pong, Sync, Value, encode
from dandolo.cache.peers.greeting import Greeting, key_of
from dandolo.cache.peers.mesh import Peers
from dandolo.cache.peers.place import Membership
from dandolo.cache.peers.session import Outlet
from dandolo.config.address import Listen

SECRET = b"the secret of all of them"
WAIT_S = 15.0

Run = Callable[[Coroutine[Any, Any, None]], None]


async def until(condition: Callable[[], object]) -> None:
    """Return once `condition` holds; fail when that takes WAIT_S."""
    loop = asyncio.get_running_loop()
    end = loop.time() + WAIT_S
    while not condition():
        assert loop.time() < end, "it did not happen"
        await asyncio.sleep(0.005)


class Home:
    """A process: what it has, what it makes, what it was told."""

    def __init__(self) -> None:
        self.values: dict[bytes, Value] = {}
        self.made: set[bytes] = set()
        self.outlets: list[Outlet] = []
        self.purges: list[Purge] = []
        self.flushes = 0

    def value(self, key: bytes) -> Value | None:
        return self.values.get(key)

    def take(self, key: bytes, value: Value) -> None:
        self.values[key] = value

    def leading(self, key: bytes) -> bool:
        return key in self.made

    def following(self, key: bytes) -> str:
        return ""

    def join(self, key: bytes, outlet: Outlet) -> bool:
        if key in self.made:
            self.outlets.append(outlet)
        return key in self.made

    def purge_from(self, purge: Purge) -> None:
        self.purges.append(purge)

    def flush(self) -> None:
        self.flushes += 1


def unix(directory: Path, name: str) -> Listen:
    return Listen("unix", path=str(directory / name))


def peer(directory: Path, name: str, *others: str, secret: bytes = SECRET) -> tuple[Peers, Home]:
    """A process on a Unix socket of its name, which knows others by theirs."""
    home = Home()
    places = tuple(unix(directory, other) for other in others)
    return Peers(Membership(name, (unix(directory, name),), places), secret, home, random=lambda: 0.0), home


def up(peers: Peers) -> set[str]:
    """The names of those that can be asked."""
    return {one.name for one in peers.health() if one.up and one.breaker == "closed"}


@asynccontextmanager
async def all_of(*several: Peers) -> AsyncIterator[None]:
    """Started, connected with whom they know, and closed at the end."""
    for peers in several:
        peers.start()
    try:
        for peers in several:
            await until(lambda peers=peers: all(one.up for one in peers.health()))  # type: ignore[misc]
        yield
    finally:
        for peers in several:
            await peers.close()


async def told(ask: Callable[[Callable[[object], None]], None]) -> object:
    """What a question comes to."""
    future: asyncio.Future[object] = asyncio.get_running_loop().create_future()
    ask(future.set_result)
    return await future


class Feed:
    """Whoever follows a call."""

    def __init__(self) -> None:
        self.events: list[object] = []

    def begun(self, frame: object) -> None:
        self.events.append(frame)

    def piece(self, content: bytes) -> None:
        self.events.append(content)

    def done(self, frame: object, *, before: bool) -> None:
        self.events.append(frame)

    def lost(self, *, failed: bool) -> None:
        self.events.append("failed" if failed else "lost")


class MutePeer:
    """A peer that greets as it should, and then answers nothing but pings, while `alive`."""

    def __init__(self, directory: Path, name: str) -> None:
        self.name = name
        self.path = str(directory / name)
        self.alive = True
        self.heard: list[Frame] = []
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> MutePeer:
        self._server = await asyncio.start_unix_server(self._serve, self.path)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for writer in list(self._writers):
            writer.close()
        await until(lambda: not self._writers)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        greeting = Greeting(key_of(SECRET), self.name, os.urandom(16), os.urandom(32), dials=False)
        frames = FrameReader()
        frames.bytes_max = 1 << 23
        try:
            while data := await reader.read(65536):
                for frame in frames.feed(data):
                    if not greeting.believes():
                        writer.write(b"".join(map(encode, greeting.hear(frame))))
                    elif isinstance(frame, Ping):
                        if self.alive:
                            writer.write(encode(Pong(frame.id)))
                    elif not isinstance(frame, Sync):
                        self.heard.append(frame)
        except ConnectionError:
            pass
        finally:
            writer.close()
            self._writers.discard(writer)
