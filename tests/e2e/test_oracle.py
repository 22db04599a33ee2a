"""The cache asked at random by many tenants, against an oracle that knows none of its keys (`bench.cache.oracle`)."""

from __future__ import annotations

import asyncio
import shutil

import pytest

from bench.cache.oracle import trial

REQUESTS = 2_500


@pytest.mark.promise("46", "47", "48")
@pytest.mark.parametrize(
    ("levels", "gateways"),
    [(["memory"], 1), (["memory", "redis", "sqlite"], 2)],
    ids=["memory", "all tiers of two hosts"],
)
def test_nobody_gets_a_wrong_answer_or_somebody_elses(levels: list[str], gateways: int) -> None:
    if "redis" in levels and not (shutil.which("redis-server") or shutil.which("valkey-server")):
        pytest.skip("no redis-server")
    clients = asyncio.run(trial(REQUESTS, 7, levels, 0.03, gateways))
    assert clients.wrong == []
    # It was a trial of the cache, not of its absence.
    assert clients.outcomes["HIT"] > REQUESTS / 4
    assert clients.outcomes["MISS"] > REQUESTS / 8
    assert clients.outcomes["broken stream"]
