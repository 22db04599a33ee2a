"""A provider's bill held against the ledger, call by call and summed by provider and key. Whole nano-dollars."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from dandolo.sim.answer import Charge

TOLD_MAX = 5
Place = tuple[str, str]
"""Provider and key."""


@dataclass(frozen=True)
class Price:
    """Nano-dollars a token, of a provider that tells no cost itself."""

    input: int
    output: int


@dataclass(frozen=True)
class Found:
    """What there is to be compared. `settled` are single calls of the ledger, id and nano-dollars, in its order;
    `sums` what /admin/usage says; `unsettled` the ids that are listed as such, `unsettled_told` how many it says."""

    bills: Mapping[str, Sequence[Charge]]
    prices: Mapping[str, Price]
    answered: set[str]
    settled: Sequence[tuple[str, int]]
    sums: Mapping[Place, tuple[int, int]]
    unsettled: set[str]
    unsettled_told: int
    dropped: int
    unsettled_max: int


def nano(charge: Charge, price: Price | None) -> int:
    """What a charge comes to."""
    if charge.cost_usd is not None:
        return round(charge.cost_usd * 1e9)
    assert price is not None, "nobody knows the cost"
    return charge.tokens_in * price.input + charge.tokens_out * price.output


def judge(found: Found) -> tuple[list[str], list[str]]:
    """The table's lines, and what is wrong."""
    billed = {
        charge.request_id: (provider, charge.user, nano(charge, found.prices.get(provider)))
        for provider, charges in found.bills.items()
        for charge in charges
    }
    wrong: list[str] = []

    def tell(what: str, ids: Iterable[str]) -> None:
        some = sorted(ids)
        if some:
            wrong.append(f"{what}: {len(some)} ({', '.join(some[:TOLD_MAX])}{', …' if len(some) > TOLD_MAX else ''})")

    settled = dict(found.settled)
    tell("billed twice by the stub", (id for id, n in _count(found.bills).items() if n > 1))
    tell("counted twice", (id for id, n in Counter(id for id, _ in found.settled).items() if n > 1))
    tell("settled and listed as unsettled too", settled.keys() & found.unsettled)
    tell("billed, and neither settled nor listed", billed.keys() - settled.keys() - found.unsettled)
    tell("settled, and never billed", settled.keys() - billed.keys())
    tell("answered in full, and not settled", found.answered - settled.keys())
    tell("settled at another cost", (id for id, n in settled.items() if id in billed and billed[id][2] != n))
    if found.unsettled_told != len(found.unsettled):
        wrong.append(f"/admin/usage tells {found.unsettled_told} unsettled calls, listed are {len(found.unsettled)}")
    if len(found.unsettled) > found.unsettled_max:
        wrong.append(f"{len(found.unsettled)} calls unsettled, at most {found.unsettled_max} were under way at kills")
    if found.dropped:
        wrong.append(f"{found.dropped} rows dropped")
    lines = [
        "| provider | key | calls billed | unsettled | billed $ without them | ledger $ | calls | difference, n$ |",
        "|---|---|---|---|---|---|---|---|",
    ]
    places = sorted({(provider, key) for provider, key, _ in billed.values()} | found.sums.keys())
    for place in places:
        mine = {id: cost for id, (provider, key, cost) in billed.items() if (provider, key) == place}
        lost = mine.keys() & found.unsettled
        owed = sum(cost for id, cost in mine.items() if id not in lost)
        calls, paid = found.sums.get(place, (0, 0))
        lines.append(
            f"| {place[0]} | {place[1]} | {len(mine)} | {len(lost)} | {owed / 1e9:.9f} | {paid / 1e9:.9f} | {calls}"
            f" | {paid - owed} |"
        )
        if (calls, paid) != (len(mine) - len(lost), owed):
            wrong.append(f"{place[0]}, {place[1]}: the ledger has {calls} calls and {paid} n$, {owed} n$ are owed")
    return lines, wrong


def _count(bills: Mapping[str, Sequence[Charge]]) -> Counter[str]:
    return Counter(charge.request_id for charges in bills.values() for charge in charges)
