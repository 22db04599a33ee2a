"""The normal form on labelled pairs: near misses made equal (must be 0), paraphrases made equal, µs a text.

`python -m bench.cache.normal [pairs.jsonl …]`. Without arguments: the corpus of the tests. Every line of a file is an
object with `a`, `b` and `same`, and `kind` and `group` if known. The rules are developed on the pairs of even groups
(or lines); of the others only the two numbers are printed. `--show` lists the pairs of the first half that came out
otherwise than labelled.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from bench.micro.timing import best_us
from dandolo.cache.semantic import TEXT_CHARS_MAX, normal_form

LONG = {
    "prose": "What would happen to the tides of the sea if the moon were half as far from the Earth as it is, ",
    "courtesies": "so, please hi, ",
    "quotes": "a 'b' \"c\" `d` ",
    "stray quotes": "'",
    "code": "x[1]=-f(y); ",
    "commas": "1,",
    "capitals": "Who Will May Turkey ",
}

CORPUS = Path(__file__).parent.parent.parent / "tests" / "corpus" / "paraphrase"


def pairs_of(path: Path) -> list[dict[str, Any]]:
    pairs = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    for at, pair in enumerate(pairs):
        pair.setdefault("group", at)
        pair.setdefault("kind", "")
    return pairs


def equal(pair: dict[str, Any]) -> bool:
    form = normal_form(pair["a"])
    return form is not None and form == normal_form(pair["b"])


def report(name: str, pairs: list[dict[str, Any]]) -> None:
    wrong = sum(equal(pair) for pair in pairs if not pair["same"])
    right = sum(equal(pair) for pair in pairs if pair["same"])
    positives = sum(pair["same"] for pair in pairs)
    print(f"{name}: near misses made equal {wrong} of {len(pairs) - positives}", end="; ")
    print(f"paraphrases made equal {right} of {positives} = {100 * right / max(1, positives):.1f} %")


def show(pairs: list[dict[str, Any]]) -> None:
    for pair in pairs:
        if pair["same"] != equal(pair):
            print(f"    {pair['kind']:>12} {pair['same']!s:5}  {pair['a']}  |  {pair['b']}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.cache.normal")
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--show", action="store_true")
    arguments = parser.parse_args()
    texts: list[str] = []
    for path in arguments.files or sorted(CORPUS.glob("*.jsonl")):
        pairs = pairs_of(path)
        texts += [pair[side] for pair in pairs for side in "ab"]
        for half, name in enumerate(("developed on", "held out")):
            halved = [pair for pair in pairs if pair["group"] % 2 == half]
            report(f"{path.name}, {name}", halved)
            if arguments.show and half == 0:
                show(halved)
        report(path.name, pairs)

    def run(texts: list[str] = texts) -> None:
        for text in texts:
            normal_form(text)

    print(f"{best_us(run, len(texts)):.1f} µs a text of {sum(map(len, texts)) / len(texts):.0f} characters")
    for name, text in LONG.items():
        text = (text * TEXT_CHARS_MAX)[:TEXT_CHARS_MAX].strip()
        print(f"{best_us(lambda text=text: run([text] * 20), 20):.1f} µs for {TEXT_CHARS_MAX} characters of {name}")


if __name__ == "__main__":
    main()
