"""Reloads of what only new workers can change: tiers, the cache's secret, books, the number of workers. Under load
not one request fails for it; with a configuration that none can begin with, everything stays as it was."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from harness import KEY, Client, Gateway, chat, request, until
from load import Load
from test_supervisor import gone, of_group, running, words

OFF = "[cache]\nlevels = []\n"
SAME = request(body=chat(temperature=0))


class Changing:
    """The configuration of a gateway, changed and reloaded. `count` reloads have been taken so far."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self.base = gateway.config.read_text()
        self.count = 0

    def write(self, *, workers: int | None = None, server: str = "", toml: str = OFF) -> None:
        text = self.base.replace(OFF, "")
        if workers is not None:
            text = re.sub(r"workers = \d+", f"workers = {workers}", text)
        self.gateway.config.write_text(text.replace("[server]\n", f"[server]\n{server}") + toml)

    def reload(self, **changed: Any) -> str:
        """Change it and wait until that holds; the line of the log."""
        self.write(**changed)
        return self.again()

    def again(self) -> str:
        self.gateway.signal(signal.SIGHUP)
        self.count += 1
        return until(lambda: (self.taken() + [""] * self.count)[self.count - 1], 30.0, "no reload")

    def taken(self) -> list[str]:
        messages = map(message, self.gateway.said().splitlines())
        return [one.rpartition(": ")[2] for one in messages if one.startswith("reloaded ")]

    def refused(self, **changed: Any) -> None:
        """Change it to what cannot be, and wait until that was said."""
        before = self.gateway.said().count("reload refused")
        self.write(**changed)
        self.gateway.signal(signal.SIGHUP)
        until(lambda: self.gateway.said().count("reload refused") > before, 30.0, "it was taken")


def message(line: str) -> str:
    try:
        return str(json.loads(line)["message"])
    except (ValueError, KeyError):
        found = re.search(r'msg="([^"]*)"|message="([^"]*)"', line)
        return (found[1] or found[2]) if found else line


@contextmanager
def changing(directory: Path, **more: Any) -> Iterator[Changing]:
    with running(directory, **more) as gateway:
        yield Changing(gateway)


@contextmanager
def loaded(gateway: Gateway) -> Iterator[list[Load]]:
    """Plain answers, streams, and a connection for each; at the end not one of them has failed."""
    with (
        Load(gateway.port, connections=4, pause_s=0.01) as plain,
        Load(gateway.port, connections=3, stream=True, pause_s=0.01) as streams,
        Load(gateway.port, connections=2, fresh=True, pause_s=0.01) as new,
    ):
        loads = [plain, streams, new]
        for one in loads:
            one.more(10)
        yield loads
        for one in loads:
            one.more(10)
    assert [one.failures for one in loads] == [[], [], []]


# -- under load ----------------------------------------------------------------------------------------------------


@pytest.mark.promise("53")
def test_twenty_reloads_of_tiers_secret_and_number_of_workers_lose_no_request(tmp_path: Path) -> None:
    environ = {"SECRET_A": "a" * 32, "SECRET_B": "b" * 32}
    memory, tiers = '[cache]\nlevels = ["memory"]\n', '[cache]\nlevels = ["memory", "sqlite"]\n'
    changes: list[dict[str, Any]] = [
        {"toml": memory + 'secret = { env = "SECRET_A" }\n'},
        {"toml": memory + 'secret = { env = "SECRET_B" }\n', "workers": 3},
        {"toml": tiers + 'secret = { env = "SECRET_B" }\n', "workers": 1},
        {"toml": memory, "workers": 2},
    ]
    with changing(tmp_path, environ=environ) as it, loaded(it.gateway) as loads:
        for count in range(20):
            if count % 4:
                # What living workers change to.
                last = changes[count // 4 % 4]
                it.reload(**{**last, "server": f'heartbeat = "{count + 10}s"\n'})
            else:
                workers = changes[count // 4 % 4].get("workers", 2)
                assert "workers are replaced" in it.reload(**changes[count // 4 % 4])
                until(lambda workers=workers: it.gateway.metrics()["dandolo_workers"] == workers)  # type: ignore[misc]
            loads[1].more(2)
        assert it.count == 20


@pytest.mark.promise("53")
def test_signals_in_quick_succession_and_during_a_replacement_lose_nothing(tmp_path: Path) -> None:
    with changing(tmp_path) as it, loaded(it.gateway):
        gateway = it.gateway
        before = gateway.workers()
        gateway.signal(signal.SIGUSR2)
        it.write(workers=1)
        gateway.signal(signal.SIGHUP)
        gateway.signal(signal.SIGHUP)
        until(lambda: it.taken() and gateway.metrics()["dandolo_workers"] == 1, 30.0, "no reload")
        it.write(workers=2)
        gateway.signal(signal.SIGHUP)
        gateway.signal(signal.SIGUSR2)
        until(lambda: gateway.said().count("all workers are replaced") == 2, 30.0, "no replacement")
        until(lambda: gateway.metrics()["dandolo_workers"] == 2, 30.0, "no reload")
        until(lambda: len(gateway.workers()) == 2)
        assert not set(before) & set(gateway.workers())


def midway(gateway: Gateway, before: list[int]) -> None:
    """Wait until a process that stands by has been started."""
    until(lambda: set(gateway.workers()) - set(before), 20.0, "no new worker")


@pytest.mark.promise("52")
def test_the_end_during_a_reload_is_in_order(tmp_path: Path) -> None:
    with changing(tmp_path) as it:
        gateway = it.gateway
        with gateway.client() as client:
            client.send(request(body=chat(stream=True)))
            before = gateway.workers()
            it.write(workers=3)
            gateway.signal(signal.SIGHUP)
            midway(gateway, before)
            group = gateway.pid
            gateway.signal(signal.SIGTERM)
            assert client.answer().body.endswith(b"data: [DONE]\n\n")
        assert gateway.wait() == 0
        until(lambda: not of_group(group), what="workers are left over")


@pytest.mark.promise("54")
def test_the_control_process_killed_during_a_reload_loses_no_request(tmp_path: Path) -> None:
    with changing(tmp_path, fixed=True, errors_expected=True) as it, loaded(it.gateway) as loads:
        gateway = it.gateway
        before = gateway.workers()
        it.write(toml='[cache]\nlevels = ["memory", "sqlite"]\n')
        gateway.signal(signal.SIGHUP)
        midway(gateway, before)
        group = gateway.pid
        os.kill(group, signal.SIGKILL)
        gateway.wait()
        loads[0].more(50)
        gateway.start()
        until(lambda: all(map(gone, before)), 20.0, "orphans go on")
        until(lambda: not [pid for pid in of_group(group) if "_worker" in words(pid)], 20.0, "some are left over")


@pytest.mark.promise("54")
def test_sockets_that_a_reload_opened_or_shared_outlive_the_control_process(tmp_path: Path) -> None:
    with changing(tmp_path, fixed=True, errors_expected=True) as it:
        gateway = it.gateway
        it.reload(workers=3)
        it.reload(workers=1)
        it.reload(workers=2)
        with loaded(gateway) as loads:
            before = gateway.workers()
            os.kill(gateway.pid, signal.SIGKILL)
            gateway.wait()
            for one in loads:
                one.more(20)
            gateway.start()
            until(lambda: all(map(gone, before)), 20.0, "orphans go on")


# -- what each change does -----------------------------------------------------------------------------------------


def test_tiers_and_the_secret_change_at_a_reload(tmp_path: Path) -> None:
    with changing(tmp_path, workers=1, environ={"SECRET": "s" * 32}, server={"drain_delay": "0s"}) as it:
        gateway = it.gateway
        tiers = '[cache]\nlevels = ["memory", "sqlite"]\n'
        assert it.reload(toml=tiers) == "changed cache.levels; workers are replaced"
        until(lambda: (tmp_path / "state/cache.db").exists())

        def cached() -> bool:
            return "HIT" in (gateway.ask(SAME).header("x-cache") or "")

        until(cached, what="nothing is kept")
        # Kept on disk, and found there under the same secret only.
        size = '[cache.sqlite]\nbytes_max = "20MiB"\n'
        assert "cache.sqlite.bytes_max" in it.reload(toml=tiers + size)
        until(cached)
        assert "cache.secret" in it.reload(toml=f'{tiers}secret = {{ env = "SECRET" }}\n{size}')
        assert not cached()
        until(cached)
        assert it.again() == "nothing has changed"
        assert cached()


def test_the_number_of_workers_changes_and_files_of_those_that_are_no_more_go(tmp_path: Path) -> None:
    tiers = '[cache]\nlevels = ["sqlite"]\n'
    with changing(tmp_path, workers=1, server={"drain_delay": "0s"}) as it:
        gateway, state = it.gateway, tmp_path / "state"
        assert it.reload(workers=3, toml=tiers) == "changed server.workers, cache.levels; workers are replaced"
        assert gateway.metrics()["dandolo_workers"] == 3
        until(lambda: (state / "cache-2.db").exists())
        it.reload(workers=1, toml=tiers)
        until(lambda: "removed cache-1.db, cache-2.db" in gateway.said())
        until(lambda: len(gateway.workers()) == 1)
        assert not list(state.glob("cache-*"))
        # The sockets of those that are no more are served all the same: the kernel still spreads over them.
        with Load(gateway.port, connections=2, fresh=True) as load:
            load.more(60)
        assert load.failures == []
        it.reload(workers=2)
        assert gateway.metrics()["dandolo_workers"] == 2


def test_the_ledger_and_both_logs_change_at_a_reload(tmp_path: Path) -> None:
    off = OFF + "[ledger]\nenabled = false\n"
    with changing(tmp_path, workers=1, toml=off, server={"drain_delay": "0s"}) as it:
        it.base = it.base.replace(off, "")
        gateway = it.gateway
        assert gateway.admin("/admin/usage").status == 404
        it.write(server='log_format = "logfmt"\n')
        gateway.signal(signal.SIGHUP)
        until(lambda: "server.log_format, ledger.enabled" in gateway.said(), 20.0)
        assert gateway.ask(request()).status == 200
        until(lambda: json.loads(gateway.admin("/admin/usage").body)["total"]["requests"] == 1)
        until(lambda: "status=200" in gateway.stdout.read_text())
        last = gateway.said().splitlines()[-1]
        assert not last.startswith("{")
        until(lambda: len(gateway.workers()) == 1)
        workers = gateway.workers()
        it.write(toml=OFF + '[ledger]\nrequests = 0\nretention = "1d"\n', server='log_format = "json"\n')
        gateway.signal(signal.SIGHUP)
        until(lambda: "ledger.retention, ledger.requests" in gateway.said(), 20.0)
        assert gateway.workers() == workers
        it.write(toml=off)
        gateway.signal(signal.SIGHUP)
        until(lambda: "changed ledger.enabled" in gateway.said().splitlines()[-1], 20.0)
        assert gateway.ask(request()).status == 200
        assert json.loads(gateway.admin("/admin/usage").body)["total"]["requests"] == 1


def test_what_living_workers_change_to_holds_at_once(tmp_path: Path) -> None:
    with changing(tmp_path, workers=1) as it:
        gateway, workers = it.gateway, it.gateway.workers()
        big = request(body=chat(user="x" * 2000))
        browser = request(headers={"Origin": "https://a.example"})
        assert gateway.ask(big).status == 200
        assert gateway.ask(browser).status == 403
        more = '[limits]\nbody_bytes_max = "1KiB"\n[models]\nfast = ["sim/sim-small"]\n[cache.memory]\nentries = 9\n'
        server = 'cors_origins = ["https://a.example"]\nannotate = true\n'
        changed = "server.cors_origins, server.annotate, limits.body_bytes_max, models, cache.memory.entries"
        assert it.reload(server=server, toml=OFF + more) == f"changed {changed}"
        assert gateway.ask(big).status == 413
        assert gateway.ask(browser).status == 200
        assert gateway.ask(request(body=chat(model="fast"))).status == 200
        assert b"dandolo" in gateway.ask(request(body=chat(stream=True))).body
        assert gateway.workers() == workers
        # Operators are told the same.
        it.write()
        with socket.create_connection(("127.0.0.1", gateway.admin_port)) as sock:
            sock.sendall(
                b"POST /admin/reload HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            )
            said = b"".join(iter(lambda: sock.recv(65536), b""))
        assert json.loads(said.partition(b"\r\n\r\n")[2])["changed"] == changed.split(", ")
        assert changed in gateway.admin("/admin/snapshot").body.decode()


def test_connections_are_let_in_as_the_configuration_in_force_says(tmp_path: Path) -> None:
    with changing(tmp_path, workers=1) as it:
        gateway, workers = it.gateway, it.gateway.workers()
        with gateway.client() as one:
            one.send(request())
            assert one.answer().status == 200
            assert it.reload(toml=OFF + "[limits]\nconnections_max = 1\n") == "changed limits.connections_max"
            assert gateway.ask(request()).status == 503
        proxied = 'proxy_protocol = true\ntrusted_proxies = ["127.0.0.0/8"]\n'
        assert "server.proxy_protocol" in it.reload(server=proxied)
        assert gateway.ask(b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n" + request()).status == 200
        assert gateway.workers() == workers


def test_sharing_limits_begins_and_ends_at_a_reload(tmp_path: Path) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        redis = f'[cache]\nlevels = []\n[cache.redis]\nurl = "redis://127.0.0.1:{nobody.getsockname()[1]}"\n'
        with changing(tmp_path, workers=1, server={"drain_delay": "0s"}) as it:
            assert it.reload(toml=redis + "[limits]\nshared = true\n").endswith("; workers are replaced")
            until(lambda: "limits are not shared with other hosts: Redis does not answer" in it.gateway.said())
            assert it.reload(toml=redis) == "changed limits.shared; workers are replaced"
            assert it.gateway.ask(request()).status == 200


def test_what_cannot_change_is_named_and_stays(tmp_path: Path) -> None:
    with changing(tmp_path, workers=1) as it:
        it.base = re.sub(r"(listen|admin|state_dir) = .*", "", it.base)
        server = f'listen = ["127.0.0.1:1"]\nadmin = "127.0.0.1:2"\nstate_dir = "{tmp_path}/other"\n'
        assert it.reload(server=server) == "nothing has changed"
        for key in ("listen", "admin", "state_dir"):
            assert f"server.{key} changes at the next start, not by a reload" in it.gateway.said()
        assert not (tmp_path / "other").exists()
        assert it.gateway.ask(request()).status == 200


# -- what speaks against it ----------------------------------------------------------------------------------------


@pytest.mark.promise("53")
def test_what_no_worker_can_begin_with_changes_nothing(tmp_path: Path) -> None:
    with changing(tmp_path, errors_expected=True) as it:
        gateway, before = it.gateway, it.gateway.workers()
        ca, secret = tmp_path / "ca.pem", tmp_path / "secret"
        ca.write_text("no certificate")
        redis = f'[cache]\nlevels = ["redis"]\n[cache.redis]\nurl = "rediss://127.0.0.1:1"\nca = "{ca}"\n'
        with loaded(gateway):
            # Only who makes the tier sees it.
            it.refused(toml=redis, workers=3)
            assert "cannot be put to use" in gateway.said()
            tls = f'tls = {{ cert = "{ca}", key = "{ca}" }}\n'
            it.refused(server=tls)
            assert "server.tls" in gateway.said()
            it.refused(toml=f'[cache]\nsecret = {{ file = "{secret}" }}\n')
            assert "cache.secret" in gateway.said()
            # One of them is killed while it gets ready.
            it.write(workers=3)
            gateway.signal(signal.SIGHUP)
            midway(gateway, before)
            (new,) = set(gateway.workers()) - set(before)
            os.kill(new, signal.SIGKILL)
            until(lambda: "no new worker could begin with it" in gateway.said(), 20.0)
        assert gateway.workers() == before
        metrics = gateway.metrics()
        assert metrics["dandolo_config_reload_successful"] == 0
        assert metrics["dandolo_worker_restarts_total"] == 0
        it.reload(workers=3)
        assert gateway.metrics()["dandolo_config_reload_successful"] == 1


# -- what changes while new workers stand by -----------------------------------------------------------------------


def test_keys_made_and_revoked_while_workers_stand_by_hold_when_these_begin(tmp_path: Path) -> None:
    with changing(tmp_path, keys=[KEY]) as it:
        gateway = it.gateway

        def admin(method: str, path: str, body: object = None) -> Any:
            with Client(gateway.admin_port) as client:
                client.send(request(path, body, method=method, key=KEY, headers={"Connection": "close"}))
                answer = client.answer()
            assert answer.status in (200, 201), answer.body
            return answer.json

        def status(key: str) -> int:
            return gateway.ask(request("/v1/models", None, method="GET", key=key)).status

        old = admin("POST", "/admin/keys", {"name": "old"})["key"]
        until(lambda: all(status(old) == 200 for _ in range(8)))
        before = gateway.workers()
        it.write(workers=4)
        gateway.signal(signal.SIGHUP)
        midway(gateway, before)
        new = admin("POST", "/admin/keys", {"name": "new"})["key"]
        admin("DELETE", "/admin/keys/old")
        # Those that serve know at once.
        until(lambda: all(status(new) == 200 and status(old) == 401 for _ in range(8)))
        assert not it.taken()
        wrong, end = Counter[str](), time.monotonic() + 20.0
        began: float | None = None
        while began is None or time.monotonic() < began + 1.2:
            assert time.monotonic() < end, "no reload"
            wrong["new is refused"] += status(new) != 200
            wrong["old is let in"] += status(old) != 401
            if began is None and it.taken():
                began = time.monotonic()
        assert not +wrong
