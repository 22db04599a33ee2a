"""A server that does as it is told, for the cases that a real one does not offer. It lives in the test's loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Self

from dandolo.wire.resp import ReplyReader

HELLO = b"%2\r\n$6\r\nserver\r\n$5\r\nredis\r\n$5\r\nproto\r\n:3\r\n"
Answer = Callable[..., bytes | None]


def bulk(value: bytes | None) -> bytes:
    """A string, or null."""
    return b"_\r\n" if value is None else b"$%d\r\n%b\r\n" % (len(value), value)


def array(*items: bytes) -> bytes:
    """An array of encoded values."""
    return b"*%d\r\n" % len(items) + b"".join(items)


class Talk:
    """One connection to the fake."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self.writer = writer
        self.heard: list[list[bytes]] = []
        self.asking = False

    def say(self, data: bytes) -> None:
        """Send bytes now, if the client is still there."""
        if not self.writer.is_closing():
            self.writer.write(data)

    def close(self) -> None:
        """End the connection."""
        self.writer.close()


class FakeRedis:
    """Answers GET, SET, UNLINK and what a login needs out of `values`. `on[b"GET"] = f` has f(talk, *arguments)
    answer instead: bytes to send, or None for nothing."""

    def __init__(self) -> None:
        self.values: dict[bytes, bytes] = {}
        self.on: dict[bytes, Answer] = {}
        self.talks: list[Talk] = []
        self.accepted = 0
        self.reads = 0
        self.slots: list[tuple[int, int, FakeRedis]] = []
        self.port = 0
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[Any]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *error: object) -> None:
        assert self._server is not None
        self._server.close()
        for talk in self.talks:
            talk.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def say_to_all(self, data: bytes) -> None:
        """Send bytes on every connection."""
        for talk in self.talks:
            talk.say(data)

    def heard(self, name: bytes) -> list[list[bytes]]:
        """Every command of that name, on all connections so far."""
        return [one for talk in self.talks for one in talk.heard if one[0] == name]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self.accepted += 1
        talk = Talk(writer)
        self.talks.append(talk)
        if b"ACCEPT" in self.on:
            self.on[b"ACCEPT"](talk)
        commands = ReplyReader()
        try:
            while data := await reader.read(1 << 20):
                self.reads += 1
                for parts in commands.feed(data):
                    assert isinstance(parts, list)
                    talk.heard.append(parts)  # type: ignore[arg-type]
                    answer = self._answer(talk, *parts)
                    if answer is not None:
                        talk.say(answer)
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    def _answer(self, talk: Talk, name: Any, *arguments: Any) -> bytes | None:
        if name in self.on:
            return self.on[name](talk, *arguments)
        match name:
            case b"HELLO":
                return HELLO
            case b"GET":
                return bulk(self.values.get(arguments[0]))
            case b"SET":
                self.values[arguments[0]] = arguments[1]
                return b"+OK\r\n"
            case b"UNLINK":
                return b":%d\r\n" % (self.values.pop(arguments[0], None) is not None)
            case b"PING":
                return b"+PONG\r\n"
            case b"CLUSTER":
                return array(
                    *(
                        array(b":%d\r\n" % first, b":%d\r\n" % last, array(bulk(b"127.0.0.1"), b":%d\r\n" % node.port))
                        for first, last, node in self.slots
                    )
                )
            case b"SELECT" | b"CLIENT" | b"ASKING" | b"AUTH":
                return b"+OK\r\n"
        return b"-ERR unknown command\r\n"
