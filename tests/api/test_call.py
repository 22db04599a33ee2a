"""A request as a call: what steers is read strictly, and only what must change is changed."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dandolo.api.call import FALLBACKS_MAX, MODEL_CHARS_MAX, Call, read
from dandolo.api.endpoints import ENDPOINTS
from dandolo.errors import RequestError

CHAT = ENDPOINTS[b"/v1/chat/completions"]
COMPLETIONS = ENDPOINTS[b"/v1/completions"]
EMBEDDINGS = ENDPOINTS[b"/v1/embeddings"]
MODERATIONS = ENDPOINTS[b"/v1/moderations"]
MESSAGES = ENDPOINTS[b"/v1/messages"]
RESPONSES = ENDPOINTS[b"/v1/responses"]
IMAGES = ENDPOINTS[b"/v1/images/generations"]
TRANSCRIPTIONS = ENDPOINTS[b"/v1/audio/transcriptions"]
STYLES = ENDPOINTS[b"/v1/image/styles"]
JSON = b"application/json"


def chat(**fields: Any) -> Call:
    return read(CHAT, json.dumps({"model": "m", "messages": [], **fields}).encode(), JSON)


def sent(call: Call, model: str = "m", name: str = "m", *, inject: bool = False, **defaults: Any) -> Any:
    return json.loads(call.body_for(model, name, defaults, inject_usage=inject))


WRONG = [
    ("model-missing", CHAT, {"messages": []}, "model"),
    ("model-null", CHAT, {"model": None, "messages": []}, "model"),
    ("model-empty", CHAT, {"model": "", "messages": []}, "model"),
    ("model-number", CHAT, {"model": 1, "messages": []}, "model"),
    ("model-list", CHAT, {"model": ["a"], "messages": []}, "model"),
    ("model-long", CHAT, {"model": "m" * (MODEL_CHARS_MAX + 1), "messages": []}, "model"),
    ("model-line-feed", CHAT, {"model": "a\nb", "messages": []}, "model"),
    ("model-nul", CHAT, {"model": "a\x00", "messages": []}, "model"),
    ("model-bidi", CHAT, {"model": "a\u202eb", "messages": []}, "model"),
    ("messages-missing", CHAT, {"model": "m"}, "messages"),
    ("messages-null", CHAT, {"model": "m", "messages": None}, "messages"),
    ("messages-string", CHAT, {"model": "m", "messages": "hi"}, "messages"),
    ("messages-object", CHAT, {"model": "m", "messages": {}}, "messages"),
    ("messages-of-anthropic", MESSAGES, {"model": "m", "messages": "hi"}, "messages"),
    ("stream-string", CHAT, {"model": "m", "messages": [], "stream": "true"}, "stream"),
    ("stream-number", CHAT, {"model": "m", "messages": [], "stream": 1}, "stream"),
    ("options-list", CHAT, {"model": "m", "messages": [], "stream": True, "stream_options": []}, "stream_options"),
    ("options-string", CHAT, {"model": "m", "messages": [], "stream": True, "stream_options": "x"}, "stream_options"),
    ("models-string", CHAT, {"model": "m", "messages": [], "models": "a"}, "models"),
    ("models-object", CHAT, {"model": "m", "messages": [], "models": {}}, "models"),
    ("models-of-numbers", CHAT, {"model": "m", "messages": [], "models": [1]}, "models"),
    ("models-with-null", CHAT, {"model": "m", "messages": [], "models": [None]}, "models"),
    ("models-too-many", CHAT, {"messages": [], "models": ["m"] * (FALLBACKS_MAX + 1)}, "models"),
    ("models-with-empty", CHAT, {"messages": [], "models": [""]}, "model"),
    ("models-empty-alone", CHAT, {"messages": [], "models": []}, "model"),
    ("models-null-alone", CHAT, {"messages": [], "models": None}, "model"),
    ("input-missing", EMBEDDINGS, {"model": "m"}, "input"),
    ("input-number", EMBEDDINGS, {"model": "m", "input": 1}, "input"),
    ("input-null", MODERATIONS, {"input": None}, "input"),
    ("input-true", MODERATIONS, {"input": True}, "input"),
]


@pytest.mark.parametrize(("endpoint", "fields", "param"), [case[1:] for case in WRONG], ids=[case[0] for case in WRONG])
def test_a_field_of_the_wrong_type_is_400_and_named(endpoint: Any, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(RequestError) as caught:
        read(endpoint, json.dumps(fields).encode(), JSON)
    assert (caught.value.status, caught.value.param) == (400, param)


@pytest.mark.parametrize(
    ("fields", "models"),
    [
        ({"model": "a"}, ("a",)),
        ({"model": "a", "models": ["b", "c"]}, ("a", "b", "c")),
        ({"models": ["b", "c"]}, ("b", "c")),
        ({"model": None, "models": ["b"]}, ("b",)),
        ({"model": "a", "models": ["a", "b", "a", "b"]}, ("a", "b")),
        ({"model": "a", "models": []}, ("a",)),
        ({"model": "a", "models": None}, ("a",)),
        ({"model": "vendor/a:b+c", "models": ["模型"]}, ("vendor/a:b+c", "模型")),
    ],
)
def test_models_are_tried_in_the_order_given_without_repetition(
    fields: dict[str, Any], models: tuple[str, ...]
) -> None:
    call = read(CHAT, json.dumps({**fields, "messages": []}).encode(), JSON)
    assert call.models == models
    assert call.model == models[0]


def test_an_endpoint_with_a_default_model_needs_no_name() -> None:
    call = read(IMAGES, b'{"prompt":"x"}', JSON)
    assert (call.models, call.model) == ((), "")
    assert call.body_for("", "", {}, inject_usage=False) == b'{"prompt":"x"}'


def test_an_endpoint_without_a_body_reads_none() -> None:
    call = read(STYLES, b"not json", b"text/plain")
    assert (call.models, call.stream, call.json) == ((), False, None)
    assert call.body_for("", "", {"a": 1}, inject_usage=False) == b"not json"


@pytest.mark.parametrize(
    ("fields", "stream", "wanted"),
    [
        ({}, False, True),
        ({"stream": None}, False, True),
        ({"stream": False, "stream_options": {"include_usage": True}}, False, True),
        ({"stream": True}, True, False),
        ({"stream": True, "stream_options": None}, True, False),
        ({"stream": True, "stream_options": {}}, True, False),
        ({"stream": True, "stream_options": {"include_usage": False}}, True, False),
        ({"stream": True, "stream_options": {"include_usage": None}}, True, False),
        ({"stream": True, "stream_options": {"include_usage": 1}}, True, False),
        ({"stream": True, "stream_options": {"include_usage": "true"}}, True, False),
        ({"stream": True, "stream_options": {"include_usage": True}}, True, True),
    ],
)
def test_streaming_and_usage_are_what_the_caller_said(fields: dict[str, Any], stream: bool, wanted: bool) -> None:
    call = chat(**fields)
    assert (call.stream, call.usage_wanted) == (stream, wanted)
    assert call.injects_usage(True) is (stream and not wanted)
    assert call.injects_usage(False) is False


@pytest.mark.parametrize("endpoint", [MESSAGES, RESPONSES])
def test_dialects_that_always_tell_usage_are_never_asked_for_it(endpoint: Any) -> None:
    call = read(endpoint, b'{"model":"m","messages":[],"stream":true,"stream_options":"whatever"}', JSON)
    assert call.stream
    assert not call.injects_usage(True)


def test_a_call_that_needs_no_change_is_sent_as_it_came() -> None:
    raw = b'\n{ "model" : "m",\t"messages":[ {"role":"user","content":"caf\\u00e9"} ], "temperature": 1.50 }\n'
    assert read(CHAT, raw, JSON).body_for("m", "m", {}, inject_usage=False) is raw


@pytest.mark.parametrize(
    "raw",
    [
        b'{"model":"m","messages":[],"x":"\\u00e9 1.50"}',
        b'{"model": "m", "messages": [], "x": "1.50"}',
        b'{\n "x":1e2,"model" :\t"m" ,"messages":[]}\n',
        '{"é":1,"model":"m","messages":[]}'.encode(),
    ],
)
def test_only_the_models_value_is_replaced(raw: bytes) -> None:
    sent_bytes = read(CHAT, raw, JSON).body_for('other/"m"', "m", {}, inject_usage=False)
    assert sent_bytes == raw.replace(b'"m"', b'"other/\\"m\\""', 1)


def test_a_fallbacks_name_replaces_the_first() -> None:
    call = chat(models=["b"])
    assert sent(call, "b", "b") == {"model": "b", "messages": []}
    assert sent(call, "b-at-provider", "b") == {"model": "b-at-provider", "messages": []}


def test_the_list_of_models_never_reaches_a_provider() -> None:
    assert sent(chat(models=["a", "b"])) == {"model": "m", "messages": []}
    assert sent(chat(models=None)) == {"model": "m", "messages": []}


@pytest.mark.parametrize("model", [{}, {"model": None}])
def test_a_provider_is_told_the_model_that_only_the_list_names(model: dict[str, Any]) -> None:
    call = read(CHAT, json.dumps({**model, "models": ["a", "b"], "messages": []}).encode(), JSON)
    assert sent(call, "a", "a") == {"model": "a", "messages": []}
    assert sent(call, "b", "b") == {"model": "b", "messages": []}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {"include_usage": True}),
        ({"stream_options": None}, {"include_usage": True}),
        ({"stream_options": {}}, {"include_usage": True}),
        ({"stream_options": {"include_usage": False}}, {"include_usage": True}),
        ({"stream_options": {"include_obfuscation": False}}, {"include_obfuscation": False, "include_usage": True}),
        ({"stream_options": {"big": 10**40}}, {"big": 10**40, "include_usage": True}),
    ],
)
def test_usage_is_asked_for_beside_the_callers_own_options(options: dict[str, Any], expected: dict[str, Any]) -> None:
    assert sent(chat(stream=True, **options), inject=True)["stream_options"] == expected


def test_defaults_do_not_undo_the_request_for_usage() -> None:
    body = sent(chat(stream=True), inject=True, stream_options={"include_obfuscation": False})
    assert body["stream_options"] == {"include_obfuscation": False, "include_usage": True}
    body = sent(chat(stream=True, stream_options={"a": 1}), inject=True, stream_options={"a": 2, "b": 3})
    assert body["stream_options"] == {"a": 1, "b": 3, "include_usage": True}


@pytest.mark.parametrize(
    ("given_fields", "defaults", "expected"),
    [
        ({}, {"top_p": 0.5}, {"top_p": 0.5}),
        ({"top_p": 1}, {"top_p": 0.5}, {"top_p": 1}),
        ({"top_p": False}, {"top_p": 0.5}, {"top_p": False}),
        ({"top_p": None}, {"top_p": 0.5}, {"top_p": 0.5}),
        ({}, {"v": {"a": 1}}, {"v": {"a": 1}}),
        ({"v": {}}, {"v": {"a": 1}}, {"v": {"a": 1}}),
        ({"v": {"a": 2}}, {"v": {"a": 1}}, {"v": {"a": 2}}),
        ({"v": {"a": None}}, {"v": {"a": 1}}, {"v": {"a": None}}),
        ({"v": {"b": 2}}, {"v": {"a": 1}}, {"v": {"a": 1, "b": 2}}),
        ({"v": {"d": {"x": 1}}}, {"v": {"d": {"x": 2, "y": 3}}}, {"v": {"d": {"x": 1, "y": 3}}}),
        ({"v": "text"}, {"v": {"a": 1}}, {"v": "text"}),
        ({"v": []}, {"v": {"a": 1}}, {"v": []}),
        ({"v": {"a": 1}}, {"v": "text"}, {"v": {"a": 1}}),
        ({"v": {"n": 10**40}}, {"v": {"a": 1}}, {"v": {"a": 1, "n": 10**40}}),
    ],
)
def test_defaults_fill_in_where_the_caller_is_silent(
    given_fields: dict[str, Any], defaults: dict[str, Any], expected: dict[str, Any]
) -> None:
    assert sent(chat(**given_fields), **defaults) == {"model": "m", "messages": [], **expected}


def test_defaults_that_change_nothing_leave_every_byte() -> None:
    raw = b'{"model":"m","messages":[],"v":{ "a" : 1.0 }}'
    assert read(CHAT, raw, JSON).body_for("m", "m", {"v": {"a": 2}}, inject_usage=False) == raw


def test_a_field_that_cannot_be_merged_is_the_callers_mistake() -> None:
    call = read(CHAT, b'{"model":"m","messages":[],"v":{"a":1e9999}}', JSON)
    with pytest.raises(RequestError) as caught:
        call.body_for("m", "m", {"v": {"b": 1}}, inject_usage=False)
    assert caught.value.param == "v"


@given(
    st.dictionaries(
        st.sampled_from(["user", "n", "é", "stream_options", "models"]),
        st.none() | st.lists(st.text(max_size=3), max_size=3) | st.dictionaries(st.text(max_size=3), st.integers()),
    ),
    st.booleans(),
)
def test_reading_any_fields_gives_a_call_or_a_400(fields: dict[str, Any], inject: bool) -> None:
    try:
        call = chat(stream=True, **fields)
        raw = call.body_for("p", call.model, {"top_p": 1}, inject_usage=inject)
    except RequestError as error:
        assert error.status == 400  # noqa: PT017
        return
    body = json.loads(raw)
    assert body["model"] == "p"
    assert "models" not in body
    assert body["top_p"] == 1
    if inject:
        assert body["stream_options"]["include_usage"] is True


# -- forms ---------------------------------------------------------------------------------------------


def form(*fields: tuple[str, str]) -> bytes:
    parts = [f'--b\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n' for name, value in fields]
    return ("".join(parts) + "--b--\r\n").encode()


FORM = b"multipart/form-data; boundary=b"


def test_a_forms_model_is_read_and_replaced() -> None:
    raw = form(("model", "whisper-1"), ("stream", "true"))
    call = read(TRANSCRIPTIONS, raw, FORM)
    assert (call.models, call.stream, call.content_type) == (("whisper-1",), True, FORM)
    assert call.body_for("whisper-1", "whisper-1", {}, inject_usage=False) is raw
    assert call.body_for("w2", "whisper-1", {}, inject_usage=False) == raw.replace(b"whisper-1", b"w2")


@pytest.mark.parametrize("fields", [(), (("model", ""),), (("model", "a\x00b"),), (("model", "m" * 300),)])
def test_a_form_without_a_usable_model_is_refused_by_name(fields: tuple[tuple[str, str], ...]) -> None:
    with pytest.raises(RequestError) as caught:
        read(TRANSCRIPTIONS, form(*fields, ("x", "y")), FORM)
    assert caught.value.param == "model"


def test_a_form_of_another_type_is_415() -> None:
    with pytest.raises(RequestError) as caught:
        read(TRANSCRIPTIONS, b"{}", JSON)
    assert caught.value.status == 415
