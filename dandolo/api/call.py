"""A request as a call: which model, streamed or not, what must be changed for the provider that takes it.

`read` judges a body and names what steers; `body_for` gives the bytes for one provider: the caller's own,
with the model's name replaced where the provider knows it by another, the provider's configured defaults
where the caller is silent, and usage asked for where a stream would otherwise not tell it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from dandolo.api import multipart
from dandolo.api.body import JsonBody, judge
from dandolo.api.endpoints import Endpoint
from dandolo.api.multipart import FormBody
from dandolo.errors import RequestError

FALLBACKS_MAX = 16
MODEL_CHARS_MAX = 256

_encoder = msgspec.json.Encoder()
_any = msgspec.json.Decoder()
_strings = msgspec.json.Decoder(list[str])
_INCLUDE_USAGE = b'{"include_usage":true}'
_ASKING_FOR_USAGE = b',"stream_options":{"include_usage":true}}'
NAMES_REMEMBERED_MAX = 1024
_names: dict[bytes, tuple[str, ...]] = {}
_USAGE_DIALECTS = frozenset(("chat", "completions"))


class Call:
    """What one request asks for.

    `models` are the names to try in order, the caller's spelling (empty: the endpoint has a default);
    `stream` whether events are wanted; `usage_wanted` whether the caller asked for usage in them.
    `content_type` is what to tell the provider about the body, None when there is none.
    """

    __slots__ = (
        "auto", "content_type", "endpoint", "form", "json", "models", "raw", "stream", "usage_wanted", "wishes",
    )  # fmt: skip

    def __init__(self, endpoint: Endpoint, raw: bytes) -> None:
        self.endpoint = endpoint
        self.raw = raw
        self.json: JsonBody | None = None
        self.form: FormBody | None = None
        self.models: tuple[str, ...] = ()
        self.stream = False
        self.usage_wanted = True
        self.content_type: bytes | None = b"application/json"
        self.auto = False
        """Whether the models were chosen for it: what its body says of that is not for providers."""
        self.wishes = False
        """Whether the body says where it wants to go (`provider`, `previous_response_id`): a route of its own."""

    @property
    def model(self) -> str:
        """The first name asked for, "" when there is none."""
        return self.models[0] if self.models else ""

    def choose(self, models: Sequence[str]) -> None:
        """Put models chosen for it in the place of those it names."""
        self.models = tuple(models)
        self.auto = True

    def injects_usage(self, allowed: bool) -> bool:
        """Whether usage is asked for on the caller's behalf (and its extra chunk hidden)."""
        return allowed and self.stream and not self.usage_wanted

    def body_for(
        self,
        model: str,
        name: str,
        defaults: Mapping[str, Any],
        *,
        inject_usage: bool,
        wish: bytes | None = None,
    ) -> bytes | None:
        """The body for a provider that knows `name` (as the caller said it) as `model`; None for no body at all.

        `wish` is what stays of the caller's `provider` object, None for nothing.
        """
        if self.content_type is None:
            return None
        if self.form is not None:
            if name and model != name:
                return self.form.replaced("model", model.encode())
            return self.raw
        body = self.json
        if body is None:
            return self.raw
        usual = not defaults and model == name == self.model and not self.wishes and not self.auto
        if usual and not inject_usage and "models" not in body.fields:
            return self.raw
        if usual and inject_usage and _extensible(body):
            # The commonest edit of all: usage asked for where the caller said nothing of it.
            return self.raw[:-1] + _ASKING_FOR_USAGE
        edits: dict[str, bytes | None] = {}
        if self.wishes and wish != body.get("provider"):
            edits["provider"] = wish
        if self.auto and "auto" in body.fields:
            edits["auto"] = None
        if name and (model != name or name != self.models[0] or self.auto):
            edits["model"] = _encoder.encode(model)
        if "models" in body.fields:
            edits["models"] = None
            # A caller may name its models in the list alone; the provider must still be told which.
            if name and "model" not in edits and body.get("model") is None:
                edits["model"] = _encoder.encode(model)
        for field, value in defaults.items():
            merged = _merged(body, field, value)
            if merged is not None:
                edits[field] = merged
        if inject_usage:
            edits["stream_options"] = _with_usage(edits.get("stream_options") or body.get("stream_options"))
        return body.edited(edits) if edits else self.raw


def read(endpoint: Endpoint, raw: bytes, content_type: bytes) -> Call:
    """Judge the body of a request to `endpoint`. Raises RequestError (400, 415) naming the field."""
    call = Call(endpoint, raw)
    if endpoint.body == "none":
        call.content_type = content_type if raw else None
        return call
    if endpoint.body == "multipart":
        _read_form(call, raw, content_type)
        return call
    body = judge(raw)
    call.json = body
    for name, opening, kind in endpoint.needs:
        raw_value = body.fields.get(name)
        if raw_value is None or memoryview(raw_value)[0] not in opening:
            body.require(name, opening, kind)
    call.models = _models(body, required=endpoint.model)
    call.wishes = "provider" in body.fields or "previous_response_id" in body.fields
    if "stream" in body.fields:
        call.stream = body.flag("stream")
        if call.stream and endpoint.dialect in _USAGE_DIALECTS:
            options = body.value("stream_options") if "stream_options" in body.fields else None
            if options is not None and not isinstance(options, dict):
                raise RequestError("the field 'stream_options' must be an object", param="stream_options")
            call.usage_wanted = options is not None and options.get("include_usage") is True
    return call


def _extensible(body: JsonBody) -> bool:
    """Whether `stream_options` can be added by writing before the last byte."""
    fields = body.fields
    return "stream_options" not in fields and "models" not in fields and body.raw.endswith(b"}")


def _read_form(call: Call, raw: bytes, content_type: bytes) -> None:
    form = multipart.read(raw, content_type)
    call.form = form
    call.content_type = content_type
    model = form.text("model")
    if model:
        call.models = (_checked(model),)
    elif call.endpoint.model:
        raise RequestError("the form field 'model' is missing; give the name of a model", param="model")
    call.stream = form.text("stream") in ("true", "1")


def _models(body: JsonBody, *, required: bool) -> tuple[str, ...]:
    """`model` and then `models`, without repetitions."""
    others = body.fields.get("models")
    if others is None or bytes(others) == b"null":
        # The same few names come again and again: what was checked once is known by its raw JSON.
        raw = body.fields.get("model")
        known = _names.get(bytes(raw)) if raw is not None else None
        if known is not None:
            return known
        model = body.text("model", required=required)
        if model is None:
            return ()
        names = (_checked(model),)
        if len(_names) >= NAMES_REMEMBERED_MAX:
            _names.clear()
        _names[bytes(body.fields["model"])] = names
        return names
    try:
        listed = _strings.decode(others)
    except msgspec.ValidationError:
        raise RequestError("the field 'models' must be an array of strings", param="models") from None
    if len(listed) > FALLBACKS_MAX:
        raise RequestError(f"the field 'models' names more than {FALLBACKS_MAX} models", param="models")
    model = body.text("model", required=required and not listed)
    return tuple(dict.fromkeys(_checked(name) for name in ([] if model is None else [model]) + listed))


def _checked(name: str) -> str:
    if not name:
        raise RequestError("the field 'model' is empty; give the name of a model", param="model")
    if len(name) > MODEL_CHARS_MAX or not name.isprintable():
        raise RequestError(f"the field 'model' must be at most {MODEL_CHARS_MAX} printable characters", param="model")
    return name


def _merged(body: JsonBody, field: str, default: Any) -> bytes | None:
    """The default for a field, merged into what the caller gave; None when nothing is to change."""
    raw = body.get(field)
    if raw is None:
        return _encoder.encode(default)
    if not isinstance(default, Mapping) or raw[0] != 0x7B:
        return None
    given = body.value(field)
    merged = _merge(given, default)
    return None if merged == given else _encoder.encode(merged)


def _with_usage(options: bytes | None) -> bytes:
    """Stream options (the caller's, or with the provider's defaults merged in) that ask for usage."""
    if options is None or options[0] != 0x7B:
        return _INCLUDE_USAGE
    return _encoder.encode({**_any.decode(options), "include_usage": True})


def _merge(given: Mapping[str, Any], default: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(given)
    for key, value in default.items():
        if key not in merged:
            merged[key] = value
        elif isinstance(value, Mapping) and isinstance(merged[key], Mapping):
            merged[key] = _merge(merged[key], value)
    return merged
