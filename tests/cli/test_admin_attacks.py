"""A hostile caller at the admin listener of a running `dandolo serve`: whatever is sent, answers are in order."""

import contextlib
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys

import pytest

from dandolo.sim import SimProvider, SimThread

from .conftest import Served, environment, write_config

KEY = "dnd_0123456789abcdefghijklmnopqrstuv"
CLIENT_KEY = "dnd_client6789abcdefghijklmnopqrstuv"
KEYS = "".join(
    f'[[keys]]\nname = "{name}"\nsha256 = "{hashlib.sha256(key.encode()).hexdigest()}"\nadmin = {admin}\n'
    for name, key, admin in (("ops", KEY, "true"), ("app", CLIENT_KEY, "false"))
)
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "BREW")


@pytest.fixture(scope="module")
def sims():
    with SimThread(SimProvider("one")) as running:
        yield running


@pytest.fixture
def served(begin, configure, sims):
    return begin("serve", "--config", configure(sims["one"], more=KEYS)).ready()


def raw(served, data, *, patience_s=20.0):
    """All that comes back until the other end closes."""
    with socket.create_connection(("127.0.0.1", served.admin), timeout=patience_s) as sock:
        try:
            sock.sendall(data)
        except OSError:
            pass  # it has heard enough
        pieces = []
        try:
            while piece := sock.recv(65536):
                pieces.append(piece)
        except ConnectionResetError:
            pass
    return b"".join(pieces)


def with_key(what):
    """A request without a body, as an operator sends it."""
    return f"{what} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {KEY}\r\n\r\n".encode()


def call(served, method, path, body=b"", key=KEY, *headers):
    lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", "Connection: close", f"Content-Length: {len(body)}"]
    if key is not None:
        lines.append(f"Authorization: Bearer {key}")
    if body and not any(one.lower().startswith("content-type") for one in headers):
        lines.append("Content-Type: application/json")
    data = raw(served, "\r\n".join([*lines, *headers, "", ""]).encode("latin-1") + body)
    head, _, content = data.partition(b"\r\n\r\n")
    assert head, f"no answer to {method} {path}"
    return int(head.split()[1]), head.decode("latin-1"), content


def in_order(answer, where):
    """Every refusal has the one envelope, says something, and shows no inside of ours."""
    status, head, content = answer
    assert status < 500 or status in (503, 504), (where, answer)
    if status >= 400 and content:
        error = json.loads(content)["error"]
        assert set(error) == {"message", "type", "param", "code"}, where
        assert len(error["message"]) > 10, where
        assert error["message"].isprintable(), where
        assert "Traceback" not in error["message"], where
    assert "x-content-type-options: nosniff" in head.lower(), where
    return status


def routes(served):
    """Every operation that is described, with a name where the path wants one."""
    described = json.loads(call(served, "GET", "/admin/openapi.json")[2])["paths"]
    for path, operations in described.items():
        for method in operations:
            yield method.upper(), path.replace("{name}", "nobody").replace("{id}", "req_" + "0" * 22)


LEAVE_ALONE = ("/admin/upgrade", "/admin/restart", "/admin/live")
"""A process that takes over, new workers, a stream without end: not with every body there is."""
KINDS = ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "", "a" * 999)
DEEP = b"[" * 20_000 + b"]" * 20_000
BODIES = {
    "empty": b"{}",
    "not json": b"{",
    "nothing": b"null",
    "a list": b"[]",
    "a text": b'"x"',
    "a number": b"1e999",
    "no number": b'{"rpm": NaN}',
    "infinite": b'{"overlap_s": Infinity}',
    "deep": DEEP,
    "deep within": b'{"name": ' + DEEP + b"}",
    "long number": b'{"rpm": ' + b"9" * 5000 + b"}",
    "twice": b'{"name": "a1", "name": "b1"}',
    "twice, escaped": b'{"name": "a1", "n\\u0061me": "b1"}',
    "twice, within": b'{"name": "a1", "tags": {"a": "1", "a": "2"}}',
    "no utf-8": b'{"name": "\xff"}',
    "half a character": b'{"name": "\\ud800"}',
    "utf-16": '{"name": "a1"}'.encode("utf-16"),
    "a mark first": b"\xef\xbb\xbf{}",
    "nul": b'{"name": "a\\u0000b"}',
    "unknown": b'{"__proto__": {"admin": true}, "constructor": 1}',
    "many names": b"{" + b",".join(b'"k%d":1' % number for number in range(5000)) + b"}",
}


def test_every_route_answers_every_method_and_body_in_order(served):
    found = list(routes(served))
    paths = dict.fromkeys(path for _, path in found)
    assert len(paths) > 15
    for path in paths:
        if path in LEAVE_ALONE:
            continue
        for method in METHODS:
            if (method, path) in found or (method == "HEAD" and ("GET", path) in found):
                continue
            status = in_order(answer := call(served, method, path), (method, path))
            assert status == 405, (method, path, answer)
            allowed = {line.split(": ")[1] for line in answer[1].split("\r\n") if line.lower().startswith("allow:")}
            assert allowed, (method, path)
    for method, path in found:
        if path in LEAVE_ALONE or method not in ("POST", "DELETE", "PUT", "PATCH"):
            continue
        for name, body in BODIES.items():
            status = in_order(call(served, method, path, body), (method, path, name))
            assert status >= 400 or name == "empty", (method, path, name)
        # Whatever forms can send, and what a browser sends to other sites without asking.
        for kind in KINDS:
            answer = call(served, method, path, b"{}", KEY, f"Content-Type: {kind}")
            assert in_order(answer, (method, path, kind)) == 415
        answer = call(served, method, path, b"{" + b" " * (1 << 20), KEY)
        assert in_order(answer, (method, path, "large")) == 413
    # It has gone on working, and has made none of these.
    assert json.loads(call(served, "GET", "/admin/keys")[2])["keys"][0]["name"] == "ops"
    assert [one["name"] for one in json.loads(call(served, "GET", "/admin/keys")[2])["keys"]] == ["ops", "app"]
    assert "failed to answer" not in served.err


def test_queries_and_paths_that_lead_elsewhere(served):
    rests = [
        "..", "../..", "%2e%2e%2f", "..%2f..%2fetc%2fpasswd", "a/../b", "a%00b", "%", "%zz", "a%0d%0aX:1",
        "'%20OR%20'1'='1", "a" * 4000, "a;b", "~", "*", "{name}",
    ]  # fmt: skip
    for method, path in (
        ("DELETE", "/admin/keys/"), ("POST", "/admin/keys/"), ("GET", "/admin/requests/"), ("GET", "/admin/texts/"),
    ):  # fmt: skip
        for rest in rests:
            body = b"{}" if method == "POST" else b""
            status = in_order(call(served, method, path + rest, body), (method, path, rest))
            assert status in (400, 404, 414, 431), (method, path, rest, status)
    queries = [
        "a=1&" * 40,
        "limit=" + "9" * 3000,
        "limit=%00",
        "limit=-1",
        "by=" + "x" * 3000,
        "since=NaN",
        "since=1e308h",
    ]
    queries += [
        "since=9999999h",
        "until=%ff",
        "worker=99",
        "model=%ff%fe&tokens_in=1e999",
        "tokens_in=-1&model=m",
        "=&=&",
        "&" * 500,
    ]
    for method, path in routes(served):
        if method == "GET" and path not in LEAVE_ALONE:
            for query in queries:
                in_order(call(served, method, f"{path}?{query}"), (path, query))
    assert "failed to answer" not in served.err


@pytest.mark.parametrize(
    "terms",
    [
        {"name": "a\r\nX-Evil: 1"},
        {"name": "a\nb"},
        {"name": ""},
        {"name": "é"},
        {"name": "\u202ename"},
        {"name": "a" * 65},
        {"name": "<script>alert(1)</script>"},
        {"name": 'a"} 1\n'},
        {"name": "OPS"},
        {"name": "app"},
        {"name": "x", "tags": {"a\r\nb": "1"}},
        {"name": "x", "tags": {"a": "1\r\nX: 2"}},
        {"name": "x", "tags": {"a": "\u202e"}},
        {"name": "x", "tags": {"a": "b" * 10_000}},
        {"name": "x", "tags": {f"t{number}": "1" for number in range(1000)}},
        {"name": "x", "rpm": 0},
        {"name": "x", "rpm": -1},
        {"name": "x", "rpm": 1.5},
        {"name": "x", "rpm": True},
        {"name": "x", "rpm": 10**30},
        {"name": "x", "tpm": 0},
        {"name": "x", "concurrent": 0},
        {"name": "x", "budget_usd_per_day": 0},
        {"name": "x", "budget_usd_per_day": -1},
        {"name": "x", "budget_usd_per_day": 1e308},
        {"name": "x", "budget_usd_per_month": "1"},
        {"name": "x", "models": []},
        {"name": "x", "models": ["\r\n"]},
        {"name": "x", "models": ["m"] * 10_000},
        {"name": "x", "admin": True},
        {"name": "x", "sha256": "0" * 64},
        {"name": "x", "slots_reserved": 1.0},
        {"name": "x", "priority": "highest"},
        {"name": "x", "cache_scope": "all"},
    ],
    ids=lambda terms: "-".join([*terms, str(len(str(terms)))]),
)
def test_a_key_that_cannot_be_is_refused_in_words(shared, terms):
    answer = call(shared, "POST", "/admin/keys", json.dumps(terms).encode())
    assert in_order(answer, terms) in (400, 409)
    assert "X-Evil" not in answer[1]


@contextlib.contextmanager
def alone(home, sims, more=""):
    """One process for tests that change nothing."""
    path = write_config(home / "d.toml", [sims["one"]], more=more)
    err, out = home / "err", home / "out"
    with open(err, "wb") as err_file, open(out, "wb") as out_file:
        process = subprocess.Popen(
            [sys.executable, "-m", "dandolo", "serve", "--config", path],
            stdin=subprocess.DEVNULL,
            stdout=out_file,
            stderr=err_file,
            env=environment(home),
            cwd=home,
            process_group=0,
        )
    try:
        yield Served(process, err, out).ready()
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture(scope="module")
def shared(sims, tmp_path_factory):
    with alone(tmp_path_factory.mktemp("shared"), sims, KEYS) as served:
        yield served


@pytest.fixture(scope="module")
def keyless(sims, tmp_path_factory):
    with alone(tmp_path_factory.mktemp("keyless"), sims) as served:
        yield served


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (("Host: evil.example",), 403),
        (("Host: 127.0.0.1.evil.example",), 403),
        (("Host: localhost.evil.example",), 403),
        (("Host: 2130706433",), 403),
        (("Host: 127.0.0.1", "Origin: http://evil.example"), 403),
        (("Host: 127.0.0.1", "Origin: null"), 403),
        (("Host: 127.0.0.1", "Origin: http://127.0.0.1:1"), 403),
        (("Host: 127.0.0.1", "Origin: http://127.0.0.1"), 403),
        (
            ("Host: 127.0.0.1", "Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: navigate", "Sec-Fetch-Dest: document"),
            403,
        ),
        (("Host: 127.0.0.1", "Content-Type: text/plain"), 415),
        (("Host: 127.0.0.1", "Host: localhost"), 400),
        (("Host: 127.0.0.1", "Transfer-Encoding: chunked"), 400),
        (("Host: 127.0.0.1", "Authorization: Bearer a", "Authorization: Bearer b"), 400),
    ],
)
def test_pages_and_names_of_others_change_nothing(keyless, headers, status):
    lines = ["POST /admin/keys HTTP/1.1", "Connection: close", "Content-Length: 14", *headers]
    if not any(one.startswith("Content-Type") for one in headers):
        lines.append("Content-Type: application/json")
    answer = raw(keyless, "\r\n".join([*lines, "", ""]).encode() + b'{"name":"web"}')
    assert int(answer.split()[1]) == status, answer
    assert json.loads(call(keyless, "GET", "/admin/keys", key=None)[2])["keys"] == []


def test_whoever_takes_all_streams_keeps_nobody_from_the_rest(served, eventually):
    streams = []
    try:
        refused = b""
        for _ in range(34):
            sock = socket.create_connection(("127.0.0.1", served.admin), timeout=20)
            streams.append(sock)
            # None of them reads but the first bytes.
            sock.sendall(with_key("GET /admin/live"))
            first = sock.recv(64)
            if b" 503 " in first:
                refused = first
        assert refused
        assert call(served, "GET", "/admin/keys")[0] == 200
        assert call(served, "GET", "/healthz", key=None)[0] == 200
    finally:
        for sock in streams:
            sock.close()

    def again():
        with socket.create_connection(("127.0.0.1", served.admin), timeout=20) as sock:
            sock.sendall(with_key("GET /admin/live"))
            return b" 200 " in sock.recv(64)

    eventually(again, "streams are given back")


def test_silent_connections_of_one_address_leave_room_for_others(served):
    silent = [socket.create_connection(("127.0.0.1", served.admin), timeout=20) for _ in range(64)]
    try:
        # All that this address may have are taken: closed at once, until the first of them are dropped.
        assert raw(served, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n") == b""
        with socket.socket() as other:
            other.settimeout(20)
            other.bind(("127.0.0.2", 0))
            other.connect(("127.0.0.1", served.admin))
            other.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            assert b" 200 " in other.recv(1024)
    finally:
        for sock in silent:
            sock.close()


def test_a_revoker_who_hangs_up_has_revoked(served, eventually):
    made = json.loads(call(served, "POST", "/admin/keys", b'{"name":"web"}')[2])["key"]
    chat = ("/v1/chat/completions", {"model": "m", "messages": [{"role": "user", "content": "hi"}]})
    bearer = (("Authorization", f"Bearer {made}"),)
    eventually(lambda: served.ask(*chat, bearer)[0] == 200, "the key is known")
    with socket.create_connection(("127.0.0.1", served.admin), timeout=20) as sock:
        sock.sendall(with_key("DELETE /admin/keys/web"))
    eventually(lambda: served.ask(*chat, bearer)[0] == 401, "it is revoked")


def test_a_reload_goes_on_when_its_caller_hangs_up(served, eventually, tmp_path):
    path = tmp_path / "dandolo.toml"
    other = "dnd_other56789abcdefghijklmnopqrstuv"
    before, after = (hashlib.sha256(key.encode()).hexdigest() for key in (KEY, other))
    path.write_text(path.read_text().replace(before, after))
    with socket.create_connection(("127.0.0.1", served.admin), timeout=20) as sock:
        sock.sendall(with_key("POST /admin/reload"))
    eventually(lambda: "reloaded" in served.err, "it went on")
    eventually(lambda: call(served, "GET", "/admin/keys", key=other)[0] == 200, "the listener has the new keys")
    assert call(served, "GET", "/admin/keys")[0] == 401
