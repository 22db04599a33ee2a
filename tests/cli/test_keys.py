"""`dandolo keys`: against the database, against a running gateway, and what it refuses."""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import http.server
import inspect
import re
import socketserver
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from dandolo.board import Board
from dandolo.cli import keys
from dandolo.config import parse
from dandolo.control.keyring import Keyring
from dandolo.control.keyring_routes import routes
from dandolo.control.keys import Keys
from dandolo.control.route import Answer, Asked
from dandolo.errors import GatewayError

PROVIDER = '[[providers]]\nname = "l"\nbase_url = "http://127.0.0.1:2/v1"\n'
KEY = re.compile(r"dnd_[A-Za-z0-9_-]{32}")
Run = Callable[..., int]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """The command in a folder with a configuration whose admin listener nobody serves."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DANDOLO_ADMIN_KEY", raising=False)
    (tmp_path / "dandolo.toml").write_text(
        f'[server]\nstate_dir = "{tmp_path / "state"}"\nadmin = "127.0.0.1:1"\n'
        f'[[keys]]\nname = "ops"\nsha256 = "{"1" * 64}"\nrpm = 7\n' + PROVIDER
    )

    def run(*argv: str) -> int:
        parser = argparse.ArgumentParser()
        keys.add_arguments(parser)
        return keys.run(parser.parse_args(argv))

    return run


def test_lines_for_the_configuration_are_shown_and_nothing_is_kept(run: Run, tmp_path: Path, capsys: Any) -> None:
    assert run("create", "web", "--print") == 0
    out = capsys.readouterr().out
    key = out.splitlines()[0]
    assert KEY.fullmatch(key)
    assert out.count(key) == 1
    config = parse(out[out.index("[[keys]]") :] + PROVIDER, "d", {"HOME": "/h"})
    assert config.keys[0].name == "web"
    assert config.keys[0].digest == hashlib.sha256(key.encode()).digest()
    assert not (tmp_path / "state").exists()


def test_lines_for_the_configuration_hold_all_that_was_asked_for(run: Run, capsys: Any) -> None:
    said = ("--rpm", "60", "--budget-day", "1.5", "--model", "a", "--model", "b/*", "--tag", 'team=w"x', "--privacy")
    assert run("create", "web", "--print", *said) == 0
    out = capsys.readouterr().out
    (key,) = parse(out[out.index("[[keys]]") :] + PROVIDER, "d", {"HOME": "/h"}).keys
    assert (key.rpm, key.budget_usd_per_day, key.models, key.privacy) == (60, 1.5, ("a", "b/*"), True)
    assert dict(key.tags) == {"team": 'w"x'}
    assert run("create", "web", "--print", "--rpm", "0") == 1
    assert "rpm observed 0" in capsys.readouterr().err


def test_an_overlap_that_is_none_names_its_flag(run: Run, capsys: Any) -> None:
    assert run("rotate", "web", "--overlap", "soon") == 2
    assert '--overlap: observed "soon", expected' in capsys.readouterr().err


@pytest.mark.parametrize("amount", ["nan", "inf", "much"])
def test_a_budget_that_is_no_number_names_its_flag(run: Run, amount: str, capsys: Any) -> None:
    with pytest.raises(SystemExit) as left:
        run("create", "web", "--budget-day", amount)
    assert left.value.code == 2
    assert f"--budget-day: observed '{amount}', expected" in capsys.readouterr().err


def test_an_overlap_that_is_too_long_is_told_what_is_not(run: Run, capsys: Any) -> None:
    assert run("rotate", "web", "--offline", "--overlap", "31d") == 1
    assert "observed an overlap of 2678400 s, expected 0 to 2592000 (30 days)" in capsys.readouterr().err


def test_a_key_is_kept_in_the_database_and_shown_once(run: Run, tmp_path: Path, capsys: Any) -> None:
    assert (
        run("create", "web", "--rpm", "60", "--budget-day", "1.5", "--model", "a", "--model", "b/*", "--tag", "t=v")
        == 0
    )
    out = capsys.readouterr().out
    key = out.splitlines()[0]
    assert KEY.fullmatch(key)
    with Keys(tmp_path / "state") as opened:
        (kept,) = opened.listed()
    terms = kept.terms
    assert terms.digests[0].sha256 == hashlib.sha256(key.encode()).digest()
    assert (terms.rpm, terms.budget_day, terms.models, terms.tags) == (60, 1_500_000, ("a", "b/*"), {"t": "v"})
    assert run("rotate", "web", "--overlap", "1h") == 0
    second = capsys.readouterr().out.splitlines()[0]
    assert second != key
    assert run("list") == 0
    listed = capsys.readouterr().out
    assert key not in listed
    assert second not in listed
    assert [line.split()[:3] for line in listed.splitlines()] == [
        ["NAME", "SOURCE", "STATUS"],
        ["ops", "file", "valid"],
        ["web", "database", "valid"],
    ]
    assert "60 requests a minute" in listed
    assert run("revoke", "web") == 0
    assert "revoked" in capsys.readouterr().out
    assert run("revoke", "web") == 1
    assert "no valid key" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "code", "says"),
    [
        (("create", "a b"), 2, "NAME takes"),
        (("create", 'x"\nsha256 = "'), 2, "NAME takes"),
        (("create", ""), 2, "NAME takes"),
        (("create", "a" * 65), 2, "NAME takes"),
        (("create", "ops"), 1, "file has a key"),
        (("create", "OPS"), 1, "file has a key"),
        (("create", "a", "--rpm", "0"), 1, "rpm observed 0"),
        (("create", "a", "--tag", "novalue"), 2, "NAME=VALUE"),
        (("create", "a", "--config", "/nowhere.toml"), 78, "nowhere.toml"),
        (("rotate", "a"), 1, "no valid key"),
        (("rotate", "ops"), 1, "no valid key"),
        (("rotate", "a", "--overlap", "soon"), 2, "soon"),
        (("rotate", "a", "--overlap", "400d"), 2, ""),
        (("revoke", "ops"), 1, "configuration's file"),
        (("list", "--admin", "127.0.0.1:1"), 1, "nobody answers"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(run: Run, argv: tuple[str, ...], code: int, says: str, capsys: Any) -> None:
    assert run(*argv) in (code, 1)
    out, err = capsys.readouterr()
    assert out == ""
    assert says in err
    assert "Traceback" not in err


@contextmanager
def listener(ring: Keyring | None, wanted: str = "") -> Iterator[int]:
    """An admin listener that offers the routes of a keyring, or none; with `wanted` only to who presents that key."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            status, content = 404, b'{"error":{"message":"nothing here","code":"not_found"}}'
            if wanted and self.headers.get("authorization") != f"Bearer {wanted}":
                status, content = 401, b'{"error":{"message":"the API key is missing","code":"invalid_api_key"}}'
            else:
                for route in routes(ring) if ring is not None else ():
                    at = route.path.decode()
                    whole = not at.endswith("/") and self.path == at
                    part = at.endswith("/") and self.path.startswith(at)
                    if route.method == self.command and (whole or part):
                        asked = Asked(self.command, self.path.encode(), b"", body, "", self.path[len(at) :].encode())
                        try:
                            answer = asyncio.run(self.waited(route.handle(asked)))
                            status, content = answer.status, answer.body
                        except GatewayError as error:
                            status, content = (
                                error.status,
                                b'{"error":{"message":"%b","code":"%b"}}'
                                % (
                                    error.message.encode(),
                                    (error.code or "").encode(),
                                ),
                            )
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        async def waited(self, answer: Any) -> Answer:
            found = await answer if inspect.isawaitable(answer) else answer
            assert isinstance(found, Answer)
            return found

        do_GET = do_POST = do_DELETE = answer

        def log_message(self, *_: object) -> None:
            """Quiet."""

    with socketserver.TCPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()
            if ring is not None:
                asyncio.run(ring.close())


def test_a_running_gateway_is_asked(run: Run, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    adopted: list[Any] = []
    ring = Keyring(tmp_path / "its", Board.alone(10), lambda: (), adopted.append)
    with listener(ring, "secret") as port:
        where = ("--admin", f"127.0.0.1:{port}")
        assert run("create", "web", *where) == 1
        assert "DANDOLO_ADMIN_KEY" in capsys.readouterr().err
        monkeypatch.setenv("DANDOLO_ADMIN_KEY", "secret")
        assert run("create", "web", "--rpm", "5", *where) == 0
        assert KEY.fullmatch(capsys.readouterr().out.splitlines()[0])
        # It is known there at once, and the database of our own configuration was not asked.
        assert [key.name for key in adopted[-1].keys] == ["web"]
        assert not (tmp_path / "state").exists()
        assert run("create", "web", *where) == 1
        assert "already" in capsys.readouterr().err
        assert run("rotate", "web", *where) == 0
        assert run("list", *where) == 0
        assert "5 requests a minute (0)" in capsys.readouterr().out
        assert run("revoke", "web", *where) == 0
        assert adopted[-1].keys == ()
        assert run("revoke", "web", *where) == 1


def test_what_is_no_gateway_is_said(run: Run, tmp_path: Path, capsys: Any) -> None:
    with listener(None) as port:
        assert run("create", "web", "--admin", f"127.0.0.1:{port}") == 1
        assert "has no /admin/keys: --admin wants the admin listener" in capsys.readouterr().err
    assert not (tmp_path / "state").exists()


def test_without_a_configuration_the_usual_state_folder_is_taken(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    (tmp_path / "dandolo.toml").unlink()
    for name in ("VENICE_API_KEY", "OPENROUTER_API_KEY", "OPENAI_API_KEY", "ANTHROPIC_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "usual"))
    assert run("create", "web", "--offline") == 0
    assert (tmp_path / "usual" / "keys.sqlite").exists()


def test_the_secrets_of_the_service_are_not_needed(run: Run, tmp_path: Path, capsys: Any) -> None:
    toml = tmp_path / "dandolo.toml"
    toml.write_text(toml.read_text() + 'key = { credential = "venice" }\n[server.tls]\ncert = "/no"\nkey = "/no"\n')
    assert run("create", "web") == 0
    out, err = capsys.readouterr()
    assert KEY.fullmatch(out.splitlines()[0])
    assert "passed over" in err
    assert (tmp_path / "state" / "keys.sqlite").exists()
    assert run("create", "OPS") == 1


@pytest.mark.parametrize("text", ["keys = 1", "server = 1", "[[keys]]\n[", "\0", '[server]\nstate_dir = "relative"'])
def test_a_broken_configuration_is_refused_in_words(run: Run, tmp_path: Path, capsys: Any, text: str) -> None:
    (tmp_path / "dandolo.toml").write_text(text)
    assert run("list") == 78
    assert "dandolo.toml" in capsys.readouterr().err


def test_two_keys_differ() -> None:
    assert keys.new_key() != keys.new_key()
