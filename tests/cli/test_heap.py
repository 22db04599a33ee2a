"""Memory that is given back is kept where the C library allows it."""

import subprocess
import sys

import pytest

from dandolo.cli.heap import WORK_MIN, Heap

CODE = """
import resource
from dandolo.cli.heap import keep_memory
if {keep} and not keep_memory():
    raise SystemExit(77)
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(200):
        pieces = [bytes(200_000) for _ in range(3)]
        del pieces
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""


def faults(keep: bool) -> int:
    done = subprocess.run([sys.executable, "-c", CODE.format(keep=keep)], capture_output=True, text=True, timeout=30)
    if done.returncode == 77:
        pytest.skip("this C library has no mallopt")
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_blocks_taken_again_and_again_fault_in_no_new_pages() -> None:
    kept, returned = faults(True), faults(False)
    assert kept < 1000 < returned


def test_memory_is_given_back_once_when_work_has_ended() -> None:
    heap = Heap()
    if heap._trim is None:
        pytest.skip("this C library has no malloc_trim")
    assert not heap.beat(10 * WORK_MIN, 3)
    assert not heap.beat(10 * WORK_MIN, 3), "requests are under way"
    assert not heap.beat(10 * WORK_MIN + 1, 0), "there was one since the last beat"
    assert heap.beat(10 * WORK_MIN + 1, 0)
    assert not heap.beat(10 * WORK_MIN + 1, 0)
    assert not heap.beat(11 * WORK_MIN, 0)
    assert not heap.beat(11 * WORK_MIN, 0), "little was done since"
    assert not heap.beat(12 * WORK_MIN, 0)
    assert heap.beat(12 * WORK_MIN, 0)
