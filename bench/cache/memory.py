"""`python -m bench.cache.memory [--requests N] [--out FILE]`: hit rates of the memory tier, and what a hit costs.

Hit rates are counts and the same on every machine. Costs are medians over batches of calls on bodies of a chat,
one process, garbage collector off.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import hmac
import json
import platform
import random
import secrets
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

from bench.cache.policies import RIVALS, entry, s3_fifo
from bench.cache.trace import Shape, trace
from dandolo.api.body import judge
from dandolo.api.call import read
from dandolo.api.endpoints import ENDPOINTS
from dandolo.cache.key import Keys, Memo, canonical, context
from dandolo.cache.lifetime import ttl_class
from dandolo.cache.memory import Memory
from dandolo.cache.policy import Holder, Policy, Rules

RESULTS = Path(__file__).parent / "results" / "memory.md"
SEEDS = (1, 2, 3)
SIZES = (500, 1_000, 10_000)
SHAPES = {
    "usual": Shape(),
    "repeats of the last 1,000": Shape(recent=1_000),
    "fast drift": Shape(drift_every=20),
    "one tenant": Shape(tenants=1),
}
KIB = (1, 32, 256)
TEXTS = {
    "ASCII": ("The quick brown fox said that the lazy dog would not move. ", {"separators": (",", ":")}),
    "mixed": ('Größe, 模型 and 🙂 in one "text": yes. ', {"separators": (",", ":"), "ensure_ascii": False}),
    "spaced": ("The quick brown fox said that the lazy dog would not move. ", {}),
    "escaped": ('Größe, 模型 and 🙂 in one "text": yes. ', {}),
}
BATCHES = 40
BOUNDS_US = {1: 25.0, 32: 90.0}
HIT_RATE_MIN = 0.34


def body(kib: int, kind: str) -> bytes:
    """A chat of about so many KiB, in messages of 2 KiB at most."""
    text, layout = TEXTS[kind]
    size = kib * 1024
    piece = text * max(1, min(2048, size - 150) // len(json.dumps(text, **layout)))  # type: ignore[arg-type]
    messages: list[dict[str, str]] = []
    while True:
        messages.append({"role": "user", "content": piece})
        raw = json.dumps({"model": "fast", "temperature": 0, "messages": messages}, **layout).encode()  # type: ignore[arg-type]
        if len(raw) + len(piece.encode()) > size:
            return raw


def median_us(call: Callable[[], object], calls: int) -> float:
    """The median of BATCHES batches, in µs a call."""
    call()
    took = []
    for _ in range(BATCHES):
        start = time.perf_counter()
        for _ in range(calls):
            call()
        took.append(time.perf_counter() - start)
    return median(took) / calls * 1e6


def hit_rates(requests: int) -> Iterator[str]:
    """Tables of hit rates by shape and by size, means over the seeds."""
    yield f"Traces of {requests:,} requests ({len(SEEDS)} seeds each; `bench/cache/trace.py`), 1,000 entries, hits in %.\n"
    names = ("LRU", "SIEVE", "**S3-FIFO**", "Belady")
    yield "| trace | " + " | ".join(names) + " | S3-FIFO at 2,000 | estimated from 1,000 |"
    yield "|---" * (len(names) + 3) + "|"
    reached = 0.0
    for name, shape in SHAPES.items():
        rows = []
        for seed in SEEDS:
            keys = trace(requests, seed, shape)
            stats = s3_fifo(keys, 1_000)
            rates = {rival: run(keys, 1_000) / requests for rival, run in RIVALS.items()}
            double = s3_fifo(keys, 2_000).hit_rate
            rows.append((rates["LRU"], rates["SIEVE"], stats.hit_rate, rates["Belady"], double, stats.hit_rate_at_double))
        means = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
        if name == "usual":
            reached = means[2]
        yield f"| {name} | " + " | ".join(f"{100 * mean:.1f}" for mean in means) + " |"
    yield ""
    yield "| entries, usual trace | " + " | ".join(names) + " |"
    yield "|---" * (len(names) + 1) + "|"
    keys = trace(requests, SEEDS[0])
    for size in SIZES:
        rates = {rival: run(keys, size) / requests for rival, run in RIVALS.items()}
        ours = s3_fifo(keys, size).hit_rate
        ordered = (rates["LRU"], rates["SIEVE"], ours, rates["Belady"])
        yield f"| {size:,} | " + " | ".join(f"{100 * rate:.1f}" for rate in ordered) + " |"
    verdict = "reached" if reached >= HIT_RATE_MIN else "MISSED"
    yield f"\nAt least {100 * HIT_RATE_MIN:.0f} % on the usual trace with 1,000 entries: {100 * reached:.1f} %, {verdict}.\n"


def costs() -> Iterator[str]:
    """A table of what finding an answer costs, by size and kind of body."""
    keys = Keys(secrets.token_bytes(32))
    policy = Policy(Rules(), Holder(name="bench"))
    endpoint = ENDPOINTS[b"/v1/chat/completions"]
    secret = secrets.token_bytes(32)
    blank = hmac.new(secret, digestmod="sha256")
    where = context("key:bench", "chat", "", "venice/llama")
    yield "µs a call, medians. *Hit, no memo* is everything the cache does for a hit: permission, context, canonical form,"
    yield "digest and lookup; *hit, memo* the same where the body's bytes were seen before. Judging the body and reading"
    yield "the call happen without a cache, too, and are not in it.\n"
    yield "| body | bytes | canonical | HMAC-SHA256 | BLAKE2b | key | class | memo | **hit, no memo** | **hit, memo** |"
    yield "|---|---|---|---|---|---|---|---|---|---|"
    reached = []
    for kib in KIB:
        for kind in TEXTS:
            raw = body(kib, kind)
            call = read(endpoint, raw, b"")
            judged = judge(raw)
            form = canonical(judged)
            key = keys.of(where, judged)
            memory = Memory()
            memo: Memo[bytes] = Memo()
            for number in range(900):
                other = entry(hashlib.sha256(b"%d" % number).digest()[:20])
                memory.put(other, b"", "key:bench", 1.0)
            memory.put(entry(key, b"x" * 1000), b"", "key:bench", 1.0)
            memo.put(where, raw, key)
            # As a second request has them: other objects with the same bytes.
            again, recalled = judge(bytes(bytearray(raw))), read(endpoint, bytes(bytearray(raw)), b"")

            def sha(form: bytes = form) -> bytes:
                keyed = blank.copy()
                keyed.update(form)
                return keyed.digest()

            def hit(recalled: object = recalled, memory: Memory = memory) -> None:
                permission = policy.permission(recalled)  # type: ignore[arg-type]
                place = context(permission.scope, "chat", "", "venice/llama")
                kept = memory.get(keys.of(place, recalled.json), 2.0)  # type: ignore[attr-defined]
                assert kept is not None
                assert permission.admits(kept.entry.kind, kept.created, 2.0)

            def remembered(recalled: object = recalled, memory: Memory = memory, memo: Memo[bytes] = memo) -> None:
                permission = policy.permission(recalled)  # type: ignore[arg-type]
                place = context(permission.scope, "chat", "", "venice/llama")
                found = memo.get(place, recalled.raw)  # type: ignore[attr-defined]
                assert found is not None
                kept = memory.get(found, 2.0)
                assert kept is not None
                assert permission.admits(kept.entry.kind, kept.created, 2.0)

            def blake(form: bytes = form) -> bytes:
                return hashlib.blake2b(form, key=secret, digest_size=20).digest()

            count = max(20, 1000 // kib)
            took = [
                median_us(lambda again=again: canonical(again), count),  # type: ignore[misc]
                median_us(sha, count),
                median_us(blake, count),
                median_us(lambda again=again: keys.of(where, again), count),  # type: ignore[misc]
                median_us(lambda again=again: ttl_class("chat", again), count),  # type: ignore[misc]
                median_us(lambda memo=memo, again=again: memo.get(where, again.raw), count),  # type: ignore[misc]
                median_us(hit, count),
                median_us(remembered, count),
            ]
            assert call.json is not None
            yield f"| {kib} KB {kind} | {len(raw):,} | " + " | ".join(f"{us:.1f}" for us in took) + " |"
            if kib in BOUNDS_US and kind == "ASCII":
                verdict = "reached" if took[6] <= BOUNDS_US[kib] else "MISSED"
                reached.append(f"{kib} KB ≤ {BOUNDS_US[kib]:.0f} µs: {took[6]:.1f}, {verdict}")
    yield f"\nCache work of a hit without memo, p50: {'; '.join(reached)}.\n"


def tier_costs() -> Iterator[str]:
    """What the tier itself costs, without keys."""
    memory = Memory(1_000)
    chance = random.Random(1)
    keys = [chance.randbytes(20) for _ in range(20_000)]
    answers = [entry(key) for key in keys]
    for one in answers[:1_000]:
        memory.put(one, b"", "key:bench", 1.0)
    held = [key for key in keys[:1_000] if key in memory]
    absent = keys[10_000:11_000]
    loop = range(0)

    def nothing() -> None:
        for _ in held:
            pass

    def hits() -> None:
        get = memory.get
        for key in held:
            get(key, 2.0)

    def misses() -> None:
        get = memory.get
        for key in absent:
            get(key, 2.0)

    def puts() -> None:
        put = memory.put
        for one in answers[10_000:11_000]:
            put(one, b"", "key:bench", 2.0)

    del loop
    idle = median_us(nothing, 1) * 1e3 / len(held)
    hit = median_us(hits, 5) * 1e3 / len(held) - idle
    miss = median_us(misses, 5) * 1e3 / len(absent) - idle
    put = median_us(puts, 1) * 1e3 / 1_000 - idle
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    full = Memory(20_000)
    for number in range(10_000):
        full.put(entry(number.to_bytes(20, "big"), b"%04d" % number * 100), b"", "key:bench", 1.0)
    per_entry = (tracemalloc.get_traced_memory()[0] - before) / 10_000 - 400
    tracemalloc.stop()
    yield f"The tier alone, 1,000 entries: {hit:.0f} ns a hit, {miss:.0f} ns a miss, {put:.0f} ns a put that displaces."
    yield f"An entry costs {per_entry:.0f} bytes beside its body.\n"


def main() -> None:
    """Measure, print, and write the results."""
    parser = argparse.ArgumentParser(prog="python -m bench.cache.memory", description=__doc__)
    parser.add_argument("--requests", type=int, default=200_000, help="length of a trace (default: 200000)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="file for the results")
    options = parser.parse_args()
    gc.disable()
    lines = [f"Python {platform.python_version()}, {platform.machine()}; `python -m bench.cache.memory`.\n"]
    for part in (hit_rates(options.requests), costs(), tier_costs()):
        for line in part:
            print(line, flush=True)
            lines.append(line)
    options.out.write_text("\n".join(lines))


if __name__ == "__main__":
    main()
