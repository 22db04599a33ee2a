"""The ledger behind a running gateway: what a provider bills is what is written down, whoever is killed meanwhile."""

from __future__ import annotations

import asyncio
import csv
import fcntl
import io
import json
import os
import random
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import CHAT, KEY, MODEL, Answer, Gateway, Provider, request, until

from dandolo.control import ledger_reading as reading
from dandolo.sim import Script, SimProvider, SimThread

PRICES = ({"id": MODEL, "input_usd_per_mtok": 1.0, "output_usd_per_mtok": 2.0},)
DEAR = ({"id": MODEL, "input_usd_per_mtok": 2.0, "output_usd_per_mtok": 4.0},)


class Stub:
    """A provider that bills: every answer has a cost of its own, told in `usage.cost`, and entered in `bill`.

    Enough HTTP for a gateway, in a thread of its own. `bill` maps request ids to micro-dollars; what is in it was
    answered in full, as far as this side can tell.
    """

    name = "stub"

    def __init__(self) -> None:
        self.bill: dict[str, int] = {}
        self.asked: set[str] = set()
        self.latency_s = 0.0
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self.port = 0
        self._thread = threading.Thread(target=self._run, daemon=True)

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def __enter__(self) -> Stub:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._server = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.port = self._server.sockets[0].getsockname()[1]
        self._ready.set()
        self._loop.run_forever()
        self._server.close()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.run_until_complete(asyncio.sleep(0))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
                fields = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line)
                await reader.readexactly(int(fields.get("content-length", "0")))
                name = fields.get("x-request-id", "")
                if not name:
                    # A probe: it asks for the list of models.
                    answer = b'{"object":"list","data":[]}'
                else:
                    self.asked.add(name)
                    await asyncio.sleep(self.latency_s or random.random() * 0.002)
                    cost = 1 + len(self.bill)
                    answer = json.dumps(
                        {
                            "id": name,
                            "object": "chat.completion",
                            "model": MODEL,
                            "choices": [
                                {
                                    "index": 0,
                                    "message": {"role": "assistant", "content": "x"},
                                    "finish_reason": "stop",
                                }
                            ],
                            "usage": {"prompt_tokens": 3, "completion_tokens": 4, "cost": cost / 1e6},
                        }
                    ).encode()
                writer.write(
                    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
                    % (len(answer), answer)
                )
                if name:
                    self.bill[name] = cost
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()


@pytest.fixture
def stub() -> Iterator[Stub]:
    with Stub() as running:
        yield running


def usage(gateway: Gateway, query: str = "") -> dict[str, Any]:
    answer = gateway.admin(f"/admin/usage{'?' + query if query else ''}")
    assert answer.status == 200, answer.body
    return answer.json


def ask(gateway: Gateway, **fields: object) -> Answer:
    answer = gateway.ask(request("/v1/chat/completions", {**CHAT, **fields}))
    assert answer.status == 200, answer.body
    return answer


def test_a_request_is_written_down_with_its_cost_and_found_by_its_id(tmp_path: Path) -> None:
    sim = SimProvider("sim", script=Script(tokens=10))
    with SimThread(sim), Gateway(tmp_path, [Provider(sim, models=PRICES)]) as gateway:
        plain, streamed = ask(gateway, temperature=0.7), ask(gateway, temperature=0.7, stream=True)
        told = usage(gateway, "by=model,provider,key")
        assert len(told["rows"]) == 1
        row = told["rows"][0]
        assert (row["model"], row["provider"], row["key"]) == (MODEL, "sim", "")
        assert (row["requests"], row["calls"], row["failed"], row["unknown"]) == (2, 2, 0, 0)
        tokens = row["tokens_in"], row["tokens_out"]
        assert row["paid_usd"] == pytest.approx((tokens[0] * 1.0 + tokens[1] * 2.0) / 1e6)
        assert row["paid_list_usd"] == row["paid_usd"] == row["direct_usd"]
        assert row["ratio"] == 1.0
        for answer, stream in ((plain, False), (streamed, True)):
            name = answer.header("x-request-id")
            one = gateway.admin(f"/admin/requests/{name}").json
            assert (one["id"], one["stream"], one["status"], one["attempts"]) == (name, stream, 200, 1)
            assert one["cost_source"] == "list"
            assert one["paid_usd"] > 0
            assert one["tokens_out"] > 0
            assert one["unsettled"] == []
            assert (one["first_token_ms"] is not None) == stream
        assert usage(gateway)["unsettled"]["count"] == 0
        assert gateway.metrics()["dandolo_ledger_up"] == 1


def test_a_kept_answer_costs_nothing_and_counts_as_saved(tmp_path: Path) -> None:
    sim = SimProvider("sim", script=Script(tokens=10))
    with SimThread(sim), Gateway(tmp_path, [Provider(sim, models=PRICES)]) as gateway:
        with gateway.client() as client:
            names = []
            for _ in range(20):
                # The last ones repeat a request to the byte, and are written down together.
                client.send(request(body={**CHAT, "temperature": 0}))
                answer = client.answer()
                assert answer.status == 200
                names.append(answer.header("x-request-id"))
        until(lambda: usage(gateway)["total"]["requests"] == 20)
        row = usage(gateway)["total"]
        for name in names[1:]:
            one = gateway.admin(f"/admin/requests/{name}").json
            assert (one["cache"], one["paid_usd"], one["saved_cache_usd"] > 0) == ("hit", 0, True)
        assert (row["requests"], row["calls"], row["cache_hits"], row["cache_misses"]) == (20, 1, 19, 1)
        assert row["saved_cache_usd"] == pytest.approx(19 * row["paid_usd"])
        assert row["direct_usd"] == pytest.approx(20 * row["paid_usd"])
        assert row["ratio"] == 0.05


def test_those_who_share_a_call_pay_it_once(tmp_path: Path) -> None:
    sim = SimProvider("sim", script=Script(tokens=10, latency_s=0.3))
    with SimThread(sim), Gateway(tmp_path, [Provider(sim, models=PRICES)]) as gateway:
        clients = [gateway.client() for _ in range(5)]
        for client in clients:
            client.send(request("/v1/chat/completions", {**CHAT, "temperature": 0}))
        assert [client.answer().status for client in clients] == [200] * 5
        for client in clients:
            client.reset()
        until(lambda: usage(gateway)["total"]["requests"] == 5)
        row = usage(gateway)["total"]
        assert (row["calls"], sim.received) == (1, 1)
        assert row["saved_cache_usd"] == pytest.approx(4 * row["paid_usd"])


def test_a_flight_that_everybody_left_is_still_paid(tmp_path: Path) -> None:
    sim = SimProvider("sim", script=Script(tokens=50, tokens_per_s=50))
    with SimThread(sim), Gateway(tmp_path, [Provider(sim, models=PRICES)]) as gateway:
        client = gateway.client()
        client.send(request("/v1/chat/completions", {**CHAT, "temperature": 0, "stream": True}))
        client.read_until(b"data:")
        client.reset()
        until(lambda: usage(gateway)["total"]["calls"] == 1)
        row = usage(gateway)["total"]
        assert (row["requests"], row["cancelled"]) == (1, 1)
        assert row["paid_usd"] == row["paid_estimated_usd"] > 0


def test_calls_that_travel_together_are_paid_once(tmp_path: Path) -> None:
    sim = SimProvider("sim", script=Script(latency_s=0.1))
    toml = "[cache]\nlevels = []\n"
    priced = ({"id": "sim-embed", "input_usd_per_mtok": 1.0, "output_usd_per_mtok": 0.0},)
    with SimThread(sim), Gateway(tmp_path, [Provider(sim, models=priced)], toml=toml) as gateway:
        clients = [gateway.client() for _ in range(6)]
        for n, client in enumerate(clients):
            client.send(request("/v1/embeddings", {"model": "sim-embed", "input": f"text number {n}"}))
        assert [client.answer().status for client in clients] == [200] * 6
        for client in clients:
            client.reset()
        until(lambda: usage(gateway)["total"]["requests"] == 6)
        row = usage(gateway)["total"]
        assert row["calls"] == sim.received < 6


def test_a_provider_that_fails_costs_nothing_and_the_next_one_is_compared_with_it(tmp_path: Path) -> None:
    dear, cheap = SimProvider("dear", script=Script(error_rate=1.0)), SimProvider("cheap", script=Script(tokens=10))
    providers = [Provider(dear, models=DEAR), Provider(cheap, models=PRICES)]
    with SimThread(dear), SimThread(cheap), Gateway(tmp_path, providers, routing={"breaker": False}) as gateway:
        ask(gateway, temperature=0.5)
        told = usage(gateway, "by=provider")
        rows = {row["provider"]: row for row in told["rows"]}
        assert (rows["dear"]["requests"], rows["dear"]["calls"], rows["dear"]["paid_usd"]) == (0, 1, 0)
        assert (rows["cheap"]["requests"], rows["cheap"]["calls"]) == (1, 1)
        assert told["total"]["ratio"] == 0.5
        assert told["total"]["saved_routing_usd"] == pytest.approx(rows["cheap"]["paid_usd"])


def test_a_client_that_leaves_is_charged_what_it_may_have_cost(tmp_path: Path) -> None:
    sim = SimProvider("sim", script=Script(tokens=10, latency_s=30))
    with SimThread(sim), Gateway(tmp_path, [Provider(sim, models=PRICES)]) as gateway:
        client = gateway.client()
        client.send(request("/v1/chat/completions", {**CHAT, "temperature": 0.5}))
        until(lambda: sim.in_flight)
        client.reset()
        until(lambda: usage(gateway)["total"]["cancelled"])
        row = usage(gateway)["total"]
        assert (row["calls"], row["paid_usd"] == row["paid_estimated_usd"], row["paid_usd"] > 0) == (1, True, True)


def test_our_own_count_is_told_from_the_providers_also_where_a_key_is_charged(tmp_path: Path) -> None:
    sim = SimProvider("sim", script=Script(tokens=200, tokens_per_s=50))
    keys = [{"key": KEY, "name": "bounded", "budget_usd_per_day": 1000.0, "admin": True}]
    with SimThread(sim), Gateway(tmp_path, [Provider(sim, models=PRICES)], keys=keys) as gateway:
        client = gateway.client()
        client.send(request(body={**CHAT, "temperature": 0.5, "stream": True}, key=KEY))
        client.read_until(b'"content"')
        client.reset()
        until(lambda: usage(gateway)["total"]["calls"])
        row = usage(gateway)["total"]
        assert row["paid_usd"] == row["paid_estimated_usd"] > 0


def test_questions_are_judged_and_answered_as_csv_too(tmp_path: Path) -> None:
    sim = SimProvider("sim", script=Script(tokens=10))
    keys = [{"key": KEY, "name": "ci", "tags": {"team": 'we"b', "env": "test"}, "admin": True}]
    with SimThread(sim), Gateway(tmp_path, [Provider(sim, models=PRICES)], keys=keys) as gateway:
        answer = gateway.ask(request("/v1/chat/completions", CHAT, key=KEY))
        assert answer.status == 200, answer.body
        for query in (
            "by=shoe",
            "by=key,key",
            "since=yesterday",
            "until=1d&until=2d",
            "format=xml",
            "drop=table",
            "by=tag,tag:a",
        ):
            refused = gateway.admin(f"/admin/usage?{query}")
            assert refused.status == 400, query
            assert refused.error["message"]
        assert usage(gateway, "by=tag:team")["rows"][0]["tag:team"] == 'we"b'
        assert usage(gateway, "by=tag")["rows"][0]["tag"] == 'env=test, team=we"b'
        assert usage(gateway, "since=1h")["total"]["requests"] == 1
        assert usage(gateway, "until=2020-01-01")["total"]["requests"] == 0
        plain = gateway.admin("/admin/usage?by=key,hour&format=csv")
        assert (plain.header("content-type") or "").startswith("text/csv")
        rows = list(csv.DictReader(io.StringIO(plain.body.decode())))
        assert (rows[0]["key"], rows[0]["requests"]) == ("ci", "1")
        assert gateway.admin("/admin/requests/req_0123456789ab0000000001").status == 404
        assert gateway.admin("/admin/requests/'; DROP TABLE request").status in (400, 404)


def test_the_command_line_answers_with_and_without_a_running_gateway(tmp_path: Path) -> None:
    sim = SimProvider("sim", script=Script(tokens=10))
    with SimThread(sim):
        gateway = Gateway(tmp_path, [Provider(sim, models=PRICES)])
        environ = {**os.environ, "PROVIDER_KEY_0": "sk-provider-0123456789"}

        def run(*arguments: str) -> str:
            command = [sys.executable, "-m", "dandolo", "usage", "--config", str(gateway.config), *arguments]
            done = subprocess.run(command, capture_output=True, text=True, timeout=30, env=environ)
            assert done.returncode == 0, done.stderr
            return done.stdout

        with gateway:
            ask(gateway, temperature=0.5)
            where = ["--admin", f"127.0.0.1:{gateway.admin_port}"]
            table = run("--by", "model", *where)
            assert table.split("\n")[1].split()[:2] == [MODEL, "1"]
        # The file of this machine is asked where its own gateway does not run, and never for another that is named.
        assert run("--by", "model") == table
        told = json.loads(run("--format", "json"))
        assert told["total"]["requests"] == 1
        assert "sim" in run("--by", "provider", "--format", "csv")
        report = run("--slo")
        assert "kept" in report
        assert "availability" in report


def test_the_start_does_not_fail_for_the_ledgers_sake(tmp_path: Path) -> None:
    sim = SimProvider("sim", script=Script(tokens=10))
    (tmp_path / "state").write_text("a file where the folder should be")
    with SimThread(sim), Gateway(tmp_path, [Provider(sim)], errors_expected=True) as gateway:
        ask(gateway, temperature=0.5)
        assert gateway.admin("/admin/usage").status == 503
        assert gateway.admin("/admin/slo").status == 200
        until(lambda: gateway.metrics()["dandolo_ledger_up"] == 0)
        # As soon as there is a place for it, it begins.
        (tmp_path / "state").unlink()
        until(lambda: gateway.metrics()['dandolo_journal_up{worker="0"}'] == 1)
        ask(gateway, temperature=0.5)
        until(lambda: gateway.metrics()["dandolo_ledger_up"] == 1)
        assert usage(gateway)["total"]["requests"] == 1
    assert "the ledger cannot be written" in gateway.said()


def test_without_a_journal_only_keys_with_a_budget_are_refused(tmp_path: Path) -> None:
    sim = SimProvider("sim", script=Script(tokens=10))
    other = "sk-other-0123456789abcdef0123456789abcdef"
    keys = [{"key": other, "name": "free"}, {"key": KEY, "name": "bounded", "budget_usd_per_day": 1000.0}]
    (tmp_path / "state").mkdir()
    (tmp_path / "state/journal").write_text("a file where the folder should be")
    with SimThread(sim), Gateway(tmp_path, [Provider(sim, models=PRICES)], keys=keys, errors_expected=True) as gateway:
        for stream in (False, True):
            body = {**CHAT, "temperature": 0.5, "stream": stream}
            refused = gateway.ask(request(body=body, key=KEY))
            assert (refused.status, refused.error["code"]) == (503, "ledger_full")
            assert "there is no journal" in refused.error["message"]
            assert gateway.ask(request(body=body, key=other)).status == 200
        metrics = gateway.metrics()
        assert metrics['dandolo_journal_up{worker="0"}'] == 0
        assert metrics['dandolo_journal_unwritten_total{worker="0"}'] >= 2
        assert sim.received == 2
        (tmp_path / "state/journal").unlink()
        until(lambda: gateway.ask(request(body={**CHAT, "temperature": 0.5}, key=KEY)).status == 200)
        rows = {row["key"]: row for row in usage(gateway, "by=key")["rows"]}
        assert rows["bounded"]["calls"] == 1


def test_without_a_ledger_budgets_hold_by_the_board_and_what_was_saved(tmp_path: Path) -> None:
    sim = SimProvider("sim", script=Script(tokens=1000))
    keys = [{"key": KEY, "name": "bounded", "budget_usd_per_day": 0.02, "admin": True}]
    toml = "[ledger]\nenabled = false\n"
    with SimThread(sim):
        gateway = Gateway(tmp_path, [Provider(sim, models=PRICES)], keys=keys, toml=toml)
        body = {**CHAT, "temperature": 0.5, "max_tokens": 2000}
        with gateway, gateway.client() as client:
            for _ in range(100):
                client.send(request(body=body, key=KEY))
                answer = client.answer()
                if answer.status != 200:
                    break
            assert (answer.status, answer.error["code"]) == (402, "budget_exceeded")
        # An orderly end keeps it.
        with gateway:
            assert gateway.ask(request(body=body, key=KEY)).status == 402


def test_a_kept_answer_that_is_not_there_is_no_failure(tmp_path: Path) -> None:
    sim = SimProvider("sim", script=Script(tokens=10))
    with SimThread(sim), Gateway(tmp_path, [Provider(sim, models=PRICES)]) as gateway:
        only = {"Cache-Control": "only-if-cached"}
        absent = gateway.ask(request(body={**CHAT, "temperature": 0}, headers=only))
        assert (absent.status, absent.error["code"]) == (504, "not_cached")
        row = usage(gateway)["total"]
        assert (row["requests"], row["failed"], row["refused"], row["cache_hits"], row["calls"]) == (1, 0, 0, 0, 0)


def test_nothing_is_written_where_the_ledger_is_off(tmp_path: Path) -> None:
    sim = SimProvider("sim", script=Script(tokens=10))
    with SimThread(sim), Gateway(tmp_path, [Provider(sim)], toml="[ledger]\nenabled = false\n") as gateway:
        ask(gateway, temperature=0.5)
    assert not list(tmp_path.glob("state/ledger*"))
    assert not list(tmp_path.glob("state/journal/*"))


def test_a_key_with_a_budget_is_refused_when_its_spending_cannot_be_written_down(tmp_path: Path) -> None:
    sim = SimProvider("sim", script=Script(tokens=1))
    other = "sk-other-0123456789abcdef0123456789abcdef"
    keys = [
        {"key": KEY, "name": "bounded", "budget_usd_per_day": 1000.0, "admin": True},
        {"key": other, "name": "free"},
    ]
    toml = '[ledger]\njournal_bytes = "64KiB"\n'
    state = tmp_path / "state"
    state.mkdir()
    # Another process has the ledger, and does not read: as when the control process has been stopped.
    with (state / "ledger.db.lock").open("w") as lock, SimThread(sim):
        fcntl.flock(lock, fcntl.LOCK_EX)
        gateway = Gateway(tmp_path, [Provider(sim, models=PRICES)], keys=keys, toml=toml, errors_expected=True)
        with gateway, gateway.client() as client:

            def asked(key: str) -> Answer:
                client.send(request(body={**CHAT, "temperature": 0.5}, key=key))
                return client.answer()

            answers = [asked(KEY)]
            while answers[-1].status == 200 and len(answers) < 2000:
                answers.append(asked(KEY))
            refused = answers[-1]
            assert (refused.status, refused.error["code"], refused.header("retry-after")) == (503, "ledger_full", "1")
            assert len(answers) > 200
            received = sim.received
            assert asked(KEY).status == 503
            assert sim.received == received
            # Whoever has no budget goes on, and is counted as missing.
            assert [asked(other).status for _ in range(50)] == [200] * 50
            lock.close()
            until(lambda: gateway.metrics()["dandolo_ledger_up"] == 1)
            until(lambda: asked(KEY).status == 200)
            told = usage(gateway, "by=key")
            rows = {row["key"]: row for row in told["rows"]}
            assert rows["bounded"]["calls"] >= len(answers) - 1
            assert told["dropped"] >= 50
            assert rows.get("free", {"requests": 0})["requests"] + told["dropped"] >= 50


@pytest.mark.parametrize("winner", ["a", "b"])
def test_both_calls_of_a_hedge_are_written_down(tmp_path: Path, winner: str) -> None:
    a, b = SimProvider("a", script=Script(tokens=5)), SimProvider("b", script=Script(tokens=5))
    with (
        SimThread(a),
        SimThread(b),
        Gateway(tmp_path, [Provider(a, models=PRICES), Provider(b, models=PRICES)], routing={"hedge": True}) as gateway,
    ):
        for _ in range(30):
            ask(gateway, temperature=0.5, stream=True)
        before = {row["provider"]: row for row in usage(gateway, "by=provider")["rows"]}
        assert (before["a"]["calls"], "b" in before) == (30, False)
        a.script = Script(tokens=5, first_token_s=30.0 if winner == "b" else 0.8)
        b.script = Script(tokens=5, first_token_s=30.0 if winner == "a" else 0.0)
        answer = ask(gateway, temperature=0.5, stream=True)
        assert answer.header("x-dandolo-provider") == winner
        told = usage(gateway, "by=provider")
        after = {row["provider"]: row for row in told["rows"]}
        assert (after["a"]["calls"], after["b"]["calls"]) == (31, 1)
        assert told["total"]["requests"] == 31
        loser = after["b" if winner == "a" else "a"]
        assert loser["paid_estimated_usd"] > 0
        # Whoever had the content is paid by what it counted.
        assert after[winner]["paid_estimated_usd"] == 0
        one = gateway.admin(f"/admin/requests/{answer.header('x-request-id')}").json
        assert (one["provider"], one["attempts"], one["unsettled"]) == (winner, 2, [])


def test_a_backup_has_all_that_was_written_down_until_then(tmp_path: Path) -> None:
    sim = SimProvider("sim", script=Script(tokens=1))
    toml = "[cache]\nlevels = []\n"
    copies = iter(range(10))

    def copied() -> tuple[int, str]:
        """How many calls a new backup has, and what was said."""
        into = tmp_path / f"backups{next(copies)}"
        command = [sys.executable, "-m", "dandolo", "backup", str(into), "--config", str(gateway.config)]
        environ = {**os.environ, "PROVIDER_KEY_0": "sk-provider-0123456789"}
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environ)
        assert done.returncode == 0, done.stderr
        (folder,) = into.iterdir()
        return reading.usage(folder / "ledger.db", reading.Question())["total"]["calls"], done.stderr

    def many() -> None:
        with gateway.client() as client:
            for _ in range(50):
                client.send(request(body={**CHAT, "temperature": 0.5}))
                assert client.answer().status == 200

    with SimThread(sim):
        gateway = Gateway(tmp_path, [Provider(sim, models=PRICES)], toml=toml)
        with gateway:
            many()
            assert copied() == (50, "")
            # Nobody reads, and then everybody is dead: the backup does it itself.
            os.kill(gateway.pid, signal.SIGSTOP)
            many()
            gateway.kill()
        assert copied() == (100, "")
        assert not list((tmp_path / "state/journal").iterdir())


@pytest.mark.parametrize("winner", ["a", "b"])
def test_a_key_is_charged_for_both_calls_of_a_hedge(tmp_path: Path, winner: str) -> None:
    a, b = SimProvider("a", script=Script(tokens=5)), SimProvider("b", script=Script(tokens=5))
    providers = [Provider(a, models=PRICES), Provider(b, models=PRICES)]
    keys = [{"key": KEY, "name": "bounded", "budget_usd_per_day": 0.009, "admin": True}]
    # Without a ledger: the board is told by nobody else.
    toml = "[ledger]\nenabled = false\n"
    with (
        SimThread(a),
        SimThread(b),
        Gateway(tmp_path, providers, keys=keys, routing={"hedge": True}, toml=toml) as gateway,
    ):

        def streamed(**fields: object) -> tuple[str | None, float]:
            """Who answered, and what the key was charged for it."""
            before = gateway.admin("/admin/keys").json["keys"][0]["usage"]["spent_usd_day"]
            body = {**CHAT, "temperature": 0.5, "stream": True, "max_tokens": 1000, **fields}
            answer = gateway.ask(request(body=body, key=KEY))
            assert answer.status == 200, answer.body
            until(lambda: gateway.admin("/admin/keys").json["keys"][0]["usage"]["reserved_usd"] == 0)
            after = gateway.admin("/admin/keys").json["keys"][0]["usage"]["spent_usd_day"]
            return answer.header("x-dandolo-provider"), after - before

        usual = [streamed()[1] for _ in range(30)][-1]
        a.script = Script(tokens=5, first_token_s=30.0 if winner == "b" else 0.8)
        b.script = Script(tokens=5, first_token_s=30.0 if winner == "a" else 0.0)
        who, charged = streamed()
        assert (who, b.received) == (winner, 1)
        # One is charged for its answer, the other for what it was sent.
        assert usual + 10e-6 < charged < 4 * usual
        # Where two calls could cost more than is left, there is one.
        a.script, b.script = Script(tokens=5, first_token_s=0.8), Script(tokens=5)
        assert streamed(max_tokens=3500)[0] == "a"
        assert b.received == 1


# -- kill −9 -------------------------------------------------------------------------------------------------------


def hammer(gateway: Gateway, stop: threading.Event, answered: dict[str, int]) -> None:
    """One client that asks and asks, and writes down what it was answered."""
    try:
        with gateway.client() as client:
            while not stop.is_set():
                client.send(request("/v1/chat/completions", {**CHAT, "temperature": 0.5}))
                answer = client.answer()
                if not answer.status:
                    return
                answered[answer.header("x-request-id") or ""] = answer.status
    except (OSError, AssertionError):
        pass


def killed_alone(gateway: Gateway) -> None:
    """kill −9 of the control process: its workers go on until a successor serves."""
    process = gateway._process
    assert process is not None
    process.kill()
    process.wait()
    gateway._process = None


def test_the_ledger_is_the_providers_bill_after_kill_9_but_for_what_was_under_way(tmp_path: Path, stub: Stub) -> None:
    gateway = Gateway(
        tmp_path,
        [Provider(stub, models=PRICES)],
        server={**fixed(), "workers": 2},
        errors_expected=True,  # type: ignore[arg-type]
    )
    answered: dict[str, int] = {}
    rng = random.Random(7)
    for whom in ("both", "worker", "control", "worker", "both", "control"):
        if not gateway.alive:
            gateway.start()
        stop = threading.Event()
        threads = [threading.Thread(target=hammer, args=(gateway, stop, answered)) for _ in range(8)]
        for thread in threads:
            thread.start()
        time.sleep(0.3 + rng.random() * 0.4)
        if whom == "worker":
            os.kill(rng.choice(gateway.workers()), signal.SIGKILL)
        elif whom == "control":
            killed_alone(gateway)
        else:
            gateway.kill()
        stop.set()
        for thread in threads:
            thread.join(10)
    with gateway:
        left = tmp_path / "state/journal"
        until(lambda: len(list(left.glob("*.ring"))) <= 2, 30, "journals of the dead are not read")
        total = usage(gateway)
        command = [sys.executable, "-m", "dandolo", "usage", "--unsettled", "--config", str(gateway.config)]
        environ = {**os.environ, "PROVIDER_KEY_0": "sk-provider-0123456789"}
        said = {
            form: subprocess.run(
                [*command, "--format", form], capture_output=True, text=True, timeout=30, env=environ, check=True
            ).stdout
            for form in ("table", "csv", "json")
        }
    assert len(answered) > 200
    with sqlite3.connect(tmp_path / "state/ledger.db") as ledger:
        parts = reading.settlements(tmp_path / "state/ledger.db")
        paid = {f"{part.prefix}{part.number:010x}": round(part.paid / 1e3) for part in parts}
        assert len(paid) == len(parts), "counted twice"
        summed = ledger.execute("SELECT sum(paid), sum(calls) FROM hourly").fetchone()
        unsettled = {f"{p}{n:010x}" for p, n in ledger.execute("SELECT prefix, number FROM unsettled WHERE lost = 1")}
    ledger.close()
    # Who was answered is in the ledger with the very cost.
    assert {name: stub.bill[name] for name in answered} == {name: paid.get(name) for name in answered}
    # Whatever else the provider was asked is listed as unsettled, or was settled just before its answer left.
    assert stub.asked == set(paid) | unsettled
    assert not set(paid) & unsettled
    assert all(paid[name] == stub.bill[name] for name in paid)
    assert summed == (sum(paid.values()) * 1000, len(paid))
    assert total["unsettled"]["count"] == len(unsettled) <= 6 * 8
    assert {one["id"] for one in total["unsettled"]["newest"]} == unsettled
    assert {line.split()[1] for line in said["table"].splitlines()[1:]} == unsettled
    assert {row["id"] for row in csv.DictReader(io.StringIO(said["csv"]))} == unsettled
    assert {one["id"] for one in json.loads(said["json"])["newest"]} == unsettled


def fixed() -> dict[str, object]:
    """Ports known beforehand: a successor can take over."""
    with socket.socket() as one, socket.socket() as other:
        one.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        return {
            "listen": [f"127.0.0.1:{one.getsockname()[1]}"],
            "admin": f"127.0.0.1:{other.getsockname()[1]}",
            "drain_timeout": "10s",
        }


def test_a_successor_has_the_ledger_as_soon_as_it_serves(tmp_path: Path, stub: Stub) -> None:
    with Gateway(tmp_path, [Provider(stub, models=PRICES)], server=fixed()) as gateway:  # type: ignore[arg-type]
        with gateway.client() as busy:
            # Something that is under way keeps the predecessor.
            stub.latency_s = 1.5
            busy.send(request(body={**CHAT, "temperature": 0.5}))
            until(lambda: len(stub.asked) == 1)
            stub.latency_s = 0.0
            ask(gateway, temperature=0.5)
            successor = Gateway.beside(gateway, "--upgrade")
            with successor:
                ask(successor, temperature=0.5)
                until(lambda: successor.metrics()["dandolo_ledger_up"] == 1)
                assert busy.answer().status == 200
                until(lambda: usage(successor)["total"]["requests"] == 3)
                gateway.wait()
                assert usage(successor)["total"]["paid_usd"] == pytest.approx(sum(stub.bill.values()) / 1e6)
                assert usage(successor)["unsettled"]["count"] == 0
        assert "ledger cannot be written" not in successor.said()


def test_a_control_process_that_stands_still_loses_nothing(tmp_path: Path, stub: Stub) -> None:
    keys = [{"key": KEY, "name": "bounded", "budget_usd_per_day": 1000.0, "admin": True}]
    with Gateway(tmp_path, [Provider(stub, models=PRICES)], keys=keys) as gateway:  # type: ignore[arg-type]
        os.kill(gateway.pid, signal.SIGSTOP)
        try:
            with gateway.client() as client:
                for _ in range(300):
                    client.send(request(body={**CHAT, "temperature": 0.5}, key=KEY))
                    assert client.answer().status == 200
        finally:
            os.kill(gateway.pid, signal.SIGCONT)
        until(lambda: usage(gateway)["total"]["requests"] == 300)
        assert usage(gateway)["total"]["paid_usd"] == pytest.approx(sum(stub.bill.values()) / 1e6)
