"""Prometheus' text format 0.0.4: families of samples to bytes.

Owns escaping, number forms, and the order the format wants (a family's lines together, HELP and TYPE first).
It knows no metric of ours. Source: prometheus.io, *Exposition formats*, text-based format.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

from dandolo.stats import Histogram
from dandolo.values import fit

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"
LABEL_BYTES_MAX = 128

Labels = tuple[tuple[str, str], ...]
Kind = Literal["counter", "gauge", "histogram", "untyped"]


class Gauge(NamedTuple):
    """One sample that somebody brings: the metric's name, its value, its labels as (name, value) pairs."""

    name: str
    value: float
    labels: Labels = ()


def number(value: float) -> str:
    """A sample's value: whole numbers without a point, the rest as Go's ParseFloat reads it."""
    if math.isfinite(value):
        return str(int(value)) if value == int(value) and abs(value) < 1e15 else repr(float(value))
    return "NaN" if math.isnan(value) else "+Inf" if value > 0 else "-Inf"


def label_pairs(labels: Labels) -> str:
    """`name="value",…` for values from anywhere. Names must be fit: they are ours."""
    return ",".join(f'{name}="{label_value(value)}"' for name, value in labels)


def label_value(value: str) -> str:
    """What stands between the quotes: cut at 128 bytes, unprintable characters shown as escapes, and backslash
    and quote escaped as the format wants. Two values may become one: samples must be told apart by this."""
    return fit(value, LABEL_BYTES_MAX).replace("\\", "\\\\").replace('"', '\\"')


def head(name: str, kind: Kind, help_text: str) -> str:
    """The two lines before a family's samples."""
    text = help_text.replace("\\", "\\\\").replace("\n", "\\n")
    return f"# HELP {name} {text}\n# TYPE {name} {kind}\n"


def sample(name: str, pairs: str, value: float) -> str:
    """One line; `pairs` are encoded by `label_pairs`."""
    return f"{name}{{{pairs}}} {number(value)}\n" if pairs else f"{name} {number(value)}\n"


def histogram(name: str, pairs: str, values: Histogram) -> Iterable[str]:
    """The lines of one histogram: cumulative buckets, sum and count."""
    before = f"{pairs}," if pairs else ""
    bounds: Sequence[str] = [*map(number, values.bounds), "+Inf"]
    cumulative = values.cumulative()
    for bound, count in zip(bounds, cumulative, strict=True):
        yield f'{name}_bucket{{{before}le="{bound}"}} {count}\n'
    yield sample(f"{name}_sum", pairs, values.sum)
    yield sample(f"{name}_count", pairs, cumulative[-1])
