"""`model: "auto"`: what is known of the models a caller may use, and the choice among them put in the call's place.

What does not change from call to call (who has a model, prices, windows, abilities) is gathered once for each kind of
caller and kept while what is known of models stands; how long they let one wait is read for every call.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dandolo.api.call import FALLBACKS_MAX, Call
from dandolo.route.candidate import Candidate
from dandolo.route.catalog import allowed
from dandolo.route.models import MODELS_MAX, Facts, Selection
from dandolo.route.preference import split_suffix

if TYPE_CHECKING:
    from dandolo.gateway.exchange import Exchange
    from dandolo.gateway.plane import Plane

NAME = "auto"
OUTPUT_TOKENS = 512
"""The answer by whose length models are compared; a caller's own smaller bound wins."""
KNOWN_MAX = 64
ROWS_TOLD_MAX = 16
_HEADER_SAFE = re.compile(r"[A-Za-z0-9._:/@+-]{1,200}")

Known = tuple[str, tuple[Candidate, ...], Facts]


def is_auto(plane: Plane, name: str) -> bool:
    """Whether a name asks for a choice of model. A listed id of that name is just a name."""
    return (name == NAME or split_suffix(name)[0] == NAME) and not plane.catalog.lists(name)


def select(exchange: Exchange, call: Call) -> None:
    """Put the models that fit best in the place of "auto", the best first, the others as fallbacks.

    Raises RequestError: 400 for bounds that cannot be read, 422 when no model is within them.
    """
    # Its words and patterns take 15 ms to load, and many never ask for it.
    from dandolo.api.intent import read_intent

    assert call.json is not None
    plane = exchange.plane
    fields = call.json.fields
    suffix = call.model[len(NAME) :]
    bounds = plane.table.bounds(fields, exchange.request.fields)
    intent = read_intent(fields)
    allowed_tokens = intent.features.output_tokens_max
    tokens = min(OUTPUT_TOKENS, allowed_tokens) if allowed_tokens else OUTPUT_TOKENS
    facts: Mapping[str, Facts] = {
        name: replace(known, latency_s=_wait_s(candidates)) for name, candidates, known in _known(exchange, call)
    }
    selection = plane.table.choose(intent, bounds, facts, tokens)
    chosen = [name + suffix for name in selection.names]
    call.choose(list(dict.fromkeys([*chosen, *call.models[1:]]))[:FALLBACKS_MAX])
    exchange.selection = selection


def told(selection: Selection) -> dict[str, Any]:
    """A selection as JSON: the use case and why, the bounds, the models with what they were judged by, best first."""
    bounds = selection.bounds
    rows = sorted(selection.rows, key=lambda row: (row.left_out is not None, -row.score))
    return {
        "use": selection.intent.use,
        "because": selection.intent.reason,
        "bounds": {
            "max_latency_ms": round(bounds.max_latency_s * 1e3),
            "max_cost_usd": bounds.max_cost_usd,
            "quality": bounds.quality,
        },
        "models": [
            {
                "name": row.name,
                "quality": row.quality,
                "score": round(row.score, 4),
                **({} if row.cost_usd is None else {"cost_usd": float(f"{row.cost_usd:.4g}")}),
                **({} if row.latency_s is None else {"latency_ms": round(row.latency_s * 1e3)}),
                **({} if row.left_out is None else {"left_out": row.left_out}),
            }
            for row in rows[:ROWS_TOLD_MAX]
        ],
    }


def header(selection: Selection, model: str) -> bytes:
    """Header lines that say what was chosen and for what use. A name that is no plain one stays out of a header."""
    lines = b"x-dandolo-intent: %b\r\n" % selection.intent.use.encode("ascii")
    if _HEADER_SAFE.fullmatch(model):
        lines += b"x-dandolo-model: %b\r\n" % model.encode("ascii")
    return lines


def _wait_s(candidates: tuple[Candidate, ...]) -> float | None:
    """The shortest wait for a first token that any candidate is known for, None when none is."""
    return min((candidate.measured.first_s for candidate in candidates if candidate.measured.first_s), default=None)


def _known(exchange: Exchange, call: Call) -> list[Known]:
    """Models that the caller may use at this endpoint, with what is known of them. Kept, bounded by KNOWN_MAX kinds."""
    plane, patterns, speech = exchange.plane, exchange.tenant.patterns, call.endpoint.speech
    key = (patterns, speech)
    kept = plane.models_known.get(key)
    if kept is not None:
        return kept
    found: list[Known] = []
    for name in plane.table.rows or plane.catalog.names():
        targets = plane.catalog.candidates(name, speech)
        if patterns is not None:
            targets = tuple(target for target in targets if allowed(target, patterns))
        candidates = tuple(plane.fleet[target.account].candidate(target.model) for target in targets)
        if candidates:
            found.append((name, candidates, _facts(candidates)))
            if len(found) >= MODELS_MAX and not plane.table.rows:
                # No more are looked at in a choice, and providers may list thousands.
                break
    if len(plane.models_known) >= KNOWN_MAX:
        plane.models_known.clear()
    plane.models_known[key] = found
    return found


def _facts(candidates: tuple[Candidate, ...]) -> Facts:
    """What any of them offers: the widest window, the lowest price, all abilities (None: unknown of all)."""
    windows = [one.context_tokens for one in candidates if one.context_tokens is not None]
    able = [one.capabilities for one in candidates if one.capabilities is not None]
    priced = [
        (one.price_in, one.price_out) for one in candidates if one.price_in is not None and one.price_out is not None
    ]
    cheapest = min(priced, key=lambda pair: pair[0] + pair[1], default=(None, None))
    return Facts(
        context_tokens=max(windows, default=None),
        capabilities=frozenset().union(*able) if able else None,
        price_in=cheapest[0],
        price_out=cheapest[1],
    )
