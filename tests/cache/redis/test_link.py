"""Coming in, being refused, coming back: against a server that does as it is told."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Coroutine
from contextlib import ExitStack
from typing import Any

import pytest
from redis_fake import HELLO, FakeRedis
from redis_waiting import until

from dandolo.cache.breaker import Backoff
from dandolo.cache.redis import link as module
from dandolo.cache.redis.connection import Call, Failure, Outcome
from dandolo.cache.redis.link import Endpoint, Link, Login
from dandolo.config.secret import Secret
from dandolo.wire.resp import encode

Run = Callable[[Coroutine[Any, Any, None]], None]
CANARY = "hunter2-canary"


class Owner:
    """Keeps what a link tells."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.keys: list[list[bytes] | None] = []

    def up(self, link: Link) -> None:
        self.told.append("up")

    def down(self, link: Link) -> None:
        self.told.append("down")

    def invalidated(self, link: Link, keys: list[bytes] | None) -> None:
        self.keys.append(keys)


class Waits(Backoff):
    """A backoff whose waits are written down and a hundred times shorter."""

    def __init__(self) -> None:
        super().__init__(lambda: 1.0)
        self.waits: list[float] = []

    def wait_s(self) -> float:
        self.waits.append(super().wait_s())
        return self.waits[-1] / 100


def linked(port: int, login: Login | None = None) -> tuple[Link, Owner, Waits]:
    owner = Owner()
    link = Link(Endpoint("127.0.0.1", port), login or Login(), owner, lambda: 1.0)
    link.backoff = waits = Waits()
    return link, owner, waits


async def ended(link: Link) -> None:
    link.stop()
    await link.stopped()


def now() -> float:
    return asyncio.get_running_loop().time()


LOGINS = [
    ("nobody", Login(), [[b"HELLO", b"3", b"SETNAME", b"dandolo"]]),
    (
        "password",
        Login(password=Secret("pw")),
        [[b"HELLO", b"3", b"AUTH", b"default", b"pw", b"SETNAME", b"dandolo"]],
    ),
    (
        "user-database-tracking",
        Login("me", Secret("pw"), 3, None, b"p:"),
        [
            [b"HELLO", b"3", b"AUTH", b"me", b"pw", b"SETNAME", b"dandolo"],
            [b"SELECT", b"3"],
            [b"CLIENT", b"TRACKING", b"ON", b"BCAST", b"PREFIX", b"p:", b"NOLOOP"],
        ],
    ),
]


@pytest.mark.parametrize(("id", "login", "said"), LOGINS, ids=[row[0] for row in LOGINS])
def test_it_comes_in_as_configured(run: Run, id: str, login: Login, said: list[list[bytes]]) -> None:
    async def main() -> None:
        async with FakeRedis() as fake:
            link, owner, _ = linked(fake.port, login)
            link.start()
            await until(lambda: owner.told)
            assert fake.talks[0].heard == said
            assert link.tracking == (login.tracked is not None)
            assert link.reason == ""
            await ended(link)
            assert owner.told == ["up", "down"]

    run(main())


@pytest.mark.parametrize("refusal", [b"-NOPROTO no\r\n", b"-ERR unknown command `HELLO`, with args\r\n"])
def test_an_older_server_is_spoken_to_without_tracking(run: Run, refusal: bytes) -> None:
    async def main() -> None:
        async with FakeRedis() as fake:
            fake.on[b"HELLO"] = lambda talk, *arguments: refusal
            for login, auth in (
                (Login(tracked=b"p:"), []),
                (Login(password=Secret("pw"), tracked=b"p:"), [[b"AUTH", b"pw"]]),
                (Login("me", Secret("pw"), 2), [[b"AUTH", b"me", b"pw"], [b"SELECT", b"2"]]),
            ):
                link, owner, _ = linked(fake.port, login)
                link.start()
                await until(lambda owner=owner: owner.told)
                assert fake.talks[-1].heard[1:] == auth
                assert not link.tracking
                await ended(link)

    run(main())


REFUSALS: list[tuple[str, bytes, bytes, str]] = [
    ("wrong-password", b"HELLO", b"-WRONGPASS invalid pair hunter2-canary\r\n", "WRONGPASS"),
    ("no-auth", b"HELLO", b"-NOAUTH HELLO must be called with\r\n", "NOAUTH"),
    ("loading", b"HELLO", b"-LOADING Redis is loading\r\n", "LOADING"),
    ("nonsense", b"HELLO", b"+OK\r\n", "makes no sense"),
    ("garbage", b"HELLO", b"HTTP/1.1 400 Bad Request\r\n\r\n", "ended during the login"),
    ("select", b"SELECT", b"-ERR DB index is out of range\r\n", "database 3 cannot be selected: ERR"),
]


@pytest.mark.parametrize(("id", "command", "answer", "reason"), REFUSALS, ids=[row[0] for row in REFUSALS])
def test_a_refusal_is_told_and_tried_again(
    run: Run, caplog: pytest.LogCaptureFixture, id: str, command: bytes, answer: bytes, reason: str
) -> None:
    async def main() -> None:
        async with FakeRedis() as fake:
            fake.on[command] = lambda talk, *arguments: answer
            link, owner, waits = linked(fake.port, Login("me", Secret(CANARY), 3))
            link.start()
            await until(lambda: len(waits.waits) >= 3)
            assert reason in link.reason
            assert owner.told == []
            assert link.connection is None
            assert link.send(Call(encode(b"GET", b"a"), now() + 1, print)) is Failure.DOWN
            del fake.on[command]
            await until(lambda: owner.told == ["up"])
            await ended(link)

    caplog.set_level(logging.DEBUG)
    run(main())
    ours = [record for record in caplog.records if record.name == "dandolo"]
    # Said once for a row of the same, and when it is over.
    assert [record.levelno for record in ours] == [logging.WARNING, logging.INFO]
    assert CANARY not in caplog.text


def test_a_connection_that_ends_as_the_login_does_is_not_taken(run: Run) -> None:
    async def main() -> None:
        async with FakeRedis() as fake:
            fake.on[b"HELLO"] = lambda talk, *arguments: HELLO + b"garbage in the same read"
            link, owner, waits = linked(fake.port)
            link.start()
            await until(lambda: len(waits.waits) >= 2)
            assert owner.told == []
            assert "ended after the login" in link.reason
            del fake.on[b"HELLO"]
            await until(lambda: owner.told == ["up"])
            await ended(link)

    run(main())


def test_a_server_without_tracking_rights_serves_all_the_same(run: Run) -> None:
    async def main() -> None:
        async with FakeRedis() as fake:
            fake.on[b"CLIENT"] = lambda talk, *arguments: b"-NOPERM no permissions\r\n"
            link, owner, _ = linked(fake.port, Login(tracked=b"p:"))
            link.start()
            await until(lambda: owner.told)
            assert link.connection is not None
            assert not link.tracking
            await ended(link)

    run(main())


def test_a_server_that_takes_and_drops_connections_is_not_stormed(run: Run) -> None:
    async def main() -> None:
        async with FakeRedis() as fake:
            # It even lets us in first: only a connection that lasts ends a row of attempts.
            fake.on[b"HELLO"] = lambda talk, *arguments: (talk.say(HELLO), talk.close(), None)[-1]
            link, _, waits = linked(fake.port)
            link.start()
            await until(lambda: len(waits.waits) >= 8)
            await ended(link)
            assert waits.waits[:7] == [0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 2.0]
            assert fake.accepted <= len(waits.waits) + 1

    run(main())


def test_one_that_does_not_answer_the_login_is_given_up_in_time(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DIAL_S", 0.05)

    async def main() -> None:
        async with FakeRedis() as fake:
            fake.on[b"HELLO"] = lambda talk, *arguments: None
            link, owner, waits = linked(fake.port)
            link.start()
            await until(lambda: len(waits.waits) >= 2)
            assert "during the login" in link.reason or "no connection and login" in link.reason
            await ended(link)
            assert owner.told == []

    run(main())


def test_a_black_hole_is_given_up_in_time(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DIAL_S", 0.05)

    async def main() -> None:
        # A listener whose queue is full: SYNs are dropped, as in front of a dead machine.
        with ExitStack() as stack:
            listener = stack.enter_context(socket.socket())
            listener.bind(("127.0.0.1", 0))
            listener.listen(0)
            for _ in range(4):
                filler = stack.enter_context(socket.socket())
                filler.setblocking(False)
                filler.connect_ex(listener.getsockname())
            await asyncio.sleep(0.02)
            link, owner, waits = linked(listener.getsockname()[1])
            link.start()
            await until(lambda: len(waits.waits) >= 3)
            assert "no connection and login within" in link.reason
            await ended(link)
            assert owner.told == []

    run(main())


def test_nobody_there_costs_nothing_and_is_found_when_it_comes(run: Run) -> None:
    async def main() -> None:
        fake = FakeRedis()
        async with fake:
            pass
        link, owner, waits = linked(fake.port)
        link.start()
        await until(lambda: len(waits.waits) >= 2)
        assert "no connection" in link.reason
        assert link.send(Call(encode(b"GET", b"a"), now() + 1, print)) is Failure.DOWN
        assert link.breaker.closed
        async with fake:
            await until(lambda: owner.told == ["up"])
            await ended(link)

    run(main())


def test_stopping_while_it_connects_leaves_nothing(run: Run) -> None:
    async def main() -> None:
        async with FakeRedis() as fake:
            fake.on[b"HELLO"] = lambda talk, *arguments: None
            for turns in range(6):
                link, owner, _ = linked(fake.port)
                link.start()
                for _ in range(turns):
                    await asyncio.sleep(0.001)
                await ended(link)
                assert owner.told == []

    run(main())


def test_the_breaker_opens_on_silence_and_a_call_probes_it(run: Run) -> None:
    async def main() -> None:
        async with FakeRedis() as fake:
            link, owner, _ = linked(fake.port)
            link.start()
            await until(lambda: owner.told)
            heard: list[Outcome] = []
            fake.on[b"GET"] = lambda talk, key: None
            for _ in range(5):
                assert link.send(Call(encode(b"GET", b"a"), now() + 0.01, heard.append)) is None
            await until(lambda: len(heard) == 5)
            assert set(heard) == {Failure.TIMEOUT}
            assert link.send(Call(encode(b"GET", b"a"), now() + 1, heard.append)) is Failure.OPEN
            # The five replies come late: they close nothing, and are nobody's.
            fake.say_to_all(b"+late\r\n" * 5)
            await until(lambda: link.connection is not None and link.connection.in_flight == 0)
            assert link.send(Call(encode(b"GET", b"a"), now() + 1, heard.append)) is Failure.OPEN
            link.breaker._open_until = 0.0  # its time is over
            del fake.on[b"GET"]
            assert link.send(Call(encode(b"GET", b"a"), now() + 1, heard.append)) is None
            assert link.send(Call(encode(b"GET", b"a"), now() + 1, heard.append)) is Failure.OPEN
            await until(lambda: link.breaker.closed)
            assert heard[5:] == [None]
            await ended(link)

    run(main())


def test_a_new_connection_may_be_probed_at_once(run: Run) -> None:
    async def main() -> None:
        async with FakeRedis() as fake:
            link, owner, _ = linked(fake.port)
            link.start()
            await until(lambda: owner.told)
            heard: list[Outcome] = []
            fake.on[b"GET"] = lambda talk, key: talk.close()
            for _ in range(8):
                link.send(Call(encode(b"GET", b"a"), now() + 5, heard.append))
            await until(lambda: owner.told == ["up", "down", "up"])
            assert heard == [Failure.LOST] * 8
            assert not link.breaker.closed
            del fake.on[b"GET"]
            assert link.send(Call(encode(b"GET", b"a"), now() + 5, heard.append)) is None
            await until(lambda: link.breaker.closed)
            await ended(link)

    run(main())


def test_invalidations_are_passed_on_and_other_pushes_dropped(run: Run) -> None:
    async def main() -> None:
        async with FakeRedis() as fake:
            link, owner, _ = linked(fake.port, Login(tracked=b"p:"))
            link.start()
            await until(lambda: owner.told)
            fake.say_to_all(
                b">2\r\n+invalidate\r\n*2\r\n$3\r\np:a\r\n$3\r\np:b\r\n"
                b">3\r\n+message\r\n+channel\r\n+text\r\n"
                b">2\r\n+invalidate\r\n:1\r\n"
                b">1\r\n+invalidate\r\n"
                b">2\r\n+invalidate\r\n_\r\n"
            )
            await until(lambda: len(owner.keys) == 2)
            assert owner.keys == [[b"p:a", b"p:b"], None]
            assert owner.told == ["up"]
            await ended(link)

    run(main())


def test_where_a_server_is_has_one_form(run: Run) -> None:
    assert str(Endpoint("a", 1)) == "a:1"
    assert str(Endpoint("::1", 1)) == "[::1]:1"
    assert str(Endpoint(path="/r")) == "unix:/r"


def test_asking_goes_before_its_command(run: Run) -> None:
    async def main() -> None:
        async with FakeRedis() as fake:
            link, owner, _ = linked(fake.port)
            heard: list[Outcome] = []
            command = Call(encode(b"GET", b"a"), now() + 5, heard.append)
            assert link.send_asking(command) is Failure.DOWN
            link.start()
            await until(lambda: owner.told)
            assert link.send_asking(command) is None
            await until(lambda: heard)
            assert fake.talks[0].heard[-2:] == [[b"ASKING"], [b"GET", b"a"]]
            await ended(link)

    run(main())
