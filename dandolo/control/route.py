"""What the admin listener offers, as data: whoever has something to tell or to do there gives a list of these.

The listener judges a request first (who, from where, which path and method, how large); a handler sees what is left.
It may raise GatewayError, which is told in OpenAI's envelope. What has to wait is a coroutine, with a deadline of
its own; what goes on and on is a stream of events, which ends when its client leaves.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

JSON = b"application/json"
TEXT = b"text/plain; charset=utf-8"
HTML = b"text/html; charset=utf-8"
CSV = b"text/csv; charset=utf-8"
EVENTS = b"text/event-stream"


class Asked(NamedTuple):
    """A request as a handler sees it. `rest` is what follows the path of a route that ends in "/", undecoded."""

    method: str
    path: bytes
    query: bytes
    body: bytes
    who: str
    """The name of the key it came with, "" where none is wanted."""
    rest: bytes = b""


class Answer(NamedTuple):
    """Status, content type and body of an answer."""

    status: int
    kind: bytes
    body: bytes


class Events(NamedTuple):
    """An answer without end: each text is the data of one event (one line of JSON, say)."""

    source: AsyncIterator[bytes]


Handler: TypeAlias = Callable[[Asked], "Answer | Events | Awaitable[Answer]"]


@dataclass(frozen=True, slots=True)
class Route:
    """One method of one path. `parameters` names what the query may hold (name to description), `schema` the JSON
    Schema of the body; both are served in the OpenAPI description. `open` routes want no key."""

    method: str
    path: bytes
    handle: Handler
    summary: str
    parameters: Mapping[str, str] = field(default_factory=dict)
    schema: Mapping[str, Any] | None = None
    body_bytes_max: int = 64 * 1024
    open: bool = False
