"""Prometheus' text format 0.0.4 and OpenMetrics 1.0: families of samples to bytes.

Owns escaping, number forms, and the order the formats want (a family's lines together, HELP and TYPE first). It knows
no metric of ours. OpenMetrics differs in little: a counter's family is named without `_total`, bounds of buckets are
floats, an unknown type is `unknown`, and a bucket may carry an exemplar: a request that fell into it, by its trace.
Sources: prometheus.io, *Exposition formats*, text-based format; OpenMetrics 1.0.0, "Text format".
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

from dandolo.stats import Histogram
from dandolo.values import fit

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS_TYPE = b"application/openmetrics-text; version=1.0.0; charset=utf-8"
OPENMETRICS_END = "# EOF\n"
LABEL_BYTES_MAX = 128

Labels = tuple[tuple[str, str], ...]
Kind = Literal["counter", "gauge", "histogram", "untyped"]


class Gauge(NamedTuple):
    """One sample that somebody brings: the metric's name, its value, its labels as (name, value) pairs."""

    name: str
    value: float
    labels: Labels = ()


class Exemplar(NamedTuple):
    """A request that fell into a bucket: its trace and our span, the value, when (Unix seconds)."""

    trace_id: str
    span_id: str
    value: float
    at: float


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


def head(name: str, kind: Kind, help_text: str, *, openmetrics: bool = False) -> str:
    """The two lines before a family's samples."""
    text = help_text.replace("\\", "\\\\").replace("\n", "\\n")
    shown: str = kind
    if openmetrics:
        text = text.replace('"', '\\"')
        if kind == "counter":
            # A counter's sample has to end so, and its family must not.
            assert name.endswith("_total"), name
            name = name.removesuffix("_total")
        shown = "unknown" if kind == "untyped" else kind
    return f"# HELP {name} {text}\n# TYPE {name} {shown}\n"


def sample(name: str, pairs: str, value: float) -> str:
    """One line; `pairs` are encoded by `label_pairs`."""
    return f"{name}{{{pairs}}} {number(value)}\n" if pairs else f"{name} {number(value)}\n"


def histogram(
    name: str,
    pairs: str,
    values: Histogram,
    *,
    openmetrics: bool = False,
    exemplars: Mapping[int, Exemplar] | None = None,
) -> Iterable[str]:
    """The lines of one histogram: cumulative buckets, sum and count. `exemplars`, by the bucket's index, are for
    OpenMetrics."""
    before = f"{pairs}," if pairs else ""
    bounds: Sequence[str] = [*map(_bound if openmetrics else number, values.bounds), "+Inf"]
    cumulative = values.cumulative()
    for index, (bound, count) in enumerate(zip(bounds, cumulative, strict=True)):
        found = exemplars.get(index) if exemplars is not None else None
        if found is None:
            yield f'{name}_bucket{{{before}le="{bound}"}} {count}\n'
        else:
            about = f'trace_id="{found.trace_id}",span_id="{found.span_id}"'
            yield f'{name}_bucket{{{before}le="{bound}"}} {count} # {{{about}}} {number(found.value)} {found.at:.3f}\n'
    yield sample(f"{name}_sum", pairs, values.sum)
    yield sample(f"{name}_count", pairs, cumulative[-1])


def _bound(value: float) -> str:
    """A bound as Go prints a float, which OpenMetrics calls canonical: 1.0, 0.25, 1.6777216e+07."""
    text = repr(float(value))
    whole = text.partition(".")[0]
    if "e" in text or not len(whole) > 6:
        return text
    digits = (whole + text.partition(".")[2]).rstrip("0")
    fraction = digits[1:] or "0"
    return f"{digits[0]}.{fraction}e+{len(whole) - 1:02d}"


def wants_openmetrics(accept: bytes) -> bool:
    """Whether an Accept header asks for OpenMetrics at least as much as for plain text (RFC 9110 §12.5.1)."""
    best = {b"application/openmetrics-text": 0.0, b"text/plain": 0.0}
    for one in accept.lower().split(b",")[:32]:
        kind, *parameters = (part.strip() for part in one.split(b";"))
        if kind not in best:
            continue
        share = 1.0
        for parameter in parameters:
            if parameter.startswith(b"q="):
                try:
                    share = float(parameter[2:])
                except ValueError:
                    share = 0.0
        best[kind] = max(best[kind], share)
    return 0.0 < best[b"application/openmetrics-text"] >= best[b"text/plain"]
