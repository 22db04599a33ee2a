"""The board between real processes: limits while the control process stands still, and workers that are killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bench.limits.share import measure
from dandolo.board import DAY, IN_FLIGHT, RESERVED, Board, Calendar
from dandolo.errors import RequestError
from dandolo.gateway.allowance import Allowance
from dandolo.policy import KeyTerms

ROOT = Path(__file__).parents[1]
TERMS = KeyTerms(name="k", concurrent=1000, budget_day=10_000)
WORKER = """
import sys, time
from dandolo.board import Board, Calendar
from dandolo.errors import RequestError
from dandolo.gateway.allowance import Allowance
from dandolo.policy import KeyTerms

fd, slot, count, cost = map(int, sys.argv[1:5])
board = Board.attach(fd, slot)
one = Allowance(KeyTerms(name="k", concurrent=1000, budget_day=10_000), board, board.find("k"), Calendar(time.time()))
print("ready", flush=True)
sys.stdin.readline()
held = []
for _ in range(count):
    if one.enter(time.monotonic()):
        try:
            one.reserve(time.monotonic(), time.time(), 1, 1, 1000)
            held.append(time.monotonic())
        except RequestError as error:
            assert error.status == 402
            one.leave()
print(len(held), flush=True)
while sys.stdin.readline().strip() == "settle":
    one.settle(held.pop(), 1, 1000, time.monotonic(), time.time(), 1, cost)
    one.leave()
    print(len(held), flush=True)
"""


@contextmanager
def worker(fd: int, slot: int, count: int, cost: int = 900) -> Iterator[subprocess.Popen[str]]:
    """A process that, once told, makes `count` calls of 1000 micro-USD at most, and settles one when told to."""
    process = subprocess.Popen(
        [sys.executable, "-c", WORKER, str(fd), str(slot), str(count), str(cost)],
        pass_fds=(fd,),
        cwd=ROOT,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


def tell(process: subprocess.Popen[str], word: str = "") -> None:
    assert process.stdin is not None
    process.stdin.write(word + "\n")
    process.stdin.flush()


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_four_workers_share_a_rate_while_the_control_process_stands_still() -> None:
    """90 : 10, and a minute of two seconds; `python -m bench.limits.share` takes a whole one, and 20 s."""
    outcome = measure(workers=4, rpm=3000, load=1.3, minutes=2.3, stop_s=2.0, scale=30)
    assert outcome.stopped
    assert outcome.offered > 1.2 * 2.3 * 3000
    # One each that came at the very same moment; on the other side what a full second rounds away.
    assert outcome.most <= outcome.limit + outcome.workers
    assert outcome.mean >= 0.95 * outcome.limit
    assert outcome.error <= 0.05


def test_four_workers_at_once_do_not_overspend_a_budget() -> None:
    fd = Board.create(4, workers=4)
    control = Board.attach(fd, None)
    place = control.claim("k")
    with worker(fd, 0, 50) as a, worker(fd, 1, 50) as b, worker(fd, 2, 50) as c, worker(fd, 3, 50) as d:
        several = (a, b, c, d)
        assert [said(one) for one in several] == ["ready"] * 4
        for one in several:
            tell(one)
        held = [int(said(one)) for one in several]
        # Two that look at the same moment may both step back, never both go on.
        assert 6 <= sum(held) <= 10
        assert control.total(place, IN_FLIGHT) == sum(held)
        assert control.total(place, RESERVED) == 1000 * sum(held)
    os.close(fd)


def test_what_a_killed_worker_had_set_aside_is_released_and_what_it_spent_stays() -> None:
    fd = Board.create(4, workers=2)
    control = Board.attach(fd, None)
    calendar = Calendar(time.time())
    place = control.claim("k")
    with worker(fd, 0, 20) as dead:
        assert said(dead) == "ready"
        tell(dead)
        assert said(dead) == "10"
        for left in range(9, 6, -1):
            tell(dead, "settle")
            assert said(dead) == str(left)
        sibling = Allowance(TERMS, Board.attach(fd, 1), place, calendar)
        # 2700 spent, 7000 set aside: 300 are left.
        with pytest.raises(RequestError, match=r"0\.0003 USD left"):
            sibling.reserve(1.0, time.time(), 1, 1, 301)
        dead.send_signal(signal.SIGKILL)
        dead.wait()
        # Nobody has looked after it yet: what it held still counts.
        assert control.total(place, RESERVED) == 7000
        control.fold(0, calendar)
        assert control.total(place, RESERVED) == control.total(place, IN_FLIGHT) == 0
        assert control.spent(place, DAY, calendar.at(time.time()).day) == 2700
        sibling.reserve(1.0, time.time(), 1, 1, 7300)
    with worker(fd, 0, 1) as successor:
        assert said(successor) == "ready"
        tell(successor)
        # All that is left is held by the sibling.
        assert said(successor) == "0"
    os.close(fd)
