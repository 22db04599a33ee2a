"""`dandolo status` and `dandolo backup`, as users run them, against a running gateway."""

import hashlib
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time

import pytest

from dandolo.cli.status_screen import screen, sparkline
from dandolo.control.snapshot import Snapshots
from dandolo.record import Record
from dandolo.sim import SimProvider, SimThread

KEY = "dnd_0123456789abcdefghijklmnopqrstuv"
ADMIN = f'[[keys]]\nname = "ops"\nadmin = true\nsha256 = "{hashlib.sha256(KEY.encode()).hexdigest()}"\n'
BEARER = (("Authorization", f"Bearer {KEY}"),)


@pytest.fixture(scope="module")
def sims():
    with SimThread(SimProvider("one")) as running:
        yield running


@pytest.fixture
def dandolo(begin):
    """Run a command to its end: exit code, standard output, standard error."""

    def run(*words, **more):
        done = begin(*words, **more)
        return done.wait(), done.out, done.err

    return run


def test_once_shows_the_gateway_and_json_is_the_snapshot(begin, configure, sims, dandolo, eventually):
    served = begin("serve", "--config", configure(sims["one"], more=ADMIN)).ready()
    assert served.chat(headers=BEARER)[0] == 200
    where = ("--admin", f"127.0.0.1:{served.admin}")
    env = {"DANDOLO_ADMIN_KEY": KEY}

    def shown():
        code, out, err = dandolo("status", "--once", *where, env=env)
        assert (code, err) == (0, "")
        assert "\x1b" not in out
        return all(part in out for part in ("requests", "latency", "PROVIDERS", "one", "KEYS", "ops", "WORKERS"))

    # Workers tell their state within a second of the start.
    eventually(shown, "all of it is shown")

    def counted():
        code, out, _ = dandolo("status", "--once", "--json", *where, env=env)
        assert code == 0
        return json.loads(out)["traffic"]["total"]["requests"] >= 1

    eventually(counted, "the request is counted")


def test_where_it_cannot_be_asked_it_says_why_and_what_to_do(begin, configure, sims, dandolo):
    served = begin("serve", "--config", configure(sims["one"], more=ADMIN)).ready()
    where = ("--admin", f"127.0.0.1:{served.admin}")
    for env, said in (
        ({}, "DANDOLO_ADMIN_KEY"),
        ({"DANDOLO_ADMIN_KEY": "wrong"}, "the API key is missing or not one of the configuration's file"),
    ):
        code, out, err = dandolo("status", "--once", *where, env=env)
        assert (code, out) == (1, "")
        assert said in err
        assert "wrong" not in err
    served.kill(signal.SIGINT)
    served.wait()
    code, _, err = dandolo("status", "--once", *where)
    assert code == 1
    assert "is `dandolo serve` running?" in err


def test_a_unix_socket_is_asked_too(begin, configure, sims, dandolo, tmp_path, eventually):
    where = f"unix:{tmp_path}/admin.sock"
    begin("serve", "--config", configure(sims["one"], admin=where)).ready()
    eventually(lambda: "WORKERS" in dandolo("status", "--once")[1], "workers are shown")


def test_on_a_terminal_it_goes_on_until_it_is_interrupted(begin, configure, sims, tmp_path):
    served = begin("serve", "--config", configure(sims["one"])).ready()
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "dandolo", "status", "--admin", f"127.0.0.1:{served.admin}"]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "COLUMNS": "100", "LINES": "40", "TERM": "xterm"}
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=env, cwd=tmp_path)
    os.close(theirs)
    seen = b""
    try:
        end = time.monotonic() + 20
        while seen.count(b"\x1b[H") < 3:
            assert time.monotonic() < end
            seen += os.read(ours, 65536)
        process.send_signal(signal.SIGINT)
        while True:
            try:
                piece = os.read(ours, 65536)
            except OSError:
                break
            if not piece:
                break
            seen += piece
        assert process.wait(20) == 130
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    assert seen.startswith(b"\x1b[?1049h")
    assert seen.rstrip().endswith(b"\x1b[?1049l"), "the terminal is given back as it was"
    assert b"Traceback" not in seen


def test_no_line_is_wider_than_the_screen_and_no_name_is_obeyed():
    evil = "\x1b[2J\x1b]0;title\x07" + "x" * 300
    snapshots = Snapshots(
        0.0,
        {
            "providers": lambda: [
                {
                    "account": evil,
                    "slots": {"in_use": 1, "limit": 2, "waiting": 0},
                    "models": [{"model": evil, "breaker": "open", "reason": evil}],
                }
            ],
            "keys": lambda: [{"name": evil, "priority": "high"}],
            "alerts": lambda: [{"name": evil, "text": evil}],
        },
    )
    record = Record("2026-01-01T00:00:00.000Z", evil, 502, "POST", "chat", model=evil, account=evil, code=evil)
    snapshots.take([record], 0.0)
    snapshots.tick(1.0)
    snapshots.event("reload", evil, 1.0)
    for coloured in (False, True):
        lines = screen(json.loads(snapshots.text()), 100, coloured)
        assert "\x1b[2J" not in "".join(lines)
        assert "\x07" not in "".join(lines)
        plain = [re.sub(r"\x1b\[\d+m", "", line) for line in lines]
        assert max(map(len, plain)) <= 100
        assert "".join(plain).isprintable()
        assert any("\x1b" in line for line in lines) is coloured


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("usage", "--by", "key", "--slo"), "--by goes with neither"),
        (("usage", "--by", "key", "--unsettled"), "--by goes with neither"),
        (("usage", "--slo", "--unsettled"), "not allowed with"),
        (("usage", "--since", "2026-02-01", "--until", "2026-01-01"), "since is not before until"),
        (("usage", "--since", "24h", "--until", "30d", "--slo"), "since is not before until"),
        (("usage", "--since", "2999-01-01"), "since is not before until"),
        (("cache", "purge", "--tag", "web"), "--tag takes NAME=VALUE"),
    ],
)
def test_words_that_do_not_go_together_are_refused_before_anybody_is_asked(words, said, dandolo):
    code, out, err = dandolo(*words)
    assert (code, out) == (2, "")
    assert said in err


def test_sparklines():
    assert sparkline([0, 1, 8]) == " ▁█"
    assert sparkline([0, 0]) == "  "


def test_backup_copies_what_was_kept(begin, configure, sims, dandolo, tmp_path):
    state = tmp_path / "state"
    path = configure(sims["one"], server=f'state_dir = "{state}"')
    code, _, err = dandolo("backup", tmp_path / "backups", "--config", path)
    assert code == 1
    assert "nothing has been kept yet" in err
    state.mkdir()
    (state / "audit.jsonl").write_text('{"form":1}\n')
    code, out, _ = dandolo("backup", tmp_path / "backups", "--config", path)
    assert code == 0
    (folder,) = (tmp_path / "backups").iterdir()
    assert (folder / "audit.jsonl").read_text() == '{"form":1}\n'
    assert str(folder) in out


def test_figures_that_do_not_fit_a_line_go_on_the_next() -> None:
    snapshots = Snapshots(0.0)
    snapshots.tick(1.0)
    wide, narrow = (screen(json.loads(snapshots.text()), columns, False) for columns in (1000, 60))
    assert all(len(line) <= 60 for line in narrow)
    words = " ".join(narrow[1 : narrow.index("")]).split()
    assert words == " ".join(wide[1 : wide.index("")]).split()
