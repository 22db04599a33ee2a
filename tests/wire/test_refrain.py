"""What a refrain recognises, and that nothing hides in what it recognises."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dandolo.wire.refrain import CHUNK_BYTES_MAX, SHAPES_MAX, Refrain


def chunk(content: str, *, end: str = "null", more: str = "") -> bytes:
    text = json.dumps(content, ensure_ascii=False)
    event = f'data: {{"id":"c1","choices":[{{"delta":{{"content":{text}}},"finish_reason":{end}{more}}}]}}\n\n'.encode()
    return b"%x\r\n%b\r\n" % (len(event), event)


def learn(refrain: Refrain, data: bytes) -> None:
    refrain.learn(data, int(data.partition(b"\r\n")[0], 16))


def repeats(refrain: Refrain, data: bytes) -> bool:
    """As `EventRelay` reads it."""
    shape = refrain.shapes.get(len(data)) or refrain.shape(len(data))
    return (
        shape is not None
        and data.startswith(shape[0])
        and data.endswith(refrain.closing)
        and Refrain.text(data, len(shape[0]), len(data) - refrain.closing_bytes) is not None
    )


@pytest.mark.parametrize("text", ["world", " dear", "a\\n,b", "ünd"])
def test_same_length_with_another_text_repeats(text: str) -> None:
    refrain = Refrain()
    known = chunk("x" * (len(json.dumps(text, ensure_ascii=False).encode()) - 2))
    assert not repeats(refrain, known)
    learn(refrain, known)
    assert repeats(refrain, known)
    assert repeats(refrain, chunk(text))
    assert refrain.shapes[len(known)][1] == int(known.partition(b"\r\n")[0], 16)
    # Sizes of two, three and four digits, and where one becomes the other.
    for size in (*range(300), *range(4000, 4100), 16_000):
        assert repeats(refrain, chunk("y" * size)), size
    assert not repeats(refrain, chunk("y" * CHUNK_BYTES_MAX))


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(chunk("hello", end='"st"'), id="end"),
        pytest.param(chunk("hello").replace(b"c1", b"c2"), id="id"),
        pytest.param(chunk("hello").replace(b"hello", b'he"lo'), id="quote"),
        pytest.param(chunk("hello").replace(b"hello", b"he\n\nlo"[:5]), id="line-ends"),
        pytest.param(chunk("hello").replace(b"hello", b"hel\r\r"), id="carriage-returns"),
        pytest.param(chunk("hello").replace(b"hello", b"hell\\"), id="escaped-closing-quote"),
        pytest.param(chunk("hello").replace(b"hello", b"he\x00lo"[:5]), id="control"),
        pytest.param(chunk("hello").replace(b"\r\n", b"\n\n", 1), id="framing"),
    ],
)
def test_what_differs_elsewhere_does_not_repeat(other: bytes) -> None:
    refrain = Refrain()
    learn(refrain, chunk("hello"))
    assert len(other) == len(chunk("hello"))
    assert not repeats(refrain, other)


def test_another_shape_takes_the_place_of_the_first() -> None:
    refrain = Refrain()
    learn(refrain, chunk("hello"))
    learn(refrain, chunk("good morning"))
    assert repeats(refrain, chunk("HELLO"))
    learn(refrain, chunk("hello", more=',"logprobs":null'))
    assert not repeats(refrain, chunk("hello"))
    assert repeats(refrain, chunk("HELLO", more=',"logprobs":null'))


def test_what_is_remembered_is_bounded() -> None:
    refrain = Refrain()
    for size in range(10 * SHAPES_MAX):
        learn(refrain, chunk("x" * size))
        assert len(refrain.shapes) <= SHAPES_MAX
    refrain = Refrain()
    learn(refrain, b"5\r\nhello\r\n")
    learn(refrain, chunk("x" * 100).replace(b'"content"', b'"CONTENT"'))
    assert not refrain.shapes


@given(st.text(), st.binary(max_size=40))
def test_only_the_text_can_differ_in_what_repeats(content: str, middle: bytes) -> None:
    refrain = Refrain()
    known = chunk("x" * (len(json.dumps(content, ensure_ascii=False).encode()) - 2))
    learn(refrain, known)
    assert repeats(refrain, chunk(content))
    at = known.index(b'"content":"') + 11
    other = known[:at] + middle + known[at + len(middle) :]
    if len(other) == len(known) and repeats(refrain, other):
        body = other[other.index(b"data: ") + 6 : -4]
        assert b"\n" not in body
        assert b"\r" not in body
        try:
            said = json.loads(body)
        except ValueError:
            # An escape or a sequence that JSON does not know: broken in the text alone.
            return
        said["choices"][0]["delta"]["content"] = ""
        assert said == json.loads(chunk("")[chunk("").index(b"data: ") + 6 : -4])
