"""What an answer says of health, and what breakers hear of it."""

from __future__ import annotations

import pytest

from dandolo.errors import UpstreamError, UpstreamInvalid, UpstreamTimeout, UpstreamUnavailable
from dandolo.mind.question import Reply
from dandolo.mind.verdict import Verdict, judge, judge_chat, judge_failure


def reply(status: int, body: bytes | None = None, **fields: str) -> Reply:
    head = {name.replace("_", "-").encode(): value.encode() for name, value in fields.items()}
    return Reply(status, head, 0.1, 0.2, body, "cut" if body is None else "")


@pytest.mark.parametrize(
    ("status", "well", "failure", "for_breakers"),
    [
        (200, True, "", True),
        (204, True, "", True),
        (301, True, "", True),
        (304, True, "", True),
        (400, True, "", True),
        (401, True, "auth", None),
        (402, True, "quota", None),
        (403, True, "auth", None),
        (404, True, "", True),
        (405, True, "", True),
        (429, True, "limited", None),
        (500, False, "server", False),
        (503, False, "server", False),
        (529, False, "server", False),
    ],
)
def test_a_status_says_whether_the_provider_is_there(
    status: int, well: bool, failure: str, for_breakers: bool | None
) -> None:
    verdict = judge(reply(status))
    assert (verdict.well, verdict.failure, verdict.for_breakers(was_ill=True)) == (well, failure, for_breakers)
    assert (verdict.status, verdict.connect_s, verdict.latency_s) == (status, 0.1, 0.2)
    assert bool(verdict.reason) == bool(failure)
    # A list that came all along is no news of calls that fail.
    assert verdict.for_breakers(was_ill=False) is (None if well else False)


def test_a_web_page_is_no_api() -> None:
    assert judge(reply(200, content_type="Text/HTML; charset=utf-8")).failure == "invalid"
    assert judge(reply(200, content_type="Text/HTML")).for_breakers(was_ill=True) is False
    # Who answers errors in HTML is there all the same.
    assert judge(reply(404, content_type="text/html")).well


@pytest.mark.parametrize(("said", "seconds"), [("7", 7.0), ("0", 0.0), ("soon", None), ("-1", None), ("1" * 7, None)])
def test_a_limit_says_how_long(said: str, seconds: float | None) -> None:
    assert judge(reply(429, retry_after=said)).retry_after_s == seconds
    assert judge(reply(503, retry_after=said)).retry_after_s is None


@pytest.mark.parametrize(
    ("answer", "well", "failure"),
    [
        (reply(200, b'{"choices":[{"message":{"content":""}}]}'), True, ""),
        (reply(200, b'{"type":"message","content":[{"type":"text","text":"a"}]}'), True, ""),
        (reply(200, b'{"error":{"message":"overloaded"}}'), False, "server"),
        (reply(200, b'{"choices":[{}],"error":"half"}'), False, "server"),
        (reply(200, b'{"choices":[]}'), False, "invalid"),
        (reply(200, b'{"content":"a"}'), False, "invalid"),
        (reply(200, b"[]"), False, "invalid"),
        (reply(200, b""), False, "invalid"),
        (reply(200, b"[" * 100_000), False, "invalid"),
        (reply(200, None), False, "invalid"),
        (reply(200, b"x", content_type="text/html"), False, "invalid"),
        (reply(302, b""), True, "refused"),
        (reply(400, b"{}"), True, "refused"),
        (reply(404, b"{}"), True, "refused"),
        (reply(401, b"{}"), True, "auth"),
        (reply(402, b"{}"), True, "quota"),
        (reply(429, b"{}"), True, "limited"),
        (reply(503, b"{}"), False, "server"),
    ],
)
def test_only_a_completion_is_well(answer: Reply, well: bool, failure: str) -> None:
    verdict = judge_chat(answer)
    assert (verdict.well, verdict.failure) == (well, failure)
    for was_ill in (True, False):
        assert verdict.for_breakers(was_ill) is (True if not failure else None if well else False)
    assert bool(verdict.reason) == bool(failure)


@pytest.mark.parametrize(
    ("error", "failure"),
    [
        (UpstreamTimeout("late"), "timeout"),
        (UpstreamInvalid("not HTTP"), "invalid"),
        (UpstreamUnavailable("refused"), "connect"),
    ],
)
def test_no_answer_is_not_well(error: UpstreamError, failure: str) -> None:
    verdict = judge_failure(error)
    assert verdict == Verdict(False, failure, error.message)  # type: ignore[arg-type]
    assert verdict.for_breakers(was_ill=False) is False
