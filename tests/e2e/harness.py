"""The gateway as a process of its own, and a client that shows every byte: what the end-to-end tests share.

`Gateway` writes a configuration, runs `python -m dandolo serve` on free ports and ends it with a signal.
`Client` is one connection: bytes out, answers in, read by their framing and nothing else; an answer that breaks
HTTP raises `BrokenAnswer`, one that is cut is returned with `complete` false. Nothing here waits for a fixed
time: everything polls until a deadline.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import dandolo
from dandolo.sim import SimProvider

T = TypeVar("T")

KEY = "sk-test-0123456789abcdef0123456789abcdef"
"""The key that `Gateway(keys=[...])` is usually given."""
PROVIDER_KEY = "sk-provider-fedcba9876543210fedcba9876543210"
"""What the gateway presents to its providers unless told otherwise."""
MODEL = "sim-small"
CHAT: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}]}
START_S = 20.0
STOP_S = 20.0
ANSWER_S = 15.0
"""How long a client waits for the next byte before the test fails; no test waits so long when all is well."""

_READY = re.compile(r"^dandolo \S+ ready in .*", re.MULTILINE)
_ADDRESS = re.compile(r"(https?)://(\[[0-9a-f:]+\]|[0-9.]+):([0-9]+)")


def until(condition: Callable[[], T], timeout_s: float = 10.0, what: str = "it never happened") -> T:
    """Poll until `condition` is true, and return what it gave."""
    end = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < end, what
        time.sleep(0.005)


# -- the gateway ---------------------------------------------------------------------------------------------


ROLES = ("primary", "secondary", "overflow")


@dataclass(frozen=True)
class Provider:
    """A `[[providers]]` entry for a simulated provider. `options` are further keys; `name` and `base_url` may be
    replaced by it. `key` None sends none."""

    sim: SimProvider
    profile: str = "generic"
    key: str | None = PROVIDER_KEY
    models: Sequence[Mapping[str, object]] = ()
    options: Mapping[str, object] = field(default_factory=dict)


class Gateway:
    """`with Gateway(directory, [sim]) as gateway:` runs a gateway until the block ends.

    `providers` are simulated providers, or `Provider` where more is to be said, the first the primary one. `keys` are
    clients' keys, or tables of `[[keys]]` (with `key` in clear, which is hashed here). `server`, `limits`,
    `timeouts`, `routing` and `models` are sections, their keys and values as in TOML; `toml` is appended as it is.
    `environ` is added to an environment that holds little else. `arguments` are further ones of `serve`. `through` is
    a command that runs it, `pass_fds` the descriptors which that one wants.

    At the end the process must leave with 0 and must have logged no error; `errors_expected` allows for the latter.
    """

    def __init__(
        self,
        directory: Path,
        providers: Sequence[SimProvider | Provider],
        *,
        keys: Sequence[str | Mapping[str, object]] = (),
        server: Mapping[str, object] | None = None,
        limits: Mapping[str, object] | None = None,
        timeouts: Mapping[str, object] | None = None,
        routing: Mapping[str, object] | None = None,
        models: Mapping[str, object] | None = None,
        toml: str = "",
        environ: Mapping[str, str] | None = None,
        arguments: Sequence[str] = (),
        errors_expected: bool = False,
        preexec: Callable[[], None] | None = None,
        through: Sequence[str] = (),
        pass_fds: Sequence[int] = (),
    ) -> None:
        self.directory = directory
        self.config = directory / "dandolo.toml"
        self.stdout = directory / "stdout"
        self.stderr = directory / "stderr"
        self.errors_expected = errors_expected
        self._environ = {
            "PATH": os.environ.get("PATH", ""),
            "HOME": str(directory),
            "PYTHONPATH": str(Path(dandolo.__file__).parent.parent),
            **(environ or {}),
        }
        self._arguments = arguments
        self._preexec = preexec
        self._through, self._pass_fds = through, pass_fds
        lines = [
            *_section(
                "server",
                {
                    "listen": ["127.0.0.1:0"],
                    "admin": "127.0.0.1:0",
                    "state_dir": str(directory / "state"),
                    "drain_delay": "0s",
                    "drain_timeout": "2s",
                    **(server or {}),
                },
            )
        ]
        # What a test counts are its own requests: health is asked for only where it says so.
        routing = {"probe_interval": "1h", **(routing or {})}
        for name, given in (("limits", limits), ("timeouts", timeouts), ("routing", routing)):
            lines += _section(name, given or {})
        self._admin_key = ""
        for number, key in enumerate(keys):
            table = {"key": key} if isinstance(key, str) else dict(key)
            if isinstance(clear := table.pop("key", None), str):
                self._admin_key = self._admin_key or clear
                table["sha256"] = hashlib.sha256(clear.encode()).hexdigest()
            # The first is the operator's too: `admin` presents it.
            lines += _section("keys", {"name": f"key-{number}", "admin": not number, **table}, many=True)
        for number, entry in enumerate(providers):
            provider = entry if isinstance(entry, Provider) else Provider(entry)
            table = {"name": provider.sim.name, "profile": provider.profile, "base_url": provider.sim.base_url}
            if provider.key is not None:
                self._environ[f"PROVIDER_KEY_{number}"] = provider.key
                table["key"] = {"env": f"PROVIDER_KEY_{number}"}
            # In the order they are given, so that who is asked first is known; `options` may say otherwise.
            table["role"] = ROLES[min(number, 2)]
            lines += _section("providers", {**table, **provider.options}, many=True)
            for model in provider.models:
                lines += _section("providers.models", model, many=True)
        lines += _section("models", models or {})
        self.config.parent.mkdir(parents=True, exist_ok=True)
        self.config.write_text("\n".join([*lines, toml, ""]), "utf-8")
        self.port = 0
        self.admin_port = 0
        self.scheme = "http"
        self._process: subprocess.Popen[bytes] | None = None

    @classmethod
    def beside(cls, other: Gateway, *arguments: str) -> Gateway:
        """One more process with the configuration and environment of another one, not started yet."""
        gateway = cls.__new__(cls)
        gateway.__dict__.update(other.__dict__)
        gateway._process, gateway._arguments = None, arguments
        gateway.stdout, gateway.stderr = other.directory / "stdout2", other.directory / "stderr2"
        return gateway

    # Life.

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self.kill()
        elif self._process is not None:
            self.stop()

    def start(self) -> None:
        """Run the process and wait until it answers. Fails with what it said when it does not."""
        assert self._process is None, "already running"
        self.stderr.write_bytes(b"")
        with self.stdout.open("ab") as out, self.stderr.open("ab") as err:
            self._process = subprocess.Popen(
                [
                    *self._through,
                    sys.executable,
                    "-W",
                    "error",
                    "-m",
                    "dandolo",
                    "serve",
                    "--config",
                    self.config,
                    *self._arguments,
                ],
                pass_fds=self._pass_fds,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env=self._environ,
                cwd=self.directory,
                preexec_fn=self._preexec,
                # Its workers are of its group: nothing is left over when a test fails.
                process_group=0,
            )
        try:
            until(self._ready, START_S, "the gateway did not come up")
        except AssertionError as error:
            self.kill()
            raise AssertionError(f"{error}: {self.said()}") from None

    def _ready(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, f"exit {self._process.returncode}: {self.said()}"
        line = _READY.search(self.said())
        if line is None:
            return False
        public, _, rest = line[0].partition(" | ")
        address, admin = _ADDRESS.search(public), _ADDRESS.search(rest)
        if address is not None:
            self.scheme, self.port = address[1], int(address[3])
        if admin is not None:
            self.admin_port = int(admin[3])
        return True

    def stop(self, number: int = signal.SIGINT, *, timeout_s: float = STOP_S) -> int:
        """Ask the process to end, and hold it to an orderly end. Returns the exit code, which is 0."""
        process = self._process
        assert process is not None, "not running"
        process.send_signal(number)
        try:
            code = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"no end within {timeout_s:g} s of signal {number}: {self.said()}") from None
        self._process = None
        assert code == 0, f"exit {code}: {self.said()}"
        if not self.errors_expected:
            assert not self.errors(), self.errors()
        return code

    def signal(self, number: int) -> None:
        """Send a signal and wait for nothing."""
        assert self._process is not None
        self._process.send_signal(number)

    def wait(self, timeout_s: float = STOP_S) -> int:
        """Wait for an end that was asked for by `signal`; the exit code, whatever it is."""
        assert self._process is not None
        code = self._process.wait(timeout_s)
        self._process = None
        return code

    def kill(self) -> None:
        """End the process and its workers without ceremony."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """Of the control process."""
        assert self._process is not None, "not running"
        return self._process.pid

    def workers(self) -> list[int]:
        """The process ids of its workers, the oldest first."""
        return [int(pid) for pid in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()]

    # Where it is.

    @property
    def host(self) -> str:
        """What an honest client puts into Host."""
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        """Scheme, host and port; an OpenAI client takes `url + "/v1"`."""
        return f"{self.scheme}://{self.host}"

    @property
    def admin_url(self) -> str:
        """Of the admin listener."""
        return f"http://127.0.0.1:{self.admin_port}"

    def client(
        self, *, timeout_s: float = ANSWER_S, receive_bytes: int | None = None, source: str | None = None
    ) -> Client:
        """A new connection to it."""
        return Client(self.port, timeout_s=timeout_s, receive_bytes=receive_bytes, source=source)

    def ask(self, data: bytes, *, head_only: bool = False) -> Answer:
        """Send bytes on a new connection and read one answer."""
        with self.client() as client:
            client.send(data)
            return client.answer(head_only=head_only)

    def admin(self, path: str) -> Answer:
        """GET something from the admin listener, with the first key if there are any."""
        with Client(self.admin_port) as client:
            client.send(get(path, key=self._admin_key or None, headers={"Connection": "close"}))
            return client.answer()

    def metrics(self) -> dict[str, float]:
        """Every sample of the metrics, by name with labels as exposed."""
        text = self.admin("/metrics").body.decode()
        samples = (line.rpartition(" ") for line in text.splitlines() if line and not line.startswith("#"))
        return {name: float(value) for name, _, value in samples}

    # What it says.

    def said(self) -> str:
        """Everything on standard error so far."""
        return self.stderr.read_text("utf-8", "replace")

    def errors(self) -> list[str]:
        """Lines on standard error that tell of a mistake of its own, or of a warning of the interpreter."""
        marks = ('"level":"error"', '"level":"critical"', "Traceback", "Warning:", "internal error")
        return [line for line in self.said().splitlines() if any(mark in line for mark in marks)]

    def log_lines(self) -> list[dict[str, Any]]:
        """The access log so far: one record a request (the last may still be missing, see `record`)."""
        return [
            json.loads(line) for line in self.stdout.read_text("utf-8").splitlines(keepends=True) if line[-1] == "\n"
        ]

    def record(self, answer: Answer | str) -> dict[str, Any]:
        """The access log's record of an answer (or of a request id), as soon as it is there."""
        wanted = answer if isinstance(answer, str) else answer.header("x-request-id")
        assert wanted
        return until(
            lambda: next((line for line in self.log_lines() if line["id"] == wanted), None),
            what=f"no record of {wanted}",
        )

    # What it uses.

    def fds(self) -> int:
        """Open descriptors of its workers."""
        return sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in self.workers())

    def rss_bytes(self) -> int:
        """Resident memory of all its processes."""
        pages = (int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in (self.pid, *self.workers()))
        return sum(pages) * os.sysconf("SC_PAGE_SIZE")

    def cpu_s(self) -> float:
        """Processor time that all its processes have used so far, user and system."""
        ticks = 0
        for pid in (self.pid, *self.workers()):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")


def _section(name: str, table: Mapping[str, object], *, many: bool = False) -> list[str]:
    if not table:
        return []
    head = f"[[{name}]]" if many else f"[{name}]"
    return [head, *(f"{_key(key)} = {_value(value)}" for key, value in table.items())]


def _key(text: str) -> str:
    return text if re.fullmatch("[A-Za-z0-9_-]+", text) else json.dumps(text)


def _value(value: object) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_key(str(key))} = {_value(item)}" for key, item in value.items()) + " }"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_value, value)) + "]"
    return json.dumps(value, ensure_ascii=False)


# -- requests ------------------------------------------------------------------------------------------------


def encode(body: object) -> bytes:
    """A JSON body, compact."""
    return json.dumps(body, separators=(",", ":")).encode()


def request(
    path: str = "/v1/chat/completions",
    body: object = CHAT,
    *,
    method: str = "POST",
    headers: Iterable[tuple[str, str]] | Mapping[str, str] = (),
    host: str = "127.0.0.1",
    key: str | None = None,
    version: str = "HTTP/1.1",
    length: bool = True,
) -> bytes:
    """A request. `body` is bytes, or anything that becomes JSON, or None for no body. Texts are Latin-1."""
    data = body if isinstance(body, bytes) else b"" if body is None else encode(body)
    lines = [f"{method} {path} {version}", f"Host: {host}"]
    if key is not None:
        lines.append(f"Authorization: Bearer {key}")
    pairs = list(headers.items() if isinstance(headers, Mapping) else headers)
    if isinstance(body, (dict, list)) and not any(name.lower() == "content-type" for name, _ in pairs):
        lines.append("Content-Type: application/json")
    if length and body is not None:
        lines.append(f"Content-Length: {len(data)}")
    lines += [f"{name}: {value}" for name, value in pairs]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + data


def get(path: str, **more: Any) -> bytes:
    """A GET without a body."""
    return request(path, None, method="GET", **more)


def chat(**fields: object) -> dict[str, Any]:
    """A chat completion's body; `fields` replace or extend the usual ones."""
    return {**CHAT, **fields}


def chunked(body: bytes, *sizes: int, extension: bytes = b"", trailers: bytes = b"") -> bytes:
    """A body in the chunked coding: pieces of `sizes` bytes, then the rest, then the last chunk."""
    out = []
    for size in (*sizes, len(body)):
        piece, body = body[:size], body[size:]
        if piece:
            out.append(b"%x%b\r\n%b\r\n" % (len(piece), extension, piece))
    return b"".join(out) + b"0\r\n" + trailers + b"\r\n"


# -- answers -------------------------------------------------------------------------------------------------


class BrokenAnswer(AssertionError):
    """What came is not HTTP/1.1 as RFC 9112 has it."""


@dataclass
class Answer:
    """One answer. Names of `headers` are lower case; `framing` is length, chunked, eof or none.

    `complete` is false when the connection ended inside the body: `ending` then says how (fin, rst).
    `interim` are the statuses of 1xx answers that came before.
    """

    status: int
    headers: list[tuple[str, str]]
    body: bytes = b""
    framing: str = "none"
    complete: bool = True
    ending: str = ""
    interim: list[int] = field(default_factory=list)
    chunks: int = 0
    version: str = "HTTP/1.1"
    head: bytes = b""

    def header(self, name: str) -> str | None:
        """The value of a header, None when it is absent; it must not stand twice."""
        values = [value for key, value in self.headers if key == name.lower()]
        assert len(values) < 2, f"{name} twice: {values}"
        return values[0] if values else None

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The error of an OpenAI envelope, whose form is checked on the way."""
        envelope = self.json
        assert list(envelope) == ["error"], envelope
        error: dict[str, Any] = envelope["error"]
        assert set(error) == {"message", "type", "param", "code"}, error
        assert isinstance(error["message"], str), error
        assert error["message"], error
        assert isinstance(error["type"], str), error
        assert error["code"] is None or isinstance(error["code"], str), error
        assert error["param"] is None or isinstance(error["param"], str), error
        return error

    @property
    def closes(self) -> bool:
        """Whether the answer says that it is the connection's last."""
        value = self.header("connection") or ""
        return "close" in [part.strip().lower() for part in value.split(",")]

    @property
    def events(self) -> list[bytes]:
        """The `data:` of each event of a stream that was delimited by empty lines."""
        blocks = self.body.replace(b"\r\n", b"\n").split(b"\n\n")
        return [
            b"\n".join(line[5:].removeprefix(b" ") for line in block.split(b"\n") if line.startswith(b"data:"))
            for block in blocks
            if b"data:" in block
        ]


_STATUS_LINE = re.compile(rb"(HTTP/1\.1) ([0-9]{3}) ([\t\x20-\x7e\x80-\xff]*)")
_FIELD = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):[ \t]*((?:[\x21-\x7e\x80-\xff]|[\t ](?![\t ]*\Z))*)[ \t]*")


class Client:
    """One connection to a gateway, or to anything that listens on `port`.

    What was received beyond an answer stays in `rest` for the next one. `receive_bytes` sets a small receive buffer,
    so that a client that does not read is noticed soon. `source` is the address to connect from.
    """

    def __init__(
        self,
        port: int,
        host: str = "127.0.0.1",
        *,
        timeout_s: float = ANSWER_S,
        receive_bytes: int | None = None,
        source: str | None = None,
        wrap: Callable[[socket.socket], socket.socket] | None = None,
    ) -> None:
        plain = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        if receive_bytes is not None:
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        plain.settimeout(timeout_s)
        if source is not None:
            plain.bind((source, 0))
        plain.connect((host, port))
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket = wrap(plain) if wrap is not None else plain
        self.timeout_s = timeout_s
        self.rest = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        """Send everything. Raises ConnectionError when the peer has reset the connection."""
        self.socket.sendall(data)

    def send_what_goes(self, data: bytes) -> bool:
        """Send as much as the peer lets us; whether that was everything."""
        try:
            self.socket.sendall(data)
        except (ConnectionError, TimeoutError):
            return False
        return True

    def finish(self) -> None:
        """Half-close: no more bytes will come from us."""
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Close with RST."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    # Reading.

    def _more(self) -> str:
        """Receive once: "" when bytes came, else how the connection ended. Raises TimeoutError."""
        try:
            piece = self.socket.recv(1 << 18)
        except ConnectionError:
            return "rst"
        self.rest += piece
        return "" if piece else "fin"

    def line(self) -> bytes:
        """One line, which ends in CRLF and holds no other CR or LF."""
        while b"\r\n" not in self.rest:
            if ending := self._more():
                raise BrokenAnswer(f"{ending} inside a line: {self.rest!r}")
        line, _, self.rest = self.rest.partition(b"\r\n")
        if b"\r" in line or b"\n" in line:
            raise BrokenAnswer(f"bare CR or LF in {line!r}")
        return line

    def head(self) -> Answer:
        """A status line and headers; the body is left where it is."""
        status_line = self.line()
        match = _STATUS_LINE.fullmatch(status_line)
        if match is None:
            raise BrokenAnswer(f"no status line: {status_line!r}")
        lines = [status_line]
        headers = []
        while line := self.line():
            lines.append(line)
            pair = _FIELD.fullmatch(line)
            if pair is None:
                raise BrokenAnswer(f"no header: {line!r}")
            headers.append((pair[1].decode().lower(), pair[2].decode("latin-1")))
        return Answer(int(match[2]), headers, version=match[1].decode(), head=b"\r\n".join(lines))

    def answer(self, *, head_only: bool = False) -> Answer:
        """The next whole answer, 1xx ones before it included. `head_only` for the answer to HEAD."""
        interim = []
        while True:
            answer = self.head()
            if not 100 <= answer.status < 200:
                break
            if answer.status == 101:
                raise BrokenAnswer("101 was not asked for")
            interim.append(answer.status)
        answer.interim = interim
        length, coding = answer.header("content-length"), answer.header("transfer-encoding")
        if length is not None and coding is not None:
            raise BrokenAnswer("Content-Length and Transfer-Encoding")
        if length is not None and not re.fullmatch("[0-9]+", length):
            raise BrokenAnswer(f"Content-Length {length!r}")
        if coding is not None and coding != "chunked":
            raise BrokenAnswer(f"Transfer-Encoding {coding!r}")
        if head_only or answer.status in (204, 304):
            if answer.status == 204 and (length is not None or coding is not None):
                raise BrokenAnswer("framing on a 204 (RFC 9110 §8.6)")
            return answer
        if coding is not None:
            answer.framing = "chunked"
            self._chunks(answer)
        elif length is not None:
            answer.framing = "length"
            answer.body, answer.ending = self.take(int(length))
            answer.complete = not answer.ending
        else:
            answer.framing = "eof"
            if not answer.closes:
                raise BrokenAnswer("a body without framing on a connection that stays open")
            while not (ending := self._more()):
                pass
            answer.body, self.rest, answer.ending = self.rest, b"", ending
            answer.complete = ending == "fin"
        return answer

    def _chunks(self, answer: Answer) -> None:
        parts: list[bytes] = []
        while True:
            try:
                line = self.line()
            except BrokenAnswer:
                if b"\r\n" in self.rest or not re.fullmatch(rb"[0-9a-fA-F]*\r?", self.rest):
                    raise
                answer.complete, answer.ending = False, self._more() or "fin"
                break
            if not re.fullmatch(rb"[0-9a-fA-F]{1,16}", line):
                raise BrokenAnswer(f"chunk size {line!r}")
            size = int(line, 16)
            if not size:
                if trailer := self.line():
                    raise BrokenAnswer(f"a trailer: {trailer!r}")
                break
            piece, answer.ending = self.take(size + 2)
            if answer.ending:
                answer.complete = False
                parts.append(piece[:size])
                break
            if not piece.endswith(b"\r\n"):
                raise BrokenAnswer(f"after a chunk: {piece[-2:]!r}")
            parts.append(piece[:-2])
            answer.chunks += 1
        answer.body = b"".join(parts)

    def take(self, size: int) -> tuple[bytes, str]:
        """Exactly `size` bytes; fewer with how the connection ended."""
        ending = ""
        while len(self.rest) < size and not (ending := self._more()):
            pass
        taken, self.rest = self.rest[:size], self.rest[size:]
        return taken, ending if len(taken) < size else ""

    def read_until(self, mark: bytes) -> bytes:
        """Everything up to and with `mark`."""
        while mark not in self.rest:
            if ending := self._more():
                raise BrokenAnswer(f"{ending} before {mark!r}: {self.rest[-500:]!r}")
        before, _, self.rest = self.rest.partition(mark)
        return before + mark

    def await_bytes(self, mark: bytes) -> None:
        """Wait until `mark` has come, and leave everything for `answer`."""
        self.rest = self.read_until(mark) + self.rest

    def ending(self, timeout_s: float | None = None) -> str:
        """How the connection ends: fin, rst, or "open" when it does not within the time.

        Bytes that come before fail the test: after its last answer a gateway says nothing.
        """
        self.socket.settimeout(self.timeout_s if timeout_s is None else timeout_s)
        try:
            ending = "" if self.rest else self._more()
        except TimeoutError:
            return "open"
        finally:
            self.socket.settimeout(self.timeout_s)
        assert not self.rest, f"unexpected bytes: {self.rest[:500]!r}"
        return ending

    def closed(self) -> bool:
        """Whether the connection was ended in order: FIN after the last answer, no RST before we had read it."""
        return self.ending() == "fin"
