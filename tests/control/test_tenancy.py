"""The lock on a state folder: one control process at a time, whoever dies, upgrades included."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dandolo.control import tenancy
from dandolo.control.tenancy import FILE, Occupied, Tenancy

HOLD = """
import sys, time
from pathlib import Path
from dandolo.control.tenancy import Tenancy
mine = Tenancy(Path(sys.argv[1]))
mine.take()
print(mine.held, flush=True)
sys.stdin.readline()
mine.close()
print("given up", flush=True)
sys.stdin.readline()
"""


@contextmanager
def holder(folder: Path) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "True\n"
        try:
            yield process
        finally:
            process.kill()


def until_held(one: Tenancy) -> None:
    end = time.monotonic() + 10.0
    while not one.held:
        assert time.monotonic() < end, "it never had the lock"
        time.sleep(0.005)


def test_a_second_one_is_told_who_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tenancy, "WAIT_S", 0.1)
    with holder(tmp_path / "state") as first:
        with pytest.raises(Occupied) as refused:
            Tenancy(tmp_path / "state").take()
        assert refused.value.pid == first.pid
        # Another predecessor than the holder does not help.
        with pytest.raises(Occupied):
            Tenancy(tmp_path / "state").take({os.getpid()})
        assert stat.S_IMODE((tmp_path / "state" / FILE).stat().st_mode) == 0o600


def test_the_dead_have_nothing(tmp_path: Path) -> None:
    with holder(tmp_path) as first:
        first.send_signal(signal.SIGKILL)
        first.wait()
        mine = Tenancy(tmp_path)
        mine.take()
        assert mine.held
        assert (tmp_path / FILE).read_text() == f"{os.getpid()}\n"
        mine.close()
        mine.close()


def test_a_successor_waits_for_its_predecessor_and_has_it_then(tmp_path: Path) -> None:
    with holder(tmp_path) as first:
        mine = Tenancy(tmp_path)
        mine.take({first.pid})
        assert not mine.held
        assert first.stdin is not None
        first.stdin.write("\n")
        first.stdin.flush()
        until_held(mine)
        with holder(tmp_path / "elsewhere"):
            pass
        assert (tmp_path / FILE).read_text() == f"{os.getpid()}\n"
        mine.close()
    # Nothing of it is left.
    again = Tenancy(tmp_path)
    again.take()
    assert again.held
    again.close()


def test_one_that_is_closed_while_it_waits_never_has_it(tmp_path: Path) -> None:
    with holder(tmp_path) as first:
        mine = Tenancy(tmp_path)
        mine.take({first.pid})
        mine.close()
        first.kill()
        first.wait()
    other = Tenancy(tmp_path)
    other.take()
    assert (other.held, mine.held) == (True, False)
    other.close()


def test_where_nothing_can_be_written_there_is_no_lock(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file where the folder should be")
    mine = Tenancy(tmp_path / "state")
    mine.take()
    assert not mine.held
    mine.close()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / FILE).symlink_to(tmp_path / "state")
    Tenancy(tmp_path / "other").take()
    assert (tmp_path / "state").read_text() == "a file where the folder should be"


def test_on_a_full_disk_it_is_held_without_a_name_and_whoever_takes_over_waits_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tenancy, "WAIT_S", 0.1)
    with monkeypatch.context() as now:
        now.setattr(os, "pwrite", full)
        first = Tenancy(tmp_path)
        first.take()
        assert first.held
    with pytest.raises(Occupied):
        Tenancy(tmp_path).take()
    second = Tenancy(tmp_path)
    second.take({os.getpid()})
    assert not second.held
    first.close()
    until_held(second)
    second.close()
