"""Strands: driven by hand, ended exactly once, cancelled anywhere."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from dandolo.net.strand import Strand, Waiter


class Story:
    """A coroutine on a strand, and what became of it."""

    def __init__(self, make: Callable[[Story], Awaitable[None]]) -> None:
        self.ends: list[BaseException | None] = []
        self.said: list[Any] = []
        self.waiters: list[Waiter[Any]] = [Waiter() for _ in range(3)]

        async def run() -> None:
            await make(self)

        self.strand = Strand(run(), self.ends.append)


async def three(story: Story) -> None:
    try:
        for waiter in story.waiters:
            story.said.append(await waiter)
    finally:
        story.said.append("end")


def test_results_arrive_in_the_call_that_delivers_them() -> None:
    story = Story(three)
    story.strand.resume()
    for i, waiter in enumerate(story.waiters):
        assert waiter.wanted
        waiter.set(i)
        assert not waiter.wanted
        assert story.said[i] == i
    assert story.ends == [None]
    assert story.strand.finished


def test_a_result_that_came_before_is_taken_without_waiting() -> None:
    story = Story(three)
    for waiter in story.waiters:
        waiter.set("early")
    story.strand.resume()
    assert story.said == ["early"] * 3 + ["end"]
    assert story.ends == [None]


def test_only_the_first_result_counts() -> None:
    waiter: Waiter[int] = Waiter()
    waiter.set(1)
    waiter.set(2)
    waiter.fail(ValueError())
    failed: Waiter[int] = Waiter()
    failed.fail(KeyError())
    failed.set(1)

    async def read(story: Story) -> None:
        story.said.append(await waiter)
        with pytest.raises(KeyError):
            await failed

    story = Story(read)
    story.strand.resume()
    assert story.said == [1]
    assert story.ends == [None]


@pytest.mark.parametrize("at", [0, 1, 2])
def test_cancelling_at_every_wait_ends_it_once(at: int) -> None:
    story = Story(three)
    story.strand.resume()
    for waiter in story.waiters[:at]:
        waiter.set("ok")
    story.strand.cancel()
    assert story.said == ["ok"] * at + ["end"]
    assert [type(end) for end in story.ends] == [asyncio.CancelledError]
    story.strand.cancel()
    story.strand.resume()
    story.strand.throw(ValueError())
    for waiter in story.waiters:
        waiter.set("late")
    assert story.said == ["ok"] * at + ["end"]
    assert len(story.ends) == 1


def test_cancelling_before_the_start_runs_nothing() -> None:
    story = Story(three)
    story.strand.cancel()
    assert story.said == []
    assert [type(end) for end in story.ends] == [asyncio.CancelledError]


def test_cancelling_from_within_takes_effect_at_the_next_wait() -> None:
    async def run(story: Story) -> None:
        story.strand.cancel()
        story.said.append("still here")
        await story.waiters[0]
        story.said.append("never")

    story = Story(run)
    story.strand.resume()
    assert story.said == ["still here"]
    assert [type(end) for end in story.ends] == [asyncio.CancelledError]
    assert not story.waiters[0].wanted


def test_a_cancel_from_within_just_before_the_end_changes_nothing() -> None:
    async def run(story: Story) -> None:
        story.strand.cancel()

    story = Story(run)
    story.strand.resume()
    assert story.ends == [None]


def test_a_story_may_wait_again_while_it_is_cancelled() -> None:
    async def run(story: Story) -> None:
        try:
            await story.waiters[0]
        finally:
            story.said.append(await story.waiters[1])

    story = Story(run)
    story.strand.resume()
    story.strand.cancel()
    assert story.ends == []
    story.waiters[0].set("too late")
    assert story.ends == []
    story.waiters[1].set("clean")
    assert story.said == ["clean"]
    assert [type(end) for end in story.ends] == [asyncio.CancelledError]


def test_a_story_may_survive_its_cancellation() -> None:
    async def run(story: Story) -> None:
        for waiter in story.waiters[:2]:
            try:
                await waiter
            except asyncio.CancelledError:
                story.said.append("no")

    story = Story(run)
    story.strand.resume()
    story.strand.cancel()
    story.strand.cancel()
    assert story.said == ["no", "no"]
    assert story.ends == [None]


def test_throwing_raises_where_it_waits_and_nowhere_else() -> None:
    error = TimeoutError("late")
    story = Story(three)
    story.strand.throw(error)
    assert story.ends == []
    story.strand.resume()
    story.strand.throw(error)
    assert story.ends == [error]

    async def run(other: Story) -> None:
        other.strand.throw(error)
        other.said.append("unmoved")

    running = Story(run)
    running.strand.resume()
    assert running.said == ["unmoved"]
    assert running.ends == [None]


def test_an_exception_ends_it_once() -> None:
    error = ValueError("x")

    async def run(story: Story) -> None:
        await story.waiters[0]
        raise error

    story = Story(run)
    story.strand.resume()
    story.waiters[0].set(None)
    assert story.ends == [error]
    failing = Story(three)
    failing.strand.resume()
    failing.waiters[0].fail(error)
    assert failing.ends == [error]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3)])
def test_a_request_to_stop_the_process_is_told_and_passed_on(error: BaseException) -> None:
    async def run(story: Story) -> None:
        raise error

    story = Story(run)
    with pytest.raises(type(error)):
        story.strand.resume()
    assert story.ends == [error]


@pytest.mark.parametrize("normally", [True, False])
def test_a_failing_listener_is_not_called_twice(normally: bool) -> None:
    calls: list[BaseException | None] = []

    def on_done(error: BaseException | None) -> None:
        calls.append(error)
        raise RuntimeError("listener")

    async def run() -> None:
        if not normally:
            raise ValueError

    strand = Strand(run(), on_done)
    with pytest.raises(RuntimeError, match="listener"):
        strand.resume()
    strand.resume()
    assert len(calls) == 1


def test_waiting_for_anything_else_ends_the_story_instead_of_hanging_it() -> None:
    async def run(story: Story) -> None:
        await asyncio.sleep(0)

    story = Story(run)
    story.strand.resume()
    assert [type(end) for end in story.ends] == [TypeError]


def test_a_forgotten_waiter_resumes_nobody() -> None:
    story = Story(three)
    story.strand.resume()
    story.waiters[0].forget()
    story.waiters[0].set(1)
    assert story.said == []
    story.strand.cancel()


def test_ten_thousand_immediate_waits_need_no_stack() -> None:
    async def run(story: Story) -> None:
        for i in range(10_000):
            waiter: Waiter[int] = Waiter()
            waiter.set(i)
            assert await waiter == i

    story = Story(run)
    story.strand.resume()
    assert story.ends == [None]


def test_ten_thousand_delivered_waits_need_no_stack() -> None:
    current: list[Waiter[int]] = []

    async def run(story: Story) -> None:
        for _ in range(10_000):
            current[:] = [Waiter()]
            story.said.append(await current[0])

    story = Story(run)
    story.strand.resume()
    for i in range(10_000):
        current[0].set(i)
    assert story.said == list(range(10_000))
    assert story.ends == [None]


def test_two_strands_that_answer_each_other_need_no_stack() -> None:
    rounds = sys.getrecursionlimit() * 3
    ping: list[Waiter[None]] = [Waiter() for _ in range(rounds)]
    pong: list[Waiter[None]] = [Waiter() for _ in range(rounds)]

    async def one(story: Story) -> None:
        for i in range(rounds):
            ping[i].set(None)
            await pong[i]

    async def other(story: Story) -> None:
        for i in range(rounds):
            await ping[i]
            pong[i].set(None)

    second, first = Story(other), Story(one)
    second.strand.resume()
    first.strand.resume()
    assert first.ends == second.ends == [None]
