"""What goes into the journal: an intent before each call that may cost, a settlement at each end.

Money and tokens belong to *calls*: one to one provider, made by an exchange itself, by the second of a hedge, or by a
detached call (a flight, a batch). Counts, status and what the cache saved belong to *requests*. The usual exchange
makes one call, and both are one settlement; a call that failed, was outrun, or was made for several is settled by
itself, so that whoever shares an answer is not charged for it again, and a flight that everybody left still is.

A call that nobody answered costs nothing where the provider said so (an error status) or was never reached; where it
had the request, what it may have cost is estimated from the request's size.
"""

from __future__ import annotations

import logging
import struct
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from dandolo.api.usage import COST_USD_MAX, Usage
from dandolo.config.schema import Config
from dandolo.errors import Refusal
from dandolo.gateway.summary import estimated
from dandolo.gateway.unwritten import Unwritten
from dandolo.journal import (
    ABSENT,
    ANSWERED,
    CACHE_CODES,
    CALL,
    ESTIMATED,
    NAMES_MAX,
    REPEATED_ENTRY,
    REQUEST,
    STREAM,
    UNKNOWN,
    Journal,
    Name,
)
from dandolo.record import NOT_CACHED
from dandolo.route.catalog import Target
from dandolo.values import cut

if TYPE_CHECKING:
    from dandolo.gateway.admission import Tenant
    from dandolo.gateway.exchange import Exchange
    from dandolo.gateway.repeats import Hit, Repeat
    from dandolo.gateway.ways import Lane

FOLDER = "journal"
"""In state_dir: where journals are looked for."""
RETRY_AFTER_S = 1.0
ID_PREFIX_BYTES = 16
"""Of a request's id: what all of one worker have in common. The number follows, in hexadecimal."""

Booked = tuple[int, int, int]
"""An open call: the cell of its intent (-1: there was no room), its name's number, its request's number."""

_WHOLE = CALL | REQUEST | ANSWERED
_NOTHING = Usage()
SETTLED: Booked = (-1, -1, -1)
"""What stands for the call of an exchange that has been settled with its request."""
_log = logging.getLogger("dandolo")
_now = time.monotonic
_entry = REPEATED_ENTRY.pack


class Books:
    """One worker's journal as exchanges meet it."""

    __slots__ = ("_intent", "_names", "_oldest", "_settle", "journal")

    def __init__(self, journal: Journal | Unwritten) -> None:
        self.journal = journal
        self._intent, self._settle = journal.intent, journal.settle
        self._oldest = 0
        """The lowest number of a name that readers are sure to know."""
        self._names: dict[tuple[int, str, str, str], tuple[int, Target | None]] = {}

    @classmethod
    def open(cls, config: Config, request_prefix: bytes, slot: int = 0, *, quiet: bool = False) -> Books | None:
        """The books of one worker under a configuration; None where there are to be none.

        Where there can be none the log says why (unless `quiet`), and they are not `written`: keys with a budget are
        refused, everybody else is served. The journal's size is set aside on the disk at once.
        """
        if not config.ledger.enabled:
            return None
        folder = config.server.state_dir / FOLDER
        try:
            return cls(Journal(folder, request_prefix, label=str(slot), capacity=config.ledger.journal_bytes))
        except OSError as error:
            if not quiet:
                _log.error(
                    "there is no journal: nothing is entered into the ledger, and keys with a budget are refused: %s",
                    error,
                )
            return cls(Unwritten(error.strerror or str(error)))

    @property
    def written(self) -> bool:
        """Whether there is a journal."""
        return isinstance(self.journal, Journal)

    def no_room(self) -> Refusal:
        """What a key with a budget is told when its spending cannot be written down."""
        journal = self.journal
        if isinstance(journal, Unwritten):
            why = f"there is no journal ({journal.reason})"
        else:
            why = "the journal is full of what the control process has not read"
        return Refusal(
            f"spending of this key is bounded and cannot be written down now: {why}; try again later",
            code="ledger_full",
            retry_after_s=RETRY_AFTER_S,
        )

    def close(self) -> None:
        """Nothing more will come: the ledger reads what is there, and deletes the file."""
        self.journal.close()

    def intend(self, exchange: Exchange, target: Target) -> bool:
        """A call to `target` is about to be made. False when there is no room for a key whose spending is bounded."""
        lane = exchange.lane
        booked = lane.booked if lane is not None else None
        if booked is not None and booked[0] is target and booked[1] >= self._oldest:
            name = booked[1]
        else:
            call = exchange.call
            assert call is not None
            known = self._names.get((id(target), exchange.admitted.tenant.name, exchange.endpoint.name, call.model))
            name = (
                known[0]
                if known is not None
                else self._name(exchange.admitted.tenant, exchange.endpoint.name, call.model, target, lane)
            )
            if lane is not None and name >= 0:
                lane.booked = (target, name)
        number = exchange.number or int(exchange.encoded_id[ID_PREFIX_BYTES:], 16)
        held = exchange.held
        reserved_micro_usd = held.micro if held is not None else 0
        at = self._intent(number, name, reserved_micro_usd, exchange.started) if name >= 0 else -1
        if at < 0:
            terms = exchange.admitted.tenant.terms
            if terms is not None and (terms.budget_day is not None or terms.budget_month is not None):
                return False
        exchange.booked = (at, name, number)
        return True

    def ended(self, exchange: Exchange) -> None:
        """A request is over (`Exchange.let_go` has been called), and with it the call whose answer it was given."""
        booked = exchange.booked
        if booked is SETTLED:
            return
        usage = exchange.usage or _NOTHING
        if booked is None:
            target, model = exchange.target, exchange.model
            at, number, flags = -1, int(exchange.encoded_id[ID_PREFIX_BYTES:], 16), REQUEST
            if target is None and exchange.status >= 400:
                # A name that nobody has is the caller's invention.
                model = ""
                if exchange.status == 504 and exchange.code == NOT_CACHED:
                    flags |= ABSENT
            known = self._names.get((id(target), exchange.admitted.tenant.name, exchange.endpoint.name, model))
            name = (
                known[0]
                if known is not None
                else self._name(exchange.admitted.tenant, exchange.endpoint.name, model, target, None)
            )
        else:
            at, name, number = booked
            exchange.booked = None
            flags = CALL | REQUEST
            if exchange.committed:
                flags |= ANSWERED
        if usage.estimated:
            flags |= ESTIMATED
        if exchange.streamed:
            flags |= STREAM
        if name < 0:
            self.journal.drop()
            return
        cost, saved, started, first = usage.cost_usd, exchange.saved_usd, exchange.started, exchange.first_token_at
        try:
            self._settle(
                at,
                number,
                name,
                flags,
                exchange.status,
                CACHE_CODES.get(exchange.cache, 0),
                exchange.attempts,
                usage.input_tokens,
                usage.output_tokens,
                usage.cached_tokens,
                usage.reasoning_tokens,
                UNKNOWN if cost is None else int(cost * 1e9 + 0.5),
                UNKNOWN if saved is None else _nano(saved),
                started,
                exchange.ended_at - started,
                -1.0 if first is None else first - started,
            )
        except struct.error:
            # Of a kept answer, from a store that others may write to: no count can be so.
            self.journal.drop()

    def answered(self, exchange: Exchange) -> None:
        """The answer to a request is complete, and its end is about to be sent: once a client has an answer, its cost
        is written down. `ended` then has nothing to add."""
        booked = exchange.booked
        if booked is None:
            return
        at, name, number = booked
        if name < 0:
            return
        exchange.booked = SETTLED
        usage, tap, first = exchange.usage, exchange.tap, None
        flags = _WHOLE
        if tap is not None:
            usage = tap.usage if tap.counted else estimated(tap.usage, len(exchange.request.body), tap.data_events)
            flags |= STREAM
            first = exchange.first_token_at
        elif usage is None:
            usage = _NOTHING
        if usage.estimated:
            flags |= ESTIMATED
        cost, cache, started = usage.cost_usd, exchange.cache, exchange.started
        self._settle(
            at,
            number,
            name,
            flags,
            exchange.status,
            CACHE_CODES[cache] if cache else 0,
            exchange.attempts,
            usage.input_tokens,
            usage.output_tokens,
            usage.cached_tokens,
            usage.reasoning_tokens,
            UNKNOWN if cost is None else int(cost * 1e9 + 0.5),
            UNKNOWN,
            started,
            _now() - started,
            -1.0 if first is None else first - started,
        )

    def failed(self, exchange: Exchange, asked: bool) -> None:
        """An attempt ended without an answer. `asked`: the provider has the request, and said nothing of it."""
        usage, flags = _NOTHING, CALL
        if asked:
            tap = exchange.tap
            usage = tap.usage if tap is not None else Usage()
            usage = estimated(usage, len(exchange.request.body), tap.data_events if tap is not None else 0)
            flags |= ESTIMATED
        self._call(exchange, usage, flags)

    def detached(self, exchange: Exchange) -> None:
        """A call made for others is over. Its cost is booked here, whoever is still there to get the answer."""
        usage, tap = exchange.usage, exchange.tap
        if usage is None and tap is not None and exchange.committed:
            usage = estimated(tap.usage, len(exchange.request.body), tap.data_events)
        flags = CALL | ANSWERED if exchange.committed else CALL
        if usage is not None and usage.estimated:
            flags |= ESTIMATED
        self._call(exchange, usage or _NOTHING, flags)

    def hits(self, repeat: Repeat, hits: Sequence[Hit]) -> None:
        """Requests that repeat one were answered as that was, at most REPEATED_MAX, in the order of their numbers: what
        the answer cost once is saved again, by each."""
        tenant, usage, saved = repeat.admitted.tenant, repeat.usage, repeat.kept.entry.cost_usd
        known = self._names.get((id(None), tenant.name, repeat.endpoint, repeat.model))
        name = known[0] if known is not None else self._name(tenant, repeat.endpoint, repeat.model, None, None)
        if name < 0:
            self.journal.drop(len(hits))
            return
        first, started, _ = hits[0]
        try:
            self.journal.repeated(
                name, CACHE_CODES["hit"], usage.input_tokens, usage.output_tokens, usage.cached_tokens,
                usage.reasoning_tokens, _nano(saved), first, started,
                b"".join([_entry(number - first, int((at - started) * 1e6), took_s) for number, at, took_s in hits]),
            )  # fmt: skip
        except struct.error:
            # Of a kept answer, from a store that others may write to: no count can be so.
            self.journal.drop(len(hits))

    def _call(self, exchange: Exchange, usage: Usage, flags: int) -> None:
        booked, exchange.booked = exchange.booked, None
        if booked is None or booked is SETTLED:
            return
        at, name, number = booked
        if name < 0:
            self.journal.drop()
            return
        cost = UNKNOWN if usage.cost_usd is None else int(usage.cost_usd * 1e9 + 0.5)
        started = exchange.started
        self._settle(
            at, number, name, flags, 0, 0, 0, usage.input_tokens, usage.output_tokens, usage.cached_tokens,
            usage.reasoning_tokens, cost, UNKNOWN, started, _now() - started, -1.0,
        )  # fmt: skip

    def _name(self, tenant: Tenant, endpoint: str, model: str, target: Target | None, lane: Lane | None) -> int:
        """Number a combination of names that is new here; -1 when there is no room."""
        terms = tenant.terms
        tags = dict(sorted(terms.tags.items())) if terms is not None else {}
        name = Name(tenant.name, msgspec.json.encode(tags).decode(), endpoint, cut(model))
        if target is not None:
            account, price = target.account, target.facts
            first = self._first(lane, target)
            direct = first.facts if first is not None else None
            name = msgspec.structs.replace(
                name,
                provider=account.provider.name,
                account=account.label,
                owner=account.owner,
                upstream_model=cut(target.model),
                input_usd=None if price is None else price.input_usd_per_mtok,
                output_usd=None if price is None else price.output_usd_per_mtok,
                direct_input_usd=None if direct is None else direct.input_usd_per_mtok,
                direct_output_usd=None if direct is None else direct.output_usd_per_mtok,
            )
        number = self.journal.name(name)
        if number >= 0:
            self._oldest = max(0, number - NAMES_MAX)
            if len(self._names) >= NAMES_MAX:
                self._names.clear()
            # The target is kept with it: while it is here, no other has its identity.
            self._names[id(target), tenant.name, endpoint, model] = (number, target)
        return number

    @staticmethod
    def _first(lane: Lane | None, target: Target) -> Target | None:
        """Whom a client would ask that had no gateway: the first in the order of the configuration. None: this one."""
        first = next(iter(lane.route.targets.values()), None) if lane is not None else None
        return None if first is None or first == target else first


def _nano(usd: float | None) -> int:
    """Nano-dollars of what a kept answer cost; it may come from a store that others write to."""
    return int(usd * 1e9 + 0.5) if usd is not None and 0.0 <= usd < COST_USD_MAX else UNKNOWN
