"""Reading what a request for `model: "auto"` is about, in µs a request (its body is judged already).

`python -m bench.micro.intent`.
"""

from __future__ import annotations

import json
from typing import Any

from bench.micro.timing import best_us
from dandolo.api.body import judge
from dandolo.api.intent import read_intent

QUESTION = "Our landlord wants to raise the rent by a fifth because of the new lift, which nobody asked for. "
CODE = 'def total(rows):\n    """Sum of all."""\n    return sum(row["cents"] for row in rows if row.get("paid"))\n\n'
MIXED = "这段文字说的是一条河和它的桥。Größe und Maß: 3 %. "
PICTURE = "data:image/png;base64," + "iVBORw0KGgoAAAANSUhEUg" * 40_000


def request(size: int, text: str, pieces: int = 1) -> bytes:
    """A chat request of about `size` bytes in `pieces` turns of the user, with answers between."""
    each = text * max(1, size // (len(text.encode()) * (2 * pieces - 1)))
    messages = [{"role": ("user", "assistant")[at % 2], "content": each} for at in range(2 * pieces - 1)]
    return encoded({"model": "auto", "messages": messages})


def encoded(body: dict[str, Any]) -> bytes:
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()


def main() -> None:
    """Print µs a request."""
    mib = 1 << 20
    picture = [{"type": "text", "text": "what is this"}, {"type": "image_url", "image_url": {"url": PICTURE}}]
    tiny = [{"role": ("user", "assistant")[at % 2], "content": "ok"} for at in range(mib // 33)]
    bits = [{"type": "text", "text": "ok"} for _ in range(mib // 30)]
    bodies = {
        "1 KiB, a question": request(1000, QUESTION),
        "1 KiB, code": request(1000, CODE),
        "1 KiB, five turns": request(1000, QUESTION, 3),
        "1 KiB, other scripts": request(1000, MIXED),
        "16 KiB, code": request(16_000, CODE),
        "1 MiB, one text": request(mib, QUESTION),
        "1 MiB, one text, other scripts": request(mib, MIXED),
        "1 MiB, many turns": encoded({"model": "auto", "messages": tiny}),
        "1 MiB, many parts": encoded({"model": "auto", "messages": [{"role": "user", "content": bits}]}),
        "16 KiB, hostile": request(16_000, "class if(select a; from at f((((( x, --a=b -c=d = 'SELECT ))))] "),
        "1 MiB, a picture": encoded({"model": "auto", "messages": [{"role": "user", "content": picture}]}),
    }
    for name, raw in bodies.items():
        fields = judge(raw).fields
        count = max(3, 200_000 // len(raw))

        def run(fields: Any = fields, count: int = count) -> None:
            for _ in range(count):
                read_intent(fields)

        print(f"{name:>32} {len(raw):9d} bytes {best_us(run, count):10.1f} µs  {read_intent(fields).use}")


if __name__ == "__main__":
    main()
