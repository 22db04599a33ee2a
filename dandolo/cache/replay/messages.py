"""Events of Anthropic's Messages from a plain answer: message_start, three or more for each block, the end.

The sequence and the names of events and deltas are the API reference's (*Streaming messages*). Usage is part of it
and stands there whether asked for or not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dandolo.cache.replay.events import EVENTS_MAX, Replay, cut, line

Json = dict[str, Any]

_PIECES = {"text": ("text_delta", "text"), "thinking": ("thinking_delta", "thinking")}
_TOOLS = frozenset(("tool_use", "server_tool_use", "mcp_tool_use"))
_AT_THE_END = ("stop_reason", "stop_sequence", "container", "context_management", "stop_details")


def messages(body: Json, offsets: Sequence[int]) -> Replay | None:
    """Events of a message."""
    blocks: list[Json] = body["content"]
    if body.get("type") != "message":
        return None
    texts = [_text_of(block) for block in blocks]
    fixed = 3 + sum(2 + _deltas_besides(block) for block in blocks)
    pieces = cut(texts, max(len(texts), EVENTS_MAX - fixed), offsets)
    events: list[bytes] = []
    usage: Json = body.get("usage") or {}
    started = {name: value for name, value in body.items() if name not in ("id", "type", *_AT_THE_END)}
    started |= {"content": [], "stop_reason": None, "stop_sequence": None}
    if "output_tokens" in usage:
        started["usage"] = {**usage, "output_tokens": 0}
    for index, (block, parts) in enumerate(zip(blocks, pieces, strict=True)):
        events += _block(index, block, parts)
    ended = {name: body[name] for name in _AT_THE_END if name in body}
    events.append(_event("message_delta", {"delta": ended, "usage": usage}))
    events.append(_event("message_stop", {}))
    before = b'event: message_start\ndata: {"type":"message_start","message":{'
    # The id goes where the pieces meet; what is left of the message begins with its brace.
    after = b"," + line(started)[1:] + b"}\n\n" + b"".join(events)
    return Replay(b'"id":%b,"type":"message"', [before, after], b"", len(events) + 1)


def _event(kind: str, fields: Json) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), line({"type": kind, **fields}))


def _text_of(block: Json) -> str:
    """What of a block comes in pieces."""
    kind = block["type"]
    if kind in _PIECES:
        text = block[_PIECES[kind][1]]
        if not isinstance(text, str):
            raise TypeError("a text is something else")
        return text
    return line(block["input"]).decode() if kind in _TOOLS else ""


def _deltas_besides(block: Json) -> int:
    return bool(block.get("signature")) + len(block.get("citations") or ())


def _block(index: int, block: Json, parts: list[str]) -> list[bytes]:
    kind = block["type"]
    opened = dict(block)
    deltas: list[Json] = []
    if kind in _PIECES:
        delta, name = _PIECES[kind]
        opened[name] = ""
        deltas += [{"type": delta, name: part} for part in parts if part]
        if block.get("signature"):
            opened["signature"] = ""
            deltas.append({"type": "signature_delta", "signature": block["signature"]})
        if block.get("citations"):
            opened["citations"] = []
            deltas += [{"type": "citations_delta", "citation": one} for one in block["citations"]]
    elif kind in _TOOLS:
        opened["input"] = {}
        deltas += [{"type": "input_json_delta", "partial_json": part} for part in parts]
    return [
        _event("content_block_start", {"index": index, "content_block": opened}),
        *(_event("content_block_delta", {"index": index, "delta": delta}) for delta in deltas),
        _event("content_block_stop", {"index": index}),
    ]
