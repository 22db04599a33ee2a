"""The gateway as a process of its own before simulated providers: started with its defaults, asked, ended.

Knows its command line, its configuration and its admin listener, nothing of its inside.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from bench.routing.staged import Nature

START_S = 20.0
STOP_S = 20.0
CLASSES = ("high", "normal", "low")
_READY = re.compile(r"^dandolo \S+ ready in .*?127\.0\.0\.1:([0-9]+).*127\.0\.0\.1:([0-9]+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Place:
    """A provider of the configuration: what it is like, where it listens, and `concurrency_max` if it is not 256."""

    nature: Nature
    url: str
    slots: int | None = None


def keys() -> dict[str, str]:
    """A key of each class, of no use anywhere else."""
    return {name: f"sk-bench-{name}-0123456789abcdef0123456789abcdef" for name in CLASSES}


def configuration(directory: Path, places: Sequence[Place], *, hedge: bool) -> str:
    """The TOML: shipped defaults but for free ports, three keys, and the providers, who are all equal in rank."""
    lines = [
        "[server]",
        'listen = ["127.0.0.1:0"]',
        'admin = "127.0.0.1:0"',
        f"state_dir = {json.dumps(str(directory / 'state'))}",
        'drain_delay = "0s"',
        'drain_timeout = "1s"',
    ]
    if hedge:
        lines += ["[routing]", "hedge = true"]
    for name, key in keys().items():
        digest = hashlib.sha256(key.encode()).hexdigest()
        lines += ["[[keys]]", f'name = "{name}"', f'sha256 = "{digest}"', f'priority = "{name}"']
        if name == "high":
            # It asks /admin/routes too.
            lines.append("admin = true")
    for place in places:
        nature = place.nature
        lines += ["[[providers]]", f'name = "{nature.name}"', f'base_url = "{place.url}"']
        if place.slots is not None:
            lines.append(f"concurrency_max = {place.slots}")
        price = nature.usd_per_mtok
        lines += ["[[providers.models]]", 'id = "sim"']
        lines += [f"{kind}_usd_per_mtok = {price}" for kind in ("input", "output")]
    everybody = ", ".join(f'"{place.nature.name}/sim"' for place in places)
    return "\n".join([*lines, "[models]", f"all = [{everybody}]", ""])


class Served:
    """`with Served(directory, places) as gateway:` runs a gateway until the block ends.

    `directory` keeps its configuration, its access log (`stdout`) and what it said (`stderr`).
    """

    def __init__(self, directory: Path, places: Sequence[Place], *, hedge: bool = False) -> None:
        self.directory = directory
        self.port = self.admin_port = 0
        self._config = directory / "dandolo.toml"
        self._process: subprocess.Popen[bytes] | None = None
        directory.mkdir(parents=True, exist_ok=True)
        self._config.write_text(configuration(directory, places, hedge=hedge), "utf-8")

    def __enter__(self) -> Self:
        environ = {
            "PATH": os.environ.get("PATH", ""),
            "HOME": str(self.directory),
            "PYTHONPATH": str(Path(__file__).parents[2]),
        }
        with (self.directory / "stdout").open("wb") as out, (self.directory / "stderr").open("wb") as err:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "dandolo", "serve", "--config", self._config],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env=environ,
                cwd=self.directory,
                process_group=0,
            )
        end = time.monotonic() + START_S
        while (ready := _READY.search(self.said())) is None:
            if self._process.poll() is not None or time.monotonic() > end:
                self._kill()
                raise RuntimeError(f"the gateway did not come up: {self.said()}")
            time.sleep(0.02)
        self.port, self.admin_port = int(ready[1]), int(ready[2])
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        process = self._process
        if process is None:
            return
        process.send_signal(signal.SIGINT)
        try:
            code = process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._kill()
            code = -1
        if error is None and (code or self.mistakes()):
            raise RuntimeError(f"the gateway ended with {code}: {self.said()[-2000:]}")

    def _kill(self) -> None:
        assert self._process is not None
        # Its workers are of its group.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def said(self) -> str:
        """Everything on standard error so far."""
        return (self.directory / "stderr").read_text("utf-8", "replace")

    def mistakes(self) -> list[str]:
        """Lines that tell of a mistake of its own."""
        return [line for line in self.said().splitlines() if '"level":"error"' in line or "Traceback" in line]

    def admin(self, path: str) -> bytes:
        """What the admin listener answers."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.admin_port}{path}", headers={"Authorization": f"Bearer {keys()['high']}"}
        )
        with urllib.request.urlopen(request, timeout=5) as answer:
            body: bytes = answer.read()
        return body

    def routes(self) -> Any:
        """Its accounts as they stand."""
        return json.loads(self.admin("/admin/routes"))

    def cpu_s(self) -> float:
        """Processor seconds that its processes have used so far."""
        assert self._process is not None
        pid, ticks = self._process.pid, 0
        for one in (pid, *Path(f"/proc/{pid}/task/{pid}/children").read_text().split()):
            fields = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")
