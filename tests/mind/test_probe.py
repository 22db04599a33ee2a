"""When who is probed, by a clock that is an argument; then the prober itself over real sockets."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest
import trustme

from dandolo.api.profiles import PROFILES
from dandolo.api.profiles.listing import Listing, read
from dandolo.mind import probe
from dandolo.mind.probe import LIMITED_MAX_S, LIMITED_S, PARALLEL_MAX, Due, Prober, Schedule
from dandolo.mind.question import Request
from dandolo.mind.verdict import Verdict
from dandolo.net.dial import Destination, Dialer
from dandolo.route.breaker import FAILURES_MAX, PROBE_EVERY_S, Breaker
from dandolo.sim import Fault, Script, SimProvider
from dandolo.sim.server import free_port

WELL, ILL = Verdict(True), Verdict(False, "server", "it answered 500")
TIMEOUT_S = 5.0
SOON_S = 0.25


class Lists:
    """A store of lists that are due until they came."""

    def __init__(self, *due: str) -> None:
        self.wanted = set(due)
        self.held: dict[str, Listing] = {}
        self.problems: dict[str, str] = {}
        self.retries: list[float] = []

    def due(self, provider: str, now: float) -> bool:
        return provider in self.wanted

    def read(self, provider: str, body: bytes) -> Listing:
        return read(PROFILES["generic"], body)

    def replace(self, provider: str, listing: Listing, now: float) -> None:
        self.wanted.discard(provider)
        self.held[provider] = listing

    def refused(self, provider: str, problem: str, now: float, retry_s: float = 60.0) -> bool:
        self.retries.append(retry_s)
        news = self.problems.get(provider) != problem
        self.problems[provider] = problem
        return news


@dataclass(eq=False)
class Account:
    label: str
    provider: str = "p"
    destination: Destination = Destination("127.0.0.1", 9)  # noqa: RUF009 (frozen)
    own: list[Breaker] = field(default_factory=list)
    chat_body: bytes | None = None

    def listing(self) -> Request:
        return Request(b"GET /v1/models HTTP/1.1\r\nhost: h\r\nauthorization: Bearer sk-Canary0123456789\r\n")

    def chat(self) -> Request | None:
        if self.chat_body is None:
            return None
        head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: h\r\ncontent-type: application/json\r\n"
        return Request(head, self.chat_body)

    def breakers(self) -> list[Breaker]:
        return self.own


# -- the schedule ----------------------------------------------------------------------------------------------


def schedule(*accounts: Account, lists: Lists | None = None, random: float = 0.5) -> Schedule[Account]:
    return Schedule(accounts, lists or Lists(), 30.0, 0.0, lambda: random)


def labels(found: list[Due[Account]]) -> list[str]:
    return [due.account.label for due in found]


def opened(now: float) -> Breaker:
    breaker = Breaker(lambda: 0.5)
    for _ in range(FAILURES_MAX):
        breaker.failed(now)
    assert breaker.state == "open"
    return breaker


def test_nothing_is_sent_at_start_and_then_once_an_interval() -> None:
    plan = schedule(Account("a"))
    assert plan.due(0.0) == plan.due(29.9) == []
    (due,) = plan.due(30.0)
    assert plan.due(61.0) == []  # one at a time
    plan.ended(due, 61.0, WELL)
    assert labels(plan.due(61.0)) == ["a"]


@pytest.mark.parametrize(("random", "first"), [(0.0, 27.0), (0.999999, 33.0)])
def test_intervals_vary_by_a_tenth(random: float, first: float) -> None:
    plan = schedule(Account("a"), random=random)
    assert plan.due(first - 0.1) == []
    (due,) = plan.due(first + 0.1)
    plan.ended(due, first + 0.1, WELL)
    assert plan.due(2 * first) == []
    assert labels(plan.due(2 * first + 0.2)) == ["a"]


def test_an_open_breaker_is_probed_every_two_seconds_until_it_lets_calls_through() -> None:
    breaker, other = opened(0.0), Breaker(lambda: 0.5)
    plan = schedule(Account("a", own=[breaker, other]))
    assert plan.due(0.4) == []
    (due,) = plan.due(0.5)
    assert due.breakers == (breaker,)
    plan.ended(due, 0.6, ILL)
    assert breaker.retry_after_s(0.6) == 3.0
    assert plan.due(0.6) == []
    (due,) = plan.due(0.5 + PROBE_EVERY_S)
    plan.ended(due, 2.6, WELL)
    assert breaker.admits(2.6)
    assert plan.due(29.0) == []
    # What the breaker asked for counts as the account's probe: the interval begins anew.
    assert plan.due(32.4) == []
    assert labels(plan.due(32.5)) == ["a"]


def test_lists_that_came_all_along_let_no_breaker_out() -> None:
    # Calls fail while the list comes: users would be the trial every two seconds.
    breaker = opened(0.0)
    plan = schedule(Account("a", own=[breaker]))
    before = breaker.retry_after_s(0.6)
    (due,) = plan.due(0.5)
    plan.ended(due, 0.6, WELL)
    assert breaker.retry_after_s(0.6) == before


def test_a_recovery_is_not_missed_for_a_probe_that_no_breaker_waited_for() -> None:
    breaker = opened(0.0)
    plan = schedule(Account("a", own=[breaker]))
    (due,) = plan.due(29.0)
    plan.ended(due, 29.1, ILL)
    breaker.shut(29.1, 29.2, "")  # keeps it open, and its next probe at its time
    plan._places[0].at = 30.0
    (due,) = plan.due(30.0)
    assert due.breakers == ()
    plan.ended(due, 30.1, WELL)
    assert breaker.retry_after_s(30.1) == pytest.approx(2.0)
    (due,) = plan.due(31.0)
    plan.ended(due, 31.1, WELL)
    assert breaker.retry_after_s(31.1) == 0.0


def test_an_illness_of_an_earlier_opening_is_forgotten() -> None:
    breaker = opened(0.0)
    plan = schedule(Account("a", own=[breaker]))
    (due,) = plan.due(0.5)
    plan.ended(due, 0.6, ILL)
    now = 0.6 + breaker.retry_after_s(0.6)
    for _ in range(2):
        assert breaker.admits(now)
        breaker.succeeded(now)
    assert breaker.state == "closed"
    (due,) = plan.due(40.0)
    plan.ended(due, 40.0, WELL)
    for _ in range(FAILURES_MAX):
        breaker.failed(40.1)
    (due,) = plan.due(41.0)
    plan.ended(due, 41.0, WELL)
    assert breaker.retry_after_s(41.0) > 0


def test_a_completion_lets_a_breaker_out() -> None:
    breaker = opened(0.0)
    plan = schedule(Account("a", own=[breaker]))
    (due,) = plan.due(0.5)
    plan.ended(due, 0.6, Verdict(True, completion=True))
    assert breaker.retry_after_s(0.6) == 0.0


@pytest.mark.parametrize("failure", ["auth", "quota", "limited", "refused"])
def test_what_says_nothing_about_calls_is_kept_from_breakers(failure: Any) -> None:
    breaker = opened(0.0)
    plan = schedule(Account("a", own=[breaker]))
    before = breaker.retry_after_s(0.6)
    (due,) = plan.due(0.5)
    plan.ended(due, 0.6, Verdict(True, failure, "why"))
    assert breaker.retry_after_s(0.6) == before


def test_a_probe_given_up_says_nothing() -> None:
    breaker = opened(0.0)
    plan = schedule(Account("a", own=[breaker]))
    before = breaker.retry_after_s(0.6)
    (due,) = plan.due(0.5)
    plan.ended(due, 0.6, None)
    assert breaker.retry_after_s(0.6) == before
    assert labels(plan.due(0.5 + PROBE_EVERY_S)) == ["a"]


def test_a_breaker_that_was_shut_until_a_known_time_is_left_alone_until_then() -> None:
    breaker = Breaker(lambda: 0.5)
    breaker.shut(0.0, 100.0, "no credit")
    plan = schedule(Account("a", own=[breaker]))
    (due,) = plan.due(30.0)
    assert due.breakers == ()
    plan.ended(due, 30.1, WELL)
    assert breaker.retry_after_s(30.1) == pytest.approx(69.9)


@pytest.mark.parametrize(("said", "wait_s"), [(None, LIMITED_S), (7.0, 7.0), (0.0, 0.0), (86_400.0, LIMITED_MAX_S)])
def test_a_limit_is_waited_out(said: float | None, wait_s: float) -> None:
    breaker = opened(0.0)
    plan = schedule(Account("a", own=[breaker]))
    (due,) = plan.due(0.5)
    plan.ended(due, 1.0, Verdict(True, "limited", "it answered 429", 429, retry_after_s=said))
    if wait_s:
        assert plan.due(max(1.0, 1.0 + wait_s - 0.1)) == []
    assert labels(plan.due(max(2.5, 1.0 + wait_s))) == ["a"]


def test_no_more_than_a_few_at_a_time_and_who_waits_longest_comes_first() -> None:
    plan = schedule(*[Account(f"a{i}") for i in range(PARALLEL_MAX + 3)])
    first = plan.due(40.0)
    assert labels(first) == [f"a{i}" for i in range(PARALLEL_MAX)]
    assert plan.due(41.0) == []
    plan.ended(first[0], 75.0, WELL)
    plan.ended(first[1], 75.0, WELL)
    # a0 is due again by now, but a8 and a9 have not had their turn.
    assert labels(plan.due(75.0)) == ["a8", "a9"]


def test_a_breaker_is_not_asked_while_there_is_no_room() -> None:
    # It would take the answer for granted and wait for an outcome that never comes.
    breaker = opened(0.0)
    last = Account("last", own=[breaker])
    plan = schedule(*[Account(f"a{i}") for i in range(PARALLEL_MAX)], last)
    many = plan.due(40.0)
    assert "last" not in labels(many)
    plan.ended(many[0], 40.1, WELL)
    (due,) = plan.due(40.2)
    assert due.breakers == (breaker,)


def test_a_list_is_fetched_through_one_account_at_a_time() -> None:
    lists = Lists("p")
    plan = schedule(Account("a"), Account("b"), Account("c", "q"), lists=lists)
    found = plan.due(40.0)
    assert [(due.account.label, due.refresh) for due in found] == [("a", True), ("b", False), ("c", False)]
    for due in found:
        plan.ended(due, 41.0, WELL)
    assert [due.refresh for due in plan.due(80.0)] == [True, False, False]


# -- over sockets ----------------------------------------------------------------------------------------------


class Bench:
    """A prober on a clock of its own, whose every beat is called for."""

    def __init__(self, *accounts: Account, lists: Lists | None = None, timeout_s: float = TIMEOUT_S) -> None:
        self.time = 0.0
        self.lists = lists or Lists()
        self.outcomes: list[tuple[str, Verdict]] = []
        self.prober = Prober(
            accounts,
            self.lists,
            lambda account, verdict: self.outcomes.append((account.label, verdict)),
            interval_s=30.0,
            dialer=Dialer(),
            now=lambda: self.time,
            random=lambda: 0.5,
            timeout_s=timeout_s,
        )

    async def round(self) -> list[Verdict]:
        """One interval later: what came of it."""
        self.time += 31.0
        before = len(self.outcomes)
        self.prober.beat()
        await self.settled()
        return [verdict for _, verdict in self.outcomes[before:]]

    async def settled(self) -> None:
        async with asyncio.timeout(TIMEOUT_S):
            while len(self.prober._tasks):
                await asyncio.sleep(0.005)


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(main)


def at(sim: SimProvider, label: str = "a", **more: Any) -> Account:
    return Account(label, destination=Destination(sim.host, sim.port), **more)


def test_a_provider_that_answers_is_well_and_its_list_is_read_once() -> None:
    async def main() -> None:
        async with SimProvider("sim", "venice", key="sk-Canary0123456789") as sim:
            bench = Bench(at(sim), lists=Lists("p"))
            bench.prober.beat()
            await bench.settled()
            assert sim.received == 0  # nothing at start
            (verdict,) = await bench.round()
            assert (verdict.well, verdict.failure, verdict.status) == (True, "", 200)
            assert verdict.latency_s is not None
            assert verdict.latency_s > 0
            held = bench.lists.held.pop("p")
            assert held.models["sim-small"].input_usd_per_mtok == 0.5
            await bench.round()
            assert bench.lists.held == {}
            assert [one.target for one in sim.requests] == ["/v1/models"] * 2
            assert sim.protocol_errors == []
            async with asyncio.timeout(TIMEOUT_S):
                while sim.connections_open:
                    await asyncio.sleep(0.005)

    run(main())


FAULTS: list[tuple[Fault, bool, str]] = [
    (Fault("status", status=500), False, "server"),
    (Fault("status", status=503), False, "server"),
    (Fault("html_200"), False, "invalid"),
    (Fault("raw", data=b"\x00\x01\x02 garbage\r\n\r\n"), False, "invalid"),
    (Fault("close_before_answer"), False, "connect"),
    (Fault("reset_before_answer"), False, "connect"),
    (Fault("hang_before_answer"), False, "timeout"),
    (Fault("dribble", delay_s=0.05), False, "timeout"),
    (Fault("endless_1xx", delay_s=0.0), False, "invalid"),
    (Fault("switching_101"), False, "invalid"),
    (Fault("redirect", headers=(("location", "/elsewhere"),)), True, ""),
    (Fault("status", status=404), True, ""),
    (Fault("status", status=401), True, "auth"),
    (Fault("status", status=402), True, "quota"),
    (Fault("status", status=429, headers=(("retry-after", "3"),)), True, "limited"),
    (Fault("huge_header"), False, "invalid"),
]


@pytest.mark.parametrize(("fault", "well", "failure"), FAULTS, ids=[f"{f.kind}-{f.status}" for f, _, _ in FAULTS])
def test_what_a_provider_does_is_judged(fault: Fault, well: bool, failure: str) -> None:
    async def main() -> None:
        async with SimProvider("sim", script=Script(faults=(fault,))) as sim:
            breaker = opened(0.0)
            bench = Bench(at(sim, own=[breaker]), lists=Lists("p"), timeout_s=SOON_S)
            (verdict,) = await bench.round()
            assert (verdict.well, verdict.failure) == (well, failure)
            assert breaker.admits(bench.time) is well
            assert bench.lists.held == {}
            assert bench.lists.problems["p"]
            # A redirect is not followed: nobody asked for anything else.
            assert [one.target for one in sim.requests] == ["/v1/models"]
            (verdict,) = await bench.round()
            assert verdict == bench.prober.verdicts["a"]
            assert verdict.well
            assert set(bench.lists.held) == {"p"}

    run(main())


def test_a_provider_that_is_down_is_not_well_and_comes_back() -> None:
    async def main() -> None:
        async with SimProvider("sim", key="sk-Canary0123456789") as sim:
            bench = Bench(at(sim))
            sim.kill()
            (verdict,) = await bench.round()
            assert (verdict.well, verdict.failure) == (False, "connect")
            await sim.revive()
            (verdict,) = await bench.round()
            assert verdict.well
        bench = Bench(Account("b", destination=Destination("127.0.0.1", free_port())))
        (verdict,) = await bench.round()
        assert verdict.failure == "connect"

    run(main())


BODIES: list[tuple[str, Fault, str]] = [
    ("cut", Fault("truncated_body"), "before its answer was complete"),
    ("reset", Fault("cut_rst"), "reset"),
    ("stalled", Fault("stall"), "not whole within"),
    ("garbage", Fault("raw", data=b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n{]}"), "expected"),
    ("empty", Fault("empty_200"), "expected"),
    ("compressed", Fault("gzip"), "expected"),
    (
        "huge",
        Fault("raw", data=b"HTTP/1.1 200 OK\r\ncontent-length: 99999999\r\n\r\n" + b" " * (probe.LIST_BYTES_MAX + 1)),
        "more than 8388608 bytes",
    ),
]


@pytest.mark.parametrize(("fault", "words"), [body[1:] for body in BODIES], ids=[body[0] for body in BODIES])
def test_a_list_that_cannot_be_read_says_nothing_of_health(
    fault: Fault, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        script = Script(faults=(fault, fault))
        async with SimProvider("sim", script=script) as sim:
            bench = Bench(at(sim), lists=Lists("p"), timeout_s=0.5 if "bytes" not in words else TIMEOUT_S)
            for _ in range(2):
                (verdict,) = await bench.round()
                assert (verdict.well, verdict.failure) == (True, "")
                assert words in bench.lists.problems["p"]
            assert bench.lists.retries == [60.0, 60.0]
            await bench.round()
            assert set(bench.lists.held) == {"p"}

    with caplog.at_level(logging.INFO, "dandolo"):
        run(main())
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("the list of models of p could not be refreshed: ")


def test_one_line_is_logged_for_each_change_and_none_shows_a_key(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        fault = Fault("status", status=500, body='{"error":"sk-Canary0123456789"}', times=3)
        script = Script(faults=(fault, Fault("status", status=401)))
        async with SimProvider("sim", script=script) as sim:
            bench = Bench(at(sim), lists=Lists("p"))
            for _ in range(6):
                await bench.round()

    with caplog.at_level(logging.INFO, "dandolo"):
        run(main())
    assert [record.getMessage() for record in caplog.records] == [
        "probe of a: it answered 500 (server)",
        "probe of a: it answered 401 (auth)",
        "probe of a: well again",
    ]
    assert "Canary" not in caplog.text


def test_a_long_list_is_read_too() -> None:
    ids = [f"model-{i:05}-{'x' * 60}" for i in range(4000)]
    body = msgspec.json.encode({"data": [{"id": one} for one in ids]})
    assert len(body) > probe.THREAD_BYTES_MIN

    async def main() -> None:
        fault = Fault("raw", data=b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body), size=1 << 20)
        async with SimProvider("sim", script=Script(faults=(fault,))) as sim:
            bench = Bench(at(sim), lists=Lists("p"))
            await bench.round()
            assert list(bench.lists.held["p"].models) == ids

    run(main())


CHATS: list[tuple[Fault, bool, str]] = [
    (Fault("ok"), True, ""),
    (Fault("status", status=500), False, "server"),
    (Fault("error_200"), False, "server"),
    (Fault("empty_200"), False, "invalid"),
    (Fault("cut_fin"), False, "invalid"),
    (Fault("status", status=404), True, "refused"),
]


@pytest.mark.parametrize(("fault", "well", "failure"), CHATS, ids=[f"{f.kind}-{f.status}" for f, _, _ in CHATS])
def test_where_a_chat_is_configured_its_outcome_counts(fault: Fault, well: bool, failure: str) -> None:
    body = b'{"model":"sim-small","messages":[{"role":"user","content":"1"}],"max_tokens":1}'

    async def main() -> None:
        async with SimProvider("sim", script=Script(faults=(fault,))) as sim:
            bench = Bench(at(sim, chat_body=body), lists=Lists("p"))
            (verdict,) = await bench.round()
            assert (verdict.well, verdict.failure, verdict.completion) == (well, failure, not failure)
            # The list is fetched beside it when it is due, whatever came of the chat.
            assert [one.target for one in sim.requests] == ["/v1/chat/completions", "/v1/models"]
            assert sim.requests[0].body == body
            assert set(bench.lists.held) == {"p"}
            await bench.round()
            assert [one.target for one in sim.requests[2:]] == ["/v1/chat/completions"]

    run(main())


def test_a_private_authority_is_trusted_where_it_is_configured() -> None:
    authority = trustme.CA()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(server)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)

    async def main() -> None:
        async with SimProvider("sim", ssl=server) as sim:
            bench = Bench(
                Account("a", destination=Destination("localhost", sim.port, tls=trusting)),
                Account("b", "q", destination=Destination("localhost", sim.port, tls=ssl.create_default_context())),
                lists=Lists("p", "q"),
            )
            await bench.round()
            outcomes = dict(bench.outcomes)
            assert outcomes["a"].well
            assert outcomes["b"].failure == "connect"
            assert "certificate" in outcomes["b"].reason
            assert set(bench.lists.held) == {"p"}

    run(main())


def test_our_own_lateness_is_nobodys_failure() -> None:
    async def main() -> None:
        async with SimProvider("sim", script=Script(faults=(Fault("hang_before_answer"),))) as sim:
            bench = Bench(at(sim, own=[breaker := opened(0.0)]), timeout_s=SOON_S)
            bench.time += 31.0
            bench.prober.beat()
            await asyncio.sleep(0)
            bench.prober._late_s += probe.STARVED_S + 0.1
            await bench.settled()
            assert bench.outcomes == []
            assert breaker.retry_after_s(bench.time) == 0.0
            (verdict,) = await bench.round()
            assert verdict.well

    run(main())


def test_it_runs_until_it_is_closed_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "BEAT_S", 0.01)

    async def until(condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(TIMEOUT_S):
            while not condition():
                await asyncio.sleep(0.005)

    async def main() -> None:
        script = Script(default_fault=Fault("hang_before_answer"))
        async with SimProvider("sim", script=script) as sim:
            loop = asyncio.get_running_loop()
            bench = Bench(at(sim))
            bench.prober = Prober(
                [at(sim)],
                bench.lists,
                lambda account, verdict: bench.outcomes.append((account.label, verdict)),
                interval_s=0.05,
                dialer=Dialer(),
                now=loop.time,
                random=lambda: 0.5,
            )
            for ending in (bench.prober.close, None):
                running = asyncio.ensure_future(bench.prober.run())
                await until(lambda: sim.in_flight == 1)
                if ending is not None:
                    await ending()
                else:
                    running.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await running
                assert len(bench.prober._tasks) == 0
                await until(lambda: sim.connections_open == 0)
            await bench.prober.close()
            assert bench.outcomes == []

    run(main())
