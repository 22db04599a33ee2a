"""The socket bench sees what it is there to see: handmade streams with every flaw, and two short real runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench.routing import reading, sockets
from bench.routing.client import Seen, arrivals, introduced
from bench.routing.lines import Line, lines, markdown
from bench.routing.reading import BROKEN, CUT, FACTS, OK, REFUSED, SPLICED, TIMED_OUT, TRUNCATED, Reading, own_words
from bench.routing.staged import SCENARIOS, world
from bench.routing.trial import out_after_s, tally

PIECES = 10
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
HEAD += b"Transfer-Encoding: chunked\r\nx-dandolo-attempts: 2\r\n\r\n"
END = b"0\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def event(content: str | None, name: str = "fast", finish: str | None = None) -> bytes:
    delta = {} if content is None else {"content": content}
    body = {"id": f"chatcmpl-{name}-1", "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}
    return chunk(b"data: " + json.dumps(body).encode() + b"\n\n")


def pieces(name: str = "fast", count: int = PIECES) -> list[str]:
    return [f"{name}:", " hello", " model=sim", " seq=1", " sha256=00ff", *(f" {word}" for word in own_words(name))][
        :count
    ]


def said(*contents: str, name: str = "fast") -> bytes:
    return b"".join(event(content, name) for content in contents)


ROLE = event(None)
FINISH = event(None, finish="stop")
DONE = chunk(b"data: [DONE]\n\n")
ERROR = chunk(b'data: {"error":{"message":"gone","type":"upstream_error","code":"upstream_stream_error"}}\n\n')
P = pieces()
WHOLE = HEAD + ROLE + said(*P) + FINISH + DONE + END
REFUSAL_BODY = b'{"error":{"message":"no","type":"overloaded","param":null,"code":"no_provider_available"}}'
REFUSAL = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: %d\r\n\r\n" % len(REFUSAL_BODY) + REFUSAL_BODY

STREAMS: list[tuple[str, bytes, str]] = [
    ("whole", WHOLE, OK),
    ("whole, CRLF", WHOLE.replace(b"x-dandolo-attempts: 2", b"connection: keep-alive"), OK),
    ("one word missing at the end, and done", HEAD + said(*P[:-1]) + FINISH + DONE + END, TRUNCATED),
    ("no word at all, and done", HEAD + ROLE + FINISH + DONE + END, TRUNCATED),
    ("everything but the done", HEAD + said(*P) + FINISH + END, TRUNCATED),
    ("half, and a clean end", HEAD + said(*P[:6]) + END, TRUNCATED),
    ("error told, and done", HEAD + said(*P[:6]) + ERROR + DONE + END, TRUNCATED),
    ("error told", HEAD + said(*P[:6]) + ERROR, CUT),
    ("error told, clean end", HEAD + said(*P[:6]) + ERROR + END, CUT),
    ("error told before any word", HEAD + ERROR, CUT),
    ("connection lost after the head", HEAD, BROKEN),
    ("connection lost within the text", HEAD + said(*P[:6]), BROKEN),
    ("connection lost within a chunk", WHOLE[: len(HEAD) + 30], BROKEN),
    ("connection lost before the last chunk", HEAD + said(*P) + FINISH + DONE, BROKEN),
    ("nothing", b"", BROKEN),
    ("no HTTP", b"hello\r\n\r\n", BROKEN),
    ("chunk size that is none", HEAD + b"xyz\r\n", BROKEN),
    ("chunk longer than it says", HEAD + b"3\r\nabcdef\r\n" + END, BROKEN),
    ("event that is no JSON", HEAD + chunk(b"data: {\n\n") + END, BROKEN),
    ("text after an error", HEAD + said(*P[:6]) + ERROR + said(*P[6:]), BROKEN),
    ("text after the end", HEAD + said(*P) + DONE + said("fast:"), SPLICED),
    ("another's words in the middle", HEAD + said(*P[:7]) + said(*pieces("slow")[7:]) + FINISH + DONE + END, SPLICED),
    ("another's whole answer after half", HEAD + said(*P[:3]) + said(*pieces("slow")) + DONE + END, SPLICED),
    ("another's, told by the id alone", HEAD + said(*P[:3]) + said(*P[3:], name="slow") + DONE + END, SPLICED),
    ("spliced, then cut and told", HEAD + said(*P[:7]) + said(pieces("slow")[7]) + ERROR, SPLICED),
    ("its own answer once more", HEAD + said(*P[:6]) + said(*P) + DONE + END, SPLICED),
    ("a word twice", HEAD + said(*P[:8], P[7], P[8]) + FINISH + DONE + END, SPLICED),
    ("a gap", HEAD + said(*P[:6], *P[7:], pieces(count=11)[10]) + FINISH + DONE + END, SPLICED),
    ("the second half alone", HEAD + said(*P[6:]) + FINISH + DONE + END, SPLICED),
    ("refused", REFUSAL, REFUSED),
    ("refused, cut", REFUSAL[:-5], BROKEN),
]


@pytest.mark.parametrize("size", [1, 7, 100_000], ids=["bytes", "sevens", "whole"])
@pytest.mark.parametrize(("stream", "outcome"), [case[1:] for case in STREAMS], ids=[case[0] for case in STREAMS])
def test_what_became_of_a_stream(stream: bytes, outcome: str, size: int) -> None:
    one = Reading(PIECES)
    for at in range(0, len(stream), size):
        if one.feed(stream[at : at + size], 1.0):
            break
    assert one.outcome == outcome


def test_reading_tells_when_content_came_who_spoke_and_whether_to_go_on() -> None:
    one = Reading(PIECES)
    assert not one.feed(HEAD + ROLE, 1.0)
    assert one.first_at is None
    assert not one.feed(said(*P), 2.0)
    assert one.feed(FINISH + DONE + END, 3.0)
    assert (one.first_at, one.provider, one.headers["x-dandolo-attempts"], one.reusable) == (2.0, "fast", "2", True)
    two = Reading(PIECES)
    assert two.feed(REFUSAL, 1.0)
    assert (two.error, two.reusable) == ("no_provider_available", True)
    three = Reading(PIECES)
    three.feed(HEAD + said(*P[:6]), 1.0)
    three.give_up()
    assert (three.outcome, three.reusable) == (TIMED_OUT, False)


def test_every_outcome_is_counted() -> None:
    counted = reading.count([OK, OK, CUT, SPLICED])
    assert (counted[OK], counted[CUT], counted[SPLICED], counted[TRUNCATED]) == (2, 1, 1, 0)
    with pytest.raises(KeyError):
        reading.count(["something else"])


# -- counting ------------------------------------------------------------------------------------------------


def seen(outcome: str = OK, at_s: float = 0.0, first_s: float | None = 0.1, **more: Any) -> Seen:
    usual: dict[str, Any] = {"priority": "normal", "code": "", "provider": "fast", "attempts": 1, "total_s": 0.5}
    return Seen(at_s=at_s, outcome=outcome, first_s=first_s, **usual | more)


def test_reported_cuts_are_no_failures_and_everything_else_is() -> None:
    cases = [seen(at_s=0.1 * n) for n in range(8)] + [seen(CUT), seen(TRUNCATED), seen(REFUSED, first_s=None)]
    made = tally("cuts", 1, 10.0, cases, [[0.1] * 9, [0.2] * 2, [0.3]], 2.0)
    assert made.success == 80.0
    assert (made.asked, made.first_share, made.attempts) == (pytest.approx(12 / 11), 75.0, 1.0)
    assert made.first_p99_s == 0.1


def test_answer_that_comes_too_late_for_its_class_is_no_success_of_it() -> None:
    cases = [seen(priority="high"), seen(priority="high", first_s=11.0), seen(priority="low", first_s=11.0)]
    made = tally("overload", 1, 10.0, cases, [[], [], []], 2.0)
    assert made.classes == {"high": 50.0, "low": 100.0}
    assert made.success == 100.0


@pytest.mark.parametrize(
    ("attempts", "out_s"),
    [([], 0.0), ([0.1, 0.2, 0.3], 0.2), ([0.1, 0.2, 5.0], 0.2), ([0.1, 5.0, 5.1, 9.95], 9.95)],
)
def test_out_of_traffic_is_when_only_trials_are_left(attempts: list[float], out_s: float) -> None:
    assert out_after_s(attempts, [0.1 * n for n in range(100)], 10.0) == out_s


def test_world_puts_the_fastest_first_and_jitters_everything() -> None:
    worlds = [world(seed) for seed in range(20)]
    for one in worlds:
        services = [nature.service_s for nature in one.natures]
        assert services == sorted(services)
        assert 13.5 <= one.rate <= 40.5
    assert len({one.rate for one in worlds}) == 20
    assert world(3) == world(3)


def test_arrivals_keep_their_rates_classes_and_lengths() -> None:
    wanted = arrivals(1, [(50.0, 10.0), (50.0, 40.0)], [("high", 0.2), ("low", 0.8)])
    assert [one.at_s for one in wanted] == sorted(one.at_s for one in wanted)
    first = sum(one.at_s < 50.0 for one in wanted)
    assert 400 < first < 600
    assert 1800 < len(wanted) - first < 2200
    assert 0.15 < sum(one.priority == "high" for one in wanted) / len(wanted) < 0.25
    assert all(one.tokens > FACTS for one in wanted)
    assert wanted == arrivals(1, [(50.0, 10.0), (50.0, 40.0)], [("high", 0.2), ("low", 0.8)])


def test_every_provider_is_asked_by_name_before_it_counts() -> None:
    wanted = introduced(arrivals(1, [(4.0, 10.0)]), ["a/sim", "b/sim"], 2.0)
    early = [one.model for one in wanted if one.at_s < 2.0]
    assert early[:4] == ["a/sim", "b/sim", "a/sim", "b/sim"]
    assert {one.model for one in wanted if one.at_s >= 2.0} == {"all"}


# -- verdicts ------------------------------------------------------------------------------------------------


def test_median_is_judged_and_a_single_splice_is_one_too_many() -> None:
    assert Line("success", "%", (99.0, 99.95, 100.0), 99.9, False).holds
    assert not Line("success", "%", (99.0, 99.5, 100.0), 99.9, False).holds
    assert not Line("splices", "", (0.0, 0.0, 1.0), 0.0, True, every=True).holds
    nothing = Line("first token", "s", (float("nan"), 0.1, 0.1), 0.8, True)
    assert not nothing.holds
    runs = [
        tally("healthy", 1, 1.0, [seen()], [[0.1], [], []], 1.0),
        tally("cuts", 1, 1.0, [seen(SPLICED), seen(CUT)], [[0.1, 0.2], [], []], 1.0),
    ]
    missed = [one.line for one in lines(runs) if not one.holds]
    assert missed == ["cuts: splices", "all scenarios: silent truncations and splices"]
    assert markdown(runs, lines(runs), "here").count("**missed**") == 2


def test_scenario_of_cuts_without_a_cut_proves_nothing() -> None:
    runs = [tally("cuts", 1, 1.0, [seen()], [[0.1], [], []], 1.0)]
    assert [one.line for one in lines(runs) if not one.holds] == ["cuts: streams cut, and told so"]


def test_every_scenario_but_slowness_is_judged() -> None:
    runs = [tally(name, 1, 1.0, [seen()], [[0.1], [], []], 1.0) for name in SCENARIOS]
    judged = {one.line.partition(":")[0] for one in lines(runs)}
    assert set(SCENARIOS) - judged == {"slow x10"}


# -- over sockets --------------------------------------------------------------------------------------------


def test_two_short_runs_count_every_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["sockets", "--only", "healthy", "--only", "cuts", "--quick", "--out", str(tmp_path / "out")]
    monkeypatch.setattr("sys.argv", [*arguments, "--keep", str(tmp_path / "kept")])
    assert sockets.main() in (0, 1)
    assert "| cuts: splices |" in capsys.readouterr().out
    told = json.loads((tmp_path / "out" / "sockets.json").read_text())
    runs = {run["scenario"]: run for run in told["runs"]}
    assert set(runs) == {"healthy", "cuts"}
    for name, run in runs.items():
        assert sum(run["outcomes"].values()) == run["requests"] > 10
        log = (tmp_path / "kept" / f"{name}-1" / "stdout").read_text().splitlines()
        rows = (tmp_path / "kept" / f"{name}-1" / "seen.jsonl").read_text().splitlines()
        # The gateway's own log knows as many requests as the client does, warm-up included.
        assert len(log) == len(rows) > run["requests"]
    assert runs["healthy"]["outcomes"][OK] == runs["healthy"]["requests"]
    assert runs["cuts"]["outcomes"][CUT] >= 1
    assert runs["cuts"]["outcomes"][SPLICED] == runs["cuts"]["outcomes"][TRUNCATED] == 0
