"""What keys may use, over real sockets: rates, tokens, budgets; keys that come and go; what is left after a restart."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dandolo.control.keys import Keys
from dandolo.sim import Fault, Script, SimProvider, SimThread
from tests.e2e.harness import KEY, Answer, BrokenAnswer, Client, Gateway, Provider, chat, get, request, until

OTHER = "sk-other-0123456789abcdef0123456789abcdef"
NO_CACHE = "[cache]\nlevels = []\n"
DEAR = {"id": "m", "input_usd_per_mtok": 0.0, "output_usd_per_mtok": 1000.0}
"""An answer costs 0.027 USD: the simulated provider always says 27 tokens."""


@contextlib.contextmanager
def running(
    directory: Path,
    keys: list[dict[str, Any]],
    script: Script | None = None,
    model: dict[str, Any] = DEAR,
    toml: str = NO_CACHE,
    **more: Any,
) -> Iterator[tuple[Gateway, SimProvider]]:
    sim = SimProvider("sim", script=script or Script())
    given = [{"name": "limited", "key": KEY, **key} for key in keys]
    with SimThread(sim), Gateway(directory, [Provider(sim, models=[model])], keys=given, toml=toml, **more) as gateway:
        yield gateway, sim


def ask(gateway: Gateway, key: str = KEY, **fields: Any) -> Answer:
    return gateway.ask(request(body=chat(model="m", **fields), key=key))


def at_once(count: int, call: Callable[[], Answer]) -> list[Answer]:
    """As many answers of calls made at the same time."""
    answers: list[Answer] = []
    gate = threading.Barrier(count)

    def run() -> None:
        gate.wait(20)
        answers.append(call())

    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(answers) == count
    return answers


def spent(gateway: Gateway) -> float:
    """USD that the access log says."""
    return sum(line.get("cost_usd") or 0.0 for line in gateway.log_lines())


def test_a_rate_is_held_and_told(tmp_path: Path) -> None:
    with running(tmp_path, [{"rpm": 3}, {"name": "free", "key": OTHER}]) as (gateway, sim):
        with gateway.client() as client:
            for left in (2, 1, 0):
                client.send(request(body=chat(model="m"), key=KEY))
                answer = client.answer()
                assert answer.status == 200
                assert answer.header("x-ratelimit-limit-requests") == "3"
                assert answer.header("x-ratelimit-remaining-requests") == str(left)
            # On the same connection and on another.
            client.send(request(body=chat(model="m"), key=KEY))
            refused = [client.answer(), ask(gateway), gateway.ask(get("/v1/models", key=KEY))]
        for answer in refused:
            assert answer.status == 429
            assert answer.error["code"] == "rate_limit_exceeded"
            assert 0 < int(answer.header("retry-after") or "") <= 61
            assert 0 < int(answer.header("retry-after-ms") or "") <= 61_000
            assert answer.header("x-ratelimit-remaining-requests") == "0"
            assert answer.header("x-should-retry") is None
        free = ask(gateway, OTHER)
        assert free.status == 200
        assert free.header("x-ratelimit-limit-requests") is None
        assert len(sim.requests) == 4


def test_the_providers_rates_are_told_only_to_keys_without_their_own(tmp_path: Path) -> None:
    script = Script(rate_limit=100)
    with running(tmp_path, [{"tpm": 10_000}, {"name": "free", "key": OTHER}], script) as (gateway, _):
        theirs, ours = ask(gateway, OTHER), ask(gateway)
        told = [name for name, _ in theirs.headers if name.startswith("x-ratelimit-")]
        assert [name for name, _ in ours.headers if name.startswith("x-ratelimit-")] == [
            "x-ratelimit-limit-tokens",
            "x-ratelimit-remaining-tokens",
            "x-ratelimit-reset-tokens",
        ]
        assert ours.header("x-ratelimit-limit-tokens") == "10000"
        assert "x-ratelimit-limit-tokens" not in told or theirs.header("x-ratelimit-limit-tokens") != "10000"


def test_answers_of_the_cache_count_as_requests_and_cost_nothing(tmp_path: Path) -> None:
    key = {"rpm": 3, "tpm": 200, "budget_usd_per_day": 0.02}
    with running(tmp_path, [key], toml="") as (gateway, sim):
        answers = [ask(gateway, temperature=0, max_tokens=16) for _ in range(4)]
        assert [answer.status for answer in answers] == [200, 200, 200, 429]
        assert [answer.header("x-cache") for answer in answers[:3]] == ["MISS", "HIT", "HIT"]
        assert len({answer.header("x-ratelimit-remaining-tokens") for answer in answers[1:3]}) == 1
        assert answers[2].header("x-ratelimit-remaining-requests") == "0"
        assert len(sim.requests) == 1


def test_tokens_are_set_aside_and_given_back(tmp_path: Path) -> None:
    with running(tmp_path, [{"tpm": 1000}]) as (gateway, _):
        first = ask(gateway, max_tokens=900)
        assert first.status == 200
        # 16 tokens were put out: the rest of what was set aside is there again.
        usage = first.json["usage"]
        second = ask(gateway, max_tokens=800)
        assert second.status == 200
        left = int(second.header("x-ratelimit-remaining-tokens") or "")
        assert left < 1000 - usage["total_tokens"] - 800
        for _ in range(40):
            third = ask(gateway, max_tokens=900)
            if third.status == 429:
                break
        assert third.status == 429
        assert "tokens a minute" in third.error["message"]
        assert ask(gateway, messages=[{"role": "user", "content": "x" * 8000}]).status == 400


def test_a_stream_is_settled_by_what_it_was(tmp_path: Path) -> None:
    with running(tmp_path, [{"tpm": 1000, "budget_usd_per_day": 0.085}]) as (gateway, _):
        for _ in range(3):
            answer = ask(gateway, max_tokens=28, stream=True)
            assert answer.status == 200
            assert answer.complete
        # 3 × 0.027 USD are spent: 0.004 are left.
        refused = ask(gateway, max_tokens=28, stream=True)
        assert (refused.status, refused.error["code"]) == (402, "budget_exceeded")
        assert "0.004 USD left" in refused.error["message"]
        assert ask(gateway, max_tokens=2).status == 200


@pytest.mark.parametrize("stream", [False, True])
def test_requests_at_one_time_do_not_overspend(tmp_path: Path, stream: bool) -> None:
    """200 at once on a budget that admits 10."""
    script = Script(latency_s=1.5)
    with running(tmp_path, [{"budget_usd_per_day": 1.0}], script) as (gateway, sim):
        answers = at_once(200, lambda: ask(gateway, max_tokens=100, stream=stream))
        assert Counter(answer.status for answer in answers) == {200: 10, 402: 190}
        assert len(sim.requests) == 10
        until(lambda: len(gateway.log_lines()) == 200)
        assert spent(gateway) == pytest.approx(0.27)
        # What was set aside and not spent is there again.
        assert ask(gateway, max_tokens=100).status == 200


def test_a_budget_is_used_up_to_its_end_and_not_beyond(tmp_path: Path) -> None:
    with running(tmp_path, [{"budget_usd_per_month": 0.18}]) as (gateway, _):
        answers = [answer for _ in range(10) for answer in at_once(4, lambda: ask(gateway, max_tokens=27))]
        assert Counter(answer.status for answer in answers) == {200: 6, 402: 34}
        message = next(answer for answer in answers if answer.status == 402).error["message"]
        assert "0.18 USD a month" in message
        until(lambda: len(gateway.log_lines()) == 40)
        assert spent(gateway) == pytest.approx(0.162)


def test_who_leaves_gives_back_what_was_set_aside(tmp_path: Path) -> None:
    script = Script(latency_s=5.0)
    key = {"budget_usd_per_day": 0.1, "concurrent": 1, "tpm": 300}
    with running(tmp_path, [key], script) as (gateway, _):
        for _ in range(5):
            until(lambda: gateway.metrics()["dandolo_requests_in_flight"] == 0)
            with gateway.client() as client:
                client.send(request(body=chat(model="m", max_tokens=100), key=KEY))
                until(lambda: gateway.metrics()["dandolo_requests_in_flight"] == 1)


@pytest.mark.parametrize("count", [9, 9.0, "9"], ids=repr)
def test_answers_asked_for_at_once_are_all_set_aside_however_their_number_is_written(
    tmp_path: Path, count: object
) -> None:
    with running(tmp_path, [{"budget_usd_per_day": 0.04}]) as (gateway, sim):
        # Lenient providers take them all for nine, of which each may cost 0.005 USD.
        assert ask(gateway, max_tokens=5, n=count).status == 402
        assert not sim.requests


def test_where_no_price_is_known_a_budget_cannot_be_held_and_that_is_said(tmp_path: Path) -> None:
    with running(tmp_path, [{"budget_usd_per_day": 1.0}, {"name": "free", "key": OTHER}], model={"id": "m"}) as (
        gateway,
        sim,
    ):
        answer = ask(gateway)
        assert (answer.status, answer.error["code"]) == (402, "price_unknown")
        assert "input_usd_per_mtok" in answer.error["message"]
        assert ask(gateway, OTHER).status == 200
        image = gateway.ask(request("/v1/images/generations", {"model": "m", "prompt": "x"}, key=KEY))
        assert (image.status, image.error["code"]) == (402, "price_unknown")
        assert gateway.ask(get("/v1/models", key=KEY)).status == 200
        assert len(sim.requests) == 1


def test_prices_of_a_providers_list_are_fetched_when_a_budget_first_needs_them(tmp_path: Path) -> None:
    sim = SimProvider("sim", dialect="venice")
    key = {"key": KEY, "budget_usd_per_day": 1.0}
    with SimThread(sim), Gateway(tmp_path, [Provider(sim, "venice")], keys=[key], toml=NO_CACHE) as gateway:
        answers = at_once(20, lambda: gateway.ask(request(body=chat(model=sim.models[0], max_tokens=50), key=KEY)))
        found = Counter((answer.status, answer.error["code"] if answer.status != 200 else "") for answer in answers)
        # One fetches; those who come meanwhile are told to come again.
        assert set(found) <= {(200, ""), (503, "prices_not_known_yet")}
        assert found[200, ""] >= 1
        assert gateway.ask(request(body=chat(model=sim.models[0], max_tokens=50), key=KEY)).status == 200
        assert sum("/models" in one.target for one in sim.requests) == 1
        gateway.record(answers[-1])
        assert spent(gateway) > 0


def test_a_list_that_cannot_be_fetched_is_named(tmp_path: Path) -> None:
    script = Script(default_fault=Fault("status", status=500))
    with SimThread(sim := SimProvider("sim", script=script)):
        key = {"key": KEY, "budget_usd_per_day": 1.0}
        with Gateway(tmp_path, [Provider(sim)], keys=[key]) as gateway:
            answer = gateway.ask(request(body=chat(), key=KEY))
            assert (answer.status, answer.error["code"]) == (503, "prices_not_known_yet")
            assert "the list of models of sim" in answer.error["message"]
            assert answer.header("retry-after") == "5"


def test_a_background_answer_is_no_way_around_a_budget(tmp_path: Path) -> None:
    with running(tmp_path, [{"budget_usd_per_day": 1.0}]) as (gateway, sim):
        body = {"model": "m", "input": "hello", "background": True}
        answer = gateway.ask(request("/v1/responses", body, key=KEY))
        assert (answer.status, answer.error["code"]) == (402, "price_unknown")
        assert answer.error["param"] == "background"
        assert not sim.requests


def test_requests_under_way_are_bounded(tmp_path: Path) -> None:
    script = Script(latency_s=1.0)
    with running(tmp_path, [{"concurrent": 3}], script) as (gateway, _):
        answers = at_once(20, lambda: ask(gateway))
        assert Counter(answer.status for answer in answers) == {200: 3, 429: 17}
        assert all(answer.header("retry-after") == "1" for answer in answers if answer.status == 429)
        assert ask(gateway).status == 200


def test_what_was_spent_and_who_was_made_is_there_after_a_restart(tmp_path: Path) -> None:
    with running(tmp_path, [{"budget_usd_per_day": 0.07}]) as (gateway, _):
        assert [ask(gateway, max_tokens=27).status for _ in range(3)] == [200, 200, 402]
        with Keys(tmp_path / "state") as keys:
            made, _kept = keys.create("made", {"rpm": 1}, time.time())
        until(lambda: ask(gateway, made).status == 200)
        gateway.stop()
        gateway.start()
        assert ask(gateway, max_tokens=17).status == 402
        assert ask(gateway, max_tokens=8).status == 200
        assert ask(gateway, made).status == 200


def test_a_reload_keeps_what_was_counted(tmp_path: Path) -> None:
    with running(tmp_path, [{"rpm": 3, "budget_usd_per_day": 0.07}]) as (gateway, _):
        assert [ask(gateway, max_tokens=27).status for _ in range(3)] == [200, 200, 402]
        text = gateway.config.read_text()
        gateway.config.write_text(text.replace("rpm = 3", "rpm = 5"))
        gateway.signal(1)
        until(lambda: "reloaded" in gateway.said())
        answers = [ask(gateway, max_tokens=8) for _ in range(3)]
        assert [answer.status for answer in answers] == [200, 402, 429]
        assert answers[0].header("x-ratelimit-limit-requests") == "5"


def test_a_revoked_key_is_refused_within_a_second_and_what_runs_ends(tmp_path: Path) -> None:
    script = Script(tokens=30, tokens_per_s=20)
    with running(tmp_path, [{}], script) as (gateway, _), Keys(tmp_path / "state") as keys:
        key, _kept = keys.create("web", {}, time.time())
        until(lambda: ask(gateway, key, max_tokens=1).status == 200)
        with gateway.client() as running_one, gateway.client() as kept_alive:
            kept_alive.send(get("/v1/models", key=key))
            assert kept_alive.answer().status == 200
            running_one.send(request(body=chat(model="m", stream=True), key=key))
            until(lambda: gateway.metrics()["dandolo_requests_in_flight"] >= 1)
            keys.revoke("web", time.time())
            revoked = time.monotonic()
            until(lambda: ask(gateway, key).status == 401)
            taken = time.monotonic() - revoked
            # A connection on which the key was good is no way in.
            kept_alive.send(get("/v1/models", key=key))
            answer = kept_alive.answer()
            assert (answer.status, answer.error["code"]) == (401, "invalid_api_key")
            whole = running_one.answer()
            assert whole.complete
            assert whole.events[-1] == b"[DONE]"
        assert taken < 5.0
        assert ask(gateway).status == 200


def test_a_rotated_key_ends_on_open_connections_while_the_control_process_stands_still(tmp_path: Path) -> None:
    with running(tmp_path, [{}], toml="") as (gateway, _), Keys(tmp_path / "state") as keys:
        old, _kept = keys.create("web", {}, time.time())
        until(lambda: ask(gateway, old).status == 200)
        with gateway.client() as known, gateway.client() as repeats:
            new, _kept = keys.rotate("web", 2.0, time.time())
            ends = time.time() + 2.0
            until(lambda: ask(gateway, new).status == 200)
            models = get("/v1/models", key=old)
            # Answered from memory, at last without being read: the bytes are the same each time.
            same = request(body=chat(model="m", temperature=0), key=old)
            for _ in range(3):
                known.send(models)
                repeats.send(same)
                assert (known.answer().status, repeats.answer().status) == (200, 200)
            gateway.signal(signal.SIGSTOP)
            try:
                assert time.time() < ends, "the control process had the time to say it"

                def refused(client: Client, data: bytes) -> bool:
                    client.send(data)
                    return client.answer().status == 401

                until(lambda: refused(known, models))
                assert refused(repeats, same)
                assert time.time() >= ends
                assert ask(gateway, new).status == 200
            finally:
                gateway.signal(signal.SIGCONT)


def test_keys_come_and_go_under_load_and_nobody_else_is_harmed(tmp_path: Path) -> None:
    with running(tmp_path, [{}]) as (gateway, _), Keys(tmp_path / "state") as keys:
        stop, outcomes = threading.Event(), Counter[int]()

        def load() -> None:
            while not stop.is_set():
                with gateway.client() as client:
                    for _ in range(100):
                        client.send(request(body=chat(model="m"), key=KEY))
                        outcomes[client.answer().status] += 1

        threads = [threading.Thread(target=load) for _ in range(4)]
        for thread in threads:
            thread.start()
        try:
            for number in range(5):
                key, _kept = keys.create(f"k{number}", {"rpm": 1000}, time.time())
                until(lambda: ask(gateway, key).status == 200)  # noqa: B023
                new, _kept = keys.rotate(f"k{number}", 3600.0, time.time())
                until(lambda: ask(gateway, new).status == 200)  # noqa: B023
                assert ask(gateway, key).status == 200
                keys.revoke(f"k{number}", time.time())
                until(lambda: {ask(gateway, one).status for one in (key, new)} == {401})  # noqa: B023
        finally:
            stop.set()
            for thread in threads:
                thread.join(20)
        assert set(outcomes) == {200}


def test_a_key_of_the_database_is_held_to_its_terms(tmp_path: Path) -> None:
    with running(tmp_path, [{}], toml="") as (gateway, _), Keys(tmp_path / "state") as keys:
        key, _kept = keys.create("web", {"models": ["other"], "rpm": 100}, time.time())
        until(lambda: ask(gateway, key).status == 404)
        # Other terms hold on a connection that was there before, too.
        with gateway.client() as client:
            client.send(request(body=chat(model="m", temperature=0), key=key))
            assert client.answer().status == 404
            keys.revoke("web", time.time())
            second, _kept = keys.create("web", {"budget_usd_per_day": 0.02}, time.time())
            until(lambda: ask(gateway, second, temperature=0, max_tokens=16).status == 200)
            client.send(request(body=chat(model="m", max_tokens=16), key=second))
            assert client.answer().status == 402


def test_a_gateway_without_keys_is_closed_by_the_first_that_is_made(tmp_path: Path) -> None:
    sim = SimProvider("sim")
    with SimThread(sim), Gateway(tmp_path, [sim]) as gateway, gateway.client() as client:
        client.send(request(body=chat()))
        assert client.answer().status == 200
        made = subprocess.run(
            [sys.executable, "-m", "dandolo", "keys", "create", "first", "--config", str(gateway.config)],
            capture_output=True,
            text=True,
            check=True,
            env=gateway._environ,
            cwd=tmp_path,
        ).stdout.splitlines()[0]
        until(lambda: gateway.ask(request()).status == 401)
        client.send(request(body=chat()))
        assert client.answer().status == 401
        assert gateway.ask(request(key=made)).status == 200
        gateway.stop()
        gateway.start()
        assert gateway.ask(request()).status == 401
        assert gateway.ask(request(key=made)).status == 200


def test_keys_are_made_and_revoked_at_the_admin_listener_by_who_may(tmp_path: Path) -> None:
    def administer(method: str, path: str, body: object = None, key: str = KEY) -> Answer:
        with Client(gateway.admin_port) as client:
            client.send(request(path, body, method=method, key=key, headers={"Connection": "close"}))
            return client.answer()

    keys: list[dict[str, Any]] = [{"name": "operator", "admin": True}, {"name": "client", "key": OTHER, "rpm": 1000}]
    with running(tmp_path, keys) as (gateway, _):
        assert administer("POST", "/admin/keys", {"name": "web"}, OTHER).status == 403
        made = administer("POST", "/admin/keys", {"name": "web", "rpm": 2, "budget_usd_per_day": 10.0})
        assert made.status == 201
        key = made.json["key"]
        # It is good at once, and no key to the admin listener.
        until(lambda: ask(gateway, key).status == 200)
        assert administer("GET", "/admin/keys", key=key).status == 401

        def rows() -> dict[str, Any]:
            return {row["name"]: row for row in administer("GET", "/admin/keys").json["keys"]}

        until(lambda: rows()["web"]["usage"]["spent_usd_day"] == 0.027)
        assert rows()["web"]["usage"]["requests_per_minute"] == 1
        assert rows()["client"]["source"] == "file"
        new = administer("POST", "/admin/keys/web", {"overlap_s": 0}).json["key"]
        until(lambda: ask(gateway, new).status == 200)
        assert ask(gateway, key).status == 401
        assert ask(gateway, new).status == 429
        assert administer("DELETE", "/admin/keys/web").json["status"] == "revoked"
        until(lambda: ask(gateway, new).status == 401)
        assert administer("DELETE", "/admin/keys/web").status == 404
        assert administer("POST", "/admin/keys", {"name": "../x"}).error["code"] == "invalid_key_terms"
        text = gateway.said() + gateway.stdout.read_text()
        assert key not in text
        assert new not in text


def test_workers_share_the_limits_of_a_key_and_a_dead_one_gives_back_what_it_held(tmp_path: Path) -> None:
    """Three workers: a budget for ten, held while the control process stands still; then one of them is killed."""
    script = Script(latency_s=1.5)
    keys: list[dict[str, Any]] = [{"budget_usd_per_day": 1.0, "concurrent": 50, "admin": True}]
    with running(tmp_path, keys, script, server={"workers": 3}, errors_expected=True) as (gateway, _):
        gateway.signal(signal.SIGSTOP)
        try:
            answers = at_once(60, lambda: ask(gateway, max_tokens=100))
        finally:
            gateway.signal(signal.SIGCONT)
        found = Counter(answer.status for answer in answers)
        # Two that look at the very same moment may both step back.
        assert 8 <= found[200] <= 10
        assert found[200] + found[402] + found[429] == 60
        usage = gateway.admin("/admin/keys").json["keys"][0]["usage"]
        assert usage["spent_usd_day"] == pytest.approx(0.027 * found[200])
        assert (usage["reserved_usd"], usage["in_flight"]) == (0.0, 0)

        def kept() -> dict[str, Any]:
            found: dict[str, Any] = gateway.admin("/admin/keys").json["keys"][0]["usage"]
            return found

        with gateway.client() as client:
            client.send(request(body=chat(model="m", max_tokens=100), key=KEY))
            until(lambda: kept()["in_flight"] == 1)
            for pid in workers_of(gateway.pid):
                os.kill(pid, signal.SIGKILL)
            until(lambda: kept()["in_flight"] == 0)
        assert kept()["reserved_usd"] == 0.0
        assert kept()["spent_usd_day"] == usage["spent_usd_day"]
        until(lambda: answers_again(gateway))


def workers_of(pid: int) -> list[int]:
    """The processes that a control process has started."""
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def answers_again(gateway: Gateway) -> bool:
    try:
        return ask(gateway, max_tokens=100).status == 200
    except (OSError, BrokenAnswer):
        return False


def test_the_file_wins_over_the_database(tmp_path: Path) -> None:
    with Keys(tmp_path / "state") as keys:
        key, _kept = keys.create("limited", {}, time.time())
    with running(tmp_path, [{}]) as (gateway, _):
        assert ask(gateway).status == 200
        assert ask(gateway, key).status == 401
        assert hashlib.sha256(key.encode()).hexdigest() not in gateway.said()


def test_two_hosts_share_the_limits_of_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "cache" / "redis"))
    sys.modules.pop("redis_servers", None)
    from redis_servers import PROGRAM, RealRedis

    if PROGRAM is None:
        pytest.skip("no Redis server here")
    key = {"rpm": 1000, "budget_usd_per_day": 0.1, "admin": True}
    with RealRedis(tmp_path) as redis:
        toml = NO_CACHE + f'[cache.redis]\nurl = "redis://127.0.0.1:{redis.port}/0"\n'
        more: dict[str, Any] = {"limits": {"shared": True}, "toml": toml}
        with (
            running(tmp_path / "a", [key], **more) as (a, _),
            running(tmp_path / "b", [key], **more) as (b, _),
        ):
            assert [ask(a, max_tokens=27).status for _ in range(3)] == [200] * 3

            def heard() -> bool:
                usage = b.admin("/admin/keys").json["keys"][0]["usage"]
                return bool(usage["spent_usd_day"] == 0.081)

            until(heard)
            refused = ask(b, max_tokens=27)
            assert (refused.status, refused.error["code"]) == (402, "budget_exceeded")
            assert int(refused.header("x-ratelimit-remaining-requests") or "") == 996
            assert "other hosts" not in a.said() + b.said()
            b.stop()
            b.start()
            # What the other host spent is known again, and what was spent here is not counted twice.
            until(heard)
            assert ask(b, max_tokens=20).status == 402
            assert ask(b, max_tokens=10).status == 200
