"""What answers are made of, in any dialect: the request, the answer, its events, its words.

Pure: nothing here reads a clock or a socket. Texts are deterministic and carry facts that a test can check:
the provider's name, the model it received, the request's sequence number, and the digest of the body's bytes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple
from urllib.parse import unquote

import msgspec

from dandolo.sim.script import Dialect, Script

EPOCH = 1_750_000_000
"""`created` of sequence number 0, in Unix seconds: fixed, so that answers are reproducible."""

INPUT_USD_PER_MTOK = 0.5
OUTPUT_USD_PER_MTOK = 1.5

Json = dict[str, Any]
Part = Literal["open", "token", "finish", "usage", "done", "other"]
encode = msgspec.json.encode

_ENDPOINTS = (
    "chat/completions", "completions", "embeddings", "moderations", "responses", "images/generations",
    "images/edits", "images/variations", "audio/speech", "audio/transcriptions", "audio/translations",
    "rerank", "models", "messages/count_tokens", "messages",
)  # fmt: skip
_ROUTE = re.compile(rf"/(?:.*?/)??({'|'.join(map(re.escape, _ENDPOINTS))})(?:/(.*))?")

_FILLER_TEXT = (
    "the water rises and the boats ride higher along the quay while the bells of the square count the hour "
    "and a clerk writes every ship into the book"
)
_FILLER = _FILLER_TEXT.split()


@dataclass(slots=True)
class Event:
    """One server-sent event, or something that happens in its place.

    `act` "send" writes `payload` under `field` ("data", "error") with an optional event `name`; "comment"
    writes it as a comment; "wait" is silence for `wait_s` (0: until the client leaves); "close" and "reset"
    end the connection. `part` is the event's role in the stream, `hidden` marks usage nobody asked for.
    """

    payload: bytes = b""
    part: Part = "other"
    name: str = ""
    field: str = "data"
    act: Literal["send", "comment", "wait", "close", "reset"] = "send"
    wait_s: float = 0.0
    hidden: bool = False


class Charge(NamedTuple):
    """What a provider bills for one answer: to whose request (the `x-request-id` it came with, the body's `user`),
    for how many tokens, and the cost as far as its dialect tells one (USD, None: by a price list)."""

    request_id: str
    user: str
    stream: bool
    tokens_in: int
    tokens_out: int
    cost_usd: float | None


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer. `events` makes it a stream, otherwise `body` counts. `pieces` is the number of
    generated pieces, for which a plain answer takes time. `charge` is what it is billed at (chat only)."""

    status: int = 200
    body: bytes = b""
    events: Iterator[Event] | None = None
    content_type: str = "application/json"
    headers: tuple[tuple[str, str], ...] = ()
    pieces: int = 0
    charge: Charge | None = None


@dataclass(frozen=True, slots=True)
class Asked:
    """One received request, with what a dialect needs to answer it. `headers` have lower-case names."""

    provider: str
    dialect: Dialect
    script: Script
    models: tuple[str, ...]
    sequence: int
    method: str
    target: str
    headers: dict[str, str]
    body: bytes
    body_sha256: str
    stored: MutableMapping[str, bytes] = field(default_factory=dict)

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]

    def route(self) -> tuple[str, str]:
        """The endpoint under any base path, and the percent-decoded rest; ("", "") if unknown."""
        found = _ROUTE.fullmatch(self.path)
        return (found[1], unquote(found[2] or "")) if found else ("", "")

    def created(self) -> int:
        return EPOCH + self.sequence

    def id(self, prefix: str) -> str:
        return f"{prefix}-{self.provider}-{self.sequence}"


class Refused(Exception):
    """A request that this provider answers with an error of its dialect."""

    def __init__(self, status: int, message: str, code: str = "", headers: tuple[tuple[str, str], ...] = ()):
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.headers = headers


def read_json(asked: Asked) -> Json:
    """The body as an object; raises `Refused` 400."""
    try:
        value = msgspec.json.decode(asked.body)
    except (ValueError, RecursionError) as error:
        raise Refused(400, f"the body is not JSON: {error}", "invalid_json") from None
    if not isinstance(value, dict):
        raise Refused(400, "the body is not a JSON object", "invalid_json")
    return value


def model_of(asked: Asked, body: Json) -> str:
    """The model asked for; raises `Refused` 400 if there is none, 404 if it is unknown and that matters."""
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise Refused(400, "you must provide a model parameter", "missing_model")
    check_model(asked, model)
    return model


def check_model(asked: Asked, model: str) -> None:
    if asked.script.strict_models and model not in asked.models:
        raise Refused(404, f"The model `{model}` does not exist", "model_not_found")


def count(text: str) -> int:
    """Plausible tokens of a text: a quarter of its characters, at least one."""
    return max(1, -(-len(text) // 4))


def words_in(value: Any) -> str:
    """All text of a message, a list of messages or parts, or an input, for counting."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return " ".join(words_in(item) for item in value)
    if isinstance(value, dict):
        return words_in(value.get("content") or value.get("text") or value.get("input") or "")
    return ""


def pieces_of(asked: Asked, model: str, limit: Any, index: int = 0) -> tuple[list[str], bool]:
    """The answer's pieces (joined they are the text), and whether the caller's token `limit` cut it short."""
    facts = [
        f"{asked.provider}:",
        " hello",
        f" model={model}",
        " again" if asked.script.repeatable else f" seq={asked.sequence}",
        f" sha256={asked.body_sha256}",
    ]
    if index:
        facts.append(f" choice={index}")
    total = asked.script.tokens
    if total < len(facts):  # fewer pieces than facts: the last piece carries the rest, nothing is lost
        facts = [*facts[: total - 1], "".join(facts[total - 1 :])]
    words = asked.script.words or _FILLER
    pieces = facts + [f" {words[i % len(words)]}" for i in range(total - len(facts))]
    if isinstance(limit, int) and not isinstance(limit, bool) and 0 < limit < len(pieces):
        return pieces[:limit], True
    return pieces, False


def reasoning_of(asked: Asked) -> list[str]:
    return [
        "thinking",
        *(f" {_FILLER[-1 - i % len(_FILLER)]}" for i in range(asked.script.reasoning_tokens - 1)),
    ][: asked.script.reasoning_tokens]


def tool_wanted(body: Json, messages: Any) -> bool:
    """Whether this provider calls a tool: one is forced, or the last message of the user says "tool"."""
    if not body.get("tools"):
        return False
    choice = body.get("tool_choice")
    kind = choice.get("type") if isinstance(choice, dict) else choice
    if kind == "none":
        return False
    if kind is not None and kind != "auto":
        return True
    last = messages[-1] if isinstance(messages, list) and messages else messages
    if isinstance(last, dict) and last.get("role") not in (None, "user"):
        return False
    return "tool" in words_in(last).lower()


def instance_of(schema: Any, depth: int = 0) -> Any:
    """A value that fits a JSON schema (the common keywords), so that parsed output validates."""
    if not isinstance(schema, dict) or depth > 16:
        return "sim"
    if "const" in schema:
        return schema["const"]
    if schema.get("enum"):
        return schema["enum"][0]
    for alternatives in ("anyOf", "oneOf"):
        if schema.get(alternatives):
            return instance_of(schema[alternatives][0], depth + 1)
    kind = schema.get("type")
    if isinstance(kind, list):
        kind = kind[0] if kind else "string"
    if kind == "object" or "properties" in schema:
        return {name: instance_of(sub, depth + 1) for name, sub in schema.get("properties", {}).items()}
    if kind == "array":
        return [instance_of(schema.get("items"), depth + 1)]
    return {"integer": 1, "number": 1.5, "boolean": True, "null": None}.get(str(kind), "sim")


def cost_usd(prompt_tokens: int, completion_tokens: int) -> float:
    return round((prompt_tokens * INPUT_USD_PER_MTOK + completion_tokens * OUTPUT_USD_PER_MTOK) / 1e6, 9)
