"""`python -m bench.cache.memory [--requests N] [--out FILE]`: hit rates of the memory tier, and what a hit costs.

Hit rates are counts and the same on every machine. Costs are CPU time, medians over batches of calls on bodies of
a chat, one process, garbage collector off.
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
from dandolo.cache.answer import flaw
from dandolo.cache.entry import decode, encode
from dandolo.cache.key import Keys, Memo, canonical, context
from dandolo.cache.lifetime import ttl_class
from dandolo.cache.memory import Memory
from dandolo.cache.policy import Holder, Policy, Rules
from dandolo.cache.replay import assemble, prepare

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
        asked = {"model": "fast", "temperature": 0, "messages": messages}
        raw = json.dumps(asked, **layout).encode()  # type: ignore[arg-type]
        if len(raw) + len(piece.encode()) > size:
            return raw


def median_us(call: Callable[[], object], calls: int) -> float:
    """The median of BATCHES batches, in µs of this process's CPU a call: others on the machine do not count."""
    call()
    took = []
    for _ in range(BATCHES):
        start = time.process_time()
        for _ in range(calls):
            call()
        took.append(time.process_time() - start)
    return median(took) / calls * 1e6


def hit_rates(requests: int) -> Iterator[str]:
    """Tables of hit rates by shape and by size, means over the seeds."""
    yield f"Hits in %, 1,000 entries; {len(SEEDS)} traces of {requests:,} requests each (`bench/cache/trace.py`).\n"
    names = ("LRU", "SIEVE", "**S3-FIFO**", "Belady")
    yield "| trace | " + " | ".join(names) + " | two uses | S3-FIFO at 2,000 | estimated |"
    yield "|---" * (len(names) + 4) + "|"
    reached = 0.0
    for name, shape in SHAPES.items():
        rows = []
        for seed in SEEDS:
            keys = trace(requests, seed, shape)
            stats = s3_fifo(keys, 1_000)
            rates = {rival: run(keys, 1_000) / requests for rival, run in RIVALS.items()}
            double = s3_fifo(keys, 2_000).hit_rate
            estimated = stats.hit_rate_at_double
            twice = s3_fifo(keys, 1_000, 2).hit_rate
            rows.append((rates["LRU"], rates["SIEVE"], stats.hit_rate, rates["Belady"], twice, double, estimated))
        means = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
        if name == "usual":
            reached = means[2]
        yield f"| {name} | " + " | ".join(f"{100 * mean:.1f}" for mean in means) + " |"
    yield "\n*Two uses*: main is entered after two uses, as in the paper, instead of one. *Estimated*: what the tier of"
    yield "1,000 says that 2,000 would give.\n"
    yield "| entries, usual trace | " + " | ".join(names) + " |"
    yield "|---" * (len(names) + 1) + "|"
    keys = trace(requests, SEEDS[0])
    for size in SIZES:
        rates = {rival: run(keys, size) / requests for rival, run in RIVALS.items()}
        ours = s3_fifo(keys, size).hit_rate
        ordered = (rates["LRU"], rates["SIEVE"], ours, rates["Belady"])
        yield f"| {size:,} | " + " | ".join(f"{100 * rate:.1f}" for rate in ordered) + " |"
    verdict = "reached" if reached >= HIT_RATE_MIN else "MISSED"
    bound = f"At least {100 * HIT_RATE_MIN:.0f} % on the usual trace with 1,000 entries"
    yield f"\n{bound}: {100 * reached:.1f} %, {verdict}.\n"


def costs() -> Iterator[str]:
    """A table of what finding an answer costs, by size and kind of body."""
    keys = Keys(secrets.token_bytes(32))
    policy = Policy(Rules(), Holder(name="bench"))
    endpoint = ENDPOINTS[b"/v1/chat/completions"]
    secret = secrets.token_bytes(32)
    blank = hmac.new(secret, digestmod="sha256")
    where = context("key:bench", "chat", "", "venice/llama")
    yield "µs of CPU a call, medians. *Hit, no memo* is everything the cache does for a hit: permission, context,"
    yield "canonical form, digest and lookup; *hit, memo* the same where the body's bytes were seen before. Judging the"
    yield "body and reading the call happen without a cache, too, and are not in it. *Class* is paid by misses only.\n"
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


def answer_costs() -> Iterator[str]:
    """What a miss pays to keep its answer, and what a stream made of a kept one costs."""
    question = judge(b'{"model":"fast","temperature":0,"messages":[{"role":"user","content":"Why is the sky blue?"}]}')
    yield "| answer | flaw | record | read back | assemble | make events | a stream more |"
    yield "|---|---|---|---|---|---|---|"
    for kib in (1, 8, 64):
        text = "Blue light is scattered most by what is small. " * (kib * 1024 // 47)
        message = {"role": "assistant", "content": text}
        said = {
            "id": "c", "object": "chat.completion", "created": 1, "model": "m",
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 5, "completion_tokens": kib * 230},
        }  # fmt: skip
        answer = json.dumps(said, separators=(",", ":")).encode()
        kept = entry(bytes(20), answer)
        record = encode(kept)
        replay = prepare("chat", answer)
        assert replay is not None
        datas = [
            b'{"id":"c","created":1,"model":"m","choices":[{"index":0,"delta":{"content":"%b"},"finish_reason":null}]}'
            % text[at : at + 5].encode()
            for at in range(0, len(text), 5)
        ]
        datas += [b'{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}', b"[DONE]"]
        count = max(10, 200 // kib)
        took = [
            median_us(lambda answer=answer: flaw("chat", "chat", 200, answer), count),  # type: ignore[misc]
            median_us(lambda kept=kept: encode(kept), count),  # type: ignore[misc]
            median_us(lambda record=record: decode(record, bytes(20)), count),  # type: ignore[misc]
            median_us(lambda datas=datas: assemble("chat", datas), max(2, 20 // kib)),  # type: ignore[misc]
            median_us(lambda answer=answer: prepare("chat", answer), count),  # type: ignore[misc]
            median_us(lambda replay=replay: replay.events("id", 5, usage=True), count),  # type: ignore[misc]
        ]
        yield f"| {kib} KB | " + " | ".join(f"{us:.1f}" for us in took) + " |"
    yield "\n*Assemble* puts a stream of five characters a chunk together, spread over its chunks as they pass."
    yield f"The class of a question of 20 characters: {median_us(lambda: ttl_class('chat', question), 500):.1f} µs.\n"


def main() -> None:
    """Measure, print, and write the results."""
    parser = argparse.ArgumentParser(prog="python -m bench.cache.memory", description=__doc__)
    parser.add_argument("--requests", type=int, default=200_000, help="length of a trace (default: 200000)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="file for the results")
    options = parser.parse_args()
    lines = [f"Python {platform.python_version()}, {platform.machine()}; `python -m bench.cache.memory`.\n"]
    collecting = gc.isenabled()
    gc.disable()
    try:
        for part in (hit_rates(options.requests), costs(), tier_costs(), answer_costs()):
            for line in part:
                print(line, flush=True)
                lines.append(line)
    finally:
        if collecting:
            gc.enable()
    options.out.write_text("\n".join(lines))


if __name__ == "__main__":
    main()
