"""The keys of a running gateway: those of the file and of the database, what each has used, and how they change.

The database is looked at a few times a second (`watch`), whoever has changed it, the admin API or the command line.
What follows is handed on as a policy (`adopt`), so that a revoked key is refused within a second. Reading and writing
happen in one thread; at most WAITING_MAX wait for it, then changes are refused.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from dandolo.board import DAY, IN_FLIGHT, MONTH, REQUESTS, RESERVED, TOKENS, Board, Calendar
from dandolo.config.schema import Key
from dandolo.control.keys import FILE, Kept, Keys, read_terms
from dandolo.control.listing import listing, shown_key
from dandolo.control.places import Places
from dandolo.errors import GatewayError, Refusal, RequestError
from dandolo.policy import NO_POLICY, KeyTerms, Policy, effective, terms

WATCH_S: Final = 0.25
SAVE_S: Final = 5.0
"""Between two writings of what was spent; as much is lost when everything dies at once and there is no ledger."""
TEND_S: Final = 30.0
"""Between two looks for places that can be given back."""
WAITING_MAX: Final = 16
SHOWN_MAX: Final = 100
"""Keys on the page, which is made anew each second."""
BUDGETS_MAX: Final = 1000
BUDGETS_S: Final = 30.0

T = TypeVar("T")
_log = logging.getLogger("dandolo")
Spent = Callable[[float], Mapping[str, int]]
"""Of a ledger: micro-USD that each key has spent since a Unix time, by its name."""


class Keyring:
    """`file` gives the configuration's keys, `adopt` takes each new policy, whose keys have places by then, `spent` is
    the ledger's account, which counts where it is more than what was saved here. Call `load` and `restore` before the
    start, `watch` in a task."""

    def __init__(
        self,
        folder: Path,
        board: Board,
        file: Callable[[], Sequence[Key]],
        adopt: Callable[[Policy], None],
        spent: Spent | None = None,
    ) -> None:
        self._folder = folder
        self._board = board
        self._file = file
        self._adopt = adopt
        self.spent = spent
        """Changes with the configuration, which may want a ledger or none."""
        self._keys: Keys | None = None
        self._thread = ThreadPoolExecutor(1, "keys")
        self._waiting = 0
        self._changing: set[asyncio.Future[Any]] = set()
        self._generation = -1
        self._turns = float("inf")
        self._calendar = Calendar(time.time())
        self._saved: dict[tuple[str, str], int] = {}
        self._save_at = self._tend_at = self._budgets_until = 0.0
        self._budgets: list[tuple[str, str, int, int, int]] = []
        self._places = Places(board)
        self._came: dict[str, tuple[int, int]] = {}
        """What keys that have come, and are not on the board yet, have spent today and this month."""
        self._well = True
        self.policy = NO_POLICY
        self._newest = self._taken = NO_POLICY
        """As the database has them, keys without a place among them: read last (in the thread), and handed on last."""

    # -- at the start ------------------------------------------------------------------------------------

    def load(self) -> Policy:
        """The keys of the database, if there is one. Raises InternalError for one that cannot be used."""
        if self._there():
            self.policy = self._read(time.time())
        return self.policy

    def claim(self, file: Sequence[Key]) -> None:
        """Give the keys of a configuration that is to hold from now on their places: before any worker is told of it.
        Raises NoPlace."""
        self._places.claim(map(terms, file))

    def restore(self) -> None:
        """Put what was spent before the start on a new board, for every key with a budget that has no place there, and
        give all others theirs. Raises NoPlace for a key of the file; those of the database that find none are left out.
        """
        names = [one for one in self._budgeted() if self._board.find(one.name) is None]
        self.claim(self._file())
        self.policy = self._places.fit(self.policy)
        names = [one for one in names if one.name not in self._places.without]
        if not names:
            return
        day, month = self._calendar.at(time.time()).names
        saved = self._open().spent((day, month)) if self._there() else {}
        self._saved = dict(saved)
        # Neither knows all: what was saved is seconds old, and the ledger may have journals to read yet.
        told: list[Mapping[str, int]] = [{}, {}] if self.spent is None else list(map(self.spent, self._calendar.began))
        for one in names:
            name = one.name.casefold()
            in_day = max(saved.get((name, day), 0), told[0].get(one.name, 0))
            in_month = max(saved.get((name, month), 0), told[1].get(one.name, 0))
            self._board.restore(self._board.claim(one.name), self._calendar, in_day, in_month)

    # -- while it runs -----------------------------------------------------------------------------------

    async def watch(self) -> None:
        """Look at the database again and again, and keep what was spent."""
        while True:
            await asyncio.sleep(WATCH_S)
            try:
                await self._look(time.time())
                if not self._well:
                    _log.info("the keys' database can be used again")
                self._well = True
            except GatewayError as error:
                # The keys that are known go on; said once.
                if self._well:
                    _log.error("%s; the keys that were known stay", error)
                self._well = False

    async def _look(self, now: float) -> None:
        if self._keys is not None or self._there():
            await self._in_thread(lambda: self._read(now))
            self._take()
        if now >= self._save_at:
            self._save_at = now + SAVE_S
            await self._catch_up(now)
            await self._save(now)
        if now >= self._tend_at:
            self._tend_at = now + TEND_S
            self._tend()

    async def _catch_up(self, now: float) -> None:
        """Charge keys with what the ledger has and the board has not: what workers without a control process spent
        while this one came up and until they ended, what was set aside for calls of a worker that died, fractions of a
        micro-dollar. A call is written down before it is charged, so the ledger is asked first."""
        spent, keys, calendar = self.spent, self._budgeted(), self._calendar.at(now)
        if spent is None or not keys:
            return
        periods = tuple(
            zip((DAY, MONTH), (calendar.day, calendar.month), (calendar.day_stamp, calendar.month_stamp), strict=True)
        )
        began = calendar.began
        told = await self._in_thread(lambda: [spent(since) for since in began])
        for one in keys:
            place = self._board.find(one.name)
            if place is None:
                continue
            for (cell, period, stamp), by_key in zip(periods, told, strict=True):
                missing = by_key.get(one.name, 0) - self._board.spent(place, cell, period)
                if missing > 0:
                    self._board.charge(place, cell, stamp, missing)

    def _take(self) -> None:
        # The newest, whoever has read it: what somebody else began to read before a change must not come after it.
        policy = self._newest
        if policy is self._taken:
            return
        self._taken = policy
        # Who is not known here yet goes on with what he spent under this name before.
        fresh = [one for one in policy.keys if one.name in self._came and self._board.find(one.name) is None]
        fitting = self._places.fit(policy)
        for one in fresh:
            if one.name not in self._places.without:
                self._board.restore(self._board.claim(one.name), self._calendar.at(time.time()), *self._came[one.name])
        if fitting != self.policy:
            self.policy = fitting
            self._adopt(fitting)

    def _tend(self) -> None:
        """Give back the places of keys that are no more, and try those again that found none."""
        if not self._places.crowded:
            return
        held = [one.name for one in effective(self._file(), self.policy.keys) if one.limited]
        if self._places.tend(held, time.monotonic()) and self._places.without:
            self._generation, self._taken = -1, NO_POLICY

    async def _save(self, now: float) -> None:
        day, month = self._calendar.at(now).names
        amounts: dict[tuple[str, str], int] = {}
        for one in self._budgeted():
            place = self._board.find(one.name)
            if place is not None:
                amounts[one.name.casefold(), day] = self._board.spent(place, DAY, self._calendar.day)
                amounts[one.name.casefold(), month] = self._board.spent(place, MONTH, self._calendar.month)
        changed = {key: amount for key, amount in amounts.items() if self._saved.get(key) != amount}
        if any(changed.values()):
            await self._in_thread(lambda: self._open().save_spent(changed, (day, month)))
            self._saved.update(changed)

    async def close(self) -> None:
        """Keep what was spent, and let go of the file."""
        if self._changing:
            await asyncio.wait(self._changing)
        try:
            await self._save(time.time())
            if self._keys is not None:
                await self._in_thread(self._keys.close)
        except GatewayError as error:
            _log.error("what keys have spent is not kept: %s", error)
        self._thread.shutdown(wait=False, cancel_futures=True)

    # -- for the admin listener --------------------------------------------------------------------------

    async def listed(self) -> list[dict[str, Any]]:
        """All keys, those that are revoked too: where each comes from, what it may, what it has used."""
        kept: list[Kept] = []
        if self._keys is not None or self._there():
            kept = await self._in_thread(lambda: self._open().listed())
        file, without = self._file(), self._places.without
        # Ten thousand keys take a second and a half, for which nobody else here should wait.
        return await self._in_thread(lambda: listing(file, kept, self.usage, without))

    async def create(self, name: str, given: Mapping[str, Any]) -> tuple[str, Kept]:
        """Make a key of these terms, as text and as it is kept. Raises RequestError for terms that are none, for a name
        that is taken, and where no place is left."""
        if any(key.name.casefold() == name.casefold() for key in self._file()):
            raise RequestError(
                f"the configuration's file has a key '{name}', which wins; choose another name",
                status=409,
                code="key_exists",
                param="name",
            )
        if not self._places.room_for(read_terms(name, given)):
            raise RequestError(
                f"all {self._board.keys_max} places for keys with limits are taken: revoke some, whose places are given"
                " back when their last requests are over, or make a key without limits",
                status=409,
                code="too_many_keys",
            )
        return await self._change(lambda: self._open().create(name, given, time.time()))

    async def rotate(self, name: str, overlap_s: float) -> tuple[str, Kept]:
        """Put a new key in the place of one. Raises RequestError for one that is not there."""
        return await self._change(lambda: self._open().rotate(name, overlap_s, time.time()))

    async def revoke(self, name: str) -> Kept:
        """Make a key invalid for good. Raises RequestError for one that is not there."""
        return await self._change(lambda: self._open().revoke(name, time.time()))

    def usage(self, name: str) -> dict[str, Any] | None:
        """What a key has used by now, of all workers; None for one of which nothing is counted."""
        place, board = self._board.find(name), self._board
        if place is None:
            return None
        # One of its own: this is asked in the thread, too.
        now, calendar = time.monotonic(), Calendar(time.time())
        return {
            "requests_per_minute": board.minute(place, REQUESTS, now),
            "tokens_per_minute": board.minute(place, TOKENS, now),
            "in_flight": board.total(place, IN_FLIGHT),
            "reserved_usd": board.total(place, RESERVED) / 1e6,
            "spent_usd_day": board.spent(place, DAY, calendar.day, everywhere=True) / 1e6,
            "spent_usd_month": board.spent(place, MONTH, calendar.month, everywhere=True) / 1e6,
        }

    def shown(self, first: Collection[str] = ()) -> list[dict[str, Any]]:
        """The keys that hold now, as /admin/keys has them, at most SHOWN_MAX: those that are named first, of the file
        before those of the database. A last row tells of how many there are besides."""
        file = self._file()
        names = {key.name.casefold() for key in file}
        keys = [(one, "file") for one in map(terms, file)]
        keys += [(one, "database") for one in self.policy.keys if one.name.casefold() not in names]
        more = len(keys) - SHOWN_MAX
        if more > 0:
            wanted = frozenset(first)
            keys.sort(key=lambda key: key[0].name not in wanted)
            del keys[SHOWN_MAX:]
        rows = [{**shown_key(one, source, None), "usage": self.usage(one.name)} for one, source in keys]
        return [*rows, {"name": f"and {more} more"}] if more > 0 else rows

    def budgets(self) -> list[tuple[str, str, int, int, int]]:
        """For alerts: of each key with a budget its name, "day" or "month", and micro-USD: the budget, what is spent of
        it, what is set aside for requests under way. At most BUDGETS_MAX, those of which most is used; where there are
        more keys they are looked at every BUDGETS_S, since all of them take a quarter of a second."""
        now = time.monotonic()
        if now >= self._budgets_until:
            self._budgets = self._look_at_budgets()
            many = len(self._budgets) > BUDGETS_MAX
            if many:
                self._budgets.sort(key=lambda one: one[3] / one[2], reverse=True)
                del self._budgets[BUDGETS_MAX:]
            self._budgets_until = now + BUDGETS_S if many else 0.0
        return self._budgets

    def _look_at_budgets(self) -> list[tuple[str, str, int, int, int]]:
        calendar, board, found = self._calendar.at(time.time()), self._board, []
        for one in self._budgeted():
            place = board.find(one.name)
            if place is None:
                continue
            reserved = board.total(place, RESERVED)
            for period, budget, cell, number in (
                ("day", one.budget_day, DAY, calendar.day),
                ("month", one.budget_month, MONTH, calendar.month),
            ):
                if budget is not None:
                    found.append(
                        (one.name, period, budget, board.spent(place, cell, number, everywhere=True), reserved)
                    )
        return found

    # -- within ------------------------------------------------------------------------------------------

    async def _change(self, change: Callable[[], T]) -> T:
        """Change the database, and tell the workers at once, whether or not whoever asked for it waits for the end: a
        key that was revoked must not live on because its revoker hung up."""
        task = asyncio.ensure_future(self._change_and_tell(change))
        self._changing.add(task)
        task.add_done_callback(self._changing.discard)
        return await asyncio.shield(task)

    async def _change_and_tell(self, change: Callable[[], T]) -> T:
        result = await self._in_thread(change)
        self._generation = -1
        await self._in_thread(lambda: self._read(time.time()))
        self._take()
        return result

    def _read(self, now: float) -> Policy:
        """What the database says now, the same object as long as it does (in the thread, once it runs)."""
        keys = self._open()
        if keys.replaced():
            # Another file stands in its place (a backup that was put back).
            keys.close()
            self._keys, self._generation = None, -1
            keys = self._open()
        generation = keys.generation()
        if generation != self._generation or now >= self._turns:
            policy = keys.policy(now)
            if self._newest.closed and not policy.closed:
                # Nobody is let in without a key because the file with them is gone.
                policy = msgspec.structs.replace(policy, closed=True)
            self._generation = generation
            self._turns = min(
                (one.until for key in policy.keys for one in key.digests if one.until is not None),
                default=float("inf"),
            )
            self._came = self._spent_by(keys, policy, now)
            if policy != self._newest:
                self._newest = policy
        return self._newest

    def _spent_by(self, keys: Keys, policy: Policy, now: float) -> dict[str, tuple[int, int]]:
        """What those with a budget have spent who are not on the board: under their names before, if at all."""
        names = [one.name for one in policy.keys if one.budgeted and self._board.find(one.name) is None]
        if not names:
            return {}
        day, month = Calendar(now).names
        spent = keys.spent((day, month))
        found = {name: (spent.get((name.casefold(), day), 0), spent.get((name.casefold(), month), 0)) for name in names}
        return {name: amounts for name, amounts in found.items() if any(amounts)}

    @property
    def without(self) -> frozenset[str]:
        """Names of keys of the database that are not let in, since no place is left for them."""
        return self._places.without

    def lasting(self, seconds: float) -> None:
        """A request of a configuration that is to hold may take so long: as long may one of a key that is no more."""
        self._places.lasts_s = max(self._places.lasts_s, seconds)

    def _there(self) -> bool:
        """Whether there is a database. One that found no room on the disk when it was made is an empty file."""
        try:
            return (self._folder / FILE).stat().st_size > 0
        except OSError:
            return False

    def _open(self) -> Keys:
        if self._keys is None:
            self._keys = Keys(self._folder)
        return self._keys

    def _budgeted(self) -> list[KeyTerms]:
        return [one for one in effective(self._file(), self.policy.keys) if one.budgeted]

    async def _in_thread(self, call: Callable[[], T]) -> T:
        if self._waiting >= WAITING_MAX:
            raise Refusal("too many changes of keys are waiting; try again", retry_after_s=1.0)
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, call)
        finally:
            self._waiting -= 1
