"""How exactly workers share a limit while the control process stands still.

    python -m bench.limits.share [--workers 4] [--rpm 6000] [--load 1.3] [--minutes 4] [--stop 20] [--scale 1]

A control process makes a board and gives the key its place, then workers are started as processes of their own: the
first gets 90 % of the load, the others share the rest. The control process is stopped (SIGSTOP) for `stop` seconds in
the middle. `scale` makes seconds shorter, for those of the board too: 20 turns a minute into three seconds.

Told are: the most that any minute had (to the microsecond, over all workers), the mean of a minute, and both against
the limit. A limiter that is exact lets in the limit in every minute.
"""

from __future__ import annotations

import argparse
import bisect
import os
import signal
import struct
import subprocess
import sys
import time
from dataclasses import dataclass

from dandolo.board import WINDOW_S, Board, Calendar
from dandolo.gateway.allowance import Allowance
from dandolo.policy import KeyTerms

KEY = "shared"
SHARE_OF_THE_FIRST = 0.9
STEP_S = 0.001
START_S = 30.0
COMMAND = (sys.executable, "-m", "bench.limits.share")


@dataclass(frozen=True)
class Outcome:
    """Of one run: what was let in, by the time of the board."""

    limit: int
    workers: int
    offered: int
    times: list[float]
    stopped: bool

    @property
    def most(self) -> int:
        """In any 60 s."""
        return max(bisect.bisect_left(self.times, at + WINDOW_S) - i for i, at in enumerate(self.times))

    @property
    def mean(self) -> float:
        """In a minute, from the first let in to the last, in whole windows."""
        first, last = self.times[0], self.times[-1]
        windows = int((last - first) // WINDOW_S)
        return bisect.bisect_left(self.times, first + windows * WINDOW_S) / windows

    @property
    def error(self) -> float:
        """The larger deviation, as a share of the limit."""
        return max(abs(self.most - self.limit), abs(self.mean - self.limit)) / self.limit


def measure(*, workers: int, rpm: int, load: float, minutes: float, stop_s: float, scale: float) -> Outcome:
    """Run it. `stop_s` is real time."""
    fd = Board.create(16, workers)
    # The control process: it gives the place, and then is not needed.
    control = subprocess.Popen([*COMMAND, "--control", str(fd)], pass_fds=(fd,), stdout=subprocess.PIPE)
    assert control.stdout is not None
    processes: list[subprocess.Popen[bytes]] = []
    try:
        assert control.stdout.readline() == b"ready\n"
        begin, length = time.monotonic() + 1.0, minutes * 60 / scale
        for slot in range(workers):
            share = SHARE_OF_THE_FIRST if slot == 0 else (1 - SHARE_OF_THE_FIRST) / max(1, workers - 1)
            if workers == 1:
                share = 1.0
            rate = rpm / 60 * load * share
            processes.append(
                subprocess.Popen(
                    [*COMMAND, "--worker", *map(str, (fd, slot, rpm, rate, begin, length, scale))],
                    pass_fds=(fd,),
                    stdout=subprocess.PIPE,
                )
            )
        time.sleep(max(0.0, begin + (length - stop_s) / 2 - time.monotonic()))
        control.send_signal(signal.SIGSTOP)
        _, status = os.waitpid(control.pid, os.WUNTRACED)
        stopped = os.WIFSTOPPED(status)
        time.sleep(stop_s)
        control.send_signal(signal.SIGCONT)
        times: list[float] = []
        offered = 0
        for process in processes:
            out, _ = process.communicate(timeout=length + START_S)
            assert process.returncode == 0
            (number,) = struct.unpack_from("q", out)
            offered += number
            times += struct.unpack_from(f"{len(out) // 8 - 1}d", out, 8)
    finally:
        for process in (*processes, control):
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
        os.close(fd)
    return Outcome(rpm, workers, offered, sorted(times), stopped)


def _control(fd: int) -> None:
    Board.attach(fd, None).claim(KEY)
    print("ready", flush=True)
    signal.pause()


def _worker(fd: int, slot: int, rpm: int, rate: float, begin: float, length: float, scale: float) -> None:
    """Ask `rate` times a second of the board, from `begin` (monotonic) for `length` seconds."""
    board = Board.attach(fd, slot)
    place = board.find(KEY)
    assert place is not None
    allowance = Allowance(KeyTerms(name=KEY, rpm=rpm), board, place, Calendar(time.time()))
    entered: list[float] = []
    asked = 0
    time.sleep(max(0.0, begin - time.monotonic()))
    while (now := time.monotonic()) < begin + length:
        due = int((now - begin) * scale * rate)
        while asked < due:
            asked += 1
            # By the clock of the board, which is the real one where nothing is scaled.
            at = time.monotonic() * scale
            if allowance.enter(at):
                entered.append(at)
        time.sleep(STEP_S)
    sys.stdout.buffer.write(struct.pack(f"q{len(entered)}d", asked, *entered))


def main() -> None:
    if sys.argv[1:2] == ["--control"]:
        _control(int(sys.argv[2]))
        return
    if sys.argv[1:2] == ["--worker"]:
        fd, slot, rpm = map(int, sys.argv[2:5])
        _worker(fd, slot, rpm, *map(float, sys.argv[5:9]))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--rpm", type=int, default=6000)
    parser.add_argument("--load", type=float, default=1.3, help="of the limit")
    parser.add_argument("--minutes", type=float, default=4.0)
    parser.add_argument("--stop", type=float, default=20.0, help="real seconds")
    parser.add_argument("--scale", type=float, default=1.0)
    args = parser.parse_args()
    outcome = measure(
        workers=args.workers, rpm=args.rpm, load=args.load, minutes=args.minutes, stop_s=args.stop, scale=args.scale
    )
    print(f"workers        {outcome.workers}, load {SHARE_OF_THE_FIRST:.0%} on the first")
    print(f"offered        {outcome.offered} in {args.minutes:g} minutes, limit {outcome.limit} a minute")
    print(f"control        stopped for {args.stop:g} s: {'yes' if outcome.stopped else 'no'}")
    print(f"most           {outcome.most} in any minute ({outcome.most / outcome.limit - 1:+.2%})")
    print(f"mean           {outcome.mean:.0f} a minute ({outcome.mean / outcome.limit - 1:+.2%})")
    print(f"error          {outcome.error:.2%}")


if __name__ == "__main__":
    main()
