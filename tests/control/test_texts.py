"""What is kept of texts, and for how long."""

from __future__ import annotations

import json

import pytest

from dandolo.config.operators import PromptLog
from dandolo.control.route import Answer, Asked
from dandolo.control.texts import PATH, Texts
from dandolo.errors import RequestError
from dandolo.text import OVERHEAD_BYTES, Text, pack, unpack

MIB = 1024 * 1024


def settings(*, enabled: bool = True, bytes_max: int = MIB, retention: float = 60.0) -> PromptLog:
    return PromptLog(enabled=enabled, text_bytes_max=MIB, bytes_max=bytes_max, retention=retention)


def text(number: int, size: int = 0, time: float = 0.0) -> Text:
    asked = b"x" * size
    return Text(f"req_{number:022x}", time, "app", "chat", 200, asked, size, "text/plain", b"\xffyes", 4, True)


def shown(texts: Texts, number: int) -> dict[str, object]:
    (route,) = texts.routes()
    answer = route.handle(Asked("GET", PATH.encode(), b"", b"", "ops", f"req_{number:022x}".encode()))
    assert isinstance(answer, Answer)
    found: dict[str, object] = json.loads(answer.body)
    return found


def test_the_oldest_make_room_and_what_was_forgotten_is_counted() -> None:
    texts = Texts(settings())
    size = MIB // 4 - OVERHEAD_BYTES - 4
    texts.take(text(number, size) for number in range(6))
    assert texts.state() == {"texts": 4, "bytes": MIB, "bytes_max": MIB}
    assert texts.forgotten == 2
    assert shown(texts, 2)["asked_bytes"] == size
    with pytest.raises(RequestError, match="no text of such a request"):
        shown(texts, 1)
    # The same again takes no more room.
    texts.take([text(5, size)])
    assert texts.forgotten == 2
    texts.adopt(settings(bytes_max=MIB // 2))
    assert texts.state() == {"texts": 2, "bytes": MIB // 2, "bytes_max": MIB // 2}
    # One that is larger than all that may be kept leaves nothing behind.
    texts.take([text(9, MIB)])
    assert texts.state() == {"texts": 0, "bytes": 0, "bytes_max": MIB // 2}


def test_what_is_old_is_forgotten() -> None:
    texts = Texts(settings())
    texts.take([text(1, time=100.0), text(2, time=150.0)])
    texts.tick(159.9)
    assert texts.path_of("req_" + "0" * 21 + "1") == "/admin/texts/req_0000000000000000000001"
    texts.tick(160.0)
    assert texts.path_of("req_" + "0" * 21 + "1") is None
    assert texts.path_of("req_" + "0" * 21 + "2") is not None


def test_off_it_forgets_all_and_takes_nothing() -> None:
    texts = Texts(settings())
    texts.take([text(1)])
    texts.adopt(settings(enabled=False))
    texts.take([text(2)])
    assert texts.state() is None
    assert not list(texts.gauges())
    texts.adopt(settings())
    assert texts.state() == {"texts": 0, "bytes": 0, "bytes_max": MIB}


def test_bytes_that_are_no_text_are_shown_as_such_and_a_text_does_not_print() -> None:
    texts = Texts(settings())
    (one,) = unpack(pack([text(1, 3)]))
    assert one == text(1, 3)
    assert "xxx" not in f"{one} {one!r}"
    texts.take([one])
    told = shown(texts, 1)
    assert (told["asked"], told["answered"]) == ("xxx", "\ufffdyes")
