"""Events of OpenAI's Responses from a plain answer: the response as begun, each item built up, the response completed.

The sequence and the names of events are the API reference's (*Streaming events*). Items keep their own ids;
the response's is new in the three events that hold it whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dandolo.cache.replay.events import EVENTS_MAX, Replay, cut, line

Json = dict[str, Any]

_CALLS = {
    "function_call": ("arguments", "response.function_call_arguments"),
    "custom_tool_call": ("input", "response.custom_tool_call_input"),
    "mcp_call": ("arguments", "response.mcp_call_arguments"),
}
_PARTS = {
    "output_text": ("text", "response.output_text"),
    "refusal": ("refusal", "response.refusal"),
    "reasoning_text": ("text", "response.reasoning_text"),
}


class _Sequence:
    """Numbers events, and remembers which of them hold the response."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.count = 0
        self._open = b""

    def event(self, kind: str, fields: Json) -> None:
        data = line({"type": kind, "sequence_number": self.count, **fields})
        self._open += b"event: %b\ndata: %b\n\n" % (kind.encode(), data)
        self.count += 1

    def with_response(self, kind: str, rest: Json) -> None:
        head = line({"type": kind, "sequence_number": self.count})
        self.pieces.append(self._open + b'event: %b\ndata: %b,"response":{' % (kind.encode(), head[:-1]))
        self._open = b"," + line(rest)[1:] + b"}\n\n"
        self.count += 1

    def end(self) -> list[bytes]:
        return [*self.pieces, self._open]


def responses(body: Json, offsets: Sequence[int]) -> Replay | None:
    """Events of a completed response."""
    items: list[Json] = body["output"]
    if body.get("object") != "response" or body.get("status") != "completed":
        return None
    texts = [text for item in items for text in _texts(item)]
    fixed = 3 + sum(2 + _fixed(item) for item in items)
    pieces = iter(cut(texts, max(len(texts), EVENTS_MAX - fixed), offsets))
    rest = {name: value for name, value in body.items() if name not in ("id", "object", "created_at")}
    begun = {**rest, "status": "in_progress", "output": [], "usage": None}
    if "completed_at" in begun:
        begun["completed_at"] = None
    events = _Sequence()
    events.with_response("response.created", begun)
    events.with_response("response.in_progress", begun)
    for number, item in enumerate(items):
        begun = {**item, "status": "in_progress"} if "status" in item else dict(item)
        place = {"item_id": item.get("id"), "output_index": number}
        if item["type"] in _CALLS:
            name, kind = _CALLS[item["type"]]
            events.event("response.output_item.added", {"output_index": number, "item": {**begun, name: ""}})
            for piece in next(pieces):
                events.event(f"{kind}.delta", {**place, "delta": piece})
            named = {"name": item["name"]} if item["type"] == "function_call" else {}
            events.event(f"{kind}.done", {**place, **named, name: item[name]})
        else:
            emptied: Json = {name: [] for name in ("content", "summary") if isinstance(item.get(name), list)}
            events.event("response.output_item.added", {"output_index": number, "item": {**begun, **emptied}})
            if item["type"] == "reasoning":
                for index, part in enumerate(item.get("summary") or ()):
                    _summary(events, {**place, "summary_index": index}, part, next(pieces))
            if item["type"] in ("message", "reasoning"):
                for index, part in enumerate(item.get("content") or ()):
                    _part(events, {**place, "content_index": index}, part, next(pieces))
        events.event("response.output_item.done", {"output_index": number, "item": item})
    events.with_response("response.completed", rest)
    return Replay(b'"id":%b,"object":"response","created_at":%d', events.end(), b"", events.count)


def _texts(item: Json) -> list[str]:
    """What of an item comes in pieces, in the order of its coming."""
    if item["type"] in _CALLS:
        return [item[_CALLS[item["type"]][0]]]
    found = []
    if item["type"] == "reasoning":
        found += [part["text"] for part in item.get("summary") or ()]
    if item["type"] in ("message", "reasoning"):
        found += [part[_PARTS[part["type"]][0]] for part in item.get("content") or ()]
    return found


def _fixed(item: Json) -> int:
    if item["type"] in _CALLS:
        return 1
    return 3 * len(_texts(item))


def _part(events: _Sequence, place: Json, part: Json, pieces: list[str]) -> None:
    name, kind = _PARTS[part["type"]]
    logged: Json = {"logprobs": part.get("logprobs") or []} if kind == "response.output_text" else {}
    emptied: Json = {"annotations": []} if part.get("annotations") else {}
    if part.get("logprobs"):
        emptied["logprobs"] = []
    events.event("response.content_part.added", {**place, "part": {**part, **emptied, name: ""}})
    for number, piece in enumerate(pieces):
        said = {"logprobs": logged["logprobs"] if number == 0 else []} if logged else {}
        events.event(f"{kind}.delta", {**place, "delta": piece, **said})
    events.event(f"{kind}.done", {**place, name: part[name], **logged})
    events.event("response.content_part.done", {**place, "part": part})


def _summary(events: _Sequence, place: Json, part: Json, pieces: list[str]) -> None:
    kind = "response.reasoning_summary_text"
    events.event("response.reasoning_summary_part.added", {**place, "part": {**part, "text": ""}})
    for piece in pieces:
        events.event(f"{kind}.delta", {**place, "delta": piece})
    events.event(f"{kind}.done", {**place, "text": part["text"]})
    events.event("response.reasoning_summary_part.done", {**place, "part": part})
