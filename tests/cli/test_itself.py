"""The number that a service manager knows the program by, as a module and as one frozen file."""

import os
import subprocess
import sys

from dandolo.cli import itself


def test_usually_it_is_our_own():
    assert itself.managed_pid() == os.getpid()


def test_frozen_it_is_that_of_the_parent_that_unpacked_us(tmp_path):
    program = (
        "import os, subprocess, sys; sys.frozen = True\n"
        "from dandolo.cli import itself\n"
        "if sys.argv[1:]: print(itself.managed_pid(), os.getppid()); sys.exit()\n"
        "subprocess.run([sys.executable, __file__, 'child'])\n"
        "print(itself.managed_pid(), os.getpid(), flush=True)\n"
    )
    path = tmp_path / "frozen.py"
    path.write_text(program)
    # A shell between the two: the outer one's parent is then not the same program.
    done = subprocess.run(
        ["/bin/sh", "-c", f'"{sys.executable}" "{path}"; true'], capture_output=True, text=True, check=True
    )
    (child, parent), (outer, own) = (line.split() for line in done.stdout.splitlines())
    assert child == parent
    assert outer == own
