"""What a simulated provider is told to do: pace, limits, error rates and, one by one, its misbehaviour.

Everything here is frozen data that survives a trip through JSON, so that the same script serves a test, the
demo and a process of its own (`python -m dandolo.sim --script '{...}'`). How a fault is played is not known
here: `faults` shapes events, `play` shapes framing and closing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import msgspec

Dialect = Literal["openai", "venice", "openrouter", "anthropic"]
ErrorForm = Literal["own", "openai", "venice", "openrouter", "anthropic", "llamacpp", "html", "empty"]
RetryForm = Literal["seconds", "http-date", "retry-after-ms", "go-duration", "unix-timestamp", "rfc3339", "none"]
Then = Literal["keep", "close", "reset", "hang"]

FaultKind = Literal[
    "ok",
    "refuse", "speak_first", "close_before_answer", "reset_before_answer", "hang_before_answer",
    "hang_after_head", "stall", "unsolicited", "close_after_answer", "close_on_reuse", "raw",
    "status", "error_200", "html_200", "empty_200", "redirect", "private_headers",
    "truncated_body", "bad_chunk", "cl_te", "two_cl", "switching_101", "endless_1xx", "early_hints",
    "huge_header", "nul_header", "eof_body", "eof_body_http10", "gzip", "bad_gzip", "dribble",
    "cut_fin", "cut_rst", "stream_error", "no_done", "no_finish", "no_finish_no_done", "after_done",
    "hold_after_done", "big_event", "keepalive_forever", "role_first", "finish_no_usage",
    "usage_in_choice", "usage_x_groq", "usage_continuous", "usage_cumulative",
    "sse_crlf", "sse_cr", "sse_bom", "sse_comments", "sse_no_space",
]  # fmt: skip

KINDS: dict[str, str] = {
    "ok": "no fault: holds a place in the list",
    "refuse": "accept, then RST; taken when a connection is opened, or by a request on an open one",
    "speak_first": "`data` is written when a connection is opened, before any request",
    "close_before_answer": "wait `delay_s`, then FIN without a byte",
    "reset_before_answer": "wait `delay_s`, then RST without a byte",
    "hang_before_answer": "silence for `delay_s` (0: until the client leaves), then `then` (close)",
    "hang_after_head": "head, then silence for `delay_s` (0: until the client leaves), then `then` (close)",
    "stall": "like hang_after_head, after `after` events of a stream (half of a plain body)",
    "unsolicited": "whole answer, `delay_s`, then `data` on the idle connection, then `then` (keep)",
    "close_after_answer": "whole kept-alive answer, `delay_s`, then `then` (close)",
    "close_on_reuse": "whole answer; the next request on that connection gets `then` (close), no byte",
    "raw": "exactly `data` instead of an answer, in pieces of `size` every `delay_s`, then `then` (close)",
    "status": "status `status` with `body` (or an error of `form`) and `headers`",
    "error_200": "status 200 with `body` (or an error of `form`)",
    "html_200": "status 200 with an HTML page",
    "empty_200": "status 200 with content-length 0",
    "redirect": "status `status` (302) with a Location (`headers` may replace it)",
    "private_headers": "good answer with Set-Cookie, Server, Location, Alt-Svc, Via, a nominated hop header",
    "truncated_body": "Content-Length is `size` (100) bytes larger than what is sent, then `then` (close)",
    "bad_chunk": "after `after` events (half of a plain body) a chunk size that is no number, then close",
    "cl_te": "Content-Length and Transfer-Encoding: chunked, body chunked, then `then` (keep)",
    "two_cl": "two Content-Length headers that differ by 5, then `then` (keep)",
    "switching_101": "101 Switching Protocols, then silence until the client leaves",
    "endless_1xx": "`count` (0: endless) 100s every `delay_s`, `status` 100-199 to choose; then the answer",
    "early_hints": "103 with a Link header, then the answer",
    "huge_header": "a header of `size` (131072) bytes in a good answer",
    "nul_header": "a NUL inside a header value, then `then` (keep)",
    "eof_body": "HTTP/1.1 without Content-Length and Transfer-Encoding, ended by FIN",
    "eof_body_http10": "the same with an HTTP/1.0 status line",
    "gzip": "gzip'd answer, asked for or not (a stream is flushed per event)",
    "bad_gzip": "the same with bytes spoilt in the middle",
    "dribble": "head and body in pieces of `size` (1) bytes every `delay_s`",
    "cut_fin": "FIN after `after` events (half of a plain body), before the end of the framing",
    "cut_rst": "RST after `after` events (half of a plain body), `delay_s` (0.02) later",
    "stream_error": "after `after` events an error event of `form`, then `then` (keep: a clean end); "
    "`count` 1: a [DONE] follows; plain answers become error_200",
    "no_done": "finish, but no terminal event",
    "no_finish": "terminal event, but no finish_reason",
    "no_finish_no_done": "neither",
    "after_done": "one more content event after the terminal event",
    "hold_after_done": "the answer's end waits `delay_s` (0: until the client leaves) after its last event",
    "big_event": "the content event number `after` is `size` (1 MiB) bytes long",
    "keepalive_forever": "after `after` events only comments every `delay_s` (0.05), no payload",
    "role_first": "the opening event at once, then `delay_s` on top of the usual wait for content",
    "finish_no_usage": "usage is left out though asked for",
    "usage_in_choice": "usage inside choices[0] of the finish event",
    "usage_x_groq": "usage under x_groq of the finish event",
    "usage_continuous": "every chunk carries the usage so far",
    "usage_cumulative": "a growing usage chunk (choices: []) after every content event",
    "sse_crlf": "lines end in CRLF",
    "sse_cr": "lines end in CR",
    "sse_bom": "a byte-order mark first",
    "sse_comments": "a comment before every event, id: and retry: fields",
    "sse_no_space": "`data:` without a space",
}  # fmt: skip
"""Every kind of fault with the parameters it reads; a default stands in parentheses."""

assert set(KINDS) == set(get_args(FaultKind))

_DEFAULT_THEN: dict[str, Then] = {
    "unsolicited": "keep",
    "speak_first": "keep",
    "cl_te": "keep",
    "two_cl": "keep",
    "nul_header": "keep",
    "stream_error": "keep",
    "cut_rst": "reset",
    "refuse": "reset",
    "reset_before_answer": "reset",
}


@dataclass(frozen=True, slots=True)
class Fault:
    """One misbehaviour, for one request unless `times` says otherwise.

    `after` counts events, `size` bytes, `count` repetitions, `delay_s` seconds (0 on a hang: until the client
    leaves). `data` is written as it is (base64 in JSON). `form` is the error's dialect, "own" the provider's.
    `then` is what happens to the connection. `times` is how many requests it applies to (0: all that follow);
    `only` restricts it to targets that contain this text, others pass it by without using it up.
    """

    kind: FaultKind
    after: int = 0
    size: int = 0
    count: int = 0
    delay_s: float = 0.0
    status: int = 0
    body: str | None = None
    form: ErrorForm = "own"
    headers: Sequence[tuple[str, str]] = ()
    data: bytes = b""
    then: Then | None = None
    times: int = 1
    only: str = ""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"unknown fault kind {self.kind!r}; known: {', '.join(KINDS)}")
        if min(self.after, self.size, self.count, self.times, self.delay_s) < 0:
            raise ValueError(f"fault {self.kind}: negative counts or delays have no meaning")
        object.__setattr__(self, "headers", tuple((name, value) for name, value in self.headers))

    @property
    def ending(self) -> Then:
        """What happens to the connection afterwards: `then`, or the kind's own default."""
        return self.then or _DEFAULT_THEN.get(self.kind, "close")


@dataclass(frozen=True, slots=True)
class Script:
    """The conduct of a provider. Times in seconds; all waits are multiplied by 1 ± `jitter` (0..1).

    A head is sent `latency_s` after the request, the first event of a stream `first_token_s` after the head,
    the others at `tokens_per_s` (0: at once). A plain generated answer takes as long as its stream would.
    `tokens` is the number of content pieces, `reasoning_tokens` pieces come before it as reasoning. `words`, if any,
    stand in the place of the usual ones after an answer's opening facts, in order and again from the first: with
    words of its own a provider can be told by every piece of its text. `repeatable` leaves the sequence number out of
    chat texts, so that equal requests get equal ones.

    `error_rate` (0..1) of the requests are answered `error_status` in `error_form`, chosen by `seed` and the
    request's sequence number, so that the same run gives the same errors.

    `rate_limit` requests per `rate_window_s` and key are served (0: no limit), others get 429, whose wait is
    told in `retry_form`. Above `max_concurrency` requests in flight (0: no limit) the answer is
    `overload_status` with `overload_code`. `faults` are used in order, one a request; afterwards `default_fault`,
    if any. `strict_models` answers 404 for models the provider does not list.
    """

    latency_s: float = 0.0
    first_token_s: float = 0.0
    tokens_per_s: float = 0.0
    tokens: int = 16
    reasoning_tokens: int = 0
    words: Sequence[str] = ()
    repeatable: bool = False
    jitter: float = 0.0
    seed: int = 0
    error_rate: float = 0.0
    error_status: int = 500
    error_form: ErrorForm = "own"
    rate_limit: int = 0
    rate_window_s: float = 60.0
    retry_form: RetryForm = "seconds"
    max_concurrency: int = 0
    overload_status: int = 429
    overload_code: str = "model_overloaded"
    strict_models: bool = False
    faults: Sequence[Fault] = ()
    default_fault: Fault | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "faults", tuple(self.faults))
        object.__setattr__(self, "words", tuple(self.words))
        if not (0 <= self.error_rate <= 1 and 0 <= self.jitter <= 1):
            raise ValueError("error_rate and jitter are shares between 0 and 1")
        if min(self.latency_s, self.first_token_s, self.tokens_per_s, self.rate_window_s) < 0:
            raise ValueError("waits and rates cannot be negative")
        if self.tokens < 1:
            raise ValueError("tokens: at least one piece carries the answer")

    @classmethod
    def from_json(cls, text: str | bytes) -> Script:
        """Read a script; unknown keys are refused, since a misspelt fault would silently test nothing.

        Raises `msgspec.ValidationError` or `ValueError` naming the key.
        """
        raw = msgspec.json.decode(text, type=dict[str, object])
        _known(raw, cls.__dataclass_fields__, "script")
        faults = raw.get("faults", ())
        for fault in [*(faults if isinstance(faults, list) else ()), raw.get("default_fault")]:
            if isinstance(fault, dict):
                _known(fault, Fault.__dataclass_fields__, "fault")
        return msgspec.convert(raw, cls)

    def to_json(self) -> str:
        """The inverse of `from_json`."""
        return msgspec.json.encode(self).decode()


def _known(given: dict[str, object], fields: Mapping[str, object], what: str) -> None:
    for name in given:
        if name not in fields:
            raise ValueError(f"{what}: unknown key {name!r}; known: {', '.join(fields)}")


class FaultQueue:
    """The faults of one script that are still to come; synchronous, owned by a provider."""

    __slots__ = ("_default", "_waiting")

    def __init__(self, script: Script) -> None:
        self._waiting: list[list[object]] = [[fault, fault.times] for fault in script.faults]
        self._default = script.default_fault

    def on_request(self, target: str) -> Fault | None:
        """Take the first waiting fault that concerns this target."""
        for entry in self._waiting:
            fault = entry[0]
            assert isinstance(fault, Fault)
            if fault.only in target:
                return self._use(entry)
        default = self._default
        return default if default is not None and default.only in target else None

    def on_connect(self) -> Fault | None:
        """Take the next fault if it is one that happens when a connection is opened."""
        if self._waiting:
            fault = self._waiting[0][0]
            assert isinstance(fault, Fault)
            return self._use(self._waiting[0]) if fault.kind in ("refuse", "speak_first") else None
        default = self._default
        return default if default is not None and default.kind in ("refuse", "speak_first") else None

    def _use(self, entry: list[object]) -> Fault:
        fault, left = entry
        assert isinstance(fault, Fault)
        assert isinstance(left, int)
        if left == 1:
            self._waiting.remove(entry)
        elif left > 1:
            entry[1] = left - 1
        return fault
