"""`dandolo demo`: its four checks, its exit codes, and that what it says to paste works."""

import os
import pty
import re
import shlex
import signal
import socket
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from dandolo.cli import client, demo


@pytest.mark.parametrize("words", [(), ("--once",)])
def test_four_checks_are_shown_and_it_leaves_when_nobody_watches(begin, words):
    done = begin("demo", *words)
    assert done.wait() == 0
    assert done.err == ""
    lines = [line.split() for line in done.out.splitlines() if line.startswith("  ok")]
    assert [line[1] for line in lines] == ["chat", "same", "provider", "stream"]
    assert re.match(r"dandolo \S+ ready in \d+ ms on http://127\.0\.0\.1:\d+\n", done.out)
    assert "swift is dead, solid answered; 2 attempts" in done.out
    assert re.search(r"stream +solid +[\d.]+ ms  first token after [\d.]+ ms, \d+ tokens, \[DONE\]", done.out)
    assert "\x1b" not in done.out


def test_what_was_asked_again_is_said_so(begin):
    done = begin("demo")
    assert done.wait() == 0
    assert re.search(r"same again +cache .*kept from swift; nobody was asked", done.out)


def test_another_port_is_taken_when_8080_is_in_use(begin):
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            taken.bind(("127.0.0.1", demo.PORT))
            taken.listen()
        except OSError:
            pass  # somebody else has it: as good
        done = begin("demo")
        assert done.wait() == 0
        assert ":8080" not in done.out


class Terminal:
    """A program on a pseudo-terminal; what it writes is kept."""

    def __init__(self, *words, env, cwd):
        self.ours, theirs = pty.openpty()
        # Without echo and without line ends turned into CR LF.
        mode = termios.tcgetattr(theirs)
        mode[1] &= ~termios.OPOST
        termios.tcsetattr(theirs, termios.TCSANOW, mode)
        command = [sys.executable, "-m", "dandolo", *words]
        self.process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=env, cwd=cwd)
        os.close(theirs)
        self.text = ""

    def until(self, pattern):
        while not (found := re.search(pattern, self.text)):
            piece = os.read(self.ours, 4096)
            assert piece, self.text
            self.text += piece.decode()
        return found

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.ours)


@pytest.fixture
def terminal(tmp_path):
    opened = []

    def start(*words, **more):
        env = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
        env |= {"PYTHONPATH": str(Path(demo.__file__).parents[2]), **more}
        opened.append(Terminal(*words, env=env, cwd=tmp_path))
        return opened[-1]

    yield start
    for one in opened:
        one.close()


def test_on_a_terminal_it_serves_until_ctrl_c_and_the_curl_works(terminal):
    shown = terminal("demo")
    shown.until("dandolo serve")
    assert "\x1b[32mok\x1b[0m" in shown.text
    command = shlex.split(shown.until(r"curl .*?\n.*?\n")[0].replace("\\\n", " "))
    url, header, body = command[1], command[3], command[5]
    assert (command[2], command[4]) == ("-H", "-d")
    where = re.fullmatch(r"http://(127\.0\.0\.1):(\d+)(/.*)", url)
    with socket.create_connection((where[1], int(where[2])), 10) as sock:
        head = f"POST {where[3]} HTTP/1.1\r\nHost: {where[1]}:{where[2]}\r\n{header}\r\nConnection: close\r\n"
        sock.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
        answer = sock.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"x-dandolo-provider: s" in answer
    shown.until(r"200 POST/chat fast → s")
    shown.process.send_signal(signal.SIGINT)
    assert shown.process.wait(10) == 0


def test_no_color_is_respected(terminal):
    shown = terminal("demo", "--once", NO_COLOR="1")
    shown.until("dandolo serve")
    assert "\x1b" not in shown.text
    assert shown.process.wait(10) == 0


def test_failed_check_is_told_with_its_reason_and_1(monkeypatch, capsys):
    async def refused(self, path, payload=None):
        return client.Answer(503, {}, reason="no provider can be asked")

    monkeypatch.setattr(client.Client, "ask", refused)
    monkeypatch.setattr(demo, "PORT", 0)
    assert demo.run(type("Args", (), {"once": True})()) == 1
    out = capsys.readouterr().out
    assert re.search(r"  failed  chat +no provider can be asked", out)
    assert "curl" not in out
