"""What a new configuration takes over of the cache of the one before."""

from __future__ import annotations

import os
import time

import pytest

from dandolo.api.endpoints import ENDPOINTS
from dandolo.cache.memory import Draft
from dandolo.cache.policy import Permission
from dandolo.config import parse
from dandolo.gateway.caching import Caching
from dandolo.gateway.keeping import STEADY_OFFSET_S

BODY = b'{"model":"m","temperature":0,"messages":[{"role":"user","content":"Hello?"}]}'
ANSWER = b'{"choices":[{"index":0,"message":{"role":"assistant","content":"Yes."},"finish_reason":"stop"}]}'
CONFIG = """
[server]
privacy = {everybody}
[[keys]]
name = "one"
sha256 = "{digest}"
privacy = {one}
[[providers]]
name = "sim"
base_url = "http://127.0.0.1:9/v1"
key = {{ env = "ONE" }}
"""
KEY = b"k" * 20


def caching(*, everybody: bool = False, one: bool = False) -> Caching:
    text = CONFIG.format(everybody=str(everybody).lower(), one=str(one).lower(), digest="0" * 64)
    made = Caching.of(parse(text, "test", {**os.environ, "ONE": "x" * 20}))
    assert made is not None
    return made


def filled() -> Caching:
    made, now = caching(), time.monotonic()
    permission = Permission(lookup=True, store=True, reason="", scope="key:one")
    asked, chat = now + STEADY_OFFSET_S, ENDPOINTS[b"/v1/chat/completions"]
    draft = Draft(chat, BODY, "m", ANSWER, permission, None, b"sim", ("team=web",), now, asked)
    made.drafts[KEY] = draft
    made.memo.put(b"context", BODY, KEY)
    return made


@pytest.mark.parametrize("more", [{"everybody": True}, {"one": True}], ids=["everybody", "one key"])
def test_privacy_from_now_on_lets_go_of_the_requests_that_were_kept(more: dict[str, bool]) -> None:
    before, after = filled(), caching(**more)
    after.inherit(before)
    assert len(after.memo) == len(after.memory) == after.memory.bytes == 0


def test_without_it_they_are_taken_over_and_found_by_the_tags_they_were_made_with() -> None:
    before, after = filled(), caching()
    after.inherit(before)
    assert len(after.memo) == 1
    kept = after.memory.get(KEY, time.monotonic() + STEADY_OFFSET_S)
    assert kept is not None
    assert kept.entry.tags == ("provider=sim", "team=web")
