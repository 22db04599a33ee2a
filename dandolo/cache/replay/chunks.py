"""The chunks of a Chat Completions or Completions stream, put together to the plain body.

Follows what providers do: the role in every chunk, a name or an id repeated, usage in a chunk of its own, in the last
choice or in Groq's corner, reasoning under two names or in parts. Texts join; what is given whole replaces or
extends what was there. A name in pieces, two different ends, content in parts over several chunks: unclear.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

Json = dict[str, Any]

CHOICES_MAX = 128
CALLS_MAX = 256

_any = msgspec.json.Decoder()
line = msgspec.json.Encoder().encode


class Unclear(Exception):
    """Raised within, for what has no certain meaning."""


@dataclass(frozen=True, slots=True)
class Assembled:
    """A plain body, and where the pieces of its first text ended, in characters."""

    body: bytes
    offsets: tuple[int, ...] = ()


def decoded(data: bytes) -> Json:
    """One event's object. Raises Unclear for an error, and for anything else."""
    value = _any.decode(data)
    if not isinstance(value, dict) or value.get("error"):
        raise Unclear
    return value


def ends(pieces: Sequence[str]) -> tuple[int, ...]:
    """Where pieces end within the text they make, without its own end."""
    found = []
    at = 0
    for piece in pieces[:-1]:
        at += len(piece)
        if at:
            found.append(at)
    return tuple(found)


_NOT_KEPT = frozenset(("choices", "object", "obfuscation"))
"""OpenAI pads chunks with random letters against whoever watches their sizes; a plain body has none."""
_TEXTS = frozenset(("content", "refusal", "reasoning", "reasoning_content"))
_INNER = {"function": "arguments", "custom": "input"}


@dataclass(slots=True)
class _Choice:
    """One choice as it grows."""

    message: Json = field(default_factory=dict)
    texts: dict[str, list[str]] = field(default_factory=dict)
    calls: dict[int, Json] = field(default_factory=dict)
    details: list[Json] = field(default_factory=list)
    logprobs: Json | None = None
    rest: Json = field(default_factory=dict)
    finish: str | None = None


def chunks(datas: Iterable[bytes], kind: str) -> Assembled | None:
    """The body of a whole stream; `kind` is what a choice holds: "message" or "text"."""
    head: Json = {}
    usage: Json | None = None
    choices: dict[int, _Choice] = {}
    done = False
    for data in datas:
        if data.strip() == b"[DONE]":
            done = True
            break
        chunk = decoded(data)
        for name, value in chunk.items():
            if name in _NOT_KEPT:
                continue
            if name == "usage":
                usage = value or usage
            elif name == "x_groq":
                # Groq says usage there; the id beside it is in the plain body, too.
                usage = value.get("usage") or usage
                head[name] = {key: inner for key, inner in value.items() if key != "usage"}
            elif name in ("id", "created", "model"):
                head[name] = head.get(name) or value
            elif value is not None or name not in head:
                head[name] = value
        for said in chunk.get("choices") or ():
            index = said.get("index", 0)
            if not (isinstance(index, int) and 0 <= index < CHOICES_MAX):
                raise Unclear
            choice = choices.setdefault(index, _Choice())
            usage = said.pop("usage", None) or usage
            _grow(choice, said, kind)
    if not done or not choices or sorted(choices) != list(range(len(choices))):
        return None
    whole = [_whole(index, choices[index], kind) for index in range(len(choices))]
    first = {"id": head.pop("id", None), "object": "chat.completion" if kind == "message" else "text_completion"}
    body = {**first, **head, "choices": whole}
    if usage is not None:
        body["usage"] = usage
    pieces = choices[0].texts.get("content" if kind == "message" else "text", [])
    return Assembled(line(body), ends(pieces))


def _grow(choice: _Choice, said: Json, kind: str) -> None:
    for name, value in said.items():
        if name == "index":
            continue
        if name == "delta" and kind == "message":
            for key, inner in (value or {}).items():
                _merge(choice, key, inner)
        elif name == "text" and kind == "text":
            _add_text(choice, "text", value or "")
        elif name in ("message", "delta", "text"):
            raise Unclear
        elif name == "finish_reason":
            if value and choice.finish not in (None, value):
                raise Unclear
            choice.finish = value or choice.finish
        elif name == "logprobs":
            if value:
                choice.logprobs = choice.logprobs or {}
                for key, inner in value.items():
                    known = choice.logprobs.get(key)
                    choice.logprobs[key] = known + inner if known and inner else inner or known
        elif value is not None or name not in choice.rest:
            choice.rest[name] = value


def _merge(choice: _Choice, name: str, value: Any) -> None:
    message = choice.message
    if name in _TEXTS and isinstance(value, str):
        if isinstance(message.get(name), list):
            raise Unclear
        message[name] = None
        _add_text(choice, name, value)
    elif value is None:
        message.setdefault(name, None)
    elif name == "tool_calls":
        for call in value:
            _call(choice, call)
    elif name == "function_call":
        known = message.get(name) or {"name": "", "arguments": ""}
        message[name] = {
            "name": _once(known["name"], value.get("name")),
            "arguments": known["arguments"] + (value.get("arguments") or ""),
        }
    elif name == "reasoning_details":
        message[name] = choice.details
        _details(choice.details, value)
    elif name == "audio":
        raise Unclear
    elif name in _TEXTS and (message.get(name) is not None or name in choice.texts):
        # Parts of content that come in several chunks have no rule for how they join.
        if any(choice.texts.get(name, ())) or message.get(name):
            raise Unclear
        choice.texts.pop(name, None)
        message[name] = value
    elif isinstance(value, list) and isinstance(message.get(name), list):
        message[name] = message[name] + value
    else:
        message[name] = value


def _add_text(choice: _Choice, name: str, value: str) -> None:
    if not isinstance(value, str):
        raise Unclear
    parts = choice.texts.setdefault(name, [])
    if value or not parts:
        parts.append(value)


def _once(known: str | None, said: str | None) -> str | None:
    """A name or an id: said once, or again the same. Pieces of one cannot be told from another."""
    if known and said and known != said:
        raise Unclear
    return known or said


def _call(choice: _Choice, said: Json) -> None:
    calls = choice.calls
    number = said.get("index")
    if number is None:
        # Some leave the index out and send each call whole.
        number = len(calls)
        if not said.get("id"):
            raise Unclear
    if not (isinstance(number, int) and 0 <= number < CALLS_MAX):
        raise Unclear
    call = calls.setdefault(number, {})
    for name, value in said.items():
        if name == "index" or value is None:
            continue
        if name in _INNER:
            inner = _INNER[name]
            known = call.setdefault(name, {"name": None, inner: []})
            known["name"] = _once(known["name"], value.get("name"))
            if value.get(inner):
                known[inner].append(value[inner])
            for key, more in value.items():
                if key not in ("name", inner):
                    known[key] = more
        elif name in ("id", "type"):
            call[name] = _once(call.get(name), value)
        else:
            call[name] = value


def _details(known: list[Json], said: list[Json]) -> None:
    """OpenRouter's reasoning in parts: a part goes on in the next chunk under the same type and index."""
    before = {(one.get("type"), one.get("index")): one for one in known if one.get("index") is not None}
    for part in said:
        one = before.get((part.get("type"), part.get("index")))
        if one is None:
            known.append(dict(part))
            continue
        for name, value in part.items():
            if name in ("text", "summary", "data") and isinstance(one.get(name), str) and isinstance(value, str):
                one[name] += value
            elif value is not None:
                one[name] = value


def _whole(index: int, choice: _Choice, kind: str) -> Json:
    if not choice.finish:
        raise Unclear
    whole: Json = {"index": index}
    if kind == "text":
        whole["text"] = "".join(choice.texts.get("text", ()))
    else:
        message = {"role": "assistant", "content": None, **choice.message}
        for name, parts in choice.texts.items():
            message[name] = "".join(parts)
        if choice.calls:
            if sorted(choice.calls) != list(range(len(choice.calls))):
                raise Unclear
            message["tool_calls"] = [_call_whole(choice.calls[number]) for number in range(len(choice.calls))]
        whole["message"] = message
    return {**whole, "logprobs": choice.logprobs, **choice.rest, "finish_reason": choice.finish}


def _call_whole(call: Json) -> Json:
    for kind, inner in _INNER.items():
        if kind in call:
            if not call[kind]["name"] or not call.get("id"):
                raise Unclear
            return {"type": kind, **call, kind: {**call[kind], inner: "".join(call[kind][inner])}}
    raise Unclear
