"""What several workers see, put together as one gateway: counts are summed, of states the worst is shown.

Each worker tells a dict (JSON's types only): `worker` (name, pid, cpu, …), `load`, `providers` (accounts as
/admin/routes tells them), `cache` (tiers), `keys`, `scores` (by model). What a worker measured for itself (first token,
tokens a second) is taken from the one that asked most. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

_WORSE: Final = {"off": 0, "closed": 1, "half-open": 2, "open": 3}
_TIER_WORSE: Final = {"in use": 0, "open": 1, "down": 2}


def together(told: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The state of all workers, by the names that `control.snapshot` has for it. Nothing of nobody is nothing."""
    if not told:
        return {}
    return {
        "load": _load([one["load"] for one in told]),
        "providers": _by("account", (account for one in told for account in one["providers"]), _account),
        "cache": _by("tier", (tier for one in told for tier in one["cache"]), _tier),
        "keys": _by("name", (key for one in told for key in one["keys"]), _key),
        "workers": [one["worker"] for one in told],
        "scores": {model: scores for one in reversed(told) for model, scores in one.get("scores", {}).items()},
    }


def _load(loads: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    names = ("in_flight", "streams", "connections")
    queue: dict[str, int] = {}
    for one in loads:
        for name, count in one["queue"].items():
            queue[name] = queue.get(name, 0) + count
    return {
        **{name: sum(one[name] for one in loads) for name in names},
        "queue": queue,
        "draining": all(one["draining"] for one in loads),
    }


def _by(
    name: str, items: Iterable[Mapping[str, Any]], merge: Callable[[dict[str, Any], Mapping[str, Any]], None]
) -> list[dict[str, Any]]:
    """One for each value of `name`, in the order they came."""
    found: dict[Any, dict[str, Any]] = {}
    for item in items:
        before = found.get(item[name])
        if before is None:
            found[item[name]] = dict(item)
        else:
            merge(before, item)
    return list(found.values())


def _account(into: dict[str, Any], one: Mapping[str, Any]) -> None:
    into["slots"] = _sums(into["slots"], one["slots"])
    into["models"] = _by("model", (*into["models"], *one["models"]), _model)
    for name in ("cooling_ms", "reason"):
        if one.get(name) and (name == "reason" or one[name] > into.get(name, 0)):
            into[name] = one[name]
    probe = one.get("probe")
    if probe is not None and not (into.get("probe") and not into["probe"]["well"]):
        into["probe"] = probe


def _model(into: dict[str, Any], one: Mapping[str, Any]) -> None:
    worst, other = _WORSE.get(into["breaker"], 0), _WORSE.get(one["breaker"], 0)
    if other > worst:
        into["breaker"] = one["breaker"]
        for name in ("reason", "left_alone_ms"):
            into.pop(name, None)
            if name in one:
                into[name] = one[name]
    busier = one.get("in_flight", 0) > into.get("in_flight", 0)
    for name, value in one.items():
        if name == "error_rate":
            into[name] = max(into.get(name, 0.0), value)
        elif name == "in_flight":
            into[name] = into.get(name, 0) + value
        elif name not in ("breaker", "reason", "left_alone_ms") and (busier or name not in into):
            into[name] = value


def _tier(into: dict[str, Any], one: Mapping[str, Any]) -> None:
    state = max((item.get("state", "in use") for item in (into, one)), key=lambda name: _TIER_WORSE.get(name, 0))
    into.update(_sums(into, one))
    if "state" in one:
        into["state"] = state


def _key(into: dict[str, Any], one: Mapping[str, Any]) -> None:
    for name, value in one.items():
        if isinstance(value, Mapping) and isinstance(into.get(name), Mapping) and "used" in value:
            # What may be used is one for all workers, what is used is each one's own.
            into[name] = {**into[name], "used": into[name]["used"] + value["used"]}


def _sums(into: Mapping[str, Any], one: Mapping[str, Any]) -> dict[str, Any]:
    summed = dict(into)
    for name, value in one.items():
        if isinstance(value, (int, float)) and isinstance(summed.get(name, 0), (int, float)):
            summed[name] = summed.get(name, 0) + value
    return summed
