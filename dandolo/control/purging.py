"""Purging the cache from the admin listener: by key, tag, model, scope, class, or all of it."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from dandolo.control.route import JSON, Answer, Asked, Route
from dandolo.errors import RequestError

KINDS = ("key", "tag", "model", "scope", "class")
CLASSES = ("IMAGE", "EMBEDDING", "SET", "ANALYSIS", "CODE", "VOLATILE", "QUESTION", "OTHER")
NAME_CHARS_MAX = 256
PURGE_S = 75.0
"""A purge of everything in Redis removes its values one by one, for a minute at most."""

_KEY = re.compile(r"[0-9a-fA-F]{40}")
_encode = msgspec.json.encode

Purge = Callable[[str, str, bool], Awaitable[dict[str, Any]]]
"""Purges by kind and name, softly or not; answers what was done (`failed`: sentences about what could not be)."""


class _Wish(msgspec.Struct, forbid_unknown_fields=True):
    key: str | None = None
    tag: str | None = None
    model: str | None = None
    scope: str | None = None
    class_: str | None = msgspec.field(default=None, name="class")
    all: bool = False
    soft: bool = False


def purge_routes(purge: Purge) -> list[Route]:
    """What of the cache an operator can do from outside."""

    async def handle(asked: Asked) -> Answer:
        kind, name, soft = wish(asked.body)
        done = await purge(kind, name, soft)
        failed = done.get("failed") or []
        body = {"purged": kind if kind == "all" else {kind: name}, "soft": soft, **done}
        return Answer(207 if failed else 200, JSON, _encode(body))

    return [
        Route(
            "POST",
            b"/admin/cache/purge",
            handle,
            "forget kept answers by key, tag, model, scope, class, or all; soft: give them while they are fetched anew",
            schema={
                "type": "object",
                "properties": {
                    **{kind: {"type": "string"} for kind in KINDS},
                    "all": {"type": "boolean"},
                    "soft": {"type": "boolean"},
                },
                "additionalProperties": False,
            },
            deadline_s=PURGE_S,
            facts=(*KINDS, "all", "soft"),
        )
    ]


def wish(body: bytes) -> tuple[str, str, bool]:
    """Kind, name and softness that a body asks for. Raises RequestError."""
    try:
        said = msgspec.json.decode(body, type=_Wish)
    except msgspec.DecodeError as error:
        raise RequestError(
            f"expected one of {', '.join(KINDS)} with a text, or all: true, and perhaps soft: true; {error}",
            code="invalid_purge",
        ) from error
    named = [(kind, value) for kind in KINDS if (value := getattr(said, kind if kind != "class" else "class_"))]
    if len(named) + said.all != 1:
        raise RequestError(
            f"expected exactly one of {', '.join(KINDS)} or all, got {len(named) + said.all}", code="invalid_purge"
        )
    kind, name = named[0] if named else ("all", "")
    if len(name) > NAME_CHARS_MAX:
        raise RequestError(f"a name has at most {NAME_CHARS_MAX} characters, this one {len(name)}", param=kind)
    if kind == "key" and not _KEY.fullmatch(name):
        raise RequestError(
            "a key has 40 hexadecimal digits, as x-dandolo-cache-key shows it where x-dandolo-explain is true",
            param="key",
        )
    if kind == "class":
        name = name.upper()
        if name not in CLASSES:
            raise RequestError(
                f"class is one of {', '.join(CLASSES).lower()}, not '{name.lower()[:32]}'", param="class"
            )
    if kind == "scope" and name != "shared" and not name.startswith("key:"):
        name = f"key:{name}"
    return kind, name, said.soft
