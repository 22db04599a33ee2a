"""Texts that an operator keeps: who may read them, whose are never kept, how much, and that they are nowhere else."""

from __future__ import annotations

import contextlib
import gzip
import http.server
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dandolo.sim import Fault, Script, SimProvider, SimThread
from tests.e2e.harness import KEY, Answer, Client, Gateway, Provider, chat, get, request, until
from tests.e2e.test_supervisor import free_port

CLIENT = "sk-client-0123456789abcdef0123456789abcdef"
SHY = "sk-shy-0123456789abcdef0123456789abcdef"
KEYS = [{"name": "ops", "key": KEY}, {"name": "app", "key": CLIENT}, {"name": "shy", "key": SHY, "privacy": True}]
ON = "[prompt_log]\nenabled = true\n"
ASKED, ANSWERED = "zebra-crossing-7319", "quokka-4402"
SCRIPT = Script(words=(ANSWERED, " "), tokens=4)


@contextlib.contextmanager
def running(directory: Path, script: Script = SCRIPT, toml: str = ON, **more: Any) -> Iterator[Gateway]:
    sim = SimProvider("sim", script=script)
    with SimThread(sim), Gateway(directory, [Provider(sim)], keys=KEYS, toml=toml, **more) as gateway:
        yield gateway


def asking(key: str = CLIENT, text: str = ASKED, headers: dict[str, str] | None = None, **fields: Any) -> bytes:
    body = {"model": "m", "messages": [{"role": "user", "content": text}], **fields}
    return request(body=chat(**body), key=key, headers=headers or {})


def id_of(answer: Answer) -> str:
    return answer.header("x-request-id") or ""


def read(gateway: Gateway, name: str, key: str | None = KEY) -> Answer:
    with Client(gateway.admin_port) as client:
        client.send(get(f"/admin/texts/{name}", key=key, headers={"Connection": "close"}))
        return client.answer()


def kept(gateway: Gateway, answer: Answer) -> dict[str, Any]:
    """What is kept of a request, which comes with the next beat."""

    def found() -> dict[str, Any] | None:
        told = read(gateway, id_of(answer))
        return told.json if told.status == 200 else None

    return until(found, what="no text is kept")  # type: ignore[return-value]


def test_plain_answers_streams_kept_ones_and_errors_are_kept_as_they_were_sent(tmp_path: Path) -> None:
    with running(tmp_path) as gateway, gateway.client() as client:
        plain = [gateway.ask(asking(temperature=0)) for _ in range(3)]
        assert [answer.header("x-cache") for answer in plain] == ["MISS", "HIT", "HIT"]
        for answer in plain:
            told = kept(gateway, answer)
            assert (told["key"], told["endpoint"], told["status"], told["complete"]) == ("app", "chat", 200, True)
            assert ASKED in told["asked"]
            assert told["answered"] == answer.body.decode()
            assert (told["asked_cut"], told["answered_cut"]) == (False, False)
            assert told["answered_bytes"] == len(answer.body)
            assert told["content_type"] == "application/json"
        # On one connection, the short way, where streams take shortcuts.
        for number in range(3):
            client.send(asking(stream=True, text=f"{ASKED} {number}"))
            stream = client.answer()
            assert stream.events[-1] == b"[DONE]"
            told = kept(gateway, stream)
            assert told["answered"] == stream.body.decode()
            assert told["content_type"].startswith("text/event-stream")
            assert told["complete"]
        # The same bytes again and again are answered from memory: each is kept all the same.
        same = asking(temperature=0)
        for _ in range(4):
            client.send(same)
            assert ASKED in kept(gateway, client.answer())["asked"]
        refused = gateway.ask(asking(stream="yes"))
        assert refused.status == 400
        told = kept(gateway, refused)
        assert (told["status"], told["answered"]) == (400, refused.body.decode())


def test_a_stream_that_breaks_off_is_kept_as_far_as_it_went(tmp_path: Path) -> None:
    script = Script(words=SCRIPT.words, tokens=40, tokens_per_s=200, default_fault=Fault("cut_rst", after=12))
    with running(tmp_path, script) as gateway:
        answer = gateway.ask(asking(stream=True))
        assert not answer.complete
        told = kept(gateway, answer)
        assert not told["complete"]
        assert told["answered"] == answer.body.decode()


@pytest.mark.parametrize("usage", [False, True])
def test_streams_that_are_shared_reach_all_and_are_kept_for_each(tmp_path: Path, usage: bool) -> None:
    """A follower's pieces are written to its transport together with those of others, which nobody could watch."""
    script = Script(words=SCRIPT.words, tokens=30, tokens_per_s=60)
    options = {"stream_options": {"include_usage": True}} if usage else {}
    with running(tmp_path, script) as gateway, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(gateway.client()) for _ in range(3)]
        for client in clients:
            client.send(asking(stream=True, temperature=0, **options))
        answers = [client.answer() for client in clients]
        assert sorted(answer.header("x-cache") or "" for answer in answers) == ["COLLAPSED", "COLLAPSED", "MISS"]
        for answer in answers:
            assert answer.events[-1] == b"[DONE]"
            assert (b'"usage":{' in answer.body) is usage
            told = kept(gateway, answer)
            assert (told["answered"], told["complete"]) == (answer.body.decode(), True)


def test_only_admin_keys_read_and_each_reading_is_written_down(tmp_path: Path) -> None:
    with running(tmp_path) as gateway:
        name = id_of(answer := gateway.ask(asking()))
        kept(gateway, answer)
        assert read(gateway, name, CLIENT).error["code"] == "admin_key_needed"
        assert read(gateway, name, None).status == 401
        assert read(gateway, name, "sk-nobody").status == 401
        wrong = ("req_" + "0" * 22, "x", "req_%2e%2e", "'")
        assert [read(gateway, one).status for one in wrong] == [404, 400, 400, 400]
        entries = gateway.admin("/admin/audit").json["entries"]
        assert {(one["who"], one["status"]) for one in entries} >= {("ops", 200), ("app", 403), ("ops", 404)}
        assert all(one["path"].startswith("/admin/texts/") for one in entries)
        # The facts say where the text is.
        until(lambda: gateway.admin(f"/admin/requests/{name}").status == 200)
        assert gateway.admin(f"/admin/requests/{name}").json["text"] == f"/admin/texts/{name}"


def test_whoever_wants_privacy_is_left_out(tmp_path: Path) -> None:
    with running(tmp_path) as gateway, gateway.client() as client:
        shy = [gateway.ask(asking(SHY)), gateway.ask(asking(SHY, stream=True))]
        no_store = [
            gateway.ask(asking(headers={"Cache-Control": value})) for value in ("no-store", "max-age=0, No-Store")
        ]
        upload = gateway.ask(
            request(
                "/v1/audio/transcriptions",
                b'--x\r\nContent-Disposition: form-data; name="model"\r\n\r\nm\r\n--x--\r\n',
                key=CLIENT,
                headers={"Content-Type": "multipart/form-data; boundary=x"},
            )
        )
        client.send(get("/v1/models", key=CLIENT))
        models = client.answer()
        # Later than all of these, so that their time is over.
        kept(gateway, gateway.ask(asking()))
        for answer in (*shy, *no_store, upload, models):
            assert answer.status in (200, 400)
            assert read(gateway, id_of(answer)).error["code"] == "not_found"
        state = gateway.admin("/admin/snapshot").json["prompt_log"]
        assert state["texts"] == 1


def test_nothing_is_kept_with_privacy_for_all(tmp_path: Path) -> None:
    with running(tmp_path, server={"privacy": True}) as gateway:
        names = [id_of(gateway.ask(asking())) for _ in range(2)]
        until(lambda: len(gateway.log_lines()) == 2)
        assert [read(gateway, name).status for name in names] == [404, 404]
        assert gateway.admin("/admin/snapshot").json["prompt_log"]["texts"] == 0
        assert "all are by server.privacy" in gateway.said()


def test_texts_are_nowhere_else(tmp_path: Path) -> None:
    with running(tmp_path) as gateway:
        assert "prompt_log.enabled keeps what clients ask" in gateway.said()
        names = [id_of(gateway.ask(asking(stream=stream, user=ASKED))) for stream in (False, True)]
        bad = gateway.ask(asking(messages="x" + ASKED))
        for name in (*names, id_of(bad)):
            until(lambda: read(gateway, name).status == 200)  # noqa: B023
            until(lambda: gateway.admin(f"/admin/requests/{name}").status in (200, 404))  # noqa: B023
        pages = ("/metrics", "/admin/snapshot", "/admin/audit", "/admin/usage", "/admin/routes", "/admin/keys", "/")
        pages += ("/admin/alerts", "/admin/slo", *(f"/admin/requests/{name}" for name in names))
        shown = {path: gateway.admin(path).body.decode() for path in pages}
        assert "dandolo_prompt_log_texts" in shown["/metrics"]
        gateway.signal(signal.SIGHUP)
        until(lambda: "reloaded" in gateway.said())
        gateway.stop()
        files = {str(path): path.read_bytes().decode("latin-1") for path in tmp_path.rglob("*") if path.is_file()}
        assert any("ledger" in path for path in files)
        for where, text in (shown | files).items():
            for secret in (ASKED, ANSWERED, KEY, CLIENT):
                assert secret not in text, where
        # Nor after a restart: they were in memory alone.
        gateway.start()
        assert [read(gateway, name).status for name in names] == [404, 404]


def test_no_trace_and_no_exported_metric_holds_a_text(tmp_path: Path) -> None:
    bodies: list[bytes] = []
    paths: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            bodies.append(gzip.decompress(body) if self.headers.get("content-encoding") == "gzip" else body)
            paths.append(self.path)
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        otel = f'[otel]\nendpoint = "http://127.0.0.1:{server.server_port}"\nmetrics_interval = "1s"\n'
        with running(tmp_path, toml=ON + otel) as gateway:
            answer = gateway.ask(asking(user=ASKED))
            assert ASKED in kept(gateway, answer)["asked"]
            name = id_of(answer).encode()
            until(lambda: any(name in body for body in bodies), what="no span came")
            before = paths.count("/v1/metrics")
            until(lambda: paths.count("/v1/metrics") > before + 1, what="no metrics came")
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    for secret in (ASKED, ANSWERED, KEY, CLIENT):
        assert not any(secret.encode() in body for body in bodies)


def test_bounds_hold_by_text_and_in_all(tmp_path: Path) -> None:
    toml = ON + 'text_bytes_max = "64KiB"\nbytes_max = "1MiB"\n'
    with running(tmp_path, Script(words=SCRIPT.words, tokens=20_000), toml) as gateway:
        long = ASKED + "ü" * 100_000
        names = []
        for number in range(12):
            answer = gateway.ask(asking(text=long, stream=bool(number % 2)))
            told = kept(gateway, answer)
            names.append(told["id"])
            assert (told["asked_cut"], told["answered_cut"]) == (True, True)
            assert told["answered_bytes"] == len(answer.body) > 64 * 1024
            assert len(told["answered"].encode()) <= 64 * 1024
            assert answer.body.decode().startswith(told["answered"])
        state = gateway.admin("/admin/snapshot").json["prompt_log"]
        assert state["bytes"] <= state["bytes_max"] == 1024 * 1024
        assert [read(gateway, name).status for name in (names[0], names[-1])] == [404, 200]
        assert gateway.metrics()["dandolo_prompt_log_forgotten_total"] > 0


def test_a_reload_ends_it_at_once_and_a_replacement_of_workers_begins_it(tmp_path: Path) -> None:
    with running(tmp_path) as gateway:
        name = id_of(answer := gateway.ask(asking()))
        kept(gateway, answer)

        def reload(before: str, after: str, count: int) -> None:
            gateway.config.write_text(gateway.config.read_text().replace(before, after))
            gateway.signal(signal.SIGHUP)
            until(lambda: gateway.said().count('"reloaded ') == count)

        reload("enabled = true", "enabled = false", 1)
        assert read(gateway, name).error["code"] == "not_kept"
        later = id_of(gateway.ask(asking()))
        reload("enabled = false", "enabled = true", 2)
        # It was on at the start: it goes on, without what was asked in between.
        assert kept(gateway, gateway.ask(asking()))
        assert [read(gateway, one).status for one in (name, later)] == [404, 404]


def test_it_is_off_unless_asked_for_and_needs_somebody_who_may_read(tmp_path: Path) -> None:
    with running(tmp_path, toml="") as gateway:
        name = id_of(gateway.ask(asking()))
        assert read(gateway, name).error["code"] == "not_kept"
        assert gateway.admin("/admin/snapshot").json["prompt_log"] is None
        assert "prompt_log" not in gateway.said()
        gateway.config.write_text(gateway.config.read_text() + ON)
        gateway.signal(signal.SIGHUP)
        until(lambda: "changed prompt_log.enabled; workers are replaced" in gateway.said())
        kept(gateway, gateway.ask(asking()))
        gateway.config.write_text(gateway.config.read_text().replace("admin = true", "admin = false"))
        gateway.signal(signal.SIGHUP)
        until(lambda: "needs a key with admin = true" in gateway.said())
        gateway.errors_expected = True


def test_texts_of_workers_that_lost_their_control_process_come_to_its_successor(tmp_path: Path) -> None:
    asked, answers = threading.Event(), threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            asked.set()
            answers.wait(30)
            body = b'{"id":"1","object":"chat.completion","model":"m","choices":[],"note":"%b"}' % ANSWERED.encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    upstream = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    upstream.daemon_threads = True
    thread = threading.Thread(target=upstream.serve_forever)
    thread.start()
    provider = Provider(SimProvider("late"), options={"base_url": f"http://127.0.0.1:{upstream.server_port}/v1"})
    server = {"listen": [f"127.0.0.1:{free_port()}"], "admin": f"127.0.0.1:{free_port()}", "drain_timeout": "20s"}
    try:
        with (
            Gateway(tmp_path, [provider], keys=KEYS, toml=ON, server=server, errors_expected=True) as gateway,
            gateway.client() as client,
        ):
            client.send(asking(temperature=0.5))
            assert asked.wait(10)
            (worker,) = gateway.workers()
            gateway.signal(signal.SIGKILL)
            gateway.wait()
            gateway.start()
            # The one before finishes what it has begun, and is heard out.
            answers.set()
            answer = client.answer()
            assert answer.status == 200
            assert worker not in gateway.workers()
            told = kept(gateway, answer)
            assert ASKED in told["asked"]
            assert ANSWERED in told["answered"]
    finally:
        answers.set()
        upstream.shutdown()
        thread.join()
        upstream.server_close()
