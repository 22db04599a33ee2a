"""How the program is started again, as a module and as one frozen file."""

import os
import subprocess
import sys

from dandolo import __version__
from dandolo.cli import itself


def test_as_a_module_it_starts_itself_again():
    done = subprocess.run([*itself.command(), "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"dandolo {__version__}\n"
    assert itself.environment({"A": "b"}) == {"A": "b"}
    assert itself.managed_pid() == os.getpid()


def test_frozen_the_interpreter_is_the_program(monkeypatch):
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    assert itself.command() == [sys.executable]
    assert itself.environment({"A": "b"}) == {"A": "b", "PYINSTALLER_RESET_ENVIRONMENT": "1"}


def test_frozen_the_manager_knows_the_parent_that_unpacked_it(tmp_path):
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
