"""The Anthropic dialect: Messages, whole and streamed, and the token count of a request."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from dandolo.sim.answer import (
    Answer,
    Asked,
    Event,
    Json,
    Refused,
    count,
    encode,
    instance_of,
    model_of,
    pieces_of,
    read_json,
    reasoning_of,
    tool_wanted,
    words_in,
)


def answer(asked: Asked) -> Answer:
    """Answer POST messages or messages/count_tokens; raises `Refused`."""
    endpoint, rest = asked.route()
    if rest:
        raise Refused(404, "Not Found")
    if asked.method != "POST":
        raise Refused(405, "Method Not Allowed", headers=(("allow", "POST"),))
    body = read_json(asked)
    model = model_of(asked, body)
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise Refused(400, "messages: at least one message is required")
    read = count(words_in(messages) + words_in(body.get("system")))
    if endpoint == "messages/count_tokens":
        return Answer(body=encode({"input_tokens": read}))
    if not isinstance(body.get("max_tokens"), int):
        raise Refused(400, "max_tokens: Field required")
    pieces, cut = pieces_of(asked, model, body["max_tokens"])
    stop = "max_tokens" if cut else "end_turn"
    block: Json = {"type": "text", "text": "".join(pieces)}
    if tool_wanted(body, messages):
        tools = [tool for tool in body["tools"] if isinstance(tool, dict)]
        choice = body.get("tool_choice")
        name = choice.get("name") if isinstance(choice, dict) else None
        tool = next((tool for tool in tools if tool.get("name") == name), tools[0] if tools else {})
        value = instance_of(tool.get("input_schema") or {"type": "object"})
        stop = "tool_use"
        block = {
            "type": "tool_use",
            "id": asked.id("toolu"),
            "name": tool.get("name", "tool"),
            "input": value,
        }
        text = encode(value).decode()
        pieces = [text[start : start + 8] for start in range(0, len(text), 8)]
    reasoning = reasoning_of(asked)
    blocks: list[tuple[Json, list[str]]] = [(block, pieces)]
    if reasoning:
        thought = {"type": "thinking", "thinking": "".join(reasoning), "signature": "c2lt"}
        blocks.insert(0, (thought, reasoning))
    written = count("".join(pieces)) + len(reasoning)
    usage = {
        "input_tokens": read,
        "output_tokens": written,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 0,
    }
    message: Json = {
        "id": asked.id("msg"),
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [content for content, _ in blocks],
        "stop_reason": stop,
        "stop_sequence": None,
        "usage": usage,
    }
    total = len(pieces) + len(reasoning)
    if body.get("stream") is True:
        return Answer(events=_events(message, blocks), content_type="text/event-stream", pieces=total)
    return Answer(body=encode(message), pieces=total)


def _events(message: Json, blocks: list[tuple[Json, list[str]]]) -> Iterator[Event]:
    def event(kind: str, part: Any, /, **fields: Any) -> Event:
        return Event(encode({"type": kind, **fields}), part, kind)

    usage = message["usage"]
    opening = {**message, "content": [], "stop_reason": None, "usage": {**usage, "output_tokens": 1}}
    yield event("message_start", "open", message=opening)
    for index, (block, pieces) in enumerate(blocks):
        kind = block["type"]
        field, delta = {
            "text": ("text", "text_delta"),
            "thinking": ("thinking", "thinking_delta"),
            "tool_use": ("partial_json", "input_json_delta"),
        }[kind]
        empty: Json = {"text": {"text": ""}, "thinking": {"thinking": "", "signature": ""}}.get(kind, {"input": {}})
        yield event("content_block_start", "open" if index == 0 else "other", index=index, content_block=block | empty)
        if index == 0:
            yield event("ping", "open")
        for piece in pieces:
            yield event("content_block_delta", "token", index=index, delta={"type": delta, field: piece})
        if kind == "thinking":
            signed = {"type": "signature_delta", "signature": block["signature"]}
            yield event("content_block_delta", "other", index=index, delta=signed)
        yield event("content_block_stop", "other", index=index)
    reason = {"stop_reason": message["stop_reason"], "stop_sequence": None}
    yield event("message_delta", "finish", delta=reason, usage=usage)
    yield event("message_stop", "done")
