"""The C program of load.c: compiled when needed, run as stub provider and as load generator."""

from __future__ import annotations

import json
import select
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench.load.processes import pinned

SOURCE = Path(__file__).with_name("load.c")
PROGRAM = Path(__file__).with_name("build") / "load"
COMPILE = ("-std=c11", "-O2", "-Wall", "-Wextra")


class GeneratorError(Exception):
    """The generator could not be built, or did not do as told."""


def build() -> Path:
    """Compiles load.c unless the program is newer than its source; returns the program's path."""
    if PROGRAM.exists() and PROGRAM.stat().st_mtime >= SOURCE.stat().st_mtime:
        return PROGRAM
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        raise GeneratorError("no C compiler found; on Debian and Ubuntu: apt-get install gcc libc6-dev libssl-dev")
    PROGRAM.parent.mkdir(exist_ok=True)
    fresh = PROGRAM.with_suffix(".new")
    done = subprocess.run(
        [compiler, *COMPILE, "-o", str(fresh), str(SOURCE), "-lssl", "-lcrypto"],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        hint = ""
        if "openssl/" in done.stderr or "-lssl" in done.stderr:
            hint = "\nOpenSSL's headers are missing; on Debian and Ubuntu: apt-get install libssl-dev"
        raise GeneratorError(f"load.c does not compile:\n{done.stderr}{hint}")
    fresh.replace(PROGRAM)  # whole or not at all, also if two benches start together
    return PROGRAM


def load(
    arguments: Sequence[str], *, core: int | None, timeout_s: float = 120.0, at_ready: Callable[[], None] | None = None
) -> dict[str, Any]:
    """Runs one load pinned to `core` (None: wherever this process may run) and returns its report.

    With `at_ready` the load announces when its connections or streams are open (``--idle``,
    ``--announce``); the function is called then, and the load goes on after it.
    """
    argv = [str(build()), "load", *arguments]
    with subprocess.Popen(
        argv,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=None if core is None else pinned(core),
    ) as process:
        assert process.stdout is not None
        try:
            if at_ready is not None:
                if not select.select([process.stdout], [], [], timeout_s)[0]:
                    raise GeneratorError(f"not ready after {timeout_s} s: {' '.join(argv)}")
                line = process.stdout.readline()
                if '"event":"ready"' in line:
                    at_ready()
                else:
                    process.kill()
                    raise GeneratorError(f"ended before it was ready: {line}{process.communicate()[1]}")
            out, err = process.communicate("\n", timeout=timeout_s)
        except BaseException:
            process.kill()
            raise
    if process.returncode != 0 or not out.strip():
        raise GeneratorError(f"load ended with {process.returncode}: {err.strip()}")
    report: dict[str, Any] = json.loads(out.splitlines()[-1])
    report["stderr"] = err.strip()
    return report
