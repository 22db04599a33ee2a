"""Health probes: is a provider there, before a user has to find out; and its list of models, kept fresh.

Every account is asked for its list of models once an interval, or for one token of a chat where that is
configured; while a breaker of an account is open, when the breaker wants it. What is due is decided by
`Schedule`, which knows no sockets and takes time as an argument; `Prober` does what it says. At start nothing is
sent: the first probe comes an interval later.

Only a successful answer's body is read, and only when the list is due or a chat was asked for.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from dandolo.errors import UpstreamError
from dandolo.mind.question import Reply, Request, ask
from dandolo.mind.verdict import Verdict, judge, judge_chat, judge_failure
from dandolo.net.dial import Destination, Dialer
from dandolo.net.tasks import Tasks

_log = logging.getLogger("dandolo")

PARALLEL_MAX = 8
"""Probes at one time; what else is due waits its turn, longest waiting first."""
TIMEOUT_S = 5.0
SPREAD = 0.1
BEAT_S = 0.25
"""A breaker's first probe is due .4 s after it opened at the earliest."""
LIST_BYTES_MAX = 8 * 1024 * 1024
CHAT_BYTES_MAX = 256 * 1024
THREAD_BYTES_MIN = 256 * 1024
"""A longer list is read in a thread, which lets go of the interpreter between rows."""
LIMITED_S = 30.0
LIMITED_MAX_S = 300.0
"""How long an account that answered 429 is left alone: without a Retry-After, and at most."""
LATE_S = 0.05
STARVED_S = 0.5
"""When our own loop was late by more while a probe ran, silence is not the provider's."""


class Breaking(Protocol):
    """What is needed of a breaker (`route.breaker.Breaker`)."""

    @property
    def state(self) -> str:
        """Only "open" ones are probed."""

    def probe_due(self, now: float) -> bool:
        """Whether one is to be sent now; True obliges."""

    def probed(self, now: float, well: bool) -> None:
        """It has come back."""


class Probed(Protocol):
    """What is needed of an account. `label` and `provider` are safe to show."""

    @property
    def label(self) -> str:
        """Unique."""

    @property
    def provider(self) -> str:
        """The name under which lists are kept."""

    @property
    def destination(self) -> Destination:
        """Where to."""

    def listing(self) -> Request:
        """`GET` of the list of models, with the account's credential."""

    def chat(self) -> Request | None:
        """A call for one token; None where none is configured."""

    def breakers(self) -> Iterable[Breaking]:
        """Its breakers, of all models."""


class Listings(Protocol):
    """What is needed of the store of lists (`route.facts.Facts`)."""

    def due(self, provider: str, now: float) -> bool:
        """Whether a list is to be fetched."""

    def read(self, provider: str, body: bytes) -> Any:
        """A list out of an answer, from any thread. Raises ValueError."""

    def replace(self, provider: str, listing: Any, now: float) -> None:
        """Put it in place."""

    def refused(self, provider: str, problem: str, now: float, retry_s: float = ...) -> bool:
        """None came; True when that is news."""


A = TypeVar("A", bound=Probed)


class _Place(Generic[A]):
    """An account in the schedule."""

    __slots__ = ("account", "at", "began", "busy", "ill", "not_before")

    def __init__(self, account: A, at: float) -> None:
        self.account = account
        self.at = at
        self.began = -math.inf
        self.busy = False
        self.ill: set[Breaking] = set()
        """The open breakers that were last told "not well"."""
        self.not_before = -math.inf


@dataclass(frozen=True, slots=True, eq=False)
class Due(Generic[A]):
    """A probe to be sent now. `breakers` wait for its outcome; `refresh`: the list is wanted too."""

    account: A
    breakers: tuple[Breaking, ...]
    refresh: bool
    place: _Place[A]


class Schedule(Generic[A]):
    """When which account is probed. Whatever `due` returns must be handed to `ended`.

    `random` gives numbers in [0, 1).
    """

    def __init__(
        self,
        accounts: Iterable[A],
        listings: Listings,
        interval_s: float,
        now: float,
        random: Callable[[], float],
    ) -> None:
        self._listings = listings
        self._interval_s = interval_s
        self._random = random
        self._places = [_Place(account, now + self._spread()) for account in accounts]
        self._refreshing: set[str] = set()
        self._under_way = 0

    def due(self, now: float) -> list[Due[A]]:
        """The probes to be sent now, within PARALLEL_MAX; at most one of an account, one list of a provider."""
        found: list[Due[A]] = []
        for place in sorted(self._places, key=lambda place: place.began):
            if self._under_way >= PARALLEL_MAX:
                break
            if place.busy or now < place.not_before:
                continue
            # Asked only once there is room: a breaker that says yes waits for the outcome.
            waiting = [one for one in place.account.breakers() if one.state == "open" and one.probe_due(now)]
            if now < place.at and not waiting:
                continue
            provider = place.account.provider
            refresh = provider not in self._refreshing and self._listings.due(provider, now)
            if refresh:
                self._refreshing.add(provider)
            place.busy, place.began, place.at = True, now, now + self._spread()
            self._under_way += 1
            found.append(Due(place.account, tuple(waiting), refresh, place))
        return found

    def ended(self, due: Due[A], now: float, verdict: Verdict | None) -> None:
        """A probe has come back; `verdict` None when it says nothing (it was given up, or we were late)."""
        place = due.place
        place.busy = False
        self._under_way -= 1
        if due.refresh:
            self._refreshing.discard(due.account.provider)
        if verdict is None:
            return
        if verdict.failure == "limited":
            wait_s = LIMITED_S if verdict.retry_after_s is None else verdict.retry_after_s
            place.not_before = now + min(wait_s, LIMITED_MAX_S)
        place.ill = {breaker for breaker in place.ill if breaker.state == "open"}
        for breaker in due.breakers:
            well = verdict.for_breakers(was_ill=breaker in place.ill)
            if well is not None:
                breaker.probed(now, well)
                (place.ill.discard if well else place.ill.add)(breaker)

    def _spread(self) -> float:
        return self._interval_s * (1 - SPREAD + 2 * SPREAD * self._random())


class Prober(Generic[A]):
    """Probes `accounts` for as long as `run` runs, and tells `on_verdict` each outcome.

    `now` is the clock of the breakers and the lists (monotonic seconds). `dialer` may be shared with whoever serves.
    """

    def __init__(
        self,
        accounts: Iterable[A],
        listings: Listings,
        on_verdict: Callable[[A, Verdict], None],
        *,
        interval_s: float,
        dialer: Dialer,
        now: Callable[[], float],
        random: Callable[[], float],
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        self._schedule = Schedule(accounts, listings, interval_s, now(), random)
        self._listings = listings
        self._on_verdict = on_verdict
        self._dialer = dialer
        self._now = now
        self._timeout_s = timeout_s
        self._tasks = Tasks()
        self._runner: asyncio.Task[Any] | None = None
        self._late_s = 0.0
        self.verdicts: dict[str, Verdict] = {}
        """The last one of each account, by label."""

    async def run(self) -> None:
        """Probe until cancelled or closed; whatever is under way then is cancelled too."""
        loop = asyncio.get_running_loop()
        self._runner = asyncio.current_task()
        try:
            while True:
                expected = loop.time() + BEAT_S
                await asyncio.sleep(BEAT_S)
                late_s = loop.time() - expected
                if late_s > LATE_S:
                    self._late_s += late_s
                self.beat()
        finally:
            self._runner = None
            await self._tasks.close()

    async def close(self) -> None:
        """End `run` and every probe."""
        runner = self._runner
        if runner is not None:
            runner.cancel()
            await asyncio.gather(runner, return_exceptions=True)
        await self._tasks.close()

    def beat(self) -> None:
        """Send what is due now (`run` does so every BEAT_S)."""
        for due in self._schedule.due(self._now()):
            self._tasks.spawn(self._probe(due), f"probe of {due.account.label}")

    async def _probe(self, due: Due[A]) -> None:
        verdict: Verdict | None = None
        late_s = self._late_s
        try:
            chat = due.account.chat()
            if chat is None:
                verdict = await self._list(due)
            else:
                verdict = await self._ask(due.account, chat, _chat_wants, judge_chat)
                if due.refresh:
                    await self._list(due)
            if not verdict.well and self._late_s - late_s > STARVED_S:
                verdict = None
        finally:
            self._schedule.ended(due, self._now(), verdict)
        if verdict is not None:
            self._tell(due.account, verdict)

    async def _list(self, due: Due[A]) -> Verdict:
        """Ask for the list, and put it in place when it was due."""
        if not due.refresh:
            return await self._ask(due.account, due.account.listing(), _nothing, judge)
        provider = due.account.provider
        reply: Reply | None = None

        def keep(answer: Reply) -> Verdict:
            nonlocal reply
            reply = answer
            return judge(answer)

        verdict = await self._ask(due.account, due.account.listing(), _list_wants, keep)
        if reply is None or verdict.failure:
            # The verdict is told anyway. The next account may be answered, so the list stays due.
            self._listings.refused(provider, verdict.reason, self._now(), 0.0)
            return verdict
        problem = reply.problem or await self._refresh(provider, reply)
        if problem and self._listings.refused(provider, problem, self._now()):
            _log.warning("the list of models of %s could not be refreshed: %s", provider, problem)
        return verdict

    async def _refresh(self, provider: str, reply: Reply) -> str:
        """Put a fetched list in place; why that could not be done, "" when it was."""
        if reply.status != 200 or reply.body is None:
            return f"it was answered with {reply.status}"
        try:
            if len(reply.body) < THREAD_BYTES_MIN:
                listing = self._listings.read(provider, reply.body)
            else:
                loop = asyncio.get_running_loop()
                listing = await loop.run_in_executor(None, self._listings.read, provider, reply.body)
        except ValueError as error:
            return str(error)
        self._listings.replace(provider, listing, self._now())
        return ""

    async def _ask(
        self,
        account: A,
        request: Request,
        wants: Callable[[int, dict[bytes, bytes]], int],
        judged: Callable[[Reply], Verdict],
    ) -> Verdict:
        try:
            return judged(await ask(self._dialer, account.destination, request, wants, self._timeout_s))
        except UpstreamError as error:
            return judge_failure(error)

    def _tell(self, account: A, verdict: Verdict) -> None:
        before = self.verdicts.get(account.label)
        self.verdicts[account.label] = verdict
        if verdict.failure != (before.failure if before is not None else ""):
            # One line a change, not one a probe.
            if verdict.failure:
                _log.warning("probe of %s: %s (%s)", account.label, verdict.reason, verdict.failure)
            else:
                _log.info("probe of %s: well again", account.label)
        self._on_verdict(account, verdict)


def _nothing(status: int, head: dict[bytes, bytes]) -> int:
    return 0


def _list_wants(status: int, head: dict[bytes, bytes]) -> int:
    return LIST_BYTES_MAX if status == 200 else 0


def _chat_wants(status: int, head: dict[bytes, bytes]) -> int:
    return CHAT_BYTES_MAX if 200 <= status < 300 else 0
