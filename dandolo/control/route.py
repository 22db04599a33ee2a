"""What the admin listener offers, as data: whoever has something to tell or to do there gives a list of these.

The listener judges a request first (who, from where, which path and method, how large); a handler sees what is left.
It may raise GatewayError, which is told in OpenAI's envelope. What has to wait is a coroutine, with a deadline of
its own; what goes on and on is a stream of events, which ends when its client leaves.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

import msgspec

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
    accept: bytes = b""
    """Its Accept header: a browser that opens an address says text/html here."""


class Answer(NamedTuple):
    """Status, content type and body of an answer. A page for people brings its Content-Security-Policy."""

    status: int
    kind: bytes
    body: bytes
    policy: bytes = b""


class Events(NamedTuple):
    """An answer without end: each text is the data of one event (one line of JSON, say)."""

    source: AsyncIterator[bytes]


Handler: TypeAlias = Callable[[Asked], "Answer | Events | Awaitable[Answer]"]

READING = ("GET", "HEAD")
"""Methods that change nothing. All others are written into the audit log."""


@dataclass(frozen=True, slots=True)
class Route:
    """One method of one path; a path that ends in "/" (and is longer) is the beginning of many, and `rest` the name
    of what follows. GET answers HEAD too.

    `parameters` names what the query may hold (name to description), `schema` the JSON Schema of the body; both are
    served in the OpenAPI description. `open` routes want no key, `any_key` routes any; all others want one with
    `admin = true`. A handler that waits is cancelled when its client leaves, and after `deadline_s`. `facts` are
    the members of the body that the audit log may repeat: names, never secrets. `audited`: who reads it is written
    down too.
    """

    method: str
    path: bytes
    handle: Handler
    summary: str
    parameters: Mapping[str, str] = field(default_factory=dict)
    schema: Mapping[str, Any] | None = None
    body_bytes_max: int = 64 * 1024
    open: bool = False
    any_key: bool = False
    deadline_s: float = 30.0
    facts: tuple[str, ...] = ()
    rest: str = "id"
    audited: bool = False

    @property
    def noted(self) -> bool:
        """Whether a call of it is written into the audit log."""
        return self.audited or self.changes

    @property
    def changes(self) -> bool:
        """Whether it changes anything."""
        return self.method not in READING


class Table:
    """Routes by path and method. `routes` may be given in any order; of two with the same method and path the
    first is kept."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self.routes = tuple(routes)
        self._exact: dict[bytes, dict[str, Route]] = {}
        self._beginnings: dict[bytes, dict[str, Route]] = {}
        for route in self.routes:
            many = route.path.endswith(b"/") and len(route.path) > 1
            kind = self._beginnings if many else self._exact
            kind.setdefault(route.path, {}).setdefault(route.method, route)
        self._order = sorted(self._beginnings, key=len, reverse=True)

    def at(self, path: bytes) -> tuple[Mapping[str, Route], bytes]:
        """The routes at a path by method (none: there is nothing), and the rest of the path. The longest fits."""
        found = self._exact.get(path)
        if found is not None:
            return found, b""
        for beginning in self._order:
            if path.startswith(beginning) and len(path) > len(beginning):
                return self._beginnings[beginning], path[len(beginning) :]
        return {}, b""


def answer(value: Any, status: int = 200) -> Answer:
    """An answer of anything that JSON can hold."""
    return Answer(status, JSON, _encode(value))


_encode = msgspec.json.Encoder().encode
