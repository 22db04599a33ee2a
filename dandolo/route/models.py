"""`model: "auto"`: which models may answer a request, the best first, and why the others may not.

The operator's table says how good each model is at what; the request says what it is about (`api.intent`) and
what it may take (`auto` in the body, or headers). Models that cannot are left out, in this order: capability,
context, expected wait, expected cost, quality. What is left is ranked by quality − λ · cost. Everything about a
model that changes (prices, windows, measured waits) comes in as `Facts`: nothing is looked up here.

Without a table every known model takes part. Its quality is then told from its name, after a matrix of use cases
with a first and a second choice each (0.9 and 0.85); a quality that nobody stated is 0.8, which just passes the
default bound.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec
from msgspec import Raw

from dandolo.api.openai import printable
from dandolo.config.problem import Unfit
from dandolo.config.schema import Auto, AutoModel, UseCase
from dandolo.config.units import duration
from dandolo.errors import RequestError

if TYPE_CHECKING:
    from dandolo.api.intent import Intent

FIELD: Final = "auto"
"""The object in a body that bounds the choice; it is ours and goes to no provider."""
HEADERS: Final[Mapping[str, bytes]] = {
    "max_latency": b"x-dandolo-max-latency",
    "max_cost": b"x-dandolo-max-cost",
    "quality": b"x-dandolo-quality",
}
NEUTRAL = 0.8
"""The quality of a model of which nobody said how good it is."""
FIRST_CHOICE, SECOND_CHOICE = 0.9, 0.85
MODELS_MAX = 256
"""More models than this are not looked at."""
LATENCY_S_MAX = 3600.0
COST_USD_MAX = 1e6
HEADER_BYTES_MAX = 32

Bound = Literal["capability", "context", "max_latency", "max_cost", "quality"]
"""What may leave a model out, in the order in which it is asked."""

_NUMBER = re.compile(r"[0-9]{1,12}(?:\.[0-9]{0,12})?|\.[0-9]{1,12}")
_any = msgspec.json.Decoder()

_MATRIX: tuple[tuple[UseCase, re.Pattern[str], float], ...] = (
    ("question", re.compile(r"llama-?3\.3-70b"), FIRST_CHOICE),
    ("question", re.compile(r"mixtral-8x7b"), SECOND_CHOICE),
    ("code", re.compile(r"deepseek-coder"), FIRST_CHOICE),
    ("code", re.compile(r"code-?llama-34b|coder|codestral|devstral|codex"), SECOND_CHOICE),
    ("long_context", re.compile(r"claude-3-haiku"), FIRST_CHOICE),
    ("long_context", re.compile(r"gpt-4-turbo"), SECOND_CHOICE),
    ("multimodal", re.compile(r"gpt-4-vision"), FIRST_CHOICE),
    ("multimodal", re.compile(r"llava-?v?1\.6|vision|\bvl\b|pixtral"), SECOND_CHOICE),
)
"""Names that are known to be good at something; the first that is found in a name counts."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a model now; None is "not known".

    `capabilities` beside text ("tools", "vision", "audio", "video", "files"); prices in USD per token;
    `latency_s` the wait for the first token to expect of the best provider that has it.
    """

    context_tokens: int | None = None
    capabilities: frozenset[str] | None = None
    price_in: float | None = None
    price_out: float | None = None
    latency_s: float | None = None


@dataclass(frozen=True, slots=True)
class Bounds:
    """What an answer may take and how good it must be. `stated`: what the request itself says."""

    max_latency_s: float
    max_cost_usd: float
    quality: float
    stated: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Row:
    """A model in a choice.

    `left_out` is the bound that took it out, None for one that may answer; `score` is quality − λ · cost.
    `cost_usd` and `latency_s` are what is expected, None where unknown. `sure`: it is known to have the capabilities.
    """

    name: str
    quality: float
    cost_usd: float | None
    latency_s: float | None
    score: float
    sure: bool
    left_out: Bound | None


@dataclass(frozen=True, slots=True)
class Selection:
    """A choice: `names` the best first, the rest in case it fails; and what it rests on."""

    names: tuple[str, ...]
    intent: Intent
    bounds: Bounds
    rows: tuple[Row, ...]


# -- what the request may take --------------------------------------------------------------------------


def read_bounds(auto: Auto, fields: Mapping[str, Raw], headers: Mapping[bytes, bytes]) -> Bounds:
    """The bounds of a request: its body's `auto` object, else its headers (lower-case names), else the operator's.

    `max_latency` is a string with a unit ("1500ms", "2s") or a number of milliseconds, `max_cost` US dollars,
    `quality` 0 to 1. Raises RequestError (400) naming the field or header.
    """
    raw = fields.get(FIELD)
    given: dict[str, Any] = {}
    if raw is not None and bytes(raw) != b"null":
        try:
            given = _any.decode(raw)
        except (ValueError, RecursionError):
            raise RequestError(f"the field '{FIELD}' cannot be decoded", param=FIELD) from None
        if not isinstance(given, dict):
            raise RequestError(f"the field '{FIELD}' must be an object", param=FIELD)
        for name in given:
            if name not in HEADERS:
                wrong = f"{FIELD}.{printable(name)}"
                raise RequestError(f"the field '{wrong}' is unknown; {FIELD} has {', '.join(HEADERS)}", param=wrong)
    found: dict[str, float] = {}
    for name, header in HEADERS.items():
        value = given.get(name)
        where = f"{FIELD}.{name}"
        if value is None and header in headers:
            where = header.decode()
            value = _header(headers[header], name, where)
        if value is not None:
            found[name] = _latency_s(value, where) if name == "max_latency" else _number(name, value, where)
    return Bounds(
        found.get("max_latency", auto.max_latency),
        found.get("max_cost", auto.max_cost_usd),
        found.get("quality", auto.quality),
        frozenset(found),
    )


def _header(value: bytes, name: str, where: str) -> float | str:
    text = value[: HEADER_BYTES_MAX + 1].decode("latin-1").strip(" \t")
    if _NUMBER.fullmatch(text):
        return float(text)
    if name == "max_latency":
        return text
    raise RequestError(f"the header '{where}' must be a number", param=where)


def _latency_s(value: object, where: str) -> float:
    seconds = -1.0
    if isinstance(value, str) and len(value) <= HEADER_BYTES_MAX:
        try:
            seconds = duration(value)
        except Unfit:
            pass
    elif isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= LATENCY_S_MAX * 1e3:
        # JSON knows whole numbers that no float can hold.
        seconds = value / 1e3
    if not 0 < seconds <= LATENCY_S_MAX:
        said = "a number of milliseconds or a string such as '1500ms' or '2s', above 0 and at most an hour"
        raise RequestError(f"'{where}' must be {said}", param=where)
    return seconds


def _number(name: str, value: object, where: str) -> float:
    most = 1.0 if name == "quality" else COST_USD_MAX
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
        unit = "0 to 1" if name == "quality" else f"US dollars, 0 to {most:.0f}"
        raise RequestError(f"'{where}' must be a number: {unit}", param=where)
    return float(value)


# -- the choice -----------------------------------------------------------------------------------------


class Table:
    """The operator's table, or the matrix where there is none. Immutable after construction."""

    __slots__ = ("auto", "rows")

    def __init__(self, auto: Auto) -> None:
        self.auto = auto
        self.rows: Mapping[str, AutoModel] = {row.name: row for row in auto.models}

    def bounds(self, fields: Mapping[str, Raw], headers: Mapping[bytes, bytes]) -> Bounds:
        """The bounds of a request (`read_bounds`)."""
        return read_bounds(self.auto, fields, headers)

    def choose(self, intent: Intent, bounds: Bounds, facts: Mapping[str, Facts], output_tokens: int) -> Selection:
        """The models for a request, the best first.

        `facts` are of the models that the caller may use, in the order that decides between equals; with a table
        only its models take part. `output_tokens` is how long an answer to expect. A model whose price is not
        known is ranked as if it cost all that is allowed, and left out where the request itself states a
        `max_cost`; an unknown wait passes. Models known to have the capabilities come before those of which
        nothing is known.

        Raises RequestError (422, `no_model_fits`) naming the bound and the nearest model.
        """
        names = [name for name in self.rows if name in facts] if self.rows else list(islice(facts, MODELS_MAX))
        judged = [self._judge(name, facts[name], intent, bounds, output_tokens) for name in names]
        if not judged:
            raise RequestError(
                "no model is set up that 'auto' could choose", status=422, code="no_model_fits", param="model"
            )
        fitting = [row for row, missed in judged if not missed]
        if not fitting:
            raise self._refusal(judged, facts, intent, bounds)
        # Sorting is stable: what is equal stays in the order of the table.
        fitting.sort(key=lambda row: (not row.sure, -row.score, _or_most(row.latency_s)))
        return Selection(tuple(row.name for row in fitting), intent, bounds, tuple(row for row, _ in judged))

    def _judge(
        self, name: str, known: Facts, intent: Intent, bounds: Bounds, output_tokens: int
    ) -> tuple[Row, dict[Bound, float]]:
        """A model's row, and by how much it misses each bound (1: by all of it)."""
        row = self.rows.get(name)
        features = intent.features
        quality = self.quality(name, intent.use)
        needed = features.capabilities
        able = frozenset(row.capabilities) if row is not None and row.capabilities is not None else known.capabilities
        window = self._window(name, known)
        latency = known.latency_s
        if latency is None and row is not None:
            latency = row.latency
        cost: float | None = None
        if known.price_in is not None and known.price_out is not None:
            cost = features.input_tokens * known.price_in + output_tokens * known.price_out
        missed: dict[Bound, float] = {}
        if able is not None and not needed <= able:
            # Nothing makes up for it: further away than any number.
            missed["capability"] = 1e6 * len(needed - able)
        tokens = features.input_tokens + (features.output_tokens_max or 0)
        if window is not None and tokens > window:
            missed["context"] = tokens / window - 1.0
        if latency is not None and latency > bounds.max_latency_s:
            missed["max_latency"] = latency / bounds.max_latency_s - 1.0
        if cost is None:
            if "max_cost" in bounds.stated:
                missed["max_cost"] = 1e3
        elif cost > bounds.max_cost_usd:
            missed["max_cost"] = cost / bounds.max_cost_usd - 1.0 if bounds.max_cost_usd else 1e3
        if quality < bounds.quality:
            missed["quality"] = bounds.quality - quality
        score = quality - self.auto.cost_weight * (bounds.max_cost_usd if cost is None else cost)
        sure = not needed or able is not None
        return Row(name, quality, cost, latency, score, sure, next(iter(missed), None)), missed

    def quality(self, name: str, use: UseCase) -> float:
        """How good a model is at something: the operator's word, else what its name tells, else neutral."""
        row = self.rows.get(name)
        if row is not None:
            return row.quality.get(use, NEUTRAL)
        folded = name.lower()
        for known_for, pattern, quality in _MATRIX:
            if known_for == use and pattern.search(folded) is not None:
                return quality
        return NEUTRAL

    def _window(self, name: str, known: Facts) -> int | None:
        row = self.rows.get(name)
        return row.context_tokens if row is not None and row.context_tokens is not None else known.context_tokens

    def _refusal(
        self,
        judged: list[tuple[Row, dict[Bound, float]]],
        facts: Mapping[str, Facts],
        intent: Intent,
        bounds: Bounds,
    ) -> RequestError:
        """The error for a request that no model fits: the nearest one, and what stands between."""
        row, missed = min(judged, key=lambda one: (len(one[1]), sum(one[1].values())))
        features = intent.features
        said = []
        for bound in missed:
            if bound == "capability":
                said.append(f"the request needs {' and '.join(sorted(features.capabilities))}, which it does not have")
            elif bound == "context":
                tokens = features.input_tokens + (features.output_tokens_max or 0)
                said.append(
                    f"about {tokens} tokens are more than its window of {self._window(row.name, facts[row.name])}"
                )
            elif bound == "max_latency":
                said.append(
                    f"its wait of about {row.latency_s:.3g} s is beyond max_latency, {bounds.max_latency_s:.3g} s"
                )
            elif bound == "max_cost" and row.cost_usd is None:
                said.append("its price is not known, and max_cost is stated")
            elif bound == "max_cost":
                said.append(
                    f"its cost of about {row.cost_usd:.3g} USD is beyond max_cost, {bounds.max_cost_usd:.3g} USD"
                )
            else:
                said.append(f"its quality of {row.quality:.3g} for {intent.use} is below {bounds.quality:.3g}")
        first = next(iter(missed))
        many = f"none of {len(judged)} models fits" if len(judged) > 1 else "the only model does not fit"
        return RequestError(
            f"{many}; the nearest is '{printable(row.name)}': {'; '.join(said)}",
            status=422,
            code="no_model_fits",
            param=f"{FIELD}.{first}" if first in HEADERS else "model",
        )


def _or_most(latency_s: float | None) -> float:
    return LATENCY_S_MAX if latency_s is None else latency_s
