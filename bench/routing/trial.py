"""One scenario with one seed: providers, a gateway and a client are started, and what was seen is counted.

Only requests that come while the fault lasts count; it lasts until the last of them is over.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import fmean

from bench.routing.client import Caller, Seen, arrivals, introduced
from bench.routing.reading import CUT, OK, count
from bench.routing.scenarios import quantile
from bench.routing.served import Place, Served, keys
from bench.routing.staged import ALL_NORMAL, MIX, SCENARIOS, Stage, world
from dandolo.route.queue import DEADLINES_S, PRIORITIES

WARM_S = 6.0
SECONDS = 24.0
INTRODUCED_SHARE = 0.3
"""Of the warm-up, in which every provider is asked by name."""
WARM_LOAD = 0.5
"""Of what the slots carry, before an overload begins."""
LEFT_SHARE = 0.02
"""A provider is out of traffic when it gets no more than this share of it (trials of its breaker, exploration)."""
EVERY_S = 1.0


@dataclass(frozen=True, slots=True)
class Run:
    """A scenario and a seed, counted. Shares are in %, times in seconds, percentiles those of successes."""

    scenario: str
    seed: int
    rate: float
    requests: int
    outcomes: dict[str, int]
    codes: dict[str, int]
    """Codes of cuts and refusals."""
    success: float
    """Of what was not a reported cut."""
    first_p50_s: float
    first_p99_s: float
    first_max_s: float
    total_p95_s: float
    attempts: float
    """A request, as the header tells (mean over those that tell)."""
    asked: float
    """A request, as the providers received them."""
    first_share: float
    """Of what the providers received, the first one's."""
    out_s: float
    """After this time the first provider got no more than LEFT_SHARE of the load."""
    classes: dict[str, float] = field(default_factory=dict)
    """Success of each class, its first content within the class's deadline."""
    gateway_cpu: float = 0.0
    """Share of a core."""


def out_after_s(attempts: Sequence[float], load: Sequence[float], seconds: float) -> float:
    """The earliest time after which attempts are at most LEFT_SHARE of the load that comes until `seconds`.

    Both are times from 0 in order; `seconds` when there is no such time.
    """
    for index in range(len(attempts) + 1):
        since = attempts[index - 1] if index else 0.0
        after = len(attempts) - index
        if after <= LEFT_SHARE * sum(1 for at in load if at > since):
            return since
    return seconds


def tally(
    scenario: str, seed: int, rate: float, seen: Sequence[Seen], asked: Sequence[Sequence[float]], seconds: float
) -> Run:
    """Count what was `seen` of the fault's time, of which the providers (the first one first) were `asked`.

    Times begin with the fault and end after `seconds`.
    """
    outcomes = count(one.outcome for one in seen)
    well = [one for one in seen if one.outcome == OK]
    firsts = [one.first_s for one in well if one.first_s is not None]
    told = [one.attempts for one in seen if one.attempts]
    received = sum(map(len, asked))
    return Run(
        scenario,
        seed,
        rate,
        len(seen),
        outcomes,
        dict(Counter(one.code for one in seen if one.code)),
        success=_share(len(well), len(seen) - outcomes[CUT]),
        first_p50_s=quantile(firsts, 0.5),
        first_p99_s=quantile(firsts, 0.99),
        first_max_s=max(firsts, default=float("nan")),
        total_p95_s=quantile((one.total_s for one in well), 0.95),
        attempts=fmean(told) if told else float("nan"),
        asked=received / max(1, len(seen)),
        first_share=_share(len(asked[0]), received),
        out_s=out_after_s(asked[0], [one.at_s for one in seen], seconds),
        classes=_classes(seen),
    )


def _share(part: int, whole: int) -> float:
    return 100.0 * part / whole if whole else float("nan")


def _classes(seen: Iterable[Seen]) -> dict[str, float]:
    kept: dict[str, list[bool]] = {}
    for one in seen:
        in_time = one.first_s is not None and one.first_s <= DEADLINES_S[PRIORITIES[one.priority]]
        kept.setdefault(one.priority, []).append(one.outcome == OK and in_time)
    return {name: _share(sum(kept[name]), len(kept[name])) for name in PRIORITIES if name in kept}


async def run(
    name: str, seed: int, directory: Path, *, seconds: float = SECONDS, warm_s: float = WARM_S, hedge: bool = False
) -> Run:
    """Play a scenario. `directory` keeps the gateway's logs, what was seen, and the routes as they stood."""
    scenario = SCENARIOS[name]
    made = world(seed)
    overloaded = bool(scenario.overload)
    rate = scenario.overload * made.capacity if overloaded else made.rate
    before = WARM_LOAD * made.capacity if overloaded else rate
    wanted = arrivals(seed, [(warm_s, before), (seconds, rate)], MIX if overloaded else ALL_NORMAL)
    wanted = introduced(wanted, [f"{nature.name}/sim" for nature in made.natures], INTRODUCED_SHARE * warm_s)
    stage = Stage(made, seed, limited=overloaded and not scenario.told)
    with stage.sims as sims:
        places = [
            Place(nature, sims[nature.name].base_url, nature.slots if scenario.told else None)
            for nature in made.natures
        ]
        with Served(directory, places, hedge=hedge) as gateway:
            caller = Caller(gateway.port, keys())
            calls = asyncio.create_task(caller.run(wanted))
            await asyncio.sleep(warm_s)
            await stage.collect()
            since, cpu_s = time.monotonic(), gateway.cpu_s()
            watch = asyncio.create_task(_watch(stage, gateway, since + seconds, directory / "routes.jsonl"))
            await scenario.play(stage, seconds)
            await watch
            cpu = (gateway.cpu_s() - cpu_s) / seconds
            await calls
            (directory / "metrics").write_bytes(gateway.admin("/metrics"))
    with (directory / "seen.jsonl").open("w") as file:
        file.writelines(json.dumps(asdict(one)) + "\n" for one in caller.seen)
    seen = sorted(
        (replace(one, at_s=one.at_s - warm_s) for one in caller.seen if one.at_s >= warm_s), key=lambda one: one.at_s
    )
    asked = [
        [at - since for at in stage.asked[nature.name] if since <= at < since + seconds] for nature in made.natures
    ]
    return replace(tally(name, seed, rate, seen, asked, seconds), gateway_cpu=cpu)


async def _watch(stage: Stage, gateway: Served, until: float, path: Path) -> None:
    """Keep the routes as they stand, once a second until then (monotonic seconds), and what providers were asked."""
    loop = asyncio.get_running_loop()
    with path.open("w") as file:
        while (left := until - time.monotonic()) > 0:
            await asyncio.sleep(min(EVERY_S, left))
            await stage.collect()
            routes = await loop.run_in_executor(None, gateway.routes)
            file.write(json.dumps({"left_s": round(until - time.monotonic(), 1), "routes": routes}) + "\n")
