"""Several workers shown as one gateway."""

from __future__ import annotations

from typing import Any

from dandolo.control.together import together


def worker(name: str, **more: Any) -> dict[str, Any]:
    return {
        "worker": {"name": name, "cpu": 0.5},
        "load": {
            "in_flight": 2, "streams": 1, "connections": 3, "queue": {"high": 1, "normal": 0, "low": 2},
            "draining": False,
        },
        "providers": [],
        "cache": [],
        "keys": [],
        "scores": {},
        **more,
    }  # fmt: skip


def account(*models: dict[str, Any], **more: Any) -> dict[str, Any]:
    slots = {"in_use": 2, "limit": 10, "learned_limit": 8.5, "waiting": 1}
    return {"account": "one", "provider": "one", "slots": slots, "models": list(models), **more}


def model(name: str = "m", breaker: str = "closed", **more: Any) -> dict[str, Any]:
    return {"model": name, "breaker": breaker, "in_flight": 1, "error_rate": 0.0, **more}


def test_nobody_tells_nothing() -> None:
    assert together([]) == {}


def test_one_is_shown_as_it_is() -> None:
    one = worker("0", providers=[account(model())], keys=[{"name": "a"}], scores={"m": {"candidates": []}})
    whole = together([one])
    assert whole == {
        "load": one["load"], "providers": one["providers"], "cache": [], "keys": one["keys"],
        "workers": [one["worker"]], "scores": one["scores"],
    }  # fmt: skip


def test_counts_are_summed_and_workers_stay_apart() -> None:
    whole = together([worker("0"), worker("1")])
    assert whole["load"] == {
        "in_flight": 4, "streams": 2, "connections": 6, "queue": {"high": 2, "normal": 0, "low": 4}, "draining": False,
    }  # fmt: skip
    assert [one["name"] for one in whole["workers"]] == ["0", "1"]


def test_of_breakers_and_probes_the_worst_is_shown() -> None:
    well = account(model(), model("other"), probe={"well": True, "reason": ""})
    ill = account(
        model(breaker="open", reason="3 failures in a row", left_alone_ms=900.0, error_rate=0.5),
        probe={"well": False, "reason": "no connection"}, cooling_ms=5.0, reason="cooling",
    )  # fmt: skip
    for order in ([well, ill], [ill, well]):
        (shown,) = together([worker(str(n), providers=[one]) for n, one in enumerate(order)])["providers"]
        assert shown["slots"] == {"in_use": 4, "limit": 20, "learned_limit": 17.0, "waiting": 2}
        assert shown["probe"] == {"well": False, "reason": "no connection"}
        assert (shown["cooling_ms"], shown["reason"]) == (5.0, "cooling")
        by_name = {one["model"]: one for one in shown["models"]}
        assert set(by_name) == {"m", "other"}
        assert by_name["m"] == model(breaker="open", reason="3 failures in a row", left_alone_ms=900.0, in_flight=2,
                                     error_rate=0.5)  # fmt: skip


def test_what_was_measured_is_of_the_one_that_asks_most() -> None:
    idle = account(model(in_flight=0, first_token_ms=900.0))
    busy = account(model(in_flight=5, first_token_ms=200.0))
    for order in ([idle, busy], [busy, idle]):
        (shown,) = together([worker(str(n), providers=[one]) for n, one in enumerate(order)])["providers"]
        assert shown["models"][0]["first_token_ms"] == 200.0


def test_what_a_key_may_use_is_one_for_all_and_what_it_uses_each_ones_own() -> None:
    key = {"name": "a", "priority": "high", "concurrent": {"used": 3, "limit": 8}}
    (shown,) = together([worker("0", keys=[key]), worker("1", keys=[key])])["keys"]
    assert shown == {"name": "a", "priority": "high", "concurrent": {"used": 6, "limit": 8}}


def test_tiers_of_the_cache() -> None:
    def tier(name: str, **more: Any) -> dict[str, Any]:
        return {"tier": name, "hits": 1, "misses": 2, **more}

    shown = together(
        [
            worker("0", cache=[tier("memory", bytes=10), tier("redis", state="in use")]),
            worker("1", cache=[tier("memory", bytes=20), tier("redis", state="down")]),
        ]
    )["cache"]
    assert shown == [
        {"tier": "memory", "hits": 2, "misses": 4, "bytes": 30},
        {"tier": "redis", "hits": 2, "misses": 4, "state": "down"},
    ]


def test_nothing_that_was_told_is_changed() -> None:
    told = [worker(str(n), providers=[account(model())], cache=[{"tier": "memory", "hits": 1}]) for n in range(2)]
    before = repr(told)
    together(told)
    together(told)
    assert repr(told) == before
