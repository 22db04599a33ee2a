"""What a caller wishes of routing: OpenRouter's `provider` object, `:fast` and `:cheap`, and what a call needs.

Parsed into frozen, typed values. A field that is known and wrong is an error that names it; unknown fields
are left alone, as they are passed on to the provider. `sort` turns the weights, not the filters: a sorted
order still yields to errors and to limits, since an answer late or never is not cheap.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from dandolo.config.schema import Weights

Sort = Literal["price", "throughput", "latency"]
NAMES_MAX = 64
NUMBER_MAX = 1e12
"""Of a price or a bound. JSON knows whole numbers that no float can hold."""
SORTED: Mapping[Sort, Weights] = {
    "price": Weights(latency=0.02, errors=0.3, load=0.02, cost=2.0),
    "throughput": Weights(latency=2.0, errors=0.3, load=0.1, cost=0.0),
    "latency": Weights(latency=2.0, errors=0.3, load=0.1, cost=0.0),
}
"""Weights for which one term decides unless somebody fails."""
_SUFFIXES: Mapping[str, Sort] = {"fast": "throughput", "nitro": "throughput", "cheap": "price", "floor": "price"}


@dataclass(frozen=True, slots=True)
class Preference:
    """A caller's wishes. Names are of providers or accounts, in lower case; prices USD per million tokens.

    `first_max_s` and `tokens_per_s_min` put candidates that are measured to be slower behind the others, and leave
    nobody out; `requires` leaves out who is not known to have what the call needs.
    """

    sort: Sort | None = None
    order: tuple[str, ...] = ()
    only: frozenset[str] = frozenset()
    ignore: frozenset[str] = frozenset()
    allow_fallbacks: bool = True
    max_price_in: float | None = None
    max_price_out: float | None = None
    first_max_s: float | None = None
    tokens_per_s_min: float | None = None
    requires: bool = False


NO_PREFERENCE = Preference()


@dataclass(frozen=True, slots=True)
class Need:
    """What a call cannot do without.

    `capabilities` the model must have; `region` it must be served from ("" anywhere); `pinned` the accounts
    or providers its tenant may use (None: all); `preference` the caller's wishes.
    """

    capabilities: frozenset[str] = frozenset()
    region: str = ""
    pinned: frozenset[str] | None = None
    preference: Preference = NO_PREFERENCE


NO_NEED = Need()


def split_suffix(model: str) -> tuple[str, Sort | None]:
    """A model's name without `:fast`, `:nitro`, `:cheap` or `:floor`, and what that suffix sorts by.

    Any other suffix (`:free`, `:thinking`) is the provider's own and stays. To be tried only on a name that
    is not known as it stands.
    """
    name, colon, suffix = model.rpartition(":")
    sort = _SUFFIXES.get(suffix) if colon and name else None
    return (model, None) if sort is None else (name, sort)


def read_preference(value: Any) -> Preference:
    """OpenRouter's `provider` object (decoded JSON) as a Preference.

    Raises ValueError that names the field, what was observed and what was expected.
    """
    if not isinstance(value, Mapping):
        raise ValueError(f"provider is {_kind(value)}; expected an object")
    fallbacks = _flag(value, "allow_fallbacks")
    prices = value.get("max_price")
    if prices is not None and not isinstance(prices, Mapping):
        raise ValueError(f"provider.max_price is {_kind(prices)}; expected an object with prompt and completion")
    return Preference(
        sort=_sort(value.get("sort")),
        order=_names(value, "order"),
        only=frozenset(_names(value, "only")),
        ignore=frozenset(_names(value, "ignore")),
        allow_fallbacks=fallbacks is not False,
        max_price_in=_price(prices, "prompt"),
        max_price_out=_price(prices, "completion"),
        first_max_s=_bound(value, "preferred_max_latency"),
        tokens_per_s_min=_bound(value, "preferred_min_throughput"),
        requires=_flag(value, "require_parameters") is True,
    )


def _flag(value: Mapping[str, Any], field: str) -> bool | None:
    flag = value.get(field)
    if flag is not None and not isinstance(flag, bool):
        raise ValueError(f"provider.{field} is {_kind(flag)}; expected true or false")
    return flag


def _bound(value: Mapping[str, Any], field: str) -> float | None:
    """A number, or the strictest of OpenRouter's percentiles ({"p50": 1.5, "p90": 3}): one figure is measured here."""
    bound = value.get(field)
    given = list(bound.values()) if isinstance(bound, Mapping) else [bound]
    numbers = [one for one in given if one is not None]
    for one in numbers:
        if isinstance(one, bool) or not isinstance(one, int | float) or not 0 < one <= NUMBER_MAX:
            raise ValueError(f"provider.{field} is {_kind(one)}; expected a number above 0 or an object of percentiles")
    if not numbers:
        return None
    return float(min(numbers) if field == "preferred_max_latency" else max(numbers))


def _sort(value: Any) -> Sort | None:
    if isinstance(value, Mapping):
        value = value.get("by")
        field = "provider.sort.by"
    else:
        field = "provider.sort"
    if value is None:
        return None
    if value == "price":
        return "price"
    if value == "throughput":
        return "throughput"
    if value == "latency":
        return "latency"
    raise ValueError(f"{field} is {_kind(value)}; expected price, throughput or latency")


def _names(value: Mapping[str, Any], field: str) -> tuple[str, ...]:
    names = value.get(field)
    if names is None:
        return ()
    if not isinstance(names, list | tuple):
        raise ValueError(f"provider.{field} is {_kind(names)}; expected an array of provider names")
    if len(names) > NAMES_MAX:
        raise ValueError(f"provider.{field} has {len(names)} names; expected at most {NAMES_MAX}")
    for index, name in enumerate(names):
        if not isinstance(name, str) or not name:
            raise ValueError(f"provider.{field}[{index}] is {_kind(name)}; expected a provider's name")
    return tuple(name.lower() for name in names)


def _price(prices: Mapping[str, Any] | None, field: str) -> float | None:
    value = None if prices is None else prices.get(field)
    if value is None:
        return None
    number: float | None = None
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= NUMBER_MAX:
        number = float(value)
    elif isinstance(value, str):  # OpenRouter's own prices are strings
        try:
            number = float(value)
        except ValueError:
            pass
    if number is None or not 0 <= number <= NUMBER_MAX:
        raise ValueError(
            f"provider.max_price.{field} is {_kind(value)}; expected a number of USD per million tokens, 0 or more"
        )
    return number


def _kind(value: Any) -> str:
    """A value as a message shows it: short, and by its JSON type where it is long."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int | float):
        return f"{value!r}"[:40]
    if isinstance(value, str):
        return f'"{value}"' if len(value) <= 40 else "a long string"
    return "an object" if isinstance(value, Mapping) else "an array"
