"""Values with rules of their own: headers, tags, request defaults, model names and patterns."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from dandolo.config.problem import Unfit, quote
from dandolo.config.spec import At, Kind
from dandolo.config.units import describe

HEADERS_MAX: Final = 32
TAGS_MAX: Final = 16
ALIASES_MAX: Final = 1000
TARGETS_MAX: Final = 32
USE_CASES: Final = ("question", "code", "long_context", "multimodal", "tools")
CAPABILITIES: Final = ("tools", "vision", "audio", "video", "files")

# RFC 9110 §5.6.2: field names are tokens. §5.5: values are visible characters with spaces and tabs inside.
_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,128}", re.ASCII)
_FIELD_VALUE = re.compile(r"(?:[!-~](?:[ -~\t]{0,4094}[!-~])?)?")
_MODEL = re.compile(r"[!-~]{1,200}")

# Framing and connection fields belong to us, credentials to `key`. RFC 9110 §7.6.1 names the hop-by-hop
# ones that an intermediary must not pass on.
_OURS: Final = frozenset(
    {"connection", "keep-alive", "proxy-connection", "proxy-authenticate", "te", "trailer", "upgrade"}
    | {"transfer-encoding", "host", "content-length", "content-type", "content-encoding"}
    | {"accept-encoding", "expect", "x-request-id"}
)
_CREDENTIALS: Final = frozenset(
    {"authorization", "proxy-authorization", "x-api-key", "api-key", "x-goog-api-key", "cookie", "set-cookie"}
)
_REQUEST_FIELDS: Final = frozenset({"model", "messages", "input", "prompt", "stream", "stream_options"})

_SUFFIXES: Final = (":fast", ":nitro", ":cheap", ":floor")


def _header_name(name: object) -> str:
    """The name in lower case, or Unfit."""
    if not isinstance(name, str) or not _TOKEN.fullmatch(name):
        raise Unfit("expected a header name: letters, digits and !#$%&'*+-.^_`|~")
    # Servers that fold "_" into "-" would take content_length for Content-Length.
    folded = name.lower().replace("_", "-")
    if folded in _CREDENTIALS:
        raise Unfit("carries a credential: give it as key = { … } on the provider or an account")
    if folded in _OURS or folded == "forwarded" or folded.startswith(("x-forwarded-", "x-dandolo-")):
        raise Unfit("is set by Dandolo itself or belongs to one connection: take it out")
    return name.lower()


def headers() -> Kind:
    def read(value: object, at: At) -> Mapping[str, str]:
        if not isinstance(value, dict):
            raise Unfit(f'observed {describe(value)}, expected a table such as {{ "X-Title" = "ours" }}')
        if len(value) > HEADERS_MAX:
            raise Unfit(f"observed {len(value)} headers, expected at most {HEADERS_MAX}")
        seen = set()
        for name, content in value.items():
            try:
                folded = _header_name(name)
                if folded in seen:
                    raise Unfit("is given twice, in different case")
                seen.add(folded)
                if not isinstance(content, str) or not _FIELD_VALUE.fullmatch(content):
                    raise Unfit("expected printable ASCII, at most 4096 characters, no spaces around it")
            except Unfit as error:
                at.child(name).report(str(error))
        return MappingProxyType(value)

    return Kind("table of text", f"at most {HEADERS_MAX}; no credentials, no hop-by-hop", read)


def header_name() -> Kind:
    def read(value: object, at: At) -> str:
        return _header_name(value)

    return Kind("header name", "no credentials, no hop-by-hop", read)


def tags() -> Kind:
    def read(value: object, at: At) -> Mapping[str, str]:
        if not isinstance(value, dict):
            raise Unfit(f'observed {describe(value)}, expected a table such as {{ team = "web" }}')
        if len(value) > TAGS_MAX:
            raise Unfit(f"observed {len(value)} tags, expected at most {TAGS_MAX}")
        for name, content in value.items():
            if not re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", name):
                at.child(name).report("expected a tag name of 1 to 64 letters, digits, dots, dashes, underscores")
            if not isinstance(content, str) or not re.fullmatch(r"[ -~]{0,128}", content):
                at.child(name).report("expected printable ASCII, at most 128 characters")
        return MappingProxyType(value)

    return Kind("table of text", f"at most {TAGS_MAX} of 64 and 128 characters", read)


def request_defaults() -> Kind:
    """Fields merged into requests. The nested values are plain dicts and lists, ready to be encoded as
    JSON: nobody may change them."""

    def read(value: object, at: At) -> Mapping[str, Any]:
        if not isinstance(value, dict):
            raise Unfit(f"observed {describe(value)}, expected a table of request fields")
        for name, content in value.items():
            if name in _REQUEST_FIELDS:
                at.child(name).report("cannot have a default: it is what the caller asks for")
            else:
                _check_json(content, at.child(name), 0)
        return MappingProxyType(value)

    return Kind("table", "any JSON, except " + ", ".join(sorted(_REQUEST_FIELDS)), read)


def _check_json(value: object, at: At, depth: int) -> None:
    if depth > 16:
        at.report("nested deeper than 16 levels")
    elif isinstance(value, dict):
        for name, one in value.items():
            _check_json(one, at.child(name), depth + 1)
    elif isinstance(value, list):
        for index, one in enumerate(value):
            _check_json(one, at.child(index), depth + 1)
    elif isinstance(value, float) and not math.isfinite(value):
        at.report("JSON has no infinity and no NaN")
    elif isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:
        at.report("beyond 64 bits")
    elif not isinstance(value, (str, int, float)):
        at.report("JSON has no dates: write it as a string")


def qualities() -> Kind:
    """Quality, 0 to 1, of a model for some of the use cases."""

    def read(value: object, at: At) -> Mapping[str, float]:
        if not isinstance(value, dict):
            raise Unfit(f"observed {describe(value)}, expected a table such as {{ question = 0.8, code = 0.9 }}")
        good: dict[str, float] = {}
        for name, one in value.items():
            if name not in USE_CASES:
                at.child(name).report(f"unknown use case: expected one of {', '.join(USE_CASES)}")
            elif isinstance(one, bool) or not isinstance(one, (int, float)) or not 0 <= one <= 1:
                at.child(name).report("expected a number: 0 to 1")
            else:
                good[name] = float(one)
        return MappingProxyType(good)

    return Kind("table of numbers", f"0 to 1 for {', '.join(USE_CASES)}", read)


def model_id() -> Kind:
    def read(value: object, at: At) -> str:
        if not isinstance(value, str) or not _MODEL.fullmatch(value):
            raise Unfit("expected a model id: 1 to 200 printable ASCII characters without spaces")
        return value

    return Kind("model id", "1 to 200 characters", read, fallback="")


def model_pattern() -> Kind:
    """A model name, or a prefix that ends in `*`."""

    def read(value: object, at: At) -> str:
        if not isinstance(value, str) or not _MODEL.fullmatch(value) or "*" in value[:-1]:
            raise Unfit('expected a model name or a prefix that ends in "*", such as "venice/*"')
        return value

    return Kind("model pattern", '"name", "provider/id", "provider/*" or "*"', read)


def aliases() -> Kind:
    def read(value: object, at: At) -> Mapping[str, tuple[str, ...]]:
        if not isinstance(value, dict):
            raise Unfit(f"observed {describe(value)}, expected a table of names")
        if len(value) > ALIASES_MAX:
            raise Unfit(f"observed {len(value)} names, expected at most {ALIASES_MAX}")
        found: dict[str, tuple[str, ...]] = {}
        folded: dict[str, str] = {}
        for alias, targets in value.items():
            here = at.child(alias)
            try:
                _check_alias(alias, targets)
            except Unfit as error:
                here.report(str(error))
                continue
            if alias.casefold() in folded:
                here.report(f"equals the alias {quote(folded[alias.casefold()])} but for case: keep one")
            folded[alias.casefold()] = alias
            good: list[str] = []
            for index, target in enumerate(targets):
                try:
                    good.append(_target(target, good, value))
                except Unfit as error:
                    here.child(index).report(str(error))
            found[alias] = tuple(good)
        return MappingProxyType(found)

    return Kind("table of arrays", 'name = ["provider/model id", …]', read)


def _check_alias(alias: str, targets: object) -> None:
    if isinstance(targets, dict):
        raise Unfit(f'a name with a dot needs quotes: write "{alias}.…" = [ … ] with the whole name in quotes')
    if not _MODEL.fullmatch(alias):
        raise Unfit("expected a name of 1 to 200 printable ASCII characters without spaces")
    if alias == "auto" or alias.endswith(_SUFFIXES):
        raise Unfit(f"is taken: auto and names ending in {', '.join(_SUFFIXES)} steer the routing")
    if not isinstance(targets, list):
        raise Unfit(f'observed {describe(targets)}, expected an array: ["provider/model id", …]')
    if not 1 <= len(targets) <= TARGETS_MAX:
        raise Unfit(f"observed {len(targets)} targets, expected 1 to {TARGETS_MAX}")


def _target(target: object, before: list[str], names: Mapping[str, object]) -> str:
    if not isinstance(target, str):
        raise Unfit(f'observed {describe(target)}, expected "provider/model id"')
    provider, slash, model = target.partition("/")
    if not _MODEL.fullmatch(target) or not provider or not slash or not model:
        reason = f'observed {describe(target)}, expected "provider/model id"'
        raise Unfit(f"{reason}: an alias cannot point at another alias" if target in names else reason)
    if target in before:
        raise Unfit("is in the list twice: take one out")
    return target
