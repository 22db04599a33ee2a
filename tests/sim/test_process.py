"""A provider as a process of its own, on a Unix socket, and behind TLS."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import urllib.request
from pathlib import Path

import openai
import pytest
import trustme
import uvloop
from wiretap import CHAT, Client, request, streamed

import dandolo
from dandolo.sim import Fault, Script, SimProvider, SimThread

ROOT = Path(dandolo.__file__).parent.parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-W", "error", "-m", "dandolo.sim", *arguments]


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_process_prints_its_url_and_serves(loop: str) -> None:
    script = json.dumps({"faults": [{"kind": "status", "status": 503}]})
    arguments = command("--name", "p", "--port", "0", "--script", script, "--loop", loop)
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT) as process:
        assert process.stdout
        assert process.stderr
        url = process.stdout.readline().decode().strip()
        with openai.OpenAI(base_url=url, api_key="k", max_retries=1) as client:
            answer = client.chat.completions.create(model="m", messages=CHAT["messages"])
        assert (answer.choices[0].message.content or "").startswith("p: hello")
        process.send_signal(signal.SIGTERM)
        assert process.wait(5) == 0
        assert process.stderr.read() == b""


@pytest.mark.parametrize("script", ['{"tokns": 1}', "{", "@/nowhere"])
def test_process_refuses_a_wrong_script(script: str) -> None:
    done = subprocess.run(command("--script", script), capture_output=True, env=ENVIRONMENT, timeout=20)
    assert done.returncode == 2
    assert done.stderr.startswith(b"--script: ")
    assert b"Traceback" not in done.stderr


def test_import_is_light() -> None:
    code = "import dandolo.sim, sys; print([m for m in ('openai', 'uvloop', 'http.client') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=ENVIRONMENT, timeout=20)
    assert done.stdout.strip() == b"[]"


@pytest.mark.parametrize("factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_unix_socket(tmp_path: Path, factory: type) -> None:
    path = tmp_path / "sim.sock"
    with SimThread(SimProvider("u", unix=path), loop_factory=factory) as sims:
        assert sims["u"].url == f"unix:{path}"
        for _ in range(2):
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(5)
                client.connect(str(path))
                client.sendall(request())
                assert client.recv(65536).startswith(b"HTTP/1.1 200 OK")
            sims.kill("u")
            assert not path.exists()
            sims.revive("u")
    assert not path.exists()


@pytest.mark.parametrize("factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_tls(factory: type) -> None:
    authority = trustme.CA()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost", "127.0.0.1").configure_cert(server)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    provider = SimProvider("t", ssl=server, script=Script(faults=[Fault("ok"), Fault("cut_rst", after=3)]))
    with SimThread(provider, loop_factory=factory):
        assert provider.url.startswith("https://127.0.0.1:")
        with urllib.request.urlopen(provider.base_url + "/models", context=trusting, timeout=5) as answer:
            assert answer.status == 200
        assert encrypted_until_reset(provider.port, trusting, streamed()).count(b"data: ") == 3


def encrypted_until_reset(port: int, context: ssl.SSLContext, sent: bytes) -> bytes:
    """What a TLS client receives until RST; TLS in memory, since SSLSocket may show a reset as an end."""
    received, sending = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(received, sending, server_hostname="localhost")
    data, asked = b"", False
    with socket.create_connection(("127.0.0.1", port), timeout=5) as bare:
        while True:
            try:
                if not asked:
                    tls.do_handshake()
                    tls.write(sent)
                    asked = True
                while True:
                    data += tls.read(65536)
            except ssl.SSLWantReadError:
                bare.sendall(sending.read())
            try:
                piece = bare.recv(65536)
            except ConnectionResetError:
                return data
            assert piece, "FIN instead of RST"
            received.write(piece)


def test_one_thread_runs_several_providers() -> None:
    with SimThread(SimProvider("a"), SimProvider("b")) as sims:
        for name in "ab":
            with Client(sims[name].port) as client:
                client.send(request())
                assert f"{name}: hello".encode() in client.read_until(b'"usage"')
