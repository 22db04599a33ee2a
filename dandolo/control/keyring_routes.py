"""What the admin listener offers to do with keys (`control.keyring`)."""

from __future__ import annotations

from typing import Any

import msgspec

from dandolo.control.keyring import Keyring
from dandolo.control.keys import OVERLAP_S, TERMS
from dandolo.control.listing import shown_key
from dandolo.control.route import JSON, Answer, Asked, Route
from dandolo.errors import RequestError

_encode = msgspec.json.Encoder().encode
_NAME = {"type": "string", "description": "1 to 64 letters, digits, dots, dashes, underscores"}
_COUNT = {"type": "integer", "minimum": 1}
_USD = {"type": "number", "exclusiveMinimum": 0}
_CREATE = {
    "type": "object",
    "required": ["name"],
    "additionalProperties": False,
    "properties": {
        "name": _NAME,
        "priority": {"enum": ["high", "normal", "low"]},
        "rpm": _COUNT,
        "tpm": _COUNT,
        "concurrent": _COUNT,
        "budget_usd_per_day": _USD,
        "budget_usd_per_month": _USD,
        "models": {"type": "array", "items": {"type": "string"}},
        "cache_scope": {"enum": ["key", "shared"]},
        "privacy": {"type": "boolean"},
        "tags": {"type": "object", "additionalProperties": {"type": "string"}},
    },
}
_ROTATE = {
    "type": "object",
    "additionalProperties": False,
    "properties": {"overlap_s": {"type": "number", "minimum": 0, "description": "how long the old key stays valid"}},
}


def routes(keyring: Keyring) -> list[Route]:
    """What may be done with keys."""

    async def listed(asked: Asked) -> Answer:
        return _answer(200, {"keys": await keyring.listed()})

    async def create(asked: Asked) -> Answer:
        given = _object(asked.body)
        name = given.pop("name", None)
        if not isinstance(name, str):
            raise RequestError("the field 'name' is missing or no text", param="name")
        key, kept = await keyring.create(name, given)
        return _answer(201, {"key": key, **shown_key(kept.terms, "database", kept)})

    async def rotate(asked: Asked) -> Answer:
        given = _object(asked.body) if asked.body else {}
        overlap_s = given.pop("overlap_s", OVERLAP_S)
        if given or isinstance(overlap_s, bool) or not isinstance(overlap_s, (int, float)):
            raise RequestError("expected an object with overlap_s (seconds) or without anything", param="overlap_s")
        key, kept = await keyring.rotate(_text(asked.rest), float(overlap_s))
        return _answer(200, {"key": key, **shown_key(kept.terms, "database", kept)})

    async def revoke(asked: Asked) -> Answer:
        kept = await keyring.revoke(_text(asked.rest))
        return _answer(200, shown_key(kept.terms, "database", kept))

    return [
        Route("GET", b"/admin/keys", listed, "all keys: where each comes from, what it may, what it has used"),
        Route(
            "POST",
            b"/admin/keys",
            create,
            "make a key, which is shown this once",
            schema=_CREATE,
            facts=("name", *TERMS),
        ),
        Route(
            "POST",
            b"/admin/keys/",
            rotate,
            "put a new key, shown this once, in the place of one",
            schema=_ROTATE,
            facts=("overlap_s",),
            rest="name",
        ),
        Route("DELETE", b"/admin/keys/", revoke, "make a key of the database invalid for good", rest="name"),
    ]


def _answer(status: int, content: Any) -> Answer:
    return Answer(status, JSON, _encode(content))


def _object(body: bytes) -> dict[str, Any]:
    try:
        value = msgspec.json.decode(body)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise RequestError("expected a JSON object")
    return value


def _text(raw: bytes) -> str:
    """A name of a path; what is no name is none of a key's."""
    try:
        return raw.decode("ascii")
    except UnicodeDecodeError:
        return "?"
