"""Three simulated providers on real sockets, and what goes wrong with the first of them.

Times are a tenth to a fifth of what real models take, so that a run takes half a minute; the gateway's own
constants are what they are. A seed jitters speeds and load by half either way; the fastest is then the first.
"""

from __future__ import annotations

import asyncio
import random
import socket
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import uvloop

from bench.routing.client import TOKENS_MEAN
from bench.routing.reading import FACTS, WORDS, own_words
from dandolo.sim import Fault, Script, SimProvider, SimThread
from dandolo.sim.script import FaultKind, RetryForm

RATE = 27.0
JITTER = 0.5
BROWNOUT = 0.3
FLAP_S = 2.0
SLOWER = 10.0
CUT_SHARE = 0.2
"""What a provider whose limit is cut still takes of what it is asked."""
SLOTS = 4
FAULTS_MAX = 4000
"""Faults that are told one by one: more than there are requests."""
PORTS = range(20_000, 32_000)
"""Below those that connecting sockets are given, one of which would otherwise take the place of a dead provider."""

MIX = (("high", 0.2), ("normal", 0.4), ("low", 0.4))
ALL_NORMAL = (("normal", 1.0),)


@dataclass(frozen=True, slots=True)
class Nature:
    """What a provider is like when nothing is the matter."""

    name: str
    first_s: float
    tokens_per_s: float
    usd_per_mtok: float
    slots: int

    @property
    def service_s(self) -> float:
        """Seconds of a usual answer."""
        return self.first_s + (TOKENS_MEAN - 1) / self.tokens_per_s

    def script(self, seed: int, **more: Any) -> Script:
        """Its conduct; `more` is what is the matter."""
        usual: dict[str, Any] = {
            "first_token_s": self.first_s,
            "tokens_per_s": self.tokens_per_s,
            "tokens": FACTS + WORDS,
            "words": own_words(self.name),
            "jitter": JITTER,
            "seed": seed,
        }
        return Script(**usual | more)


@dataclass(frozen=True, slots=True)
class World:
    """Three natures, the first the fastest, and requests a second."""

    natures: tuple[Nature, ...]
    rate: float

    @property
    def capacity(self) -> float:
        """Requests a second that the slots of all three carry (Little's law)."""
        return sum(nature.slots / nature.service_s for nature in self.natures)


def world(seed: int) -> World:
    """Fast and dear, middling, slow and cheap, as a seed has it."""
    draw = random.Random(seed * 7919 + 13)

    def jittered(value: float) -> float:
        return value * draw.uniform(1 - JITTER, 1 + JITTER)

    drawn = [(jittered(first_s), jittered(speed)) for first_s, speed in ((0.06, 200.0), (0.12, 120.0), (0.2, 80.0))]
    drawn.sort(key=lambda pair: pair[0] + (TOKENS_MEAN - 1) / pair[1])
    natures = [
        Nature(name, first_s, speed, price, max(2, round(jittered(SLOTS))))
        for (first_s, speed), (name, price) in zip(
            drawn, (("fast", 3.0), ("middling", 1.5), ("slow", 1.0)), strict=True
        )
    ]
    return World(tuple(natures), jittered(RATE))


class Stage:
    """The providers of a world while they run, and the means to spoil the first."""

    def __init__(self, world: World, seed: int, *, limited: bool = False) -> None:
        """`limited`: a provider refuses what is beyond its slots with 429."""
        self.world = world
        self.seed = seed
        self.first = world.natures[0]
        self.asked: dict[str, list[float]] = {nature.name: [] for nature in world.natures}
        """When each provider got requests for an answer: monotonic seconds, in order."""
        scripts = [
            nature.script(seed, max_concurrency=nature.slots if limited else 0, overload_code="rate_limit_exceeded")
            for nature in world.natures
        ]
        self.sims = SimThread(
            *(
                SimProvider(nature.name, script=script, port=quiet_port(seed), models=("sim",))
                for nature, script in zip(world.natures, scripts, strict=True)
            ),
            loop_factory=uvloop.new_event_loop,
        )

    def spoil(self, **more: Any) -> None:
        """Change the conduct of the first provider; nothing: as it was."""
        self.sims[self.first.name].script = self.first.script(self.seed, **more)

    async def kill(self) -> None:
        """Its process is gone: connections lost, new ones refused."""
        await asyncio.get_running_loop().run_in_executor(None, self.sims.kill, self.first.name)

    async def revive(self) -> None:
        """It is back."""
        await asyncio.get_running_loop().run_in_executor(None, self.sims.revive, self.first.name)

    async def collect(self) -> None:
        """Note in `asked` what has come since the last time; to be called before more than 1000 have."""

        def take() -> None:
            # On the providers' own loop, so that none comes between reading and forgetting.
            for sim in self.sims.providers:
                self.asked[sim.name] += [
                    one.received_at for one in sim.requests if one.target.endswith("/chat/completions")
                ]
                sim.forget()

        await asyncio.get_running_loop().run_in_executor(None, self.sims.call, take)


def quiet_port(seed: int) -> int:
    """A free port of PORTS."""
    draw = random.Random(f"{seed} {time.monotonic_ns()}")
    for _ in range(100):
        port = draw.choice(PORTS)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise RuntimeError(f"no port free between {PORTS[0]} and {PORTS[-1]}")


# -- what goes wrong -------------------------------------------------------------------------------------------

Play = Callable[[Stage, float], Awaitable[None]]
"""Begins the fault and returns when nothing is left to do by hand, at the latest after so many seconds."""


async def nothing(stage: Stage, seconds: float) -> None:
    """All is well."""


async def always(stage: Stage, seconds: float, *, kind: FaultKind, **more: Any) -> None:
    """One fault for every request."""
    stage.spoil(default_fault=Fault(kind, **more))


async def brownout(stage: Stage, seconds: float) -> None:
    """Three in ten fail at once."""
    stage.spoil(error_rate=BROWNOUT)


async def refused(stage: Stage, seconds: float) -> None:
    """The process is gone."""
    await stage.kill()


async def flapping(stage: Stage, seconds: float) -> None:
    """Gone for two seconds, back for two, again and again."""
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    while loop.time() < end - FLAP_S:
        await stage.kill()
        await asyncio.sleep(FLAP_S)
        await stage.revive()
        await asyncio.sleep(min(FLAP_S, max(0.0, end - loop.time())))


async def stalled(stage: Stage, seconds: float) -> None:
    """A head of 200, then in turn silence, comments for ever, and an opening event with nothing behind it."""
    # Its list of models is answered, so that probes call it well.
    stalls = (
        Fault("hang_after_head", only="chat"),
        Fault("keepalive_forever", only="chat"),
        Fault("role_first", delay_s=600.0, only="chat"),
    )
    stage.spoil(faults=stalls * (FAULTS_MAX // 3))


async def limited(stage: Stage, seconds: float) -> None:
    """It takes a fifth of the load, and says in one form or another when to come again."""
    forms: tuple[RetryForm, ...] = ("seconds", "retry-after-ms", "http-date", "go-duration", "none")
    stage.spoil(
        rate_limit=max(1, round(CUT_SHARE * stage.world.rate)),
        rate_window_s=1.0,
        retry_form=forms[stage.seed % len(forms)],
    )


async def cut(stage: Stage, seconds: float) -> None:
    """Half of its streams end somewhere."""
    stage.spoil(faults=_cuts(stage.seed, 0.5))


async def cut_everywhere(stage: Stage, seconds: float) -> None:
    """A fifth of everybody's streams end somewhere: there is nobody to turn to, and much to be told of."""
    for number, nature in enumerate(stage.world.natures):
        faults = _cuts(stage.seed * 3 + number, 0.2)
        stage.sims[nature.name].script = nature.script(stage.seed, faults=faults)


def _cuts(seed: int, share: float) -> list[Fault]:
    """Streams that end in order, by a reset, or in the middle of the framing, before or after the first content."""
    draw = random.Random(seed)
    kinds: tuple[FaultKind, ...] = ("cut_fin", "cut_rst", "bad_chunk")
    return [
        Fault(draw.choice(kinds), after=draw.randrange(0, 16), only="chat")
        if draw.random() < share
        else Fault("ok", only="chat")
        for _ in range(FAULTS_MAX)
    ]


async def slower(stage: Stage, seconds: float) -> None:
    """Everything takes ten times as long."""
    first = stage.first
    stage.spoil(first_token_s=first.first_s * SLOWER, tokens_per_s=first.tokens_per_s / SLOWER)


@dataclass(frozen=True, slots=True)
class Scenario:
    """What goes wrong, and how the load is where that is the fault itself.

    `overload` is the load in capacities of all slots, 0: the world's rate. Slots are bounded by configuration
    (`told`), or the gateway has to learn them from 429s.
    """

    play: Play
    overload: float = 0.0
    told: bool = False


SCENARIOS: dict[str, Scenario] = {
    "healthy": Scenario(nothing),
    "reset": Scenario(partial(always, kind="reset_before_answer")),
    "refused": Scenario(refused),
    "flapping": Scenario(flapping),
    "fast 500": Scenario(partial(always, kind="status", status=500)),
    "brownout": Scenario(brownout),
    "black hole": Scenario(partial(always, kind="hang_before_answer")),
    "stall": Scenario(stalled),
    "429": Scenario(limited),
    "cuts": Scenario(cut),
    "cuts everywhere": Scenario(cut_everywhere),
    "slow x10": Scenario(slower),
    "overload": Scenario(nothing, overload=2.0, told=True),
    "overload, learned": Scenario(nothing, overload=2.0),
}
