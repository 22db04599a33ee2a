"""Handing listening sockets over between processes of one user, over real sockets in one process."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator

import pytest

from dandolo.net import succession
from dandolo.net.succession import Followed, Given, Predecessor, identity, orphans


@pytest.fixture
def name() -> str:
    return identity([f"test:{os.getpid()}:{id(object())}"])


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        yield sock


async def in_thread(call: object, *arguments: object) -> object:
    return await asyncio.get_running_loop().run_in_executor(None, call, *arguments)  # type: ignore[arg-type]


def test_identity_is_that_of_the_addresses_in_any_order() -> None:
    assert identity(["a:1", "b:2"]) == identity(["b:2", "a:1"]) != identity(["a:1"])
    assert identity([]) == identity(["a:1", "b:0"]) == ""
    assert identity(["unix:/run/x:0"])


def test_sockets_are_given_and_the_holder_ends_when_told(name: str, listener: socket.socket) -> None:
    async def run() -> None:
        followed_by: list[int] = []
        holder = Followed(name, None, lambda: [Given(listener, 3)], followed_by.append)
        holder.start()
        found = await in_thread(Predecessor.find, name, None)
        assert isinstance(found, Predecessor)
        ((sock, slot),) = await in_thread(found.sockets)  # type: ignore[misc]
        assert (sock.getsockname(), slot) == (listener.getsockname(), 3)
        # One queue: who connects to the old one is let in by the new one.
        with socket.create_connection(listener.getsockname()) as client:
            accepted, address = sock.accept()
            assert address == client.getsockname()
            accepted.close()
        sock.close()
        assert not followed_by
        found.serving()
        while not followed_by:
            await asyncio.sleep(0.005)
        assert followed_by == [os.getpid()]
        assert await in_thread(Predecessor.find, name, None) is None

    asyncio.run(asyncio.wait_for(run(), 10))


def test_who_asks_and_goes_changes_nothing(name: str, listener: socket.socket) -> None:
    async def run() -> None:
        followed_by: list[int] = []
        holder = Followed(name, 7, lambda: [Given(listener, 0)], followed_by.append)
        holder.start()
        for said in (None, b"", b"sockets", b"serving?", b"x" * 1000):
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as caller:
                caller.connect(b"\0dandolo/" + name.encode() + b"/7")
                if said is not None:
                    caller.send(said)
                await asyncio.sleep(0.02)
        found = await in_thread(orphans, name)
        assert isinstance(found, list)
        assert len(found) == 1
        assert not followed_by
        found[0].close()
        holder.close()
        assert await in_thread(orphans, name) == []

    asyncio.run(asyncio.wait_for(run(), 10))


def test_a_name_that_is_taken_is_taken_over_when_it_is_free(
    name: str, listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(succession, "RETRY_S", 0.01)

    async def run() -> None:
        first = Followed(name, None, list, lambda _: None)
        second = Followed(name, None, lambda: [Given(listener, 1)], lambda _: None)
        first.start()
        second.start()
        first.close()
        found = None
        while found is None:
            found = await in_thread(Predecessor.find, name, None)
            await asyncio.sleep(0.005)
        assert isinstance(found, Predecessor)
        ((sock, _),) = await in_thread(found.sockets)  # type: ignore[misc]
        sock.close()
        found.close()
        second.close()

    asyncio.run(asyncio.wait_for(run(), 10))


def test_another_user_is_not_answered(name: str, listener: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        holder = Followed(name, None, lambda: [Given(listener, 1)], lambda _: None)
        holder.start()
        monkeypatch.setattr(succession, "_peer", lambda sock: (1, os.geteuid() + 1))
        assert await in_thread(Predecessor.find, name, None) is None
        holder.close()

    asyncio.run(asyncio.wait_for(run(), 10))
