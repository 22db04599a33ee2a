"""A look at raw JSON strings, wherever they are cut, and the estimate of their tokens."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from dandolo.api.texts import CUT_BYTES_MAX, SAMPLE_BYTES, glimpse, glimpse_all, tokens

text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n"), max_size=200)


def raw(value: object, ascii: bool = False) -> Raw:
    return Raw(json.dumps(value, ensure_ascii=ascii).encode())


@given(text, st.integers(0, 40), st.integers(0, 40), st.booleans())
def test_a_cut_leaves_the_beginning_and_the_end_as_they_were(value: str, head: int, tail: int, ascii: bool) -> None:
    seen = glimpse(raw(value, ascii), head, tail)
    if seen == value:
        return
    first, _, last = seen.rpartition("\n") if tail else (seen, "", "")
    assert value.startswith(first)
    # What remains of an escape that was cut (`n` of `\\t`, digits of `\\u00e9`) may stand before the end.
    assert any(value.endswith(last[at:]) for at in range(CUT_BYTES_MAX))


@pytest.mark.parametrize("ascii", [False, True])
@pytest.mark.parametrize("piece", ["heron ", 'say "no"\n', "größe ", "模型", "🙂", "\\\\n"])
def test_long_texts_show_their_two_ends(piece: str, ascii: bool) -> None:
    value = "<" + piece * 4000 + ">"
    seen = glimpse(raw(value, ascii))
    assert seen.startswith("<" + piece)
    assert seen.endswith(piece + ">")
    assert len(seen) <= 2 * SAMPLE_BYTES + 1


def test_what_is_no_string_shows_nothing() -> None:
    for value in (None, 7, [], {"text": "a"}, ""):
        assert glimpse(raw(value)) == ""
    assert glimpse(Raw(b"")) == ""


def test_of_many_texts_the_first_and_the_last_are_seen() -> None:
    seen = glimpse_all([raw(f"{at:04d} " + "x" * 200) for at in range(1000)])
    assert seen.startswith("0000 ")
    assert "0999 " in seen
    assert "0500 " not in seen
    assert len(seen) < 3 * SAMPLE_BYTES


@pytest.mark.parametrize("ascii", [False, True])
@pytest.mark.parametrize("times", [1, 30, 3000])
@pytest.mark.parametrize(
    ("piece", "least", "most"),
    [
        # Characters a token, as today's vocabularies have them or a little outside.
        ("The heron stood in the water and waited. ", 3.9, 4.1),
        ('A "quoted" line\n', 3.6, 4.4),
        ("Die größten Bäume stehen am Fluß. ", 3.6, 4.4),
        ("Цапля стояла в воде и ждала вечера. ", 3.6, 4.4),
        ("苍鹭站在浅水里等待黄昏的到来。", 1.2, 1.8),
        ("アオサギは浅瀬に立っていた。", 1.2, 1.8),
    ],
)
def test_the_estimate_follows_the_script_however_it_is_escaped(
    piece: str, least: float, most: float, times: int, ascii: bool
) -> None:
    value = piece * times
    counted = tokens(raw(value, ascii))
    assert len(value) / most - 1 <= counted <= len(value) / least + 1


def test_what_is_no_text_is_counted_by_its_bytes() -> None:
    assert tokens(raw([{"type": "function", "name": "f" * 400}])) == pytest.approx(110, rel=0.1)
    assert tokens(Raw(b"")) == 0
