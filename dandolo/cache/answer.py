"""Whether an answer is fit to be given again: complete, ended by itself, saying something, and no error.

Judged on a plain body; a recorded stream becomes one first (`assemble`). Where there is any doubt, an answer is not
kept: what that costs is one call.
"""

from __future__ import annotations

from typing import Any

import msgspec

from dandolo.api.endpoints import Dialect

# Together, Fireworks and TGI call a stop "eos"; Anthropic's words come through gateways that translate half.
_MESSAGES_ENDINGS = frozenset(("end_turn", "stop_sequence", "tool_use"))
_ENDINGS = _MESSAGES_ENDINGS | {"stop", "tool_calls", "function_call", "eos", "eos_token"}

_SAYING = ("content", "tool_calls", "function_call", "refusal", "images")


class _Choice(msgspec.Struct, gc=False):
    finish_reason: str | None = None
    message: dict[str, Any] | None = None
    text: str | None = None


class _Datum(msgspec.Struct, gc=False):
    embedding: list[float] | str | None = None
    b64_json: str | None = None
    url: str | None = None


class _Answer(msgspec.Struct, gc=False):
    choices: list[_Choice] | None = None
    data: list[_Datum] | None = None
    results: list[Any] | None = None
    images: list[str] | None = None
    content: list[Any] | None = None
    stop_reason: str | None = None
    status: str | None = None
    output: list[Any] | None = None
    error: Any = None
    type: str | None = None


_answer = msgspec.json.Decoder(_Answer)


def flaw(endpoint: str, dialect: Dialect, status: int, body: bytes, *, complete: bool = True) -> str:
    """Why an answer is not to be kept, in words; "" when it may be.

    `complete` is the framing's verdict: every byte that was announced came.
    """
    if not complete:
        return "the answer is not complete"
    if status != 200:
        return f"the status is {status}"
    try:
        # Everything beside the known fields is skipped, but all of it is checked; UTF-8 is not, so apart.
        said = _answer.decode(body)
        if not body.isascii():
            str(body, "utf-8")
    except (ValueError, RecursionError):
        return "the answer is not the JSON it should be"
    if said.error is not None or said.type == "error":
        return "the answer says an error"
    if dialect in ("chat", "completions"):
        return _choices(said.choices)
    if dialect == "messages":
        return _ended(said.stop_reason, _MESSAGES_ENDINGS) or ("" if said.content else "the answer is empty")
    if dialect == "responses":
        return _ended(said.status, frozenset(("completed",))) or ("" if said.output else "the answer is empty")
    if endpoint == "embeddings":
        good = bool(said.data) and all(datum.embedding for datum in said.data or ())
        return "" if good else "an embedding is missing"
    if endpoint == "moderations":
        return "" if said.results else "the judgement is missing"
    if said.images:
        return "" if not any(image.startswith("http") for image in said.images) else "links to images expire"
    if said.data and all(datum.b64_json and not datum.url for datum in said.data):
        return ""
    return "the image is not in the answer itself"


def _choices(choices: list[_Choice] | None) -> str:
    if not choices:
        return "the answer is empty"
    for choice in choices:
        wrong = _ended(choice.finish_reason, _ENDINGS)
        if wrong:
            return wrong
        message = choice.message or {}
        if not choice.text and not any(message.get(name) for name in _SAYING):
            return "the answer is empty"
    return ""


def _ended(reason: str | None, good: frozenset[str]) -> str:
    if not reason:
        return "the answer does not say that it ended"
    return "" if reason in good else f"the answer ended by '{reason[:32]}'"
