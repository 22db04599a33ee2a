"""Several embedding or moderation calls as one, and its answer in as many parts: pure, on judged bodies.

Only inputs that are texts are merged: what a provider makes of a list of token numbers depends on the provider.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from dandolo.api.body import JsonBody

_array = msgspec.json.Decoder(list[msgspec.Raw])
_object = msgspec.json.Decoder(dict[str, msgspec.Raw])
_usage = msgspec.json.Decoder(dict[str, Any])
_encoder = msgspec.json.Encoder()

LISTS = {"embeddings": "data", "moderations": "results"}
"""The endpoints that can be merged, and where their answers stand."""


def texts(body: JsonBody, most: int) -> list[bytes] | None:
    """The inputs of a call as raw JSON strings; None when they are anything but 1 to `most` texts."""
    raw = body.get("input")
    if raw is None:
        return None
    if raw[0] == 0x22:
        return [raw]
    if raw[0] != 0x5B:
        return None
    inputs = [bytes(one) for one in _array.decode(raw)]
    if not 0 < len(inputs) <= most or any(one[0] != 0x22 for one in inputs):
        return None
    return inputs


def alike(body: JsonBody) -> bytes:
    """Everything but the input, so that equal bytes are calls that may be merged."""
    return _encoder.encode(sorted((name, bytes(raw)) for name, raw in body.fields.items() if name != "input"))


def merged(body: JsonBody, inputs: Sequence[bytes]) -> bytes:
    """The body with `inputs` in the place of its own."""
    return body.edited({"input": b"[" + b",".join(inputs) + b"]"})


def parts(answer: bytes, listed: str, counts: Sequence[int], sizes: Sequence[int]) -> list[bytes] | None:
    """An answer's body in parts of `counts` entries; None when it is not one entry for each input.

    Entries keep their bytes but for `index`, which begins at 0 in each part. Whole numbers of `usage` are divided
    by `sizes` (bytes of input) so that they add up to what the provider counted; other numbers in proportion.
    """
    try:
        found = _object.decode(answer)
        entries = [_object.decode(one) for one in _array.decode(found[listed])]
        if len(entries) != sum(counts):
            return None
        if all("index" in entry for entry in entries):
            entries.sort(key=lambda entry: int(bytes(entry["index"])))
            if [int(bytes(entry["index"])) for entry in entries] != list(range(len(entries))):
                return None
        usage = _divided(_usage.decode(found["usage"]), sizes) if "usage" in found else None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    made: list[bytes] = []
    at = 0
    for part, count in enumerate(counts):
        own: dict[str, Any] = dict(found)
        own[listed] = [
            {**entry, "index": number} if "index" in entry else entry
            for number, entry in enumerate(entries[at : at + count])
        ]
        if usage is not None:
            own["usage"] = usage[part]
        made.append(_encoder.encode(own))
        at += count
    return made


def _divided(usage: dict[str, Any], sizes: Sequence[int]) -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = [{} for _ in sizes]
    total = sum(sizes) or 1
    for name, value in usage.items():
        if isinstance(value, int) and not isinstance(value, bool):
            for part, share in zip(parts, shares(value, sizes), strict=True):
                part[name] = share
        elif isinstance(value, float):
            for part, size in zip(parts, sizes, strict=True):
                part[name] = value * size / total
        else:
            for part in parts:
                part[name] = value
    return parts


def shares(whole: int, sizes: Sequence[int]) -> list[int]:
    """`whole` divided in proportion to `sizes`, in whole numbers that add up to it (largest remainder, Hamilton)."""
    total = sum(sizes)
    if total <= 0:
        return [whole, *[0] * (len(sizes) - 1)]
    exact = [divmod(whole * size, total) for size in sizes]
    given = [quotient for quotient, _ in exact]
    left = whole - sum(given)
    for index in sorted(range(len(sizes)), key=lambda index: -exact[index][1])[:left]:
        given[index] += 1
    return given
