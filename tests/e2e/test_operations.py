"""What operators and accidents do to a running gateway, in random order: reloads, replacements, upgrades, deaths of
workers and of the control process, processes that stand still, keys that come and go, backups. After each of them
clients are served, operators are answered, keys hold; at the end the ledger is the bill and no process is left.

`OPERATIONS_SEED` and `OPERATIONS_STEPS` in the environment run other orders, and longer ones."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from harness import KEY, MODEL, Client, Gateway, Provider, get, request, until
from load import Load
from test_supervisor import free_port, gone

from tests.e2e.test_ledger import Stub

SEED = int(os.environ.get("OPERATIONS_SEED", "7"))
STEPS = int(os.environ.get("OPERATIONS_STEPS", "10"))
PRICES = ({"id": MODEL, "input_usd_per_mtok": 1.0, "output_usd_per_mtok": 2.0},)
CLIENTS = 6
WITHIN_S = 1.0
"""In which a change of keys holds everywhere."""
CHOICES: dict[str, tuple[str, ...]] = {
    "workers = 2": ("workers = 1", "workers = 2", "workers = 3", "workers = 4"),
    'log_format = "json"': ('log_format = "json"', 'log_format = "logfmt"', 'log_format = "text"'),
    "levels = []": ("levels = []", 'levels = ["memory"]', 'levels = ["memory", "sqlite"]'),
    "[prompt_log]\nenabled = false": ("[prompt_log]\nenabled = false", "[prompt_log]\nenabled = true"),
    "budget_usd_per_month = 100000.0": ("budget_usd_per_month = 100000.0", "tpm = 1000000000"),
}
BROKEN = "[server]\nunknown_key = 1\n"


class Operated:
    """A gateway, its clients, and what is done to it. Each of `steps` is one thing, done and over when it returns;
    `lost` is how many requests it may have cost."""

    def __init__(self, gateway: Gateway, chance: random.Random) -> None:
        self.gateway, self.chance = gateway, chance
        self.base = gateway.config.read_text()
        self.lost = 0
        self.made: dict[str, str] = {}
        self.revoked: dict[str, str] = {}
        self.starts = 1
        self.starters: list[subprocess.Popen[bytes]] = []
        self.steps: list[Callable[[], None]] = [
            self.reload, self.reload_refused, self.replace, self.upgrade, self.take_over, self.kill_worker,
            self.kill_worker_in_reload, self.kill_control, self.stand_still, self.change_keys,
            self.change_keys_in_reload, self.back_up_in_reload,
        ]  # fmt: skip

    # What runs.

    def processes(self) -> dict[int, bool]:
        """All that have not ended, and whether they are workers."""
        for starter in self.starters:
            starter.poll()
        found = {}
        for entry in Path("/proc").iterdir():
            with suppress(OSError):
                if (
                    entry.name.isdigit()
                    and (entry / "cwd").readlink() == self.gateway.directory
                    and not gone(int(entry.name))
                ):
                    found[int(entry.name)] = "_worker" in (entry / "cmdline").read_text()
        return found

    def workers(self) -> list[int]:
        return [pid for pid, works in self.processes().items() if works]

    def control(self) -> int:
        return until(lambda: [pid for pid, works in self.processes().items() if not works], what="no control process")[
            0
        ]

    def signal(self, number: int) -> None:
        os.kill(self.control(), number)

    def said(self, what: str) -> int:
        return self.gateway.said().count(what)

    def started(self) -> None:
        """Wait for one more that is ready."""
        self.starts += 1
        until(lambda: self.said(" ready in ") >= self.starts, 30.0, "no start")

    def start(self, *arguments: str) -> None:
        command = [sys.executable, "-W", "error", "-m", "dandolo", "serve", "--config", str(self.gateway.config)]
        with self.gateway.stdout.open("ab") as out, self.gateway.stderr.open("ab") as err:
            self.starters.append(
                subprocess.Popen(
                    [*command, *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=err,
                    env=self.gateway._environ,
                    cwd=self.gateway.directory,
                    process_group=self.gateway.pid,
                )
            )

    def admin(self, method: str, path: str, body: object = None) -> Any:
        with Client(self.gateway.admin_port) as client:
            client.send(request(path, body, method=method, key=KEY, headers={"Connection": "close"}))
            answer = client.answer()
        assert answer.status in (200, 201), answer.body
        return answer.json if path != "/metrics" else answer.body

    def status(self, key: str) -> int:
        return self.gateway.ask(get("/v1/models", key=key)).status

    # What is done to it.

    def write(self, more: str = "") -> None:
        text = self.base
        for found, ones in CHOICES.items():
            text = text.replace(found, self.chance.choice(ones))
        # At once: somebody may be reading it.
        new = self.gateway.config.with_suffix(".new")
        new.write_text(text + more)
        new.replace(self.gateway.config)

    def pause(self) -> None:
        """For a while that nobody has chosen: this is what meets the middle of something."""
        time.sleep(self.chance.random())

    def reloads(self) -> int:
        return self.said("reloaded ") + self.said("reload refused")

    def reload(self) -> None:
        before = self.reloads()
        self.write()
        self.signal(signal.SIGHUP)
        until(lambda: self.reloads() > before, 40.0, "no reload")

    def reload_refused(self) -> None:
        before = self.said("reload refused")
        self.write(BROKEN)
        self.signal(signal.SIGHUP)
        until(lambda: self.said("reload refused") > before, 40.0, "it was not refused")
        self.write()

    def replace(self) -> None:
        self.signal(signal.SIGUSR2)

    def upgrade(self) -> None:
        old = self.control()
        self.signal(signal.SIGUSR1)
        self.write()
        if self.chance.random() < 0.5:
            self.pause()
            with suppress(ProcessLookupError):
                os.kill(old, signal.SIGHUP)
        self.started()
        until(lambda: old not in self.processes(), 30.0, "the old one stays")

    def take_over(self) -> None:
        old = self.control()
        self.start("--upgrade")
        self.started()
        until(lambda: old not in self.processes(), 30.0, "the old one stays")

    def kill_worker(self) -> None:
        self.lost += CLIENTS
        with suppress(ProcessLookupError):
            os.kill(self.chance.choice(self.workers()), signal.SIGKILL)

    def kill_worker_in_reload(self) -> None:
        self.write()
        self.signal(signal.SIGHUP)
        self.pause()
        self.kill_worker()

    def kill_control(self) -> None:
        self.signal(self.chance.choice((signal.SIGHUP, signal.SIGUSR2, 0)))
        self.pause()
        old = self.control()
        os.kill(old, signal.SIGKILL)
        until(lambda: old not in self.processes())
        self.start()
        self.started()

    def stand_still(self) -> None:
        one = self.chance.choice([self.control(), *self.workers()])
        with suppress(ProcessLookupError):
            os.kill(one, signal.SIGSTOP)
            self.pause()
            os.kill(one, signal.SIGCONT)

    def change_keys(self) -> None:
        name = f"k{len(self.made) + len(self.revoked)}"
        self.made[name] = self.admin("POST", "/admin/keys", {"name": name, "budget_usd_per_day": 1.0})["key"]
        if len(self.made) > 1:
            other = self.chance.choice([one for one in self.made if one != name])
            self.admin("DELETE", f"/admin/keys/{other}")
            self.revoked[other] = self.made.pop(other)
        time.sleep(WITHIN_S)
        self.keys_hold()

    def change_keys_in_reload(self) -> None:
        self.write()
        self.signal(signal.SIGHUP)
        self.pause()
        self.change_keys()

    def back_up_in_reload(self) -> None:
        self.write()
        self.signal(signal.SIGHUP)
        command = [sys.executable, "-m", "dandolo", "backup", "copies", "--config", str(self.gateway.config)]
        subprocess.run(command, env=self.gateway._environ, cwd=self.gateway.directory, check=True, capture_output=True)

    # What holds at all times.

    def answers(self) -> bool:
        try:
            return bool(self.admin("GET", "/metrics")) and bool(self.admin("GET", "/admin/snapshot"))
        except OSError:
            return False

    def keys_hold(self) -> None:
        for _ in range(4):
            assert {name: self.status(key) for name, key in self.made.items()} == dict.fromkeys(self.made, 200)
            assert {name: self.status(key) for name, key in self.revoked.items()} == dict.fromkeys(self.revoked, 401)

    def budget_holds(self) -> bool:
        """Whether the board is not behind the ledger, which is asked first."""
        paid = sum(one["paid_usd"] for one in self.admin("GET", "/admin/usage?by=key")["rows"] if one["key"] == "key-0")
        (mine,) = [one for one in self.admin("GET", "/admin/keys")["keys"] if one["name"] == "key-0"]
        return "budget_usd_per_month" not in mine or bool(mine["usage"]["spent_usd_month"] >= paid - 2e-6)


@pytest.mark.promise("54")
def test_whatever_is_done_to_it_in_whatever_order(tmp_path: Path) -> None:
    chance = random.Random(SEED)
    server = {
        "listen": [f"127.0.0.1:{free_port()}"], "admin": f"127.0.0.1:{free_port()}", "workers": 2,
        "log_format": "json", "drain_delay": "300ms", "drain_timeout": "10s",
    }  # fmt: skip
    toml = "[cache]\nlevels = []\n[prompt_log]\nenabled = false\n"
    keys = [{"key": KEY, "budget_usd_per_month": 100000.0}]
    done: list[str] = []
    with Stub() as stub:
        provider = Provider(stub, models=PRICES)  # type: ignore[arg-type]
        gateway = Gateway(tmp_path, [provider], keys=keys, server=server, toml=toml, errors_expected=True)
        gateway.start()
        it = Operated(gateway, chance)
        try:
            with Load(gateway.port, connections=CLIENTS, key=KEY, pause_s=0.01) as load:
                for _ in range(STEPS):
                    step = chance.choice(it.steps)
                    done.append(step.__name__)
                    step()
                    until(it.answers, 20.0, f"no answer to operators after {done}")
                    load.more(20)
                    it.keys_hold()
                    assert len(load.failures) <= it.lost, (done, load.failures)
                    assert not [one for one in load.failures if "HTTP" in one], done
                    assert "Traceback" not in gateway.said(), done
                    until(it.budget_holds, 12.0, f"a budget is behind the ledger after {done}")
            until(lambda: settled(tmp_path) == owed(tmp_path, stub), 15.0, f"the ledger is not the bill after {done}")
            os.kill(it.control(), signal.SIGINT)
            until(lambda: not it.processes(), 20.0, f"processes are left after {done}")
        finally:
            for pid in it.processes():
                os.kill(pid, signal.SIGKILL)
            gateway.kill()
            for starter in it.starters:
                starter.wait(10)


def settled(folder: Path) -> int:
    """Micro-USD in the ledger."""
    with sqlite3.connect(folder / "state/ledger.db") as ledger:
        (paid,) = ledger.execute("SELECT sum(paid) FROM hourly").fetchone()
    ledger.close()
    return round((paid or 0) / 1000)


def owed(folder: Path, stub: Stub) -> int:
    """Micro-USD of the bill, without what is listed as unsettled: calls of workers that were killed."""
    with sqlite3.connect(folder / "state/ledger.db") as ledger:
        lost = {f"{p}{n:010x}" for p, n in ledger.execute("SELECT prefix, number FROM unsettled WHERE lost = 1")}
    ledger.close()
    return sum(cost for name, cost in stub.bill.items() if name not in lost)
