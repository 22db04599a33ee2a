"""Memory that is given back is kept where the C library allows it."""

import subprocess
import sys

import pytest

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
