"""What a provider refuses and how it says when to come back: requests per window, and the headers of a 429.

Synchronous, `now` always a parameter (seconds of a monotonic clock); `wall` is Unix time, needed only for
headers that name a date.
"""

from __future__ import annotations

import math
import time
from typing import Final

from dandolo.sim.script import Dialect, RetryForm, Script

KEYS_MAX: Final = 10_000
"""Windows are kept for so many keys; beyond it all are forgotten, which only errs on the generous side."""

Headers = tuple[tuple[str, str], ...]


class RateLimit:
    """Fixed windows per key, of `script.rate_window_s` seconds from the first request counted in it."""

    __slots__ = ("_windows",)

    def __init__(self) -> None:
        self._windows: dict[str, tuple[float, int]] = {}

    def admit(self, key: str, script: Script, now: float) -> tuple[float | None, int]:
        """Count one request: (None, how many remain) if it may pass, else (seconds to wait, 0)."""
        if not script.rate_limit:
            return None, 0
        since, used = self._windows.get(key, (now, 0))
        if now - since >= script.rate_window_s:
            since, used = now, 0
        if used >= script.rate_limit:
            return since + script.rate_window_s - now, 0
        if len(self._windows) >= KEYS_MAX:
            self._windows.clear()
        self._windows[key] = (since, used + 1)
        return None, script.rate_limit - used - 1


def go_duration(seconds: float) -> str:
    """A duration as Go prints it: "12ms", "1s", "2m59.56s", "6m0s"."""
    milliseconds = max(1, math.ceil(seconds * 1000))
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, rest = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    second = f"{rest / 1000:.3f}".rstrip("0").rstrip(".") + "s"
    return (f"{hours}h" if hours else "") + (f"{minutes}m" if minutes or hours else "") + second


def retry_headers(form: RetryForm, wait_s: float, wall: float) -> Headers:
    """Headers of a 429 that tell `wait_s` seconds in one form."""
    if form == "seconds":
        return (("retry-after", str(max(1, math.ceil(wait_s)))),)
    if form == "http-date":
        when = time.gmtime(math.ceil(wall + wait_s))
        return (("retry-after", time.strftime("%a, %d %b %Y %H:%M:%S GMT", when)),)
    if form == "retry-after-ms":
        return (("retry-after-ms", str(max(1, math.ceil(wait_s * 1000)))),)
    if form == "go-duration":
        return (("x-ratelimit-remaining-requests", "0"), ("x-ratelimit-reset-requests", go_duration(wait_s)))
    if form == "unix-timestamp":
        reset = str(math.ceil(wall + wait_s))
        return (("x-ratelimit-remaining-requests", "0"), ("x-ratelimit-reset-requests", reset))
    if form == "rfc3339":
        when = time.gmtime(math.ceil(wall + wait_s))
        return (
            ("anthropic-ratelimit-requests-remaining", "0"),
            ("anthropic-ratelimit-requests-reset", time.strftime("%Y-%m-%dT%H:%M:%SZ", when)),
        )
    return ()


def quota_headers(dialect: Dialect, script: Script, remaining: int) -> Headers:
    """Headers of a good answer that tell what is left; OpenRouter tells it on 429s only."""
    if not script.rate_limit or dialect == "openrouter":
        return ()
    prefix = "anthropic-ratelimit-requests-" if dialect == "anthropic" else "x-ratelimit-"
    suffix = "" if dialect == "anthropic" else "-requests"
    return (
        (f"{prefix}limit{suffix}", str(script.rate_limit)),
        (f"{prefix}remaining{suffix}", str(remaining)),
    )
