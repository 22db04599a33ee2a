"""A miss on the short way with tiers behind memory: what becomes of it, and what it leaves behind."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable

import pytest

from dandolo.cache.entry import Entry
from dandolo.cache.lifetime import TtlClass
from dandolo.cache.tiers import Found, Heard
from dandolo.config import parse
from dandolo.errors import RequestError
from dandolo.gateway.gateway import Gateway
from dandolo.net.downstream import Downstream
from dandolo.net.outbox import running_outbox
from dandolo.net.upstream import Upstream
from dandolo.record import Record
from tests.gateway.transport import Transport

CONFIG = """
[[keys]]
name = "one"
key = { env = "KEY" }
[[providers]]
name = "stub"
base_url = "http://127.0.0.1:9/v1"
key = { env = "PROVIDER_KEY" }
[[providers.models]]
id = "m"
"""


class Tiers:
    """Answers a look-up when the test says so; unless `later`, at once and with nothing."""

    def __init__(self) -> None:
        self.later = False
        self.asked: list[tuple[bytes, Heard]] = []
        self.kept: list[Entry] = []
        self.looked = 0

    def look_up(self, key: bytes, scope: str, heard: Heard, sources: tuple[str, ...] = ()) -> None:
        self.looked += 1
        if self.later:
            self.asked.append((key, heard))
        else:
            heard(None)

    def keep(self, entry: Entry, scope: str) -> None:
        self.kept.append(entry)


class Person:
    """A client whose connection has asked once already, so that it takes the short way."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self.transport = Transport()
        self.connection = Downstream(stage.gateway, "127.0.0.1")
        self.connection.connection_made(self.transport)  # type: ignore[arg-type]
        for _ in range(2):
            stage.warmed += 1
            self.ask(f"warm {stage.warmed}")
            stage.answer("warm")
            self.take()

    def ask(self, text: str) -> None:
        # Of one length, so that the head repeats the one before it to the byte.
        text = text.ljust(12)
        body = json.dumps({"model": "m", "temperature": 0, "messages": [{"role": "user", "content": text}]}).encode()
        self.connection.data_received(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer k-one\r\n"
            b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
        )

    def take(self) -> tuple[int, str, str]:
        """Status, what the cache did, and the text of what has come."""
        running_outbox().flush()
        sent, self.transport.sent = self.transport.sent, b""
        head, _, body = sent.partition(b"\r\n\r\n")
        lines = {name.lower(): value for name, _, value in (line.partition(b": ") for line in head.split(b"\r\n")[1:])}
        found = json.loads(body)
        text = found["choices"][0]["message"]["content"] if "choices" in found else ""
        return int(head.split()[1]), lines.get(b"x-cache", b"").decode(), text

    def leave(self) -> None:
        self.transport.closing = True
        self.connection.connection_lost(None)


class Stage:
    """A gateway with such tiers, and its provider's one connection."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.warmed = 0
        self.gateway = Gateway(parse(CONFIG, "test", {"KEY": "k-one", "PROVIDER_KEY": "p"}), self.records.append)
        self.tiers = Tiers()
        self.gateway.tiers = self.tiers  # type: ignore[assignment]
        self.wire = Transport()
        self.provider = Upstream(self.gateway.now(), secure=True)
        self.provider.connection_made(self.wire)  # type: ignore[arg-type]
        self.provider.reader.begin()
        self.provider.reader._state = 5
        next(iter(self.gateway.plane.fleet)).pool._idle.append(self.provider)

    @property
    def calls(self) -> int:
        return self.wire.sent.count(b"POST ")

    def answer(self, text: str, finish: str = "stop") -> None:
        message = {"role": "assistant", "content": text}
        body = json.dumps(
            {
                "id": "x",
                "object": "chat.completion",
                "choices": [{"index": 0, "message": message, "finish_reason": finish}],
                "usage": {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5},
            }
        ).encode()
        self.provider.data_received(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
        )

    def looking(self) -> tuple[bytes, Heard]:
        (asked,) = self.tiers.asked
        self.tiers.asked = []
        return asked

    def settled(self) -> bool:
        """Whether nothing is left of any request."""
        self.gateway.settle()
        fleet = next(iter(self.gateway.plane.fleet))
        admission = self.gateway.plane.admission
        return not (
            len(self.gateway.flights) or admission.in_flight or self.gateway.sweep.items - {self.provider}  # type: ignore[operator]
            - {item for item in self.gateway.sweep.items if isinstance(item, Downstream)} or fleet.slots.in_use
        )  # fmt: skip


def entry(key: bytes, text: str, *, life_s: float = 600.0, stale_s: float = 0.0) -> Entry:
    body = {"id": "x", "choices": [{"index": 0, "message": {"role": "assistant", "content": text}}]}
    now = time.time()
    return Entry(
        key=key,
        created=now - 60.0,
        expires=now + life_s,
        stale_until=now + life_s + stale_s,
        kind=TtlClass.QUESTION,
        status=200,
        model="m",
        usage=None,
        cost_usd=None,
        gen_ms=5,
        tags=("provider=other",),
        body=json.dumps(body).encode(),
        delta_offsets=(),
    )


def run(story: Callable[[Stage], None]) -> None:
    async def main() -> None:
        story(Stage())

    asyncio.run(main())


@pytest.mark.parametrize("later", [False, True], ids=["at once", "later"])
def test_what_is_nowhere_is_asked_for_once_and_kept_everywhere(later: bool) -> None:
    def story(stage: Stage) -> None:
        one = Person(stage)
        calls, kept = stage.calls, len(stage.tiers.kept)
        stage.tiers.later = later
        one.ask("hi")
        assert one.connection.exchange.looking is not None  # type: ignore[union-attr,attr-defined]
        if later:
            assert stage.calls == calls
            stage.looking()[1](None)
        stage.answer("hello")
        assert (stage.calls, one.take()) == (calls + 1, (200, "MISS", "hello"))
        (made,) = stage.tiers.kept[kept:]
        assert b"hello" in made.body
        one.ask("hi")
        assert (stage.calls, one.take()) == (calls + 1, (200, "HIT", "hello"))
        assert stage.settled()

    run(story)


def test_what_is_not_fit_is_kept_nowhere() -> None:
    def story(stage: Stage) -> None:
        one = Person(stage)
        kept = len(stage.tiers.kept)
        one.ask("hi")
        stage.answer("cut", finish="length")
        assert one.take() == (200, "MISS", "cut")
        assert len(stage.tiers.kept) == kept
        assert stage.settled()

    run(story)


def test_what_another_tier_has_is_given_to_all_who_joined() -> None:
    def story(stage: Stage) -> None:
        one, two = Person(stage), Person(stage)
        calls, stage.tiers.later = stage.calls, True
        one.ask("hi")
        two.ask("hi")
        key, heard = stage.looking()
        heard(Found(entry(key, "kept"), "l2"))
        assert (one.take(), two.take()) == ((200, "HIT", "kept"), (200, "HIT", "kept"))
        assert stage.calls == calls
        assert stage.settled()

    run(story)


def test_who_joins_while_it_is_looked_for_shares_the_call() -> None:
    def story(stage: Stage) -> None:
        one, two = Person(stage), Person(stage)
        calls, stage.tiers.later = stage.calls, True
        one.ask("hi")
        two.ask("hi")
        stage.looking()[1](None)
        stage.answer("hello")
        assert (one.take(), two.take()) == ((200, "MISS", "hello"), (200, "COLLAPSED", "hello"))
        assert stage.calls == calls + 1
        assert stage.settled()

    run(story)


@pytest.mark.parametrize("found", [False, True])
def test_the_first_who_leaves_meanwhile_harms_nobody(found: bool) -> None:
    def story(stage: Stage) -> None:
        one, two = Person(stage), Person(stage)
        calls, stage.tiers.later = stage.calls, True
        one.ask("hi")
        two.ask("hi")
        key, heard = stage.looking()
        one.leave()
        heard(Found(entry(key, "kept"), "l3") if found else None)
        if not found:
            stage.answer("hello")
        assert two.take()[2] == ("kept" if found else "hello")
        assert stage.calls == calls + (not found)
        assert stage.settled()
        assert sorted(record.status for record in stage.records[-2:]) == [200, 499]

    run(story)


@pytest.mark.parametrize("both", [False, True])
def test_when_all_leave_meanwhile_nobody_is_asked(both: bool) -> None:
    def story(stage: Stage) -> None:
        people = [Person(stage) for _ in range(1 + both)]
        calls, stage.tiers.later = stage.calls, True
        for one in people:
            one.ask("hi")
        key, heard = stage.looking()
        for one in people:
            one.leave()
        assert stage.settled()
        heard(Found(entry(key, "kept"), "l2"))
        assert stage.calls == calls
        assert stage.settled()
        assert {record.status for record in stage.records[-len(people) :]} == {499}

    run(story)


def test_a_drain_ends_it() -> None:
    def story(stage: Stage) -> None:
        one = Person(stage)
        calls, stage.tiers.later = stage.calls, True
        one.ask("hi")
        one.connection.exchange.interrupt(RequestError("the gateway is going", status=503))  # type: ignore[union-attr,attr-defined]
        assert one.take()[0] == 503
        stage.looking()[1](None)
        assert stage.calls == calls
        assert stage.settled()

    run(story)


def test_a_purge_meanwhile_keeps_what_was_found_from_being_given() -> None:
    def story(stage: Stage) -> None:
        one, two = Person(stage), Person(stage)
        stage.tiers.later = True
        one.ask("hi")
        two.ask("hi")
        key, heard = stage.looking()
        flight = stage.gateway.flights.find(key)
        assert flight is not None
        flight.unwanted = True
        kept = len(stage.tiers.kept)
        heard(Found(entry(key, "purged"), "l2"))
        stage.answer("new")
        assert (one.take()[2], two.take()[2]) == ("new", "new")
        assert len(stage.tiers.kept) == kept
        assert stage.settled()

    run(story)


@pytest.mark.parametrize("joined", [False, True])
def test_what_is_past_its_time_is_given_while_a_new_one_is_fetched(joined: bool) -> None:
    def story(stage: Stage) -> None:
        people = [Person(stage) for _ in range(1 + joined)]
        calls, stage.tiers.later = stage.calls, True
        for one in people:
            one.ask("hi")
        key, heard = stage.looking()
        heard(Found(entry(key, "old", life_s=-1.0, stale_s=60.0), "l3"))
        while stage.tiers.asked:
            key, heard = stage.looking()
            heard(Found(entry(key, "old", life_s=-1.0, stale_s=60.0), "l3"))
        assert [one.take() for one in people] == [(200, "STALE", "old")] * len(people)
        assert stage.calls == calls + 1
        stage.answer("new")
        stage.tiers.later = False
        people[0].ask("hi")
        assert people[0].take() == (200, "HIT", "new")
        assert stage.settled()

    run(story)


def test_a_failure_is_told_to_all_who_joined() -> None:
    def story(stage: Stage) -> None:
        one, two = Person(stage), Person(stage)
        stage.tiers.later = True
        one.ask("hi")
        two.ask("hi")
        stage.looking()[1](None)
        stage.provider.data_received(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 2\r\n\r\n{}")
        assert (one.take()[0], two.take()[0]) == (400, 400)
        assert stage.settled()

    run(story)
