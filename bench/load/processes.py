"""Child processes of the bench: started pinned to a core, ended by their own ids, nothing left behind.

Also what the kernel knows of them: CPU time and memory.  Refuses to know what they do.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

STOP_S = 4.0


def pinned(core: int) -> Callable[[], None]:
    """What a child does before exec: stay on one core."""
    return lambda: os.sched_setaffinity(0, {core})


def descendants(pid: int) -> list[int]:
    """Ids of all processes below `pid`, without itself."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        children.setdefault(parent, []).append(int(entry.name))
    found, queue = [], [pid]
    while queue:
        below = children.get(queue.pop(), [])
        found += below
        queue += below
    return found


def memory_kb(pids: Sequence[int]) -> float:
    """Proportional set size of these processes in KiB: shared pages counted once.

    The kernel's socket buffers are in nobody's set; they are much the same for every target.
    """
    total = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1])
    return float(total)


class Child:
    """One started program, its log on disk and its whole family of processes."""

    def __init__(
        self,
        argv: Sequence[str],
        core: int,
        log: Path,
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        stop_signal: signal.Signals = signal.SIGTERM,
    ) -> None:
        self.argv = list(argv)
        self.name = " ".join([Path(argv[0]).name, *argv[1:4]])  # for messages, without this machine's paths
        self.log = log
        self.stop_signal = stop_signal
        self.started_s = time.monotonic()
        with log.open("ab") as sink:
            # A session of its own: Ctrl-C reaches the bench alone, which then ends its children.
            self.process = subprocess.Popen(
                self.argv,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                cwd=cwd,
                start_new_session=True,
                env={**os.environ, **(env or {})},
                preexec_fn=pinned(core),
            )

    def alive(self) -> bool:
        """Is the program still running?"""
        return self.process.poll() is None

    def log_tail(self) -> str:
        """The log's last lines, for an error message."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])

    def stop(self) -> None:
        """Ends the program and whatever it started; kills what has not ended in time."""
        family = descendants(self.process.pid)
        if self.alive():
            self.process.send_signal(self.stop_signal)
            try:
                self.process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                family += descendants(self.process.pid)
                self.process.kill()
                self.process.wait()
        # Those are adopted by init when their parent ends: a moment for an orderly end, then no more.
        deadline = time.monotonic() + 1.0
        while (left := [pid for pid in family if _running(pid)]) and time.monotonic() < deadline:
            time.sleep(0.01)
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass


def _running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
