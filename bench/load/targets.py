"""What stands between client and stub: how each target is configured, started, found ready and ended.

Every target is fresh for each run, alone on its core, and told of the stub by one `Wiring`.
Refuses to know what is measured.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.load import generator
from bench.load.processes import Child, descendants

CLIENT_KEY = "bench-client-key-3f9a1c77d2"
PROVIDER_KEY = "bench-provider-key-8e20b6"
MODEL = "bench-model"
READY_S = 60.0


class TargetError(Exception):
    """A target did not start, or did not answer."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a bench runs: its folder, the two cores, the interpreters."""

    folder: Path
    target_core: int
    load_core: int
    python: str
    rivals_python: str
    litellm_python: str


@dataclass(frozen=True, slots=True)
class Wiring:
    """What a target is put between."""

    stub_port: int
    stub_tls: bool = False
    client_tls: bool = False
    cert: Path | None = None
    key: Path | None = None
    ca: Path | None = None


@dataclass(frozen=True, slots=True)
class Running:
    """A target that has answered: where, with which key, and the processes whose CPU time counts."""

    port: int
    key: str
    tls: bool
    pids: tuple[int, ...]
    start_s: float
    extra: tuple[str, ...] = ()
    """What the load must be told besides."""


def free_port() -> int:
    """A TCP port nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def certificates(folder: Path) -> tuple[Path, Path, Path]:
    """Makes an authority and a certificate for localhost: paths of certificate, key and authority."""
    cert, key, ca, ca_key = (folder / name for name in ("cert.pem", "key.pem", "ca.pem", "ca-key.pem"))
    request, extensions = folder / "request.pem", folder / "extensions"
    extensions.write_text(
        "subjectAltName=DNS:localhost,IP:127.0.0.1\nbasicConstraints=critical,CA:FALSE\n"
        "keyUsage=critical,digitalSignature\nextendedKeyUsage=serverAuth\n"
        "subjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n"
    )
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    for argv in (
        [
            "req",
            "-x509",
            *curve,
            "-keyout",
            ca_key,
            "-out",
            ca,
            "-days",
            "30",
            "-subj",
            "/CN=bench authority",
            "-addext",
            "keyUsage=critical,keyCertSign,cRLSign",
        ],
        ["req", *curve, "-keyout", key, "-out", request, "-subj", "/CN=localhost"],
        [
            "x509",
            "-req",
            "-in",
            request,
            "-CA",
            ca,
            "-CAkey",
            ca_key,
            "-CAcreateserial",
            "-out",
            cert,
            "-days",
            "30",
            "-extfile",
            extensions,
        ],
    ):
        done = subprocess.run(["openssl", *map(str, argv)], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise TargetError(f"openssl {argv[0]} failed: {done.stderr}")
    return cert, key, ca


@contextmanager
def stub(place: Place, *arguments: str) -> Iterator[int]:
    """The stub provider on the load's core; its port."""
    port = free_port()
    child = Child(
        [str(generator.build()), "stub", "--port", str(port), "--key", PROVIDER_KEY, *arguments],
        place.load_core,
        place.folder / f"stub-{port}.log",
    )
    try:
        _until_answer(child, port, PROVIDER_KEY, tls="--cert" in arguments)
        yield port
    finally:
        child.stop()


# -- asking once: is the target there? --


def ask(port: int, key: str, *, tls: bool, timeout_s: float = 5.0) -> int:
    """One small completion on a new connection; the answer's status.  OSError if nobody answers."""
    body = json.dumps(
        {
            "model": MODEL,
            "messages": [{"role": "user", "content": f"bench-request-{time.monotonic_ns() % 10**12:012d}"}],
        }
    ).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost:{port}\r\nAuthorization: Bearer {key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", port), timeout_s) as plain:
        connection = _unverified().wrap_socket(plain, server_hostname="localhost") if tls else plain
        connection.sendall(head.encode() + body)
        answer = b""
        while b"\r\n" not in answer:
            piece = connection.recv(65536)
            if not piece:
                raise ConnectionError("closed without an answer")
            answer += piece
        return int(answer.split()[1])


def _unverified() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _until_answer(child: Child, port: int, key: str, *, tls: bool) -> float:
    """Asks every millisecond until a 200; seconds since the program was started."""
    deadline = child.started_s + READY_S
    status: int | str = "no connection"
    while time.monotonic() < deadline:
        if not child.alive():
            break
        try:
            status = ask(port, key, tls=tls)
            if status == 200:
                return time.monotonic() - child.started_s
        except (OSError, ValueError, IndexError) as error:
            status = str(error)
        time.sleep(0.001)
    raise TargetError(f"{child.name} … gave no answer (last: {status}); its log ends:\n{child.log_tail()}")


# -- the targets --


@contextmanager
def direct(place: Place, wiring: Wiring) -> Iterator[Running]:
    """Nothing in between: what client, kernel and stub cost by themselves."""
    yield Running(wiring.stub_port, PROVIDER_KEY, wiring.stub_tls, (), 0.0)


NGINX = """\
{user}worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
worker_rlimit_nofile 20000;
events {{ worker_connections 16384; }}
http {{
    access_log {folder}/access.log combined buffer=64k flush=1s;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    keepalive_timeout 75s;
    keepalive_requests 100000000;
    client_max_body_size 32m;
    client_body_buffer_size {body_buffer};
    upstream provider {{
        server 127.0.0.1:{stub_port};
        keepalive 256;
        keepalive_requests 100000000;
    }}
    server {{
        listen 127.0.0.1:{port}{listen_tls};
        {server_tls}
        location / {{
            proxy_pass {scheme}://provider;
            {proxy_tls}
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header Authorization "Bearer {provider_key}";
            proxy_buffering off;
            proxy_read_timeout 600s;
        }}
    }}
}}
"""


def _nginx(body_buffer: str) -> Callable[[Place, Wiring], Iterator[Running]]:
    def run(place: Place, wiring: Wiring) -> Iterator[Running]:
        port = free_port()
        folder = place.folder / f"nginx-{port}"
        folder.mkdir(exist_ok=True)  # a port may come twice
        config = folder / "nginx.conf"
        config.write_text(
            NGINX.format(
                # As root the workers would give up their rights, and with them this private folder.
                user="user root;\n" if os.geteuid() == 0 else "",
                folder=folder,
                port=port,
                stub_port=wiring.stub_port,
                body_buffer=body_buffer,
                provider_key=PROVIDER_KEY,
                scheme="https" if wiring.stub_tls else "http",
                listen_tls=" ssl" if wiring.client_tls else "",
                server_tls=f"ssl_certificate {wiring.cert}; ssl_certificate_key {wiring.key};"
                if wiring.client_tls
                else "",
                proxy_tls=(
                    f"proxy_ssl_verify on; proxy_ssl_trusted_certificate {wiring.ca}; proxy_ssl_name localhost; "
                    "proxy_ssl_server_name on; proxy_ssl_protocols TLSv1.2 TLSv1.3;"
                    if wiring.stub_tls
                    else ""
                ),
            )
        )
        child = Child(
            ["nginx", "-p", str(folder), "-c", str(config), "-g", "daemon off;"],
            place.target_core,
            folder / "output.log",
        )
        try:
            start_s = _until_answer(child, port, CLIENT_KEY, tls=wiring.client_tls)
            # The master only waits: the worker is the server.
            yield Running(port, CLIENT_KEY, wiring.client_tls, tuple(descendants(child.process.pid)), start_s)
        finally:
            child.stop()

    return run


def _plain_only(wiring: Wiring) -> None:
    if wiring.stub_tls or wiring.client_tls:
        raise TargetError("this target is not set up for TLS")


@contextmanager
def starlette(place: Place, wiring: Wiring) -> Iterator[Running]:
    """rivals/starlette_app.py under uvicorn, without its access log."""
    _plain_only(wiring)
    port = free_port()
    child = Child(
        [
            place.rivals_python,
            "-m",
            "uvicorn",
            "bench.load.rivals.starlette_app:app",
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
            "--loop",
            "uvloop",
            "--http",
            "httptools",
            "--no-access-log",
            "--log-level",
            "warning",
        ],
        place.target_core,
        place.folder / f"starlette-{port}.log",
        cwd=Path(__file__).parents[2],
        env={
            "STUB_URL": f"http://127.0.0.1:{wiring.stub_port}/v1",
            "PROVIDER_KEY": PROVIDER_KEY,
            "CLIENT_KEY": CLIENT_KEY,
        },
    )
    yield from _answering(child, port, wiring)


@contextmanager
def litellm(place: Place, wiring: Wiring) -> Iterator[Running]:
    """LiteLLM's proxy, one worker, its own defaults."""
    _plain_only(wiring)
    port = free_port()
    config = place.folder / f"litellm-{port}.yaml"
    config.write_text(
        f"model_list:\n  - model_name: {MODEL}\n    litellm_params:\n      model: openai/{MODEL}\n"
        f"      api_base: http://127.0.0.1:{wiring.stub_port}/v1\n      api_key: {PROVIDER_KEY}\n"
        f"general_settings:\n  master_key: sk-{CLIENT_KEY}\n"
    )
    child = Child(
        [
            str(Path(place.litellm_python).with_name("litellm")),
            "--config",
            str(config),
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
            "--num_workers",
            "1",
        ],
        place.target_core,
        place.folder / f"litellm-{port}.log",
        env={"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR"},
    )
    # It compresses answers for whoever takes that, which the load cannot read and nobody else here does.
    yield from _answering(child, port, wiring, f"sk-{CLIENT_KEY}", ("--identity",))


DANDOLO = """\
[server]
workers = {workers}
listen = ["127.0.0.1:{port}"]
admin = "127.0.0.1:{admin}"
state_dir = {state}
{tls}
[[keys]]
name = "bench"
sha256 = "{digest}"
rpm = 100_000_000
tpm = 1_000_000_000_000
concurrent = 4096
budget_usd_per_day = 1_000_000.0

[[providers]]
name = "stub"
base_url = "{scheme}://127.0.0.1:{stub_port}/v1"
key = {{ env = "BENCH_PROVIDER_KEY" }}
concurrency_max = 4096
{ca}
[[providers.models]]
id = "{model}"
input_usd_per_mtok = 0.70
output_usd_per_mtok = 2.80
"""


@contextmanager
def dandolo(place: Place, wiring: Wiring, workers: int = 1) -> Iterator[Running]:
    """``dandolo serve``: defaults, one key with limits and a budget too high to bind, one priced model. Of `pids` the
    first is the control process."""
    port = free_port()
    folder = place.folder / f"dandolo-{port}"
    folder.mkdir(exist_ok=True)  # a port may come twice
    config = folder / "dandolo.toml"
    config.write_text(
        DANDOLO.format(
            workers=workers,
            port=port,
            admin=free_port(),
            state=json.dumps(str(folder / "state")),
            stub_port=wiring.stub_port,
            model=MODEL,
            digest=hashlib.sha256(CLIENT_KEY.encode()).hexdigest(),
            scheme="https" if wiring.stub_tls else "http",
            tls=f"tls = {{ cert = {json.dumps(str(wiring.cert))}, key = {json.dumps(str(wiring.key))} }}\n"
            if wiring.client_tls
            else "",
            ca=f"ca = {json.dumps(str(wiring.ca))}\n" if wiring.stub_tls else "",
        )
    )
    child = Child(
        [place.python, "-m", "dandolo", "serve", "--config", str(config)],
        place.target_core,
        folder / "output.log",
        cwd=Path(__file__).parents[2],
        env={"BENCH_PROVIDER_KEY": PROVIDER_KEY},
        stop_signal=signal.SIGINT,
    )
    yield from _answering(child, port, wiring)


def _answering(
    child: Child, port: int, wiring: Wiring, key: str = CLIENT_KEY, extra: tuple[str, ...] = ()
) -> Iterator[Running]:
    try:
        start_s = _until_answer(child, port, key, tls=wiring.client_tls)
        pids = (child.process.pid, *descendants(child.process.pid))
        yield Running(port, key, wiring.client_tls, pids, start_s, extra)
        if not child.alive():
            raise TargetError(f"{child.name} … ended during the run; its log ends:\n{child.log_tail()}")
    finally:
        child.stop()


TARGETS = {
    "direct": direct,
    "nginx": contextmanager(_nginx("16k")),  # its default on this architecture, written out
    "nginx-512k": contextmanager(_nginx("512k")),
    "dandolo": dandolo,
    "starlette": starlette,
    "litellm": litellm,
}
