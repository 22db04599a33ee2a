"""The keys of a running gateway: those of the file and of the database, what each has used, and how they change.

The database is looked at a few times a second (`watch`), whoever has changed it, the admin API or the command line.
What follows is handed on as a policy (`adopt`), so that a revoked key is refused within a second. Reading and writing
happen in one thread; at most WAITING_MAX wait for it, then changes are refused.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from dandolo.board import DAY, IN_FLIGHT, MONTH, REQUESTS, RESERVED, TOKENS, Board, Calendar, NoPlace
from dandolo.clock import timestamp
from dandolo.config.schema import Key
from dandolo.control.keys import FILE, OVERLAP_S, TERMS, Kept, Keys
from dandolo.control.route import JSON, Answer, Asked, Route
from dandolo.errors import GatewayError, Refusal, RequestError
from dandolo.policy import NO_POLICY, KeyTerms, Policy, effective, terms

WATCH_S: Final = 0.25
SAVE_S: Final = 5.0
"""Between two writings of what was spent; as much is lost when everything dies at once and there is no ledger."""
WAITING_MAX: Final = 16

T = TypeVar("T")
_log = logging.getLogger("dandolo")
_encode = msgspec.json.Encoder().encode
_NAME = {"type": "string", "description": "1 to 64 letters, digits, dots, dashes, underscores"}
_COUNT = {"type": "integer", "minimum": 1}
_USD = {"type": "number", "exclusiveMinimum": 0}
_CREATE = {
    "type": "object",
    "required": ["name"],
    "additionalProperties": False,
    "properties": {
        "name": _NAME,
        "priority": {"enum": ["high", "normal", "low"]},
        "rpm": _COUNT,
        "tpm": _COUNT,
        "concurrent": _COUNT,
        "budget_usd_per_day": _USD,
        "budget_usd_per_month": _USD,
        "models": {"type": "array", "items": {"type": "string"}},
        "cache_scope": {"enum": ["key", "shared"]},
        "privacy": {"type": "boolean"},
        "tags": {"type": "object", "additionalProperties": {"type": "string"}},
    },
}
_ROTATE = {
    "type": "object",
    "additionalProperties": False,
    "properties": {"overlap_s": {"type": "number", "minimum": 0, "description": "how long the old key stays valid"}},
}

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
        self._spent = spent
        self._keys: Keys | None = None
        self._thread = ThreadPoolExecutor(1, "keys")
        self._waiting = 0
        self._generation = -1
        self._turns = float("inf")
        self._calendar = Calendar(time.time())
        self._saved: dict[tuple[str, str], int] = {}
        self._save_at = 0.0
        self._well = True
        self.policy = NO_POLICY

    # -- at the start ------------------------------------------------------------------------------------

    def load(self) -> Policy:
        """The keys of the database, if there is one. Raises InternalError for one that cannot be used."""
        if (self._folder / FILE).exists():
            self.policy = self._read(time.time())
        return self.policy

    def claim(self, file: Sequence[Key]) -> None:
        """Give every key with limits a place on the board, those of a configuration that is to hold from now on too:
        before any worker is told of it. Raises NoPlace."""
        for one in effective(file, self.policy.keys):
            if one.limited:
                self._board.claim(one.name)

    def restore(self) -> None:
        """Put what was spent before the start on a new board, for every key with a budget that has no place there, and
        give all others theirs. Raises NoPlace."""
        names = [one for one in self._budgeted() if self._board.find(one.name) is None]
        self.claim(self._file())
        if not names:
            return
        day, month = self._calendar.at(time.time()).names
        saved = self._open().spent((day, month)) if (self._folder / FILE).exists() else {}
        self._saved = dict(saved)
        # Neither knows all: what was saved is seconds old, and the ledger may have journals to read yet.
        told: list[Mapping[str, int]] = (
            [{}, {}] if self._spent is None else list(map(self._spent, self._calendar.began))
        )
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
        if self._keys is not None or (self._folder / FILE).exists():
            policy = await self._in_thread(lambda: self._read(now))
            self._take(policy)
        if now >= self._save_at:
            self._save_at = now + SAVE_S
            await self._catch_up(now)
            await self._save(now)

    async def _catch_up(self, now: float) -> None:
        """Charge keys with what the ledger has and the board has not: what workers without a control process spent
        while this one came up and until they ended, what was set aside for calls of a worker that died, fractions of a
        micro-dollar. A call is written down before it is charged, so the ledger is asked first."""
        spent, keys, calendar = self._spent, self._budgeted(), self._calendar.at(now)
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

    def _take(self, policy: Policy) -> None:
        if policy is self.policy:
            return
        try:
            for one in policy.keys:
                if one.limited:
                    self._board.claim(one.name)
            self._adopt(policy)
        except NoPlace as error:
            _log.error("keys are not taken over: %s", error)
        self.policy = policy

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
        try:
            await self._save(time.time())
            if self._keys is not None:
                await self._in_thread(self._keys.close)
        except GatewayError as error:
            _log.error("what keys have spent is not kept: %s", error)
        self._thread.shutdown(wait=False, cancel_futures=True)

    # -- for the admin listener --------------------------------------------------------------------------

    def routes(self) -> list[Route]:
        """What may be done with keys."""
        return [
            Route("GET", b"/admin/keys", self._list, "all keys: where each comes from, what it may, what it has used"),
            Route(
                "POST",
                b"/admin/keys",
                self._create,
                "make a key, which is shown this once",
                schema=_CREATE,
                facts=("name", *TERMS),
            ),
            Route(
                "POST",
                b"/admin/keys/",
                self._rotate,
                "put a new key, shown this once, in the place of one",
                schema=_ROTATE,
                facts=("overlap_s",),
                rest="name",
            ),
            Route("DELETE", b"/admin/keys/", self._revoke, "make a key of the database invalid for good", rest="name"),
        ]

    async def _list(self, asked: Asked) -> Answer:
        kept: list[Kept] = []
        if self._keys is not None or (self._folder / FILE).exists():
            kept = await self._in_thread(lambda: self._open().listed())
        return _answer(200, {"keys": listing(self._file(), kept, self.usage)})

    async def _create(self, asked: Asked) -> Answer:
        given = _object(asked.body)
        name = given.pop("name", None)
        if not isinstance(name, str):
            raise RequestError("the field 'name' is missing or no text", param="name")
        if any(key.name.casefold() == name.casefold() for key in self._file()):
            raise RequestError(
                f"the configuration's file has a key '{name}', which wins; choose another name",
                status=409,
                code="key_exists",
                param="name",
            )
        key, kept = await self._change(lambda: self._open().create(name, given, time.time()))
        return _answer(201, {"key": key, **_shown(kept.terms, "database", kept)})

    async def _rotate(self, asked: Asked) -> Answer:
        given = _object(asked.body) if asked.body else {}
        overlap_s = given.pop("overlap_s", OVERLAP_S)
        if given or isinstance(overlap_s, bool) or not isinstance(overlap_s, (int, float)):
            raise RequestError("expected an object with overlap_s (seconds) or without anything", param="overlap_s")
        key, kept = await self._change(lambda: self._open().rotate(_text(asked.rest), float(overlap_s), time.time()))
        return _answer(200, {"key": key, **_shown(kept.terms, "database", kept)})

    async def _revoke(self, asked: Asked) -> Answer:
        kept = await self._change(lambda: self._open().revoke(_text(asked.rest), time.time()))
        return _answer(200, _shown(kept.terms, "database", kept))

    def usage(self, name: str) -> dict[str, Any] | None:
        """What a key has used by now, of all workers; None for one of which nothing is counted."""
        place, board = self._board.find(name), self._board
        if place is None:
            return None
        now, calendar = time.monotonic(), self._calendar.at(time.time())
        return {
            "requests_per_minute": board.minute(place, REQUESTS, now),
            "tokens_per_minute": board.minute(place, TOKENS, now),
            "in_flight": board.total(place, IN_FLIGHT),
            "reserved_usd": board.total(place, RESERVED) / 1e6,
            "spent_usd_day": board.spent(place, DAY, calendar.day, everywhere=True) / 1e6,
            "spent_usd_month": board.spent(place, MONTH, calendar.month, everywhere=True) / 1e6,
        }

    def shown(self) -> list[dict[str, Any]]:
        """The keys that hold now, as /admin/keys has them: those of the file, then those of the database."""
        file = self._file()
        names = {key.name.casefold() for key in file}
        kept = [one for one in self.policy.keys if one.name.casefold() not in names]
        rows = listing(file, (), self.usage)
        return [*rows, *({**_shown(one, "database", None), "usage": self.usage(one.name)} for one in kept)]

    def budgets(self) -> list[tuple[str, str, int, int, int]]:
        """For alerts: of each key with a budget its name, "day" or "month", and micro-USD: the budget, what is spent of
        it, what is set aside for requests under way."""
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
        """Change the database, and tell the workers at once."""
        result = await self._in_thread(change)
        self._generation = -1
        self._take(await self._in_thread(lambda: self._read(time.time())))
        return result

    def _read(self, now: float) -> Policy:
        """The policy that holds, the same object as long as it does (in the thread, once it runs)."""
        keys = self._open()
        if keys.replaced():
            # Another file stands in its place (a backup that was put back).
            keys.close()
            self._keys, self._generation = None, -1
            keys = self._open()
        generation = keys.generation()
        if generation != self._generation or now >= self._turns:
            policy = keys.policy(now)
            if self.policy.closed and not policy.closed:
                # Nobody is let in without a key because the file with them is gone.
                policy = msgspec.structs.replace(policy, closed=True)
            self._generation = generation
            self._turns = min(
                (one.until for key in policy.keys for one in key.digests if one.until is not None),
                default=float("inf"),
            )
            if policy != self.policy:
                return policy
        return self.policy

    def _open(self) -> Keys:
        if self._keys is None:
            self._keys = Keys(self._folder)
        return self._keys

    def _budgeted(self) -> list[KeyTerms]:
        return [
            one
            for one in effective(self._file(), self.policy.keys)
            if one.budget_day is not None or one.budget_month is not None
        ]

    async def _in_thread(self, call: Callable[[], T]) -> T:
        if self._waiting >= WAITING_MAX:
            raise Refusal("too many changes of keys are waiting; try again", retry_after_s=1.0)
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, call)
        finally:
            self._waiting -= 1


def listing(
    file: Sequence[Key], kept: Sequence[Kept], usage: Callable[[str], dict[str, Any] | None] = lambda name: None
) -> list[dict[str, Any]]:
    """All keys for people: those of the file first, which win; of the database those that are valid, then the others.

    `status` is valid, revoked, or shadowed (the file has the name).
    """
    names = {key.name.casefold() for key in file}
    rows = [{**_shown(terms(key), "file", None), "usage": usage(key.name)} for key in file]
    for one in sorted(kept, key=lambda one: one.revoked is not None):
        row = _shown(one.terms, "database", one)
        if one.revoked is None and one.name.casefold() in names:
            row["status"] = "shadowed"
        elif one.revoked is None:
            row["usage"] = usage(one.name)
        rows.append(row)
    return rows


def _shown(terms: KeyTerms, source: str, kept: Kept | None) -> dict[str, Any]:
    """A key without anything secret; the beginning of its digest tells two of the same name apart."""
    row: dict[str, Any] = {
        "name": terms.name,
        "source": source,
        "status": "valid" if kept is None or kept.revoked is None else "revoked",
        "sha256": terms.digests[0].sha256.hex()[:12] if terms.digests else "",
    }
    if kept is not None:
        row["created"] = timestamp(kept.created)
        if kept.revoked is not None:
            row["revoked"] = timestamp(kept.revoked)
        if kept.before_until is not None and kept.revoked is None:
            row["old_key_valid_until"] = timestamp(kept.before_until)
    values = msgspec.structs.asdict(terms)
    values["budget_usd_per_day"] = None if terms.budget_day is None else terms.budget_day / 1e6
    values["budget_usd_per_month"] = None if terms.budget_month is None else terms.budget_month / 1e6
    row.update({name: values[name] for name in TERMS if values[name] is not None})
    return row


def _answer(status: int, content: Any) -> Answer:
    return Answer(status, JSON, _encode(content))


def _object(body: bytes) -> dict[str, Any]:
    try:
        value = msgspec.json.decode(body)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise RequestError("expected a JSON object")
    return value


def _text(raw: bytes) -> str:
    """A name of a path; what is no name is none of a key's."""
    try:
        return raw.decode("ascii")
    except UnicodeDecodeError:
        return "?"
