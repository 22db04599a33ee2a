"""What an answer to a probe says of a provider's health.

    no connection, no answer in time, not HTTP, HTML, 5xx     not well
    401, 402, 403, 429                                        there, but that says nothing about calls: a key may be
                                                              barred from listing and yet chat, and a limit passes.
                                                              Breakers are told nothing; a 429 is waited out.
    anything else (2xx, 3xx, which is not followed, 404, …)   well

A call for one token is well only if a completion comes back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import msgspec

from dandolo.errors import UpstreamError, UpstreamInvalid, UpstreamTimeout
from dandolo.mind.question import Reply

Failure = Literal["", "connect", "timeout", "invalid", "server", "auth", "quota", "limited", "refused"]
_UNCLEAR: Mapping[int, Failure] = {401: "auth", 402: "quota", 403: "auth", 429: "limited"}


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a provider took a probe. `well`: it answered, and not with its own failure.

    `failure` is a stable word, "" where nothing was the matter; `reason` says it in words without secrets.
    `connect_s` and `latency_s` are seconds until the request could be sent and until the answer's head was there,
    None where it did not come so far.
    """

    well: bool
    failure: Failure = ""
    reason: str = ""
    status: int | None = None
    connect_s: float | None = None
    latency_s: float | None = None
    retry_after_s: float | None = None
    completion: bool = False
    """Whether it was a call, and was answered like one."""

    def for_breakers(self, was_ill: bool) -> bool | None:
        """What a breaker is told (`Breaker.probed`); None: nothing. `was_ill`: it was last told "not well".

        A list of models that comes says nothing of a provider whose lists came all along while its calls failed:
        were breakers let out by it, users would be the trial every two seconds. What lets them out is a completion,
        or a list after none had come.
        """
        if not self.well:
            return False
        return True if not self.failure and (self.completion or was_ill) else None


def judge_failure(error: UpstreamError) -> Verdict:
    """What it says that no answer came."""
    if isinstance(error, UpstreamTimeout):
        return Verdict(False, "timeout", error.message)
    return Verdict(False, "invalid" if isinstance(error, UpstreamInvalid) else "connect", error.message)


def judge(reply: Reply) -> Verdict:
    """What the head of an answer says of a provider's health."""
    status, head = reply.status, reply.fields
    failure: Failure = ""
    well, reason = True, ""
    if status >= 500:
        well, failure, reason = False, "server", f"it answered {status}"
    elif status in _UNCLEAR:
        failure, reason = _UNCLEAR[status], f"it answered {status}"
    elif 200 <= status < 300 and head.get(b"content-type", b"").lower().startswith(b"text/html"):
        # A page of somebody who stands in between: no API answers in HTML.
        well, failure, reason = False, "invalid", f"it answered {status} with a web page"
    wait_s = _seconds(head.get(b"retry-after")) if status == 429 else None
    return Verdict(well, failure, reason, status, reply.connect_s, reply.latency_s, wait_s)


def judge_chat(reply: Reply) -> Verdict:
    """What the answer to a call for one token says; only a completion is well."""
    verdict = judge(reply)
    if verdict.failure:
        return verdict
    failure: Failure
    if not 200 <= reply.status < 300:
        # The model or the request is not to its liking, which is no illness.
        well, failure, reason = True, "refused", f"it answered {reply.status} to a call for one token"
    elif reply.body is None:
        well, failure, reason = False, "invalid", reply.problem or "its answer did not come whole"
    else:
        failure = _completion(reply.body)
        if not failure:
            return replace(verdict, completion=True)
        well, reason = False, f"it answered {reply.status} without a completion"
    return Verdict(well, failure, reason, reply.status, reply.connect_s, reply.latency_s)


def _completion(body: bytes) -> Failure:
    try:
        answer = msgspec.json.decode(body)
    except (ValueError, RecursionError):
        return "invalid"
    if not isinstance(answer, dict):
        return "invalid"
    if answer.get("error"):
        return "server"
    # `choices` of chat completions, `content` of messages: a list that holds something.
    return "" if any(isinstance(answer.get(key), list) and answer[key] for key in ("choices", "content")) else "invalid"


def _seconds(value: bytes | None) -> float | None:
    """A Retry-After in seconds; a date is not worth a clock here."""
    if value is None or not value.isdigit() or len(value) > 6:
        return None
    return float(value)
