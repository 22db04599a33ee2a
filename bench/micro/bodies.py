"""Judging a body against decoding it whole with other parsers, none of which refuses all that `judge` does.

`python -m bench.micro.bodies`.
"""

from __future__ import annotations

import json
from collections.abc import Callable

import msgspec
import orjson

from bench.micro.timing import best_us
from dandolo.api.body import judge

KIB = (1, 32, 256)
TEXTS = {"ASCII": 'The quick brown fox said "no" to the lazy dog. ', "mixed": 'Größe, 模型 and 🙂 in one "text". '}


def body(size: int, text: str) -> bytes:
    """A compact chat request of about `size` bytes: a model, a temperature and messages of 2 KB at most."""
    piece = text * max(1, min(2048, size // 2) // len(text.encode()))
    messages = []
    while not messages or len(piece.encode()) * (len(messages) + 1) < size:
        messages.append({"role": "user", "content": piece})
    request = {"model": "fast", "temperature": 0.7, "messages": messages, "stream": False}
    return json.dumps(request, ensure_ascii=False, separators=(",", ":")).encode()


def main() -> None:
    """Print µs a body."""
    ways: dict[str, Callable[[bytes], object]] = {
        "judge": judge,
        "orjson": orjson.loads,
        "msgspec": msgspec.json.Decoder().decode,
        "json": json.loads,
    }
    print(f"{'':22}" + "".join(f"{name:>12}" for name in ways) + "  (µs)")
    for kib in KIB:
        for kind, text in TEXTS.items():
            raw = body(kib * 1024, text)
            count = max(10, 4000 // kib)

            def run(way: Callable[[bytes], object], raw: bytes = raw, count: int = count) -> None:
                for _ in range(count):
                    way(raw)

            took = [best_us(lambda way=way: run(way), count) for way in ways.values()]  # type: ignore[misc]
            print(f"{kind:>6} {len(raw):8d} bytes" + " " + "".join(f"{us:12.2f}" for us in took))


if __name__ == "__main__":
    main()
