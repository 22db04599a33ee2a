"""Three workers, each a process, that share a cache over mutual TLS; and what tests do to them."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import trustme
from harness import PROVIDER_KEY, START_S, Client, until

import dandolo
from dandolo.sim import SimProvider

SECRET = "a secret that all three of them have"
HOME = Path(dandolo.__file__).parent.parent


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [sock.getsockname()[1] for sock in sockets]


def papers(directory: Path, authority: trustme.CA, name: str) -> dict[str, str]:
    """A certificate for this host, its key and its authority, as files."""
    paper = authority.issue_cert("127.0.0.1", common_name=name)
    files = {part: str(directory / f"{name}-{part}.pem") for part in ("cert", "key", "ca")}
    paper.cert_chain_pems[0].write_to_path(files["cert"])
    paper.private_key_pem.write_to_path(files["key"])
    authority.cert_pem.write_to_path(files["ca"])
    return files


class PeerWorker:
    """One of them. `listen` and `peers` as in the configuration."""

    def __init__(
        self,
        directory: Path,
        name: str,
        sim: SimProvider,
        listen: str,
        peers: list[str],
        tls: dict[str, str] | None,
        toml: str = "",
    ) -> None:
        self.name = name
        self.log = directory / f"{name}.log"
        self._config = directory / f"{name}.toml"
        paper = "" if tls is None else f"tls = {{ {', '.join(f'{k} = {json.dumps(v)}' for k, v in tls.items())} }}"
        self._config.write_text(
            f"""
[server]
listen = ["127.0.0.1:0"]
state_dir = "{directory}"
[[providers]]
name = "sim"
profile = "generic"
base_url = "{sim.base_url}"
key = {{ env = "PROVIDER_KEY" }}
[cache]
sampled = "reuse"
secret = {{ env = "DANDOLO_CACHE_SECRET" }}
[cache.peers]
name = "{name}"
listen = ["{listen}"]
peers = {json.dumps(peers)}
{paper}
{toml}
"""
        )
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._said = b""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        process = self._process
        if process is None:
            return
        process.send_signal(signal.SIGCONT)
        if error is not None:
            self.kill()
            return
        process.send_signal(signal.SIGINT)
        assert process.wait(15) == 0, self.log.read_text()
        self._shut(process)
        text = self.log.read_text()
        assert "Traceback" not in text, text

    def start(self) -> None:
        """Run it until it listens."""
        try:
            self._start()
        except BaseException:
            self.kill()
            raise

    def _start(self) -> None:
        with self.log.open("ab") as err:
            self._process = process = subprocess.Popen(
                [sys.executable, "-W", "error", Path(__file__).parent / "peer_worker.py", self._config],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=err,
                env={
                    "PATH": os.environ.get("PATH", ""),
                    "PYTHONPATH": str(HOME),
                    "PROVIDER_KEY": PROVIDER_KEY,
                    "DANDOLO_CACHE_SECRET": SECRET,
                },
            )
        self._said = b""
        assert process.stdout is not None
        os.set_blocking(process.stdout.fileno(), False)
        self.port = int(self._line(START_S).removeprefix("ready "))

    def kill(self) -> None:
        """kill -9."""
        process = self._process
        if process is not None:
            process.kill()
            process.wait()
            self._shut(process)
            self._process = None

    def signal(self, number: int) -> None:
        """Send a signal and wait for nothing."""
        assert self._process is not None
        self._process.send_signal(number)

    def tell(self, *command: object) -> str:
        """A command, and the line that answers it."""
        process = self._process
        assert process is not None
        assert process.stdin is not None
        process.stdin.write(json.dumps(command).encode() + b"\n")
        process.stdin.flush()
        return self._line(10.0)

    def peers(self) -> dict[str, Any]:
        """How its peers stand."""
        found: dict[str, Any] = json.loads(self.tell("peers"))
        return found

    def up(self) -> set[str]:
        """The names of the peers that it can ask."""
        return {one["name"] for one in self.peers()["peers"] if one["up"] and one["breaker"] == "closed"}

    def seeking(self) -> dict[str, tuple[bool, str]]:
        """Its flights by key: whether it makes the call, and whom it follows."""
        return {key: (leads, holder) for key, (leads, holder) in json.loads(self.tell("seeking")).items()}

    def client(self) -> Client:
        """A connection."""
        return Client(self.port)

    def _line(self, timeout_s: float) -> str:
        process = self._process
        assert process is not None
        assert process.stdout is not None
        end = time.monotonic() + timeout_s
        while b"\n" not in self._said:
            left = end - time.monotonic()
            assert left > 0, f"{self.name} says nothing: {self.log.read_text()}"
            if select.select([process.stdout], [], [], left)[0]:
                piece = process.stdout.read()
                assert piece != b"", f"{self.name} has ended: {self.log.read_text()}"
                self._said += piece or b""
        line, _, self._said = self._said.partition(b"\n")
        return line.decode()

    @staticmethod
    def _shut(process: subprocess.Popen[bytes]) -> None:
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()


@contextmanager
def three(directory: Path, sim: SimProvider, *, unix: bool = False, toml: str = "") -> Iterator[list[PeerWorker]]:
    """Three workers that see each other."""
    names = ["alpha", "beta", "gamma"]
    directory.mkdir(parents=True, exist_ok=True)
    if unix:
        places = [f"unix:{directory}/{name}.sock" for name in names]
        files: list[dict[str, str] | None] = [None] * 3
    else:
        authority = trustme.CA()
        places = [f"127.0.0.1:{port}" for port in free_ports(3)]
        files = [papers(directory, authority, name) for name in names]
    workers = [
        PeerWorker(directory, name, sim, place, places, tls, toml)
        for name, place, tls in zip(names, places, files, strict=True)
    ]
    with ExitStack() as stack:
        for worker in workers:
            stack.enter_context(worker)
        for worker in workers:
            until(lambda worker=worker: len(worker.up()) == 2, 15.0, f"{worker.name} does not see the others")
        yield workers
