"""Values made fit to be shown."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dandolo.values import cut, escaped, fit


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("llama-3.3-70b", "llama-3.3-70b", id="plain"),
        pytest.param("a\r\nb", "a\\r\\nb", id="line ends"),
        pytest.param("\x1b[31m", "\\u001b[31m", id="terminal"),
        pytest.param("\x9b31m\x7f\x00", "\\u009b31m\\u007f\\u0000", id="other controls"),
        pytest.param("a\u2028b\u0085\u202e", "a\\u2028b\\u0085\\u202e", id="separators and direction"),
        pytest.param("\U000e0001", "\\udb40\\udc01", id="beyond the basic plane"),
        pytest.param("größe 模型 🙂", "größe 模型 🙂", id="letters of the world"),
    ],
)
def test_what_is_not_printable_is_escaped(text: str, expected: str) -> None:
    assert escaped(text) == expected


@given(st.text(st.characters(), max_size=600), st.integers(4, 300))
def test_a_cut_value_fits_and_is_whole_characters(text: str, bytes_max: int) -> None:
    shown = cut(text, bytes_max)
    assert len(shown.encode()) <= bytes_max
    try:
        whole = len(text.encode()) <= bytes_max
    except UnicodeEncodeError:
        return
    if whole:
        assert shown == text
    else:
        assert shown.endswith("…")
        assert text.startswith(shown[:-1])


@given(st.text(st.characters(), max_size=300))
def test_what_is_shown_is_printable(text: str) -> None:
    assert fit(text).isprintable()


def test_lone_surrogates_are_replaced() -> None:
    assert cut("a\ud800b") == "a\ufffdb"
