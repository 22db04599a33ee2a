"""Lines of the log, in all forms."""

from __future__ import annotations

import json
import logging
import math
import re
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dandolo.control.log import Form, LineFormatter, format_message, format_record, timestamp
from dandolo.record import Record

FORMS: tuple[Form, ...] = get_args(Form)


def record(**changes: Any) -> Record:
    values: dict[str, Any] = {
        "id": "req_1",
        "time": "2025-12-31T23:59:59.999Z",
        "endpoint": "chat",
        "method": "POST",
        "status": 200,
        "key": "ci",
        "client": "10.0.0.7",
        "model": "fast",
        "provider": "venice",
        "account": "venice/alice",
        "upstream_model": "llama-3.3-70b",
        "stream": True,
        "attempts": 2,
        "finish": "stop",
        "bytes_in": 100,
        "bytes_out": 2000,
        "input_tokens": 300,
        "output_tokens": 20,
        "cost_usd": 0.0000123,
        "duration_ms": 1234.568,
        "first_byte_ms": 100.0,
        "first_token_ms": 250.0,
        "overhead_ms": 0.123,
    }
    return Record(**{**values, **changes})


def test_a_json_line_is_one_object() -> None:
    line = format_record(record(), "json")
    assert line.endswith(b"}\n")
    assert json.loads(line) == {
        "time": "2025-12-31T23:59:59.999Z",
        "id": "req_1",
        "status": 200,
        "method": "POST",
        "endpoint": "chat",
        "key": "ci",
        "client": "10.0.0.7",
        "model": "fast",
        "provider": "venice",
        "account": "venice/alice",
        "upstream_model": "llama-3.3-70b",
        "stream": True,
        "attempts": 2,
        "finish": "stop",
        "bytes_in": 100,
        "bytes_out": 2000,
        "input_tokens": 300,
        "output_tokens": 20,
        "cost_usd": 0.0000123,
        "duration_ms": 1234.568,
        "first_byte_ms": 100.0,
        "first_token_ms": 250.0,
        "overhead_ms": 0.123,
    }


def test_empty_fields_are_left_out() -> None:
    bare = Record(
        "1970-01-01T00:00:00.000Z",
        "req_1",
        401,
        "GET",
        "models",
        code="invalid_api_key",
        duration_ms=0.0,
        overhead_ms=0.0,
    )
    assert json.loads(format_record(bare, "json")) == {
        "time": "1970-01-01T00:00:00.000Z",
        "id": "req_1",
        "status": 401,
        "method": "GET",
        "endpoint": "models",
        "code": "invalid_api_key",
        "duration_ms": 0.0,
        "overhead_ms": 0.0,
    }
    assert format_record(bare, "logfmt") == (
        b"time=1970-01-01T00:00:00.000Z id=req_1 status=401 method=GET endpoint=models code=invalid_api_key "
        b"duration_ms=0.000 overhead_ms=0.000\n"
    )
    assert format_record(bare, "text") == b"1970-01-01T00:00:00.000Z 401 GET/models 0.000 ms invalid_api_key req_1\n"


def test_a_logfmt_line() -> None:
    assert format_record(record(model='a "b" = \\c', cost_usd=0.0), "logfmt") == (
        b"time=2025-12-31T23:59:59.999Z id=req_1 status=200 method=POST endpoint=chat key=ci client=10.0.0.7 "
        b'model="a \\"b\\" = \\\\c" provider=venice account=venice/alice upstream_model=llama-3.3-70b stream=true '
        b"attempts=2 finish=stop bytes_in=100 bytes_out=2000 input_tokens=300 output_tokens=20 cost_usd=0 "
        b"duration_ms=1234.568 first_byte_ms=100.000 first_token_ms=250.000 overhead_ms=0.123\n"
    )


def test_a_text_line_tells_what_a_person_looks_for() -> None:
    assert format_record(record(estimated=True), "text").decode() == (
        "2025-12-31T23:59:59.999Z 200 POST/chat fast → venice/alice as llama-3.3-70b 1234.568 ms (first token 250.000) "
        "~300+20 tokens $0.0000123 2 attempts req_1\n"
    )


NASTY = 'a\r\nFAKE status=200 "\x1b]0;x\x07\x9b1m\u2028\u0085\u202e\x7f\x00'


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["model", "upstream_model", "account", "client", "finish", "code", "method"])
def test_no_value_breaks_out_of_its_line(form: Form, name: str) -> None:
    line = format_record(record(**{name: NASTY}), form).decode()
    assert line.endswith("\n")
    assert line[:-1].isprintable()
    if form == "json":
        assert json.loads(line)[name] == NASTY


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("text", ["x" * 100_000, "模" * 300, "🙂" * 256, "\x1b" * 300, "\ud800" * 300])
def test_values_nobody_cut_before_are_cut_at_256_bytes(form: Form, text: str) -> None:
    made = record(model=text)
    whole = format_record(made, form)
    assert len(whole) < 256 * 6 + 700
    if form == "json":
        value = json.loads(whole)["model"]
        assert len(value.encode()) <= 256
        assert value.endswith("…")
    # The record is the metrics' too.
    assert made.model == text


def test_a_json_line_of_a_kilobyte_is_not_looked_at_again() -> None:
    bare = len(format_record(record(finish="f"), "json")) - 1 - len("f")
    fits, over = "x" * (1024 - bare), "x" * (1025 - bare)
    assert json.loads(format_record(record(finish=fits), "json"))["finish"] == fits
    assert json.loads(format_record(record(finish=over), "json"))["finish"] == "x" * 253 + "…"


def test_long_messages_of_the_program_are_not_cut_like_values() -> None:
    for form in FORMS:
        assert b"x" * 1500 in format_message(0.0, "info", "x" * 1500, form)


@given(st.text(st.characters(), max_size=80), st.text(st.characters(), max_size=300))
def test_any_text_gives_valid_json_in_one_line(model: str, finish: str) -> None:
    line = format_record(record(model=model, finish=finish), "json")
    assert line.count(b"\n") == 1
    assert line[:-1].decode().isprintable()
    msgspec.json.decode(line)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e300])
def test_numbers_that_are_none_do_not_cost_the_line(form: Form, value: float) -> None:
    line = format_record(record(cost_usd=value, duration_ms=value, first_token_ms=value), form)
    assert b"req_1" in line
    assert b"nan" not in line.lower()
    assert b"inf" not in line.lower()
    if form == "json":
        assert json.loads(line)["duration_ms"] == (value if math.isfinite(value) else None)
    elif not math.isfinite(value):
        assert b"duration_ms" not in line
        assert b"first" not in line.replace(b"first_byte_ms", b"")
        assert b"$" not in line


@given(st.floats(0, 4e9))
def test_times_have_milliseconds(unix_s: float) -> None:
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", timestamp(unix_s))


# -- the program's own lines ----------------------------------------------------------------------------------


def log_record(message: str, *args: object, error: BaseException | None = None) -> logging.LogRecord:
    exc_info = (type(error), error, error.__traceback__) if error is not None else None
    return logging.LogRecord("dandolo", logging.ERROR, __file__, 1, message, args, exc_info)


def raised() -> BaseException:
    secret = "sk-local-variable"  # noqa: F841 - what no line may show
    try:
        try:
            int("no\nnumber")
        except ValueError as error:
            raise RuntimeError("it broke\r\nFAKE") from error
    except RuntimeError as error:
        return error
    raise AssertionError


@pytest.mark.parametrize("form", FORMS)
def test_an_exception_is_told_without_source_or_locals(form: Form) -> None:
    text = LineFormatter(form).line(log_record("request %s failed", "req_1", error=raised())).decode()
    if form != "text":
        assert text.count("\n") == 1
    assert "\r" not in text
    assert "RuntimeError: it broke" in text
    assert "ValueError" in text
    assert re.search(r"test_log\.py:\d+ raised", text)
    assert "sk-local-variable" not in text
    if form == "json":
        told = json.loads(text)
        assert told["level"] == "error"
        assert told["message"] == "request req_1 failed"
        assert told["error"].startswith("RuntimeError: it broke\r\nFAKE ← ValueError: ")


def test_values_within_a_message_are_cut_and_escaped() -> None:
    line = LineFormatter("logfmt").line(log_record("task %s ended", "x\n" * 1000))
    assert line.count(b"\n") == 1
    assert len(line) < 700


def test_a_message_whose_arguments_do_not_fit_is_still_said() -> None:
    assert json.loads(LineFormatter("json").line(log_record("%d of %s", "one")))["message"] == "%d of %s"
    assert json.loads(LineFormatter("json").line(log_record("100 %")))["message"] == "100 %"


def test_a_text_message_reads_as_a_sentence() -> None:
    assert format_message(0.0, "info", "ready", "text") == b"1970-01-01T00:00:00.000Z info: ready\n"
