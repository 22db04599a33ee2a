"""Chunks of Chat Completions and Completions from a plain answer.

Per choice: a chunk with the role, reasoning, content, tool calls (id and name first, then their arguments), the
finish; then usage in a chunk without choices. What an answer has besides goes along: short things of the body in
every chunk, long ones in the first, those of a choice with its finish.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from dandolo.cache.replay.events import DONE, EVENTS_MAX, Replay, cut, joined, line, plain

Json = dict[str, Any]

TEXTS = ("reasoning_content", "reasoning", "content", "refusal")
"""Fields of a message that come in pieces, in the order of their coming."""
_OWN = frozenset(("id", "object", "created", "choices", "usage"))
_WITH_USAGE = frozenset(("cost",))
_OF_CHOICE = frozenset(("index", "message", "text", "logprobs", "finish_reason"))
_ARGUMENTS = {"function": "arguments", "custom": "input"}


@dataclass(slots=True)
class _Choice:
    """One choice taken apart: what a delta opens with, texts by field, what comes whole, tool calls, what ends it."""

    index: int
    role: Json
    logprobs: Any
    finish: Json
    texts: list[tuple[str, str]] = field(default_factory=list)
    whole: Json = field(default_factory=dict)
    heads: list[Json] = field(default_factory=list)
    arguments: list[tuple[int, str, str]] = field(default_factory=list)


def chat(body: Json, offsets: Sequence[int]) -> Replay | None:
    """Events of a chat completion."""
    choices = [_apart(choice) for choice in body["choices"]]
    if not choices:
        return None
    base, first = _surroundings(body)
    fixed = sum(2 + len(one.texts) + 2 * len(one.heads) + bool(one.whole) for one in choices)
    room = EVENTS_MAX - 2 - fixed
    chunks = _spread(choices, room, offsets) if room >= 0 else _packed(choices)
    return _replay(body, base, first, chunks, b"chat.completion.chunk")


def completions(body: Json, offsets: Sequence[int]) -> Replay | None:
    """Events of a completion."""
    choices = body["choices"]
    if not choices:
        return None
    base, first = _surroundings(body)
    ends = [
        {"index": choice["index"], "text": "", **_rest(choice), "finish_reason": choice["finish_reason"]}
        for choice in choices
    ]
    room = EVENTS_MAX - 2 - 2 * len(choices)
    chunks: list[list[Json]] = []
    texts = [_text(choice["text"]) for choice in choices]
    pieces = cut(texts, room + len(choices), offsets) if room >= 0 else [[text] for text in texts]
    for choice, parts in zip(choices, pieces, strict=True):
        for number, part in enumerate(parts):
            logprobs = choice.get("logprobs") if number == 0 else None
            chunks.append([{"index": choice["index"], "text": part, "logprobs": logprobs, "finish_reason": None}])
    chunks += [[end] for end in ends]
    if room < 0:
        chunks = [[one for chunk in chunks[: len(choices)] for one in chunk], ends]
    return _replay(body, base, first, chunks, b"text_completion")


def _replay(body: Json, base: Json, first: Json, chunks: list[list[Json]], kind: bytes) -> Replay:
    tails = []
    for number, chunk in enumerate(chunks):
        extra = first if number == 0 else {}
        # The opening brace is in what comes before.
        tails.append(line({**base, **extra, "choices": chunk})[1:])
    usage = body.get("usage")
    last = None
    if usage is not None:
        cost = {name: body[name] for name in _WITH_USAGE if name in body}
        last = line({**base, "choices": [], "usage": usage, **cost})[1:] + b"\n\n"
    opening = b'{"id":%b,"object":"' + kind + b'","created":%d,'
    return Replay(opening, joined(tails), DONE, len(tails) + (last is not None) + 1, last)


def _surroundings(body: Json) -> tuple[Json, Json]:
    """What of the body goes into every chunk, and what into the first only."""
    base: Json = {"model": body.get("model")}
    first: Json = {}
    for name, value in body.items():
        if name not in _OWN and name not in _WITH_USAGE and name != "model":
            (base if plain(value) else first)[name] = value
    return base, first


def _rest(choice: Json) -> Json:
    return {name: value for name, value in choice.items() if name not in _OF_CHOICE}


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("a text is something else")
    return value


def _apart(choice: Json) -> _Choice:
    message: Json = choice["message"]
    index = choice["index"]
    role: Json = {"role": message.get("role", "assistant")}
    finish = {"index": index, "delta": {}, **_rest(choice), "finish_reason": choice["finish_reason"]}
    one = _Choice(index, role, choice.get("logprobs"), finish)
    for name in TEXTS:
        if name not in message:
            continue
        value = message[name]
        if isinstance(value, str):
            if value:
                one.texts.append((name, value))
            role[name] = ""
        elif value is None:
            role[name] = None
        else:
            one.whole[name] = value
    for name, value in message.items():
        if name in TEXTS or name in ("role", "tool_calls"):
            continue
        # What comes with the answer as a whole: annotations, images, reasoning in parts, the older function_call.
        (role if plain(value) else one.whole)[name] = value
    for number, call in enumerate(message.get("tool_calls") or ()):
        kind = next(name for name in _ARGUMENTS if name in call)
        inner = _ARGUMENTS[kind]
        head = {"index": number, **call, kind: {**call[kind], inner: ""}}
        one.heads.append(head)
        one.arguments.append((number, kind, _text(call[kind][inner])))
    return one


def _delta(one: _Choice, delta: Json, logprobs: Any = None) -> Json:
    return {"index": one.index, "delta": delta, "logprobs": logprobs, "finish_reason": None}


def _part(number: int, kind: str, piece: str) -> Json:
    return {"index": number, kind: {_ARGUMENTS[kind]: piece}}


def _spread(choices: list[_Choice], room: int, offsets: Sequence[int]) -> list[list[Json]]:
    """One choice a chunk, `room` chunks more than there must be."""
    texts = [text for one in choices for _, text in one.texts]
    texts += [text for one in choices for _, _, text in one.arguments]
    pieces = iter(cut(texts, room + len(texts), offsets))
    cut_texts = [[(name, next(pieces)) for name, _ in one.texts] for one in choices]
    cut_arguments = [[(number, kind, next(pieces)) for number, kind, _ in one.arguments] for one in choices]
    chunks = [[_delta(one, one.role)] for one in choices]
    for one, own_texts, own_arguments in zip(choices, cut_texts, cut_arguments, strict=True):
        logprobs = one.logprobs
        for name, parts in own_texts:
            for part in parts:
                said = logprobs if name in ("content", "refusal") else None
                logprobs = None if said is not None else logprobs
                chunks.append([_delta(one, {name: part}, said)])
        if one.whole:
            chunks.append([_delta(one, one.whole)])
        for head, (number, kind, parts) in zip(one.heads, own_arguments, strict=True):
            chunks.append([_delta(one, {"tool_calls": [head]})])
            chunks += [[_delta(one, {"tool_calls": [_part(number, kind, part)]})] for part in parts]
        if logprobs is not None:
            one.finish["logprobs"] = logprobs
    return chunks + [[one.finish] for one in choices]


def _packed(choices: list[_Choice]) -> list[list[Json]]:
    """So many choices or calls that each chunk must carry all of them; the order stays."""
    chunks = [[_delta(one, one.role) for one in choices]]
    chunks.append([_delta(one, {**dict(one.texts), **one.whole}, one.logprobs) for one in choices])
    if any(one.heads for one in choices):
        chunks.append([_delta(one, {"tool_calls": one.heads}) for one in choices if one.heads])
        chunks.append(
            [
                _delta(one, {"tool_calls": [_part(number, kind, text) for number, kind, text in one.arguments]})
                for one in choices
                if one.heads
            ]
        )
    return [*chunks, [one.finish for one in choices]]
