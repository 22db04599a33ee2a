"""A trace like those of LLM gateways, from a seed.

Of the requests 45 % are asked once and never again, 10 % repeat one of the last hundred (a retry, a reload,
a second worker with the same job), and 45 % ask one of a tenant's usual prompts, by Zipf's law with exponent 1.0. What is
usual drifts: now and then a prompt trades places with another. Tenants differ in size by the same law and share no
keys.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass
from itertools import accumulate


@dataclass(frozen=True, slots=True)
class Shape:
    """What a trace is made of. `prompts` are the usual ones of all tenants; one request in `drift_every` moves one."""

    one_off: float = 0.45
    repeats: float = 0.10
    exponent: float = 1.0
    prompts: int = 12_000
    tenants: int = 8
    recent: int = 100
    drift_every: int = 300


def trace(requests: int, seed: int, shape: Shape | None = None) -> list[int]:
    """Keys in the order they are asked for."""
    shape = shape or Shape()
    chance = random.Random(seed)
    weights = list(accumulate(1.0 / (rank + 1) for rank in range(shape.tenants)))
    usual: list[list[int]] = []
    laws: list[list[float]] = []
    at = 0
    for tenant in range(shape.tenants):
        share = 1.0 / (tenant + 1) / weights[-1]
        count = max(10, int(shape.prompts * share))
        usual.append(list(range(at, at + count)))
        laws.append(list(accumulate((rank + 1) ** -shape.exponent for rank in range(count))))
        at += count
    new = 1_000_000_000
    recent: deque[int] = deque(maxlen=shape.recent)
    keys = []
    for _ in range(requests):
        tenant = chance.choices(range(shape.tenants), cum_weights=weights)[0]
        own, law = usual[tenant], laws[tenant]
        kind = chance.random()
        if kind < shape.one_off:
            new += 1
            key = new
        elif kind < shape.one_off + shape.repeats and recent:
            key = recent[chance.randrange(len(recent))]
        else:
            key = chance.choices(own, cum_weights=law)[0]
        if chance.random() * shape.drift_every < 1.0:
            falls = chance.choices(range(len(own)), cum_weights=law)[0]
            rises = chance.randrange(len(own))
            own[falls], own[rises] = own[rises], own[falls]
        recent.append(key)
        keys.append(key)
    return keys
