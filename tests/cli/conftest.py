"""`dandolo` as a process, the way users start it."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

import dandolo

ROOT = Path(dandolo.__file__).parents[1]
PATIENCE_S = 20.0
CHAT = "/v1/chat/completions"


def until(true, what, patience_s=PATIENCE_S):
    """Wait for a condition of another process; the bound is for failures only."""
    limit = time.monotonic() + patience_s
    while not (found := true()):
        assert time.monotonic() < limit, f"not within {patience_s:g} s: {what}"
        time.sleep(0.005)
    return found


def environment(home, **more):
    """Without any provider's key of the machine that runs the tests."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "TMPDIR") if name in os.environ}
    return {**kept, "PYTHONPATH": str(ROOT), "HOME": str(home), **more}


class Connection:
    """One client connection that speaks just enough HTTP/1.1."""

    def __init__(self, where):
        family = socket.AF_UNIX if isinstance(where, str) else socket.AF_INET
        self.sock = socket.socket(family)
        self.sock.settimeout(PATIENCE_S)
        self.sock.connect(where)
        self.file = self.sock.makefile("rb")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()
        self.sock.close()

    def send(self, path, body=None, headers=(), keep_back=0):
        """Send a request, but for its last `keep_back` bytes: those are returned."""
        payload = json.dumps(body).encode() if body is not None else b""
        lines = [
            f"{'GET' if body is None else 'POST'} {path} HTTP/1.1",
            "Host: localhost",
            "Content-Type: application/json",
            f"Content-Length: {len(payload)}",
            *(f"{name}: {value}" for name, value in headers),
        ]
        data = "\r\n".join([*lines, "", ""]).encode() + payload
        cut = len(data) - keep_back
        self.sock.sendall(data[:cut])
        return data[cut:]

    def head(self):
        status = int(self.file.readline().split()[1])
        fields = {}
        while (line := self.file.readline()) != b"\r\n":
            assert line, "the connection ended within a head"
            name, _, value = line.decode().partition(":")
            fields[name.lower()] = value.strip()
        return status, fields

    def body(self, fields):
        if "chunked" not in fields.get("transfer-encoding", ""):
            return self.file.read(int(fields.get("content-length", 0)))
        pieces = []
        while size := int(self.file.readline() or b"0", 16):
            pieces.append(self.file.read(size + 2)[:-2])
        return b"".join(pieces)

    def ask(self, path, body=None, headers=()):
        self.send(path, body, headers)
        status, fields = self.head()
        return status, fields, self.body(fields)


class Served:
    """A running `dandolo serve`."""

    def __init__(self, process, err, out):
        self.process, self._err, self._out = process, err, out
        self.port = self.admin = 0

    @property
    def err(self):
        return self._err.read_text()

    @property
    def out(self):
        return self._out.read_text()

    def ready(self):
        line = until(lambda: re.search(r"ready in .*", self.err) or self.process.poll(), "the ready line")
        assert not isinstance(line, int), f"exit {line}: {self.err}"
        ports = re.findall(r"https?://(?:127\.0\.0\.1|0\.0\.0\.0|\[::1\]):(\d+)", line[0])
        if "| admin: http" in line[0]:
            self.admin = int(ports.pop())
        self.port = int(ports[0]) if ports else 0
        return self

    def connect(self, where=None):
        return Connection(where or ("127.0.0.1", self.port))

    def ask(self, path, body=None, headers=(), where=None):
        with self.connect(where) as connection:
            return connection.ask(path, body, headers)

    def chat(self, model="m", headers=(), **more):
        body = {"model": model, "messages": [{"role": "user", "content": "hi"}], **more}
        status, _, answer = self.ask(CHAT, body, headers)
        return status, json.loads(answer)

    def of_admin(self, path, headers=()):
        status, _, body = self.ask(path, headers=headers, where=("127.0.0.1", self.admin))
        return status, body.decode()

    def kill(self, number=signal.SIGTERM):
        self.process.send_signal(number)

    def wait(self):
        return self.process.wait(PATIENCE_S)

    def says(self, text):
        until(lambda: text in self.err, f"{text!r} on standard error, which has:\n{self.err}")


@pytest.fixture
def begin(tmp_path):
    """Start `dandolo …` (through `through`, a command that runs it, if any); ended with the test."""
    started = []

    def start(*words, env=None, through=(), fds=(), cwd=None):
        number = len(started)
        err, out = tmp_path / f"err{number}", tmp_path / f"out{number}"
        with open(err, "wb") as err_file, open(out, "wb") as out_file:
            process = subprocess.Popen(
                [*through, sys.executable, "-m", "dandolo", *map(str, words)],
                stdin=subprocess.DEVNULL,
                stdout=out_file,
                stderr=err_file,
                env=environment(tmp_path, **(env or {})),
                pass_fds=fds,
                cwd=cwd or tmp_path,
                # Its workers are of its group: nothing is left over when a test fails.
                process_group=0,
            )
        served = Served(process, err, out)
        started.append(served)
        return served

    yield start
    for served in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(served.process.pid, signal.SIGKILL)
        served.process.wait()
    for served in started:
        assert "Traceback" not in served.err + served.out


def write_config(path, providers, *, server="", more="", listen='"127.0.0.1:0"', admin="127.0.0.1:0"):
    """A configuration with a table for each simulated provider."""
    tables = "".join(f'[[providers]]\nname = "{one.name}"\nbase_url = "{one.base_url}"\n' for one in providers)
    text = f'[server]\nlisten = [{listen}]\nadmin = "{admin}"\ndrain_delay = "0s"\n{server}\n{tables}{more}'
    path.write_text(text)
    return path


@pytest.fixture
def configure(tmp_path):
    """Write ./dandolo.toml for providers; see `write_config`."""
    return lambda *providers, name="dandolo.toml", **more: write_config(tmp_path / name, providers, **more)


@pytest.fixture
def eventually():
    return until
