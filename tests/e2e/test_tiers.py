"""Tiers behind memory, before a simulated provider: real Redis servers, a real file, several gateways and restarts."""

from __future__ import annotations

import contextlib
import json
import signal
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import Answer, Gateway, chat, request, until
from redis_servers import PROGRAM, RealCluster, RealRedis

from dandolo.sim.script import Fault, Script
from dandolo.sim.server import SimProvider
from dandolo.sim.thread import SimThread

needs_redis = pytest.mark.skipif(PROGRAM is None, reason="no redis-server")
SECRET = {"DANDOLO_CACHE_SECRET": "s" * 32}


@contextlib.contextmanager
def provider(script: Script | None = None) -> Iterator[SimProvider]:
    sim = SimProvider("sim", script=script or Script())
    with SimThread(sim):
        yield sim


def gateway(directory: Path, sim: SimProvider, levels: list[str], more: str = "", **options: Any) -> Gateway:
    listed = ", ".join(f'"{level}"' for level in levels)
    toml = f'[cache]\nsampled = "reuse"\nlevels = [{listed}]\nsecret = {{ env = "DANDOLO_CACHE_SECRET" }}\n{more}'
    return Gateway(directory, [sim], toml=toml, environ=SECRET, **options)


def redis(server: RealRedis, path: bool = False) -> str:
    url = f"unix://{server.path}" if path else f"redis://127.0.0.1:{server.port}/0"
    return f'[cache.redis]\nurl = "{url}"\n'


def ask(gateway: Gateway, text: str = "What is the capital of Peru?", **more: Any) -> Answer:
    headers, key = more.pop("headers", {}), more.pop("key", None)
    body = chat(**{"model": "sim/m", "messages": [{"role": "user", "content": text}], **more})
    return gateway.ask(request(body=body, headers=headers, key=key))


def outcome(answer: Answer) -> tuple[str, str]:
    """What the cache did, and which tier had it."""
    assert answer.status == 200, answer.body
    status = answer.header("cache-status") or ""
    return answer.header("x-cache") or "", status.rpartition("detail=")[2] if "detail=" in status else ""


def connected(gateway: Gateway) -> None:
    until(lambda: gateway.metrics().get('dandolo_cache_tier_up{tier="l2"}') == 1.0, what="no connection to Redis")


def opened(gateway: Gateway) -> None:
    until(lambda: gateway.metrics().get('dandolo_cache_tier_up{tier="l3"}') == 1.0, what="the file was not opened")


# -- Redis ---------------------------------------------------------------------------------------------------


@needs_redis
@pytest.mark.parametrize("path", [False, True], ids=["tcp", "unix"])
def test_hosts_share_answers_through_redis(tmp_path: Path, path: bool) -> None:
    with RealRedis(tmp_path) as server, provider() as sim:
        more, levels = redis(server, path), ["memory", "redis"]
        with gateway(tmp_path / "a", sim, levels, more) as one, gateway(tmp_path / "b", sim, levels, more) as two:
            connected(one)
            connected(two)
            first = ask(one)
            assert outcome(first) == ("MISS", "")
            until(lambda: server.ask("DBSIZE") == 1)
            again = ask(two)
            assert outcome(again) == ("HIT", "l2")
            assert again.body == first.body
            assert again.header("x-dandolo-provider") == "sim"
            assert outcome(ask(two)) == ("HIT", "l1")
            assert outcome(ask(two, stream=True)) == ("HIT", "l1")
            assert len(sim.requests) == 1
            # Another host removes it: the copy in memory goes with it.
            (key,) = server.ask("KEYS", "*")  # type: ignore[misc]
            server.ask("UNLINK", key)
            until(lambda: outcome(ask(two, headers={"cache-control": "max-age=3600"}))[0] == "MISS")


@needs_redis
def test_stream_that_another_host_kept_is_given_in_both_forms(tmp_path: Path) -> None:
    with RealRedis(tmp_path) as server, provider() as sim:
        more, levels = redis(server), ["memory", "redis"]
        with gateway(tmp_path / "a", sim, levels, more) as one, gateway(tmp_path / "b", sim, levels, more) as two:
            connected(one)
            connected(two)
            assert ask(one, stream=True).events[-1] == b"[DONE]"
            until(lambda: server.ask("DBSIZE") == 1)
            streamed = ask(two, stream=True)
            assert outcome(streamed) == ("HIT", "l2")
            assert streamed.complete
            assert streamed.events[-1] == b"[DONE]"
            assert outcome(ask(two)) == ("HIT", "l1")


@needs_redis
def test_privacy_leaves_nothing_outside_the_process(tmp_path: Path) -> None:
    with RealRedis(tmp_path) as server, provider() as sim:
        levels = ["memory", "redis", "sqlite"]
        keys = [{"name": "open", "key": "k-open"}, {"name": "private", "key": "k-private", "privacy": True}]
        with gateway(tmp_path / "a", sim, levels, redis(server), keys=keys) as one:
            connected(one)
            opened(one)
            assert outcome(ask(one, "A secret question?", key="k-private"))[0] == "MISS"
            assert outcome(ask(one, "A secret question?", key="k-private")) == ("HIT", "l1")
            assert outcome(ask(one, "An open question?", key="k-open"))[0] == "MISS"
            until(lambda: server.ask("DBSIZE") == 1)
        with contextlib.closing(sqlite3.connect(tmp_path / "a" / "state" / "cache.db")) as file:
            assert file.execute("SELECT count(*) FROM entry").fetchone() == (1,)


@needs_redis
def test_keys_of_other_tenants_find_nothing_in_shared_tiers(tmp_path: Path) -> None:
    keys = [{"name": "one", "key": "k-one"}, {"name": "two", "key": "k-two"}]
    with (
        RealRedis(tmp_path) as server,
        provider() as sim,
        gateway(tmp_path / "a", sim, ["redis"], redis(server), keys=keys) as one,
    ):
        connected(one)
        assert outcome(ask(one, key="k-one"))[0] == "MISS"
        until(lambda: server.ask("DBSIZE") == 1)
        assert outcome(ask(one, key="k-one")) == ("HIT", "l2")
        assert outcome(ask(one, key="k-two"))[0] == "MISS"


@needs_redis
@pytest.mark.promise("49")
@pytest.mark.parametrize("kind", ["garbage", "truncated", "foreign", "empty"])
def test_values_that_are_none_of_ours_are_misses_and_removed(tmp_path: Path, kind: str) -> None:
    with (
        RealRedis(tmp_path) as server,
        provider() as sim,
        gateway(tmp_path / "a", sim, ["redis"], redis(server)) as one,
    ):
        connected(one)
        first, other = ask(one), ask(one, "What is the capital of Chile?")
        until(lambda: server.ask("DBSIZE") == 2)
        names = server.ask("KEYS", "*")
        assert isinstance(names, list)
        values = {name: server.ask("GET", name) for name in names}  # type: ignore[arg-type]
        mine, theirs = names if first.body in values[names[0]] else reversed(names)  # type: ignore[operator]
        assert other.body in values[theirs]  # type: ignore[operator]
        bad = {
            "garbage": b"\xda\x00garbage",
            "truncated": values[mine][:-3],  # type: ignore[index]
            "foreign": values[theirs],
            "empty": b"",
        }[kind]
        server.ask("SET", mine, bad)  # type: ignore[arg-type]
        made = until(lambda: (a := ask(one)).header("x-cache") == "MISS" and a)
        assert made.json["choices"][0]["message"]["content"]
        until(lambda: outcome(ask(one)) == ("HIT", "l2"))
        assert one.errors() == []


@needs_redis
@pytest.mark.promise("50")
@pytest.mark.parametrize("how", ["killed", "hung"])
def test_redis_that_fails_costs_no_answer_and_heals(tmp_path: Path, how: str) -> None:
    with (
        RealRedis(tmp_path) as server,
        provider(Script()) as sim,
        gateway(tmp_path / "a", sim, ["redis"], redis(server)) as one,
    ):
        connected(one)
        assert outcome(ask(one))[0] == "MISS"
        until(lambda: outcome(ask(one)) == ("HIT", "l2"))
        failures: list[Answer] = []
        waits: list[float] = []
        over = threading.Event()

        def load(number: int) -> None:
            asked = 0
            while not over.is_set():
                began = time.monotonic()
                answer = ask(one, f"Question {number} of {asked % 7}?")
                waits.append(time.monotonic() - began)
                asked += 1
                if answer.status != 200:
                    failures.append(answer)

        threads = [threading.Thread(target=load, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        until(lambda: len(waits) > 50, 20.0)
        if how == "killed":
            server.kill()
        else:
            server.signal(signal.SIGSTOP)
        since = len(waits)
        until(lambda: len(waits) > since + 100, 30.0)
        if how == "killed":
            server.start()
        else:
            server.signal(signal.SIGCONT)
        until(lambda: outcome(ask(one)) == ("HIT", "l2"), 10.0, "Redis is back, and nobody asks it")
        over.set()
        for thread in threads:
            thread.join()
        assert failures == []


@needs_redis
def test_cluster_serves_and_a_lost_node_costs_no_answer(tmp_path: Path) -> None:
    with RealCluster(tmp_path) as cluster, provider() as sim:
        more = f'[cache.redis]\nurl = "redis+cluster://127.0.0.1:{cluster.nodes[0].port}"\n'
        with gateway(tmp_path / "a", sim, ["redis"], more) as one:
            connected(one)
            texts = [f"Question {number}?" for number in range(12)]
            until(lambda: one.metrics()['dandolo_cache_tier_up{tier="l2"}'] == 1.0)
            assert {outcome(ask(one, text))[0] for text in texts} == {"MISS"}
            until(lambda: sum(int(node.ask("DBSIZE")) for node in cluster.nodes) == 12)  # type: ignore[arg-type]
            assert {outcome(ask(one, text)) for text in texts} == {("HIT", "l2")}
            cluster.nodes[1].kill()
            assert {ask(one, text).status for text in texts} == {200}


# -- disk ----------------------------------------------------------------------------------------------------


def test_answers_on_disk_outlive_the_process(tmp_path: Path) -> None:
    with provider() as sim:
        with gateway(tmp_path, sim, ["memory", "sqlite"]) as one:
            opened(one)
            first = ask(one)
            assert outcome(first)[0] == "MISS"
        with gateway(tmp_path, sim, ["memory", "sqlite"]) as one:
            opened(one)
            again = ask(one)
            assert outcome(again) == ("HIT", "l3")
            assert again.body == first.body
            assert outcome(ask(one)) == ("HIT", "l1")
            assert len(sim.requests) == 1


def test_secret_is_made_once_where_none_is_given(tmp_path: Path) -> None:
    toml = '[cache]\nsampled = "reuse"\nlevels = ["memory", "sqlite"]\n'
    with provider() as sim:
        with Gateway(tmp_path, [sim], toml=toml) as one:
            opened(one)
            ask(one)
        secret = tmp_path / "state" / "cache.secret"
        assert secret.stat().st_mode & 0o777 == 0o600
        with Gateway(tmp_path, [sim], toml=toml) as one:
            opened(one)
            assert outcome(ask(one)) == ("HIT", "l3")


@pytest.mark.promise("51")
def test_disk_that_cannot_be_used_costs_no_answer(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "cache.db").mkdir()
    with provider() as sim, gateway(tmp_path, sim, ["memory", "sqlite"], errors_expected=True) as one:
        assert [outcome(ask(one)) for _ in range(2)] == [("MISS", ""), ("HIT", "l1")]
        assert one.metrics()['dandolo_cache_tier_up{tier="l3"}'] == 0.0


@pytest.mark.promise("51")
def test_kill_in_the_middle_of_writing_leaves_a_file_that_serves(tmp_path: Path) -> None:
    def kept() -> int:
        with contextlib.closing(sqlite3.connect(f"file:{tmp_path}/state/cache.db?mode=ro", uri=True)) as file:
            return int(file.execute("SELECT count(*) FROM entry").fetchone()[0])

    with provider() as sim:
        for round_ in range(3):
            one = gateway(tmp_path, sim, ["memory", "sqlite"])
            one.start()
            opened(one)
            before, asked = kept(), 0
            # Killed while more is being written, not between two batches.
            while kept() == before:
                ask(one, f"Question {round_} {asked}?")
                asked += 1
            one.kill()
        with gateway(tmp_path, sim, ["memory", "sqlite"]) as last:
            opened(last)
            assert outcome(ask(last, "Question 0 0?")) == ("HIT", "l3")


@pytest.mark.promise("45")
def test_names_are_never_part_of_a_statement(tmp_path: Path) -> None:
    model = "sim/m'); DROP TABLE entry; --"
    keys = [{"name": "one", "key": "k-one", "tags": {"team": "x'); DELETE FROM entry; --"}}]
    with provider() as sim:
        for tier in ("", "l3"):
            with gateway(tmp_path, sim, ["sqlite"], keys=keys) as one:
                opened(one)
                until(lambda one=one, tier=tier: outcome(ask(one, key="k-one", model=model))[1] == (tier or "l3"))
                until(lambda one=one: outcome(ask(one, key="k-one"))[1] == "l3")


# -- refusals ------------------------------------------------------------------------------------------------


def test_refusal_is_repeated_without_asking_again(tmp_path: Path) -> None:
    said = json.dumps({"error": {"message": "no such parameter 'x'", "type": "invalid_request_error"}})
    fault = Fault("status", status=400, body=said)
    with provider(Script(default_fault=fault)) as sim, gateway(tmp_path, sim, ["memory"]) as one:
        first, second = ask(one), ask(one)
        assert (first.status, second.status) == (400, 400)
        assert second.error == first.error
        assert (first.header("x-cache"), second.header("x-cache")) == (None, "HIT")
        assert len(sim.requests) == 1
        # In the other form it has not been refused yet.
        assert ask(one, stream=True).header("x-cache") is None
        assert len(sim.requests) > 1


@pytest.mark.parametrize("status", [401, 403, 429, 500, 503])
def test_passing_failures_are_never_repeated(tmp_path: Path, status: int) -> None:
    script = Script(default_fault=Fault("status", status=status))
    with provider(script) as sim, gateway(tmp_path, sim, ["memory"], routing={"breaker": False}) as one:
        ask(one)
        before = len(sim.requests)
        assert ask(one).header("x-cache") is None
        assert len(sim.requests) > before


# -- other words ---------------------------------------------------------------------------------------------


def test_same_question_in_other_words_is_answered_where_that_is_wanted(tmp_path: Path) -> None:
    with provider() as sim, gateway(tmp_path, sim, ["memory"], 'semantic = "normal"\n') as one:
        first = ask(one, "What is the capital of Peru?")
        assert outcome(first)[0] == "MISS"
        again = ask(one, "Please, what's the capital of Peru?")
        assert outcome(again) == ("SEMANTIC", "semantic")
        assert again.body == first.body
        assert outcome(ask(one, "What's the capital of Peru?", headers={"dandolo-cache": "exact"}))[0] == "MISS"
        assert outcome(ask(one, "What isn't the capital of Peru?"))[0] == "MISS"
        assert outcome(ask(one, "please, what is the capital of Peru?", max_tokens=9))[0] == "MISS"
    with provider() as sim, gateway(tmp_path / "off", sim, ["memory"]) as one:
        assert [outcome(ask(one, text))[0] for text in ("What is this?", "what is this?")] == ["MISS", "MISS"]
