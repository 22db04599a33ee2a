"""The OpenAI dialect's endpoints: which one was asked, and the text ones (chat, completions, embeddings, …).

Pure functions from a received request to an answer; pacing, faults and framing come later. `venice` and
`openrouter` are this dialect with their additions: costs, headers, catalogue entries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from dandolo.sim.answer import (
    Answer,
    Asked,
    Charge,
    Event,
    Json,
    Refused,
    cost_usd,
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
from dandolo.sim.catalog import models, provider_headers

CHOICES_MAX = 128
"""OpenAI's own bound on `n`."""

DONE = b"[DONE]"


def answer(asked: Asked) -> Answer:
    """Answer any request of this dialect; raises `Refused`."""
    endpoint, rest = asked.route()
    if asked.method == "GET" and asked.path.strip("/") == "":
        return Answer(body=b'{"ok":true}')
    if endpoint in ("models", "responses") and (rest or endpoint == "models"):
        if endpoint == "models":
            return models(asked, rest)
        from dandolo.sim.responses import stored_response

        return stored_response(asked, rest)
    handler = _HANDLERS.get(endpoint) or _late_handler(endpoint)
    if handler is None or rest:
        raise Refused(404, f"Invalid URL ({asked.method} {asked.path})", "unknown_url")
    if asked.method != "POST":
        raise Refused(405, f"Not allowed to {asked.method} on {asked.path}", headers=(("allow", "POST"),))
    return handler(asked)


def chat(asked: Asked) -> Answer:
    body = read_json(asked)
    model = model_of(asked, body)
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise Refused(400, "'messages' must be a non-empty array", "invalid_messages")
    limit = body.get("max_completion_tokens") or body.get("max_tokens")
    choices = []
    for index in range(_n(body)):
        pieces, cut = pieces_of(asked, model, limit, index)
        choices.append((pieces, "length" if cut else "stop"))
    calls: list[tuple[str, str, str]] = []
    wanted = body.get("response_format")
    if tool_wanted(body, messages):
        calls = [_tool_call(asked, body)]
        choices = [([], "tool_calls") for _ in choices]
    elif isinstance(wanted, dict) and wanted.get("type") in ("json_schema", "json_object"):
        choices = [([text], "stop") for text in [_json_text(asked, model, wanted)] * len(choices)]
    written = sum(count("".join(pieces)) for pieces, _ in choices) + sum(count(args) for _, _, args in calls)
    usage = _usage(asked, count(words_in(messages)), written)
    base: Json = {
        "id": asked.id("gen" if asked.dialect == "openrouter" else "chatcmpl"),
        "object": "chat.completion",
        "created": asked.created(),
        "model": model,
        "system_fingerprint": f"fp_{asked.provider}",
    }
    if asked.dialect == "openrouter":
        base["provider"] = asked.provider
    total = sum(len(pieces) for pieces, _ in choices) + asked.script.reasoning_tokens
    headers = provider_headers(asked, model)
    charge = Charge(
        asked.headers.get("x-request-id", ""),
        str(body.get("user", "")),
        body.get("stream") is True,
        usage["prompt_tokens"],
        usage["completion_tokens"],
        _venice_cost(usage)["usd"] if asked.dialect == "venice" else usage.get("cost"),
    )
    if body.get("stream") is True:
        options = body.get("stream_options")
        asked_usage = isinstance(options, dict) and options.get("include_usage") is True
        shown = asked_usage or asked.dialect == "openrouter"
        events = _chat_events(asked, {**base, "object": "chat.completion.chunk"}, choices, calls, usage, shown)
        return Answer(events=events, content_type="text/event-stream", headers=headers, pieces=total, charge=charge)
    reasoning = "".join(reasoning_of(asked))
    base["choices"] = []
    for index, (pieces, finish) in enumerate(choices):
        message: Json = {"role": "assistant", "content": "".join(pieces) if pieces else None, "refusal": None}
        if reasoning:
            message["reasoning_content"] = reasoning
        if calls:
            message["tool_calls"] = [
                {"id": id_, "type": "function", "function": {"name": name, "arguments": arguments}}
                for id_, name, arguments in calls
            ]
        base["choices"].append({"index": index, "message": message, "logprobs": None, "finish_reason": finish})
    base["usage"] = usage
    if asked.dialect == "venice":
        base["cost"] = _venice_cost(usage)
        base["venice_parameters"] = body.get("venice_parameters") or {}
    return Answer(body=encode(base), headers=headers, pieces=total, charge=charge)


def _chat_events(
    asked: Asked,
    base: Json,
    choices: list[tuple[list[str], str]],
    calls: list[tuple[str, str, str]],
    usage: Json,
    usage_shown: bool,
) -> Iterator[Event]:
    def chunk(index: int, delta: Json, finish: str | None = None) -> bytes:
        base["choices"] = [{"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}]
        return encode(base)

    for index in range(len(choices)):
        content = None if calls else ""
        yield Event(chunk(index, {"role": "assistant", "content": content, "refusal": None}), "open")
    for piece in reasoning_of(asked):
        yield Event(chunk(0, {"reasoning_content": piece}), "token")
    for position in range(max(len(pieces) for pieces, _ in choices)):
        for index, (pieces, _) in enumerate(choices):
            if position < len(pieces):
                yield Event(chunk(index, {"content": pieces[position]}), "token")
    for index in range(len(choices) if calls else 0):
        for number, (id_, name, arguments) in enumerate(calls):
            head = {
                "index": number,
                "id": id_,
                "type": "function",
                "function": {"name": name, "arguments": ""},
            }
            yield Event(chunk(index, {"tool_calls": [head]}), "token")
            for start in range(0, len(arguments), 8):
                part = {"index": number, "function": {"arguments": arguments[start : start + 8]}}
                yield Event(chunk(index, {"tool_calls": [part]}), "token")
    for index, (_, finish) in enumerate(choices):
        yield Event(chunk(index, {}, finish), "finish")
    base["choices"] = []
    base["usage"] = usage
    if asked.dialect == "venice":
        base["cost"] = _venice_cost(usage)
    yield Event(encode(base), "usage", hidden=not usage_shown)
    yield Event(DONE, "done")


def completions(asked: Asked) -> Answer:
    body = read_json(asked)
    model = model_of(asked, body)
    prompt = body.get("prompt", "")
    choices = []
    for index in range(_n(body)):
        pieces, cut = pieces_of(asked, model, body.get("max_tokens"), index)
        choices.append((pieces, "length" if cut else "stop"))
    written = sum(count("".join(pieces)) for pieces, _ in choices)
    usage = _usage(asked, count(words_in(prompt)), written)
    base: Json = {
        "id": asked.id("cmpl"),
        "object": "text_completion",
        "created": asked.created(),
        "model": model,
    }
    total = sum(len(pieces) for pieces, _ in choices)
    headers = provider_headers(asked, model)
    if body.get("stream") is True:
        options = body.get("stream_options")
        shown = isinstance(options, dict) and options.get("include_usage") is True
        events = _completion_events(base, choices, usage, shown)
        return Answer(events=events, content_type="text/event-stream", headers=headers, pieces=total)
    base["choices"] = [
        {"index": index, "text": "".join(pieces), "logprobs": None, "finish_reason": finish}
        for index, (pieces, finish) in enumerate(choices)
    ]
    base["usage"] = usage
    return Answer(body=encode(base), headers=headers, pieces=total)


def _completion_events(
    base: Json, choices: list[tuple[list[str], str]], usage: Json, usage_shown: bool
) -> Iterator[Event]:
    def chunk(index: int, text: str, finish: str | None) -> bytes:
        base["choices"] = [{"index": index, "text": text, "logprobs": None, "finish_reason": finish}]
        return encode(base)

    for index, (pieces, finish) in enumerate(choices):
        for piece in pieces:
            yield Event(chunk(index, piece, None), "token")
        yield Event(chunk(index, "", finish), "finish")
    base["choices"] = []
    base["usage"] = usage
    yield Event(encode(base), "usage", hidden=not usage_shown)
    yield Event(DONE, "done")


def moderations(asked: Asked) -> Answer:
    body = read_json(asked)
    given = body.get("input", "")
    results = []
    for item in given if isinstance(given, list) else [given]:
        bad = "kill" in words_in(item).lower()
        names = ("harassment", "hate", "self-harm", "sexual", "violence")
        results.append(
            {
                "flagged": bad,
                "categories": {name: bad and name == "violence" for name in names},
                "category_scores": {name: 0.98 if bad and name == "violence" else 0.01 for name in names},
                "category_applied_input_types": {name: ["text"] for name in names},
            }
        )
    model = body.get("model") or "omni-moderation-sim"
    return Answer(body=encode({"id": asked.id("modr"), "model": model, "results": results}))


def rerank(asked: Asked) -> Answer:
    body = read_json(asked)
    model = model_of(asked, body)
    documents = body.get("documents")
    if not isinstance(documents, list) or not documents:
        raise Refused(400, "documents must be a non-empty array", "invalid_documents")
    query = set(str(body.get("query", "")).lower().split())
    scored = []
    for index, document in enumerate(documents):
        own = set(words_in(document).lower().split())
        scored.append((len(query & own) / max(1, len(query | own)), -index))
    scored.sort(reverse=True)
    top = body.get("top_n") or len(scored)
    results: list[Json] = [{"index": -place, "relevance_score": score} for score, place in scored[:top]]
    if body.get("return_documents"):
        for result in results:
            result["document"] = {"text": words_in(documents[result["index"]])}
    tokens = count(words_in(documents))
    return Answer(
        body=encode({"id": asked.id("rerank"), "model": model, "results": results, "usage": {"total_tokens": tokens}})
    )


def _usage(asked: Asked, prompt: int, completion: int) -> Json:
    reasoning = asked.script.reasoning_tokens
    completion += reasoning
    usage: Json = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": reasoning},
    }
    if asked.dialect == "openrouter":
        usage["cost"] = cost_usd(prompt, completion)
        usage["is_byok"] = False
        usage["cost_details"] = {"upstream_inference_cost": None}
    return usage


def _venice_cost(usage: Json) -> Json:
    cost = cost_usd(usage["prompt_tokens"], usage["completion_tokens"])
    return {"usd": cost, "diem": cost}


def _n(body: Json) -> int:
    n = body.get("n")
    if n is None:
        return 1
    if not isinstance(n, int) or not 1 <= n <= CHOICES_MAX:
        raise Refused(400, f"n must be between 1 and {CHOICES_MAX}", "invalid_n")
    return n


def _tool_call(asked: Asked, body: Json) -> tuple[str, str, str]:
    tools = [tool.get("function") or tool for tool in body["tools"] if isinstance(tool, dict)]
    if not tools:
        raise Refused(400, "tools must be objects", "invalid_tools")
    choice = body.get("tool_choice")
    forced = choice.get("function", choice).get("name") if isinstance(choice, dict) else None
    tool = next((tool for tool in tools if tool.get("name") == forced), tools[0])
    return (
        asked.id("call"),
        str(tool.get("name")),
        encode(instance_of(tool.get("parameters") or {"type": "object"})).decode(),
    )


def _json_text(asked: Asked, model: str, wanted: Json) -> str:
    if wanted["type"] == "json_schema":
        named: Any = wanted.get("json_schema") or {}
        return encode(instance_of(named.get("schema"))).decode()
    facts = {
        "provider": asked.provider,
        "model": model,
        "seq": asked.sequence,
        "sha256": asked.body_sha256,
    }
    return encode(facts).decode()


_HANDLERS: dict[str, Callable[[Asked], Answer]] = {
    "chat/completions": chat,
    "completions": completions,
    "moderations": moderations,
    "rerank": rerank,
}


def _late_handler(endpoint: str) -> Callable[[Asked], Answer] | None:
    """Endpoints whose modules are loaded by their first request: the demo starts without them."""
    if endpoint == "responses":
        from dandolo.sim.responses import responses

        return responses
    if endpoint.startswith(("images/", "audio/")) or endpoint == "embeddings":
        from dandolo.sim import media

        return media.HANDLERS[endpoint]
    return None
