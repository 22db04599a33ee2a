"""The performance of one request: what is decided, how long it takes, what goes wrong, and how it ends.

`before_answer` plays the faults that come instead of an answer, `decide` chooses the answer (authentication,
limits, errors, dialect), `perform` writes it at the script's pace. Nothing here owns a connection: the caller
cancels the task when the client leaves, and closes as the returned ending says.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace

import h11

from dandolo.sim import anthropic, openai
from dandolo.sim.answer import Answer, Asked, Event, Refused
from dandolo.sim.envelopes import HTML, error_answer, refused_answer
from dandolo.sim.faults import event_bytes, shape
from dandolo.sim.framing import Headers, Output, Stage, dribble, head_bytes
from dandolo.sim.limits import RateLimit, quota_headers, retry_headers
from dandolo.sim.script import Fault, Script, Then

PROCESSING_S = 0.5
"""OpenRouter's comments come so often while nothing else does."""

EVENTS_PER_TURN = 32
"""A stream without pace lets others run after so many events."""

_PRIVATE: Headers = [
    (b"Set-Cookie", b"session=secret; Path=/; HttpOnly"),
    (b"Server", b"sim-internal/9.9"),
    (b"Location", b"http://169.254.169.254/latest/meta-data/"),
    (b"Alt-Svc", b'h3=":443"; ma=86400'),
    (b"Via", b"1.1 sim-edge"),
    (b"X-Powered-By", b"sim"),
    (b"X-Hop", b"1"),
    (b"Connection", b"X-Hop"),
]


class Pace:
    """The waits of one request, varied by the script's jitter, the same for the same seed and sequence."""

    __slots__ = ("_random", "script")

    def __init__(self, script: Script, sequence: int) -> None:
        self.script = script
        self._random = random.Random(f"{script.seed}:{sequence}")  # noqa: S311 - reproducible on purpose

    def varied(self, seconds: float) -> float:
        jitter = self.script.jitter
        return seconds * (1 + jitter * (2 * self._random.random() - 1)) if jitter else seconds

    async def wait(self, seconds: float) -> None:
        if seconds > 0:
            await asyncio.sleep(self.varied(seconds))

    def fails(self) -> bool:
        return self.script.error_rate > 0 and self._random.random() < self.script.error_rate


async def client_leaves() -> None:
    """Wait without an end of its own: the task is cancelled when the client closes."""
    await asyncio.get_running_loop().create_future()


async def silence(seconds: float) -> None:
    """Seconds of silence; 0: until the client leaves."""
    if seconds:
        await asyncio.sleep(seconds)
    else:
        await client_leaves()


async def before_answer(stage: Stage, fault: Fault) -> Then | None:
    """Play a fault that takes the place of an answer; None if this one does not."""
    kind = fault.kind
    if kind in ("refuse", "reset_before_answer", "close_before_answer"):
        await asyncio.sleep(fault.delay_s)
    elif kind == "hang_before_answer":
        await silence(fault.delay_s)
    elif kind == "raw":
        stage.by_hand()
        await dribble(stage, fault.data, fault.size or max(1, len(fault.data)), fault.delay_s)
    elif kind == "switching_101":
        stage.by_hand()
        await stage.write(head_bytes(101, [(b"Upgrade", b"websocket"), (b"Connection", b"Upgrade")]))
        await client_leaves()
    else:
        return None
    return fault.ending


def decide(
    asked: Asked,
    fault: Fault | None,
    pace: Pace,
    *,
    keys: Sequence[str],
    limit: RateLimit,
    in_flight: int,
    now: float,
    wall: float,
) -> Answer:
    """Choose the answer. `in_flight` counts this request; `now` is monotonic, `wall` Unix time (seconds)."""
    script = asked.script
    scripted = _scripted(asked, fault)
    if scripted is not None:
        return scripted
    key = asked.headers.get("x-api-key") or asked.headers.get("authorization", "").removeprefix("Bearer ")
    try:
        public = asked.path.strip("/") == "" and asked.method in ("GET", "HEAD")
        if keys and key not in keys and not public:
            # OpenAI repeats the key in its message, which a gateway must not pass on.
            raise Refused(401, f"Incorrect API key provided: {key or '(none)'}.", "invalid_api_key")
        wait_s, left = limit.admit(key, script, now)
        if wait_s is not None:
            headers = retry_headers(script.retry_form, wait_s, wall)
            raise Refused(429, "Rate limit reached for requests", "rate_limit_exceeded", headers)
        if script.max_concurrency and in_flight > script.max_concurrency:
            raise Refused(script.overload_status, "Too many concurrent requests", script.overload_code)
        if pace.fails():
            return error_answer(asked, script.error_status, "simulated failure", form=script.error_form)
        messages = asked.route()[0].startswith("messages")
        answer = anthropic.answer(asked) if messages else openai.answer(asked)
    except Refused as refused:
        return refused_answer(asked, refused)
    except (TypeError, ValueError, KeyError, AttributeError, IndexError) as error:
        # A body of unexpected shape is the client's mistake, as it is at a real provider.
        return error_answer(asked, 400, f"malformed request: {error!r}", "invalid_request")
    if fault and fault.kind == "stream_error" and answer.events is None:
        return error_answer(asked, 200, "simulated failure", form=fault.form, body=fault.body)
    quota = quota_headers(asked.dialect, script, left)
    return replace(answer, headers=answer.headers + quota) if quota else answer


def _scripted(asked: Asked, fault: Fault | None) -> Answer | None:
    """The answer of faults that are themselves an answer."""
    if fault is None:
        return None
    kind, headers = fault.kind, tuple(fault.headers)
    if kind == "status":
        return error_answer(
            asked, fault.status or 500, "simulated failure", form=fault.form, body=fault.body, headers=headers
        )
    if kind == "error_200":
        return error_answer(asked, 200, "simulated failure", form=fault.form, body=fault.body, headers=headers)
    if kind == "html_200":
        return Answer(200, HTML, content_type="text/html; charset=utf-8", headers=headers)
    if kind == "empty_200":
        return Answer(200, b"", headers=headers)
    if kind == "redirect":
        location = headers or (("location", "http://127.0.0.1:9/elsewhere"),)
        return Answer(fault.status or 302, b"moved\n", content_type="text/plain", headers=location)
    return None


async def perform(stage: Stage, asked: Asked, answer: Answer, fault: Fault | None, pace: Pace) -> Then:
    """Write the answer. Returns what to do with the connection; "keep" leaves that to the framing.

    Cancellation: stops where it is; what was written stays written.
    """
    script, kind = asked.script, fault.kind if fault else "ok"
    await pace.wait(script.latency_s)
    extra: Headers = [
        (b"x-request-id", asked.id("req").encode("latin-1", "replace")),
        (b"x-sim-provider", asked.provider.encode("latin-1", "replace")),
        (b"x-sim-sequence", str(asked.sequence).encode()),
        (b"x-sim-body-sha256", asked.body_sha256.encode()),
    ]
    if asked.route()[0].startswith("messages"):
        extra.append((b"request-id", asked.id("req").encode("latin-1", "replace")))
    if kind == "private_headers":
        extra += _PRIVATE
    if fault and kind == "endless_1xx":
        await _endless_1xx(stage, fault)
    elif kind == "early_hints":
        hint = [(b"Link", b"</style.css>; rel=preload")]
        await stage.write(stage.frame(h11.InformationalResponse(status_code=103, headers=hint, reason=b"Early Hints")))
    output = Output(stage, fault, answer.status)
    if answer.events is None:
        return await _plain(output, answer, extra, fault, pace)
    await output.head(answer, extra, None)
    return await _stream(output, asked, answer.events, fault, pace)


async def _endless_1xx(stage: Stage, fault: Fault) -> None:
    status = fault.status or 100
    sent = 0
    while not fault.count or sent < fault.count:
        await stage.write(head_bytes(status, []))
        sent += 1
        await asyncio.sleep(fault.delay_s)


async def _plain(output: Output, answer: Answer, extra: Headers, fault: Fault | None, pace: Pace) -> Then:
    script = pace.script
    if answer.pieces:
        await pace.wait(script.first_token_s)
        if script.tokens_per_s:
            await pace.wait((answer.pieces - 1) / script.tokens_per_s)
    body, kind = answer.body, fault.kind if fault else "ok"
    await output.head(answer, extra, len(body))
    if fault and kind in ("hang_after_head", "stall"):
        if kind == "stall":
            await output.data(body[: len(body) // 2])
        await silence(fault.delay_s)
        return fault.ending
    if fault and kind in ("cut_fin", "cut_rst", "bad_chunk"):
        await output.data(body[: len(body) // 2])
        await output.broken()
        if kind == "cut_rst":
            await asyncio.sleep(fault.delay_s or 0.02)
        return fault.ending
    await output.data(body)
    await output.end()
    return ending_of(fault)


async def _stream(output: Output, asked: Asked, events: Iterator[Event], fault: Fault | None, pace: Pace) -> Then:
    script, kind = pace.script, fault.kind if fault else "ok"
    loop = asyncio.get_running_loop()
    first, started, turn = True, False, 0
    due = loop.time()
    for event in shape(asked, fault, events):
        if event.act in ("close", "reset"):
            await output.broken()
            return "reset" if event.act == "reset" else "close"
        if event.act == "wait":
            await silence(event.wait_s)
            continue
        early = event.part == "open" and kind == "role_first"
        if event.act == "send" and not started and not early:
            await _first_wait(output, asked, pace, fault)
            started, due = True, loop.time()
        elif event.part == "token" and script.tokens_per_s:
            # A schedule instead of sleeps in a row: the rate holds however late single sleeps return.
            due += pace.varied(1 / script.tokens_per_s)
            if due > loop.time():
                await asyncio.sleep(due - loop.time())
        await output.data(event_bytes(event, fault, first=first))
        first = False
        turn += 1
        if turn % EVENTS_PER_TURN == 0:
            await asyncio.sleep(0)
    if not started:
        await _first_wait(output, asked, pace, fault)
    await output.end()
    return ending_of(fault)


async def _first_wait(output: Output, asked: Asked, pace: Pace, fault: Fault | None) -> None:
    left = pace.varied(pace.script.first_token_s)
    if fault and fault.kind == "role_first":
        left += fault.delay_s
    if asked.dialect == "openrouter":
        comment = event_bytes(Event(b"OPENROUTER PROCESSING", act="comment"), fault, first=False)
        await output.data(comment)
        while left > PROCESSING_S:
            await asyncio.sleep(PROCESSING_S)
            left -= PROCESSING_S
            await output.data(comment)
    if left > 0:
        await asyncio.sleep(left)


def ending_of(fault: Fault | None) -> Then:
    """How a connection ends after a whole answer."""
    if fault is None or fault.kind in ("unsolicited", "close_after_answer", "close_on_reuse", "speak_first"):
        return "keep"  # what those do comes later, on the idle connection
    if fault.kind in ("truncated_body", "eof_body", "eof_body_http10", "cl_te", "two_cl", "nul_header"):
        return fault.ending
    return fault.then or "keep"
