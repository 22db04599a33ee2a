"""Tiers behind memory, before a simulated provider: real Redis servers, a real file, several gateways and restarts."""

from __future__ import annotations

import contextlib
import json
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import Answer, Client, Gateway, chat, request, until
from redis_servers import PROGRAM, RealCluster, RealRedis

from dandolo.control.purging import wish
from dandolo.errors import RequestError
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


# -- purging -------------------------------------------------------------------------------------------------


def purge(gateway: Gateway, body: object, key: str | None = None) -> Answer:
    with Client(gateway.admin_port) as client:
        client.send(request("/admin/cache/purge", body, key=key, headers={"Connection": "close"}))
        return client.answer()


@pytest.mark.parametrize(
    ("wish", "goes"),
    [
        ({"all": True}, ("one", "two")),
        ({"tag": "team=web"}, ("one",)),
        ({"tag": "provider=sim"}, ("one", "two")),
        ({"tag": "provider=other"}, ()),
        ({"scope": "two"}, ("two",)),
        ({"scope": "shared"}, ()),
        ({"model": "sim/m"}, ("one", "two")),
        ({"class": "question"}, ("one", "two")),
        ({"class": "code"}, ()),
    ],
    ids=str,
)
def test_purge_reaches_every_tier_and_outlives_the_process(tmp_path: Path, wish: object, goes: tuple[str, ...]) -> None:
    keys = [
        {"name": "one", "key": "k-one", "tags": {"team": "web"}},
        {"name": "two", "key": "k-two"},
        {"name": "root", "key": "k-root", "admin": True},
    ]
    levels = ["memory", "sqlite"]
    with provider() as sim:
        with gateway(tmp_path, sim, levels, keys=keys) as one:
            opened(one)
            for name in ("one", "two"):
                assert outcome(ask(one, key=f"k-{name}"))[0] == "MISS"
            until(lambda: one.metrics()["dandolo_cache_writes_waiting"] == 0)
            assert purge(one, wish, "k-two").status == 403
            done = purge(one, wish, "k-one")
            assert (done.status, done.json["failed"]) == (200, [])
        with gateway(tmp_path, sim, levels, keys=keys) as one:
            opened(one)
            for name in ("one", "two"):
                assert outcome(ask(one, key=f"k-{name}"))[0] == ("MISS" if name in goes else "HIT")


def test_purge_of_one_answer_by_its_key(tmp_path: Path) -> None:
    explain = {"x-dandolo-explain": "true"}
    with provider() as sim, gateway(tmp_path, sim, ["memory", "sqlite"]) as one:
        opened(one)
        made = ask(one, headers=explain)
        kept = ask(one, headers=explain)
        key = kept.header("x-dandolo-cache-key")
        assert made.header("x-dandolo-cache-key") == key
        assert outcome(ask(one, "Another?"))[0] == "MISS"
        assert purge(one, {"key": key}).json == {"purged": {"key": key}, "soft": False, "found": True, "failed": []}
        assert outcome(ask(one))[0] == "MISS"
        assert outcome(ask(one, "Another?"))[0] == "HIT"


def test_soft_purge_gives_what_there_is_while_it_is_fetched_anew(tmp_path: Path) -> None:
    with provider() as sim, gateway(tmp_path, sim, ["sqlite"]) as one:
        opened(one)
        assert outcome(ask(one))[0] == "MISS"
        until(lambda: outcome(ask(one)) == ("HIT", "l3"))
        assert len(sim.requests) == 1
        assert purge(one, {"all": True, "soft": True}).status == 200
        assert outcome(ask(one)) == ("STALE", "l3")
        until(lambda: len(sim.requests) == 2)
        until(lambda: outcome(ask(one)) == ("HIT", "l3"))
        assert len(sim.requests) == 2


@needs_redis
def test_purge_reaches_other_hosts_within_a_second_and_those_that_were_away(tmp_path: Path) -> None:
    levels = ["memory", "redis"]
    with RealRedis(tmp_path) as server, provider() as sim:
        more = redis(server)
        with gateway(tmp_path / "a", sim, levels, more, errors_expected=True) as one:
            connected(one)
            with gateway(tmp_path / "b", sim, levels, more) as two:
                connected(two)
                assert outcome(ask(one))[0] == "MISS"
                assert outcome(ask(one, "Another?"))[0] == "MISS"
                until(lambda: server.ask("DBSIZE") == 2)
                assert outcome(ask(two)) == ("HIT", "l2")
                assert purge(one, {"model": "sim/m"}).json["failed"] == []
                until(lambda: outcome(ask(two))[0] != "HIT", 1.0, "the other host goes on giving it")
            # One that starts later reads what was purged before it looks at anything.
            with gateway(tmp_path / "c", sim, levels, more) as three:
                connected(three)
                assert outcome(ask(three, "Another?"))[0] == "MISS"
            assert purge(one, {"all": True}).json["failed"] == []
            names = server.ask("KEYS", "*")
            assert names == [b"dandolo:!purges"]
            server.kill()
            failed = purge(one, {"all": True})
            assert failed.status == 207
            assert "Redis could not be told" in failed.json["failed"][0]


@needs_redis
@pytest.mark.parametrize("told", [True, False], ids=["before the restart", "while it was down"])
def test_purge_that_redis_forgot_is_told_again(tmp_path: Path, told: bool) -> None:
    levels = ["memory", "redis"]
    with RealRedis(tmp_path) as server, provider() as sim:
        more = redis(server)
        with gateway(tmp_path / "a", sim, levels, more, errors_expected=True) as one:
            connected(one)
            assert outcome(ask(one))[0] == "MISS"
            until(lambda: server.ask("DBSIZE") == 1)
            # It comes back with what it had saved: the answer, and not that it was purged.
            server.ask("SAVE")
            if told:
                assert purge(one, {"model": "sim/m"}).json["failed"] == []
            server.kill()
            if not told:
                assert purge(one, {"model": "sim/m"}).status == 207
            server.start()
            connected(one)
            with gateway(tmp_path / "b", sim, levels, more) as two:
                connected(two)
                assert server.ask("EXISTS", "dandolo:!purges") == 1
                assert outcome(ask(two))[0] == "MISS"


@needs_redis
def test_somebody_elses_key_under_the_name_of_the_purges_is_told_and_harms_nobody(tmp_path: Path) -> None:
    levels = ["memory", "redis"]
    with RealRedis(tmp_path) as server, provider() as sim:
        server.ask("SET", "dandolo:!purges", "mine")
        with gateway(tmp_path / "a", sim, levels, redis(server), errors_expected=True) as one:
            said = until(lambda: [line for line in one.errors() if "dandolo:!purges" in str(line)])
            assert "UNLINK" in str(said[0])
            assert outcome(ask(one))[0] == "MISS"
            assert outcome(ask(one)) == ("HIT", "l1")
            assert one.metrics()['dandolo_cache_tier_up{tier="l2"}'] == 0.0
            failed = purge(one, {"model": "sim/m"})
            assert (failed.status, outcome(ask(one))[0]) == (207, "MISS")
            server.ask("UNLINK", "dandolo:!purges")
            connected(one)
            # What could not be told then is told now.
            until(lambda: server.ask("EXISTS", "dandolo:!purges") == 1)
            assert len([line for line in one.errors() if "cannot be read" in str(line)]) == 1


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({}, "exactly one of"),
        ({"all": True, "tag": "x"}, "exactly one of"),
        ({"key": "abc"}, "40 hexadecimal digits"),
        ({"key": 7}, "expected"),
        ({"class": "poem"}, "class is one of"),
        ({"tag": "x" * 300}, "at most 256"),
        ({"everything": True}, "expected one of"),
        ([], "expected one of"),
    ],
    ids=str,
)
def test_purge_that_says_nothing_we_know_is_refused(tmp_path: Path, body: object, said: str) -> None:
    with pytest.raises(RequestError, match=said):
        wish(json.dumps(body).encode())


def test_purge_from_the_command_line(tmp_path: Path) -> None:
    with provider() as sim, gateway(tmp_path, sim, ["memory"]) as one:
        assert outcome(ask(one))[0] == "MISS"
        command = [sys.executable, "-m", "dandolo", "cache", "purge", "--all", "--admin", f"127.0.0.1:{one.admin_port}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
        assert (done.returncode, done.stdout, done.stderr) == (0, "everything: forgotten\n", "")
        assert outcome(ask(one))[0] == "MISS"
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 1
    assert "is `dandolo serve` running?" in done.stderr
