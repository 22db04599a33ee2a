"""The Responses endpoint of the OpenAI dialect: whole, streamed as response.* events, and stored by id."""

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
    tool_wanted,
    words_in,
)
from dandolo.sim.catalog import provider_headers

STORED_MAX = 1_000
"""Answers kept for GET; the oldest goes first."""


def responses(asked: Asked) -> Answer:
    body = read_json(asked)
    model = model_of(asked, body)
    given = body.get("input")
    if given is None and "prompt" not in body:
        raise Refused(400, "Missing required parameter: 'input'", "missing_required_parameter")
    previous = body.get("previous_response_id")
    if previous is not None and previous not in asked.stored:
        raise Refused(400, f"Previous response with id '{previous}' not found.", "previous_response_not_found")
    pieces, cut = pieces_of(asked, model, body.get("max_output_tokens"))
    item: Json
    if tool_wanted(body, given):
        function = next((tool for tool in body["tools"] if isinstance(tool, dict)), {})
        choice = body.get("tool_choice")
        name = choice.get("name") if isinstance(choice, dict) else None
        arguments = encode(instance_of(function.get("parameters") or {"type": "object"})).decode()
        pieces, cut = [arguments[start : start + 8] for start in range(0, len(arguments), 8)], False
        item = {
            "type": "function_call",
            "id": asked.id("fc"),
            "call_id": asked.id("call"),
            "name": name or function.get("name") or "tool",
            "arguments": arguments,
            "status": "completed",
        }
    else:
        content = [{"type": "output_text", "text": "".join(pieces), "annotations": [], "logprobs": []}]
        status = "incomplete" if cut else "completed"
        item = {
            "type": "message",
            "id": asked.id("msg"),
            "status": status,
            "role": "assistant",
            "content": content,
        }
    read, written = count(words_in(given)), count("".join(pieces))
    whole: Json = {
        "id": asked.id("resp"),
        "object": "response",
        "created_at": asked.created(),
        "status": "incomplete" if cut else "completed",
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
        "instructions": body.get("instructions"),
        "metadata": body.get("metadata") or {},
        "model": model,
        "output": [item],
        "parallel_tool_calls": True,
        "previous_response_id": previous,
        "store": body.get("store") is not False,
        "temperature": body.get("temperature", 1.0),
        "text": body.get("text") or {"format": {"type": "text"}},
        "tool_choice": body.get("tool_choice") or "auto",
        "tools": body.get("tools") or [],
        "top_p": body.get("top_p", 1.0),
        "usage": {
            "input_tokens": read,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": written,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": read + written,
        },
    }
    if whole["store"]:
        asked.stored[whole["id"]] = encode(whole)
        while len(asked.stored) > STORED_MAX:
            del asked.stored[next(iter(asked.stored))]
    headers = provider_headers(asked, model)
    if body.get("stream") is True:
        events = _events(whole, item, pieces)
        return Answer(events=events, content_type="text/event-stream", headers=headers, pieces=len(pieces))
    return Answer(body=encode(whole), headers=headers, pieces=len(pieces))


def _events(whole: Json, item: Json, pieces: list[str]) -> Iterator[Event]:
    number = 0

    def event(kind: str, role: Any = "other", /, **fields: Any) -> Event:
        nonlocal number
        payload = {"type": kind, "sequence_number": number, **fields}
        number += 1
        return Event(encode(payload), role, kind)

    started = {**whole, "status": "in_progress", "output": [], "usage": None, "incomplete_details": None}
    yield event("response.created", "open", response=started)
    yield event("response.in_progress", "open", response=started)
    place = {"item_id": item["id"], "output_index": 0}
    if item["type"] == "function_call":
        yield event(
            "response.output_item.added",
            "open",
            output_index=0,
            item={**item, "arguments": "", "status": "in_progress"},
        )
        for piece in pieces:
            yield event("response.function_call_arguments.delta", "token", **place, delta=piece)
        yield event(
            "response.function_call_arguments.done",
            "finish",
            **place,
            name=item["name"],
            arguments=item["arguments"],
        )
    else:
        text = item["content"][0]
        place["content_index"] = 0
        bare = {**item, "content": [], "status": "in_progress"}
        yield event("response.output_item.added", "open", output_index=0, item=bare)
        yield event("response.content_part.added", "open", **place, part={**text, "text": ""})
        for piece in pieces:
            yield event("response.output_text.delta", "token", **place, delta=piece, logprobs=[])
        yield event("response.output_text.done", "finish", **place, text=text["text"], logprobs=[])
        yield event("response.content_part.done", "finish", **place, part=text)
    yield event("response.output_item.done", "finish", output_index=0, item=item)
    yield event(f"response.{whole['status']}", "done", response=whole)


def stored_response(asked: Asked, rest: str) -> Answer:
    """GET and DELETE of /responses/{id}, GET of its input_items, POST of its cancel."""
    id_, _, child = rest.partition("/")
    found = asked.stored.get(id_)
    if found is None:
        raise Refused(404, f"Response with id '{id_}' not found.", "not_found")
    if asked.method == "GET" and child == "input_items":
        return Answer(body=encode({"object": "list", "data": [], "has_more": False}))
    if (asked.method == "GET" and not child) or (asked.method == "POST" and child == "cancel"):
        return Answer(body=found)
    if asked.method == "DELETE" and not child:
        del asked.stored[id_]
        return Answer(body=encode({"id": id_, "object": "response", "deleted": True}))
    raise Refused(405, f"Not allowed to {asked.method} on {asked.path}", headers=(("allow", "GET, DELETE"),))
