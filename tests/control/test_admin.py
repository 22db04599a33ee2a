"""The admin listener, over real sockets."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import uvloop
from openapi_spec_validator import OpenAPIV31SpecValidator

from dandolo.control.admin import STREAMS_MAX, Admin
from dandolo.control.basic import basic_routes, with_index
from dandolo.control.guard import Caller as Let
from dandolo.control.route import Answer as Said
from dandolo.control.route import Asked, Events, Route, answer
from dandolo.errors import RequestError
from dandolo.net.listen import Census, Listener, open_tcp, open_unix
from dandolo.net.tasks import Tasks

Answer = tuple[int, dict[str, str], bytes]


def admin(*more: Route, **changes: Any) -> Admin:
    usual = {
        "metrics_text": lambda: b"up 1\n",
        "ready": lambda: (True, ""),
        "routes": lambda query: {"query": query.decode()},
    }
    given = {name: changes.pop(name, value) for name, value in usual.items()}
    return Admin(with_index([*basic_routes(**given), *more]), **changes)


class Caller:
    """A client of one admin listener."""

    def __init__(self, connect: Callable[[], Coroutine[Any, Any, tuple[asyncio.StreamReader, asyncio.StreamWriter]]]):
        self.connect = connect

    async def raw(self, data: bytes) -> bytes:
        """Everything that is answered until the connection ends."""
        reader, writer = await self.connect()
        try:
            writer.write(data)
            return await asyncio.wait_for(reader.read(), 10)
        finally:
            writer.close()
            await writer.wait_closed()

    async def ask(
        self, path: str, method: str = "GET", host: str = "localhost", body: bytes | None = None, **headers: str
    ) -> Answer:
        lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", "Connection: close"]
        if body is not None:
            lines.append(f"Content-Length: {len(body)}")
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        data = await self.raw(("\r\n".join(lines) + "\r\n\r\n").encode() + (body or b""))
        return parsed(data)


def parsed(data: bytes) -> Answer:
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode("ascii").split("\r\n")
    return int(first.split()[1]), {n.lower(): v for n, v in (line.split(": ", 1) for line in lines)}, body


@asynccontextmanager
async def serving(service: Admin, path: Path | None = None) -> AsyncIterator[Caller]:
    tasks, census = Tasks(), Census(100, 100)
    sock = open_unix(str(path)) if path is not None else open_tcp("127.0.0.1", 0)[0]
    listener = Listener(sock, service, census, tasks)
    listener.start()
    if path is not None:
        caller = Caller(lambda: asyncio.open_unix_connection(str(path)))
    else:
        port = sock.getsockname()[1]
        caller = Caller(lambda: asyncio.open_connection("127.0.0.1", port))
    try:
        yield caller
    finally:
        listener.close()
        service.close()
        while service.sweep.items:
            await asyncio.sleep(0)
        await tasks.close()
        census.close()


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


def refused(answer: Answer, status: int, code: str) -> None:
    assert answer[0] == status
    error = json.loads(answer[2])["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == code


def test_what_is_here_is_served() -> None:
    async def main() -> None:
        async with serving(admin()) as caller:
            status, head, body = await caller.ask("/metrics")
            assert (status, body) == (200, b"up 1\n")
            assert head["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
            assert head["cache-control"] == "no-store"
            assert head["date"].endswith("GMT")
            status, head, body = await caller.ask("/healthz?verbose")
            assert (status, body, head["content-type"]) == (200, b'{"status":"ok"}', "application/json")
            assert (await caller.ask("/readyz"))[::2] == (200, b'{"status":"ready"}')
            status, _, body = await caller.ask("/")
            assert status == 200
            assert all(path in body for path in (b"/metrics", b"/healthz", b"/readyz"))

    run(main)


def test_head_has_the_length_and_no_body() -> None:
    async def main() -> None:
        async with serving(admin()) as caller:
            status, head, body = await caller.ask("/metrics", "HEAD")
            assert (status, head["content-length"], body) == (200, "5", b"")

    run(main)


def test_readiness_fails_with_its_reason() -> None:
    async def main() -> None:
        async with serving(admin(ready=lambda: (False, 'every "provider" is open'))) as caller:
            status, _, body = await caller.ask("/readyz")
            assert status == 503
            assert json.loads(body) == {"status": "not ready", "reason": 'every "provider" is open'}
            assert (await caller.ask("/healthz"))[0] == 200

    run(main)


def test_unknown_paths_and_methods_are_refused_in_the_envelope() -> None:
    async def main() -> None:
        async with serving(admin()) as caller:
            refused(await caller.ask("/metrics/"), 404, "not_found")
            refused(await caller.ask("/v1/models"), 404, "not_found")
            answer = await caller.ask("/metrics", "POST", Content_Length="0")
            refused(answer, 405, "method_not_allowed")
            assert answer[1]["allow"] == "GET, HEAD"

    run(main)


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:9180", "127.0.0.1:9180", "[::1]:9180", "a.localhost"])
def test_loopback_names_are_answered(host: str) -> None:
    async def main() -> None:
        async with serving(admin()) as caller:
            assert (await caller.ask("/metrics", host=host))[0] == 200

    run(main)


@pytest.mark.parametrize("path", ["/metrics", "/healthz", "/nothing"])
@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example:9180", "10.0.0.1", "127.0.0.1.evil.example"])
def test_a_name_that_is_rebound_to_loopback_reads_nothing(host: str, path: str) -> None:
    async def main() -> None:
        async with serving(admin()) as caller:
            refused(await caller.ask(path, host=host), 403, "host_not_allowed")

    run(main)


def test_the_target_of_an_absolute_request_is_its_host() -> None:
    async def main() -> None:
        async with serving(admin()) as caller:
            answer = await caller.raw(b"GET http://evil.example/metrics HTTP/1.1\r\nHost: localhost\r\n\r\n"[:-2]
                                      + b"Connection: close\r\n\r\n")  # fmt: skip
            refused(parsed(answer), 403, "host_not_allowed")

    run(main)


@pytest.mark.parametrize("origin", ["http://localhost:9180", "null", "https://evil.example"])
def test_a_web_page_reads_nothing(origin: str) -> None:
    async def main() -> None:
        for service in (admin(), admin(authenticate=lambda head: Let())):
            async with serving(service) as caller:
                for path in ("/metrics", "/healthz"):
                    refused(await caller.ask(path, Origin=origin), 403, "origin_not_allowed")

    run(main)


def authenticate(head: Mapping[bytes, bytes]) -> Let:
    if head.get(b"authorization") == b"Bearer client":
        return Let("client", admin=False)
    if head.get(b"authorization") != b"Bearer right":
        raise RequestError("the key is missing", status=401, type="authentication_error", code="invalid_api_key")
    return Let("right")


def test_with_keys_all_but_open_paths_want_one() -> None:
    async def main() -> None:
        async with serving(admin(authenticate=authenticate)) as caller:
            for path in ("/metrics", "/admin/routes", "/admin/openapi.json", "/nothing"):
                answer = await caller.ask(path, host="gateway.example")
                refused(answer, 401, "invalid_api_key")
                assert answer[1]["www-authenticate"] == "Bearer"
            answer = await caller.ask("/metrics", host="gateway.example", Authorization="Bearer right")
            assert answer[0] == 200
            for path in ("/healthz", "/readyz", "/"):
                assert (await caller.ask(path, host="gateway.example"))[0] == 200

    run(main)


def test_a_unix_socket_needs_no_loopback_name(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(admin(), tmp_path / "admin.sock") as caller:
            assert (await caller.ask("/metrics", host="anything"))[0] == 200

    run(main)


def test_a_head_that_repeats_is_judged_again() -> None:
    one = b"GET /metrics HTTP/1.1\r\nHost: gateway\r\nAuthorization: Bearer right\r\n\r\n"
    keys = {b"Bearer right"}

    def revocable(head: Mapping[bytes, bytes]) -> Let:
        if head.get(b"authorization") not in keys:
            raise RequestError("the key is not known", status=401, code="invalid_api_key")
        return Let("right")

    async def main() -> None:
        async with serving(admin(authenticate=revocable)) as caller:
            reader, writer = await caller.connect()
            for expected in (b"200", b"200", b"401"):
                if expected == b"401":
                    keys.clear()
                writer.write(one)
                head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
                assert head.split()[1] == expected
                await reader.readexactly(int(head.lower().partition(b"content-length: ")[2].split()[0]))
            writer.close()
            await writer.wait_closed()

    run(main)


def test_one_connection_carries_many_requests() -> None:
    one = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
    gone = b"GET /nothing HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\nhi"
    last = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"

    async def main() -> None:
        async with serving(admin()) as caller:
            data = await caller.raw(one + gone + one + last)
            assert [int(part[:3]) for part in data.split(b"HTTP/1.1 ")[1:]] == [200, 404, 200, 200]

    run(main)


@pytest.mark.parametrize(
    ("data", "status"),
    [
        pytest.param(b"GET /metrics HTTP/1.1\r\n\r\n", 400, id="no host"),
        pytest.param(b"GET /metrics HTTP/2.0\r\nHost: localhost\r\n\r\n", 505, id="version"),
        pytest.param(b"GET /metrics HTTP/1.1\nHost: localhost\n\n", 400, id="bare line ends"),
        pytest.param(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999\r\n\r\n", 413, id="body"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 20_000 + b"\r\n\r\n", 431, id="head"),
    ],
)
def test_the_parser_is_as_strict_here(data: bytes, status: int) -> None:
    async def main() -> None:
        async with serving(admin()) as caller:
            answer = parsed(await caller.raw(data))
            assert answer[0] == status
            assert answer[1]["connection"] == "close"

    run(main)


def test_a_page_that_fails_is_a_500_without_a_trace(caplog: pytest.LogCaptureFixture) -> None:
    def broken() -> bytes:
        raise ValueError("secret detail")

    async def main() -> None:
        async with serving(admin(metrics_text=broken)) as caller:
            answer = await caller.ask("/metrics")
            refused(answer, 500, "internal_error")
            assert b"secret" not in answer[2]
            assert (await caller.ask("/healthz"))[0] == 200

    with caplog.at_level(logging.ERROR, "dandolo"):
        run(main)


def test_while_draining_each_answer_is_the_last_of_its_connection() -> None:
    async def main() -> None:
        service = admin()
        service.draining = True
        async with serving(service) as caller:
            data = await caller.raw(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert parsed(data)[1]["connection"] == "close"

    run(main)


def test_a_connection_that_says_nothing_is_ended() -> None:
    async def main() -> None:
        service = admin()
        async with serving(service) as caller:
            silent = asyncio.create_task(caller.raw(b""))
            while not service.sweep.items:
                await asyncio.sleep(0)
            service.sweep.tick(service.now() + service.limits.first_request_s)
            assert await silent == b""

    run(main)


# -- routes that change something, wait, or never end -----------------------------------------------------------


class Notes:
    """An audit log that is a list."""

    def __init__(self) -> None:
        self.notes: list[tuple[str, str, int, str]] = []

    def note(self, asked: Asked, route: Route, outcome: int, reason: str) -> None:
        self.notes.append((asked.who, f"{asked.method} {asked.path.decode()}", outcome, reason))


def echo(asked: Asked) -> Said:
    return answer({"method": asked.method, "rest": asked.rest.decode(), "body": asked.body.decode(), "who": asked.who})


ECHO = [
    Route(method, b"/admin/echo/", echo, "says it again", schema=None if method == "GET" else {})
    for method in ("GET", "POST", "PUT", "DELETE")
]
JSON = {"Content_Type": "application/json"}
PAGE = {"Origin": "http://localhost:9180", "Sec_Fetch_Site": "same-origin", **JSON}


def test_methods_rests_and_bodies() -> None:
    async def main() -> None:
        notes = Notes()
        async with serving(admin(*ECHO, audit=notes)) as caller:
            got = await caller.ask("/admin/echo/a%2Fb/c?x=1")
            assert (got[0], json.loads(got[2])["rest"]) == (200, "a%2Fb/c")
            for method in ("POST", "PUT"):
                got = await caller.ask("/admin/echo/x", method, body=b'{"a":1}', **JSON)
                assert json.loads(got[2]) == {"method": method, "rest": "x", "body": '{"a":1}', "who": ""}
            assert (await caller.ask("/admin/echo/x", "DELETE"))[0] == 200
            refused(await caller.ask("/admin/echo/"), 404, "not_found")
            got = await caller.ask("/admin/echo/x", "PATCH")
            refused(got, 405, "method_not_allowed")
            assert got[1]["allow"] == "DELETE, GET, HEAD, POST, PUT"
        assert notes.notes == [("", f"{method} /admin/echo/x", 200, "") for method in ("POST", "PUT", "DELETE")]

    run(main)


@pytest.mark.parametrize(
    ("body", "headers", "status", "code"),
    [
        pytest.param(b"a=1", {"Content_Type": "application/x-www-form-urlencoded"}, 415, "unsupported_media_type",
                     id="form"),
        pytest.param(b'{"a":1}', {"Content_Type": "text/plain"}, 415, "unsupported_media_type", id="text"),
        pytest.param(b'{"a":1}', {"Content_Type": "application/json;charset=utf-7"}, 415, "unsupported_media_type",
                     id="charset"),
        pytest.param(b'{"a":1}', {}, 415, "unsupported_media_type", id="no type"),
        pytest.param(b"{", JSON, 400, "invalid_json", id="no json"),
        pytest.param(b"[" * 20_000, JSON, 400, "invalid_json", id="depth"),
        pytest.param(b'"\xff"', JSON, 400, "invalid_json", id="utf-8"),
        pytest.param(b" " * 70_000, JSON, 413, "request_too_large", id="large"),
        pytest.param(b'{"n":"x"}', JSON, 400, "bad_request", id="shape"),
    ],
)  # fmt: skip
def test_bodies_that_are_refused(body: bytes, headers: dict[str, str], status: int, code: str) -> None:
    class Shape(msgspec.Struct):
        n: int

    def typed(asked: Asked) -> Said:
        msgspec.json.decode(asked.body, type=Shape)
        raise AssertionError("a body was let through")

    async def main() -> None:
        async with serving(admin(Route("POST", b"/admin/typed", typed, "wants a number", schema={}))) as caller:
            refused(await caller.ask("/admin/typed", "POST", body=body, **headers), status, code)

    run(main)


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
@pytest.mark.parametrize(
    "headers",
    [
        pytest.param({"Origin": "https://evil.example"}, id="another origin"),
        pytest.param({"Origin": "null", "Sec_Fetch_Site": "same-origin"}, id="no origin"),
        pytest.param({"Origin": "http://localhost:3000", "Sec_Fetch_Site": "same-site"}, id="another port"),
        pytest.param({"Origin": "http://localhost:9180"}, id="our origin, nothing said of where it is asked"),
        pytest.param({"Origin": "http://localhost:9180", "Sec_Fetch_Site": "cross-site"}, id="our origin, elsewhere"),
        pytest.param({"Origin": "http://localhost:9180.evil.example", "Sec_Fetch_Site": "same-origin"}, id="longer"),
        pytest.param({"Origin": "http://evil@localhost:9180", "Sec_Fetch_Site": "same-origin"}, id="user"),
        pytest.param({"Origin": "file://localhost:9180", "Sec_Fetch_Site": "same-origin"}, id="scheme"),
        pytest.param({"Sec_Fetch_Site": "cross-site"}, id="cross-site without an origin"),
        pytest.param({"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate", "Sec_Fetch_Dest": "document"},
                     id="form of another page"),
    ],
)  # fmt: skip
def test_another_web_page_changes_nothing(method: str, headers: dict[str, str]) -> None:
    async def main() -> None:
        async with serving(admin(*ECHO)) as caller:
            got = await caller.ask("/admin/echo/x", method, "localhost:9180", b"{}", **{**JSON, **headers})
            refused(got, 403, "origin_not_allowed")

    run(main)


def test_a_page_under_a_rebound_name_is_not_ours() -> None:
    async def main() -> None:
        page = {"Origin": "http://evil.example:9180", "Sec_Fetch_Site": "same-origin", **JSON}
        async with serving(admin(*ECHO)) as caller:
            for method in ("GET", "POST"):
                got = await caller.ask("/admin/echo/x", method, "evil.example:9180", b"{}", **page)
                refused(got, 403, "host_not_allowed")

    run(main)


def test_our_own_page_changes_what_it_says_in_json() -> None:
    async def main() -> None:
        async with serving(admin(*ECHO)) as caller:
            got = await caller.ask("/admin/echo/x", "POST", "localhost:9180", b"{}", **PAGE)
            assert got[0] == 200
            assert "access-control-allow-origin" not in got[1]
            form = {**PAGE, "Content_Type": "text/plain"}
            refused(await caller.ask("/admin/echo/x", "POST", "localhost:9180", b"{}", **form), 415,
                    "unsupported_media_type")  # fmt: skip
            empty = {name: value for name, value in PAGE.items() if name != "Content_Type"}
            refused(await caller.ask("/admin/echo/x", "DELETE", "localhost:9180", **empty), 415,
                    "unsupported_media_type")  # fmt: skip
            refused(await caller.ask("/admin/echo/x", "OPTIONS", "localhost:9180", **PAGE), 405, "method_not_allowed")

    run(main)


def test_a_link_from_elsewhere_opens_the_page_and_an_image_does_not() -> None:
    async def main() -> None:
        async with serving(admin()) as caller:
            link = {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate", "Sec_Fetch_Dest": "document"}
            assert (await caller.ask("/", **link))[0] == 200
            for other in ("iframe", "image", "script", "empty"):
                got = await caller.ask("/metrics", **{**link, "Sec_Fetch_Dest": other})
                refused(got, 403, "origin_not_allowed")

    run(main)


def test_no_answer_can_be_framed_or_run() -> None:
    async def main() -> None:
        async with serving(admin()) as caller:
            for path in ("/", "/metrics", "/nothing"):
                head = (await caller.ask(path))[1]
                assert head["x-frame-options"] == "DENY"
                assert head["x-content-type-options"] == "nosniff"
                assert "default-src 'none'" in head["content-security-policy"]
                assert "frame-ancestors 'none'" in head["content-security-policy"]

    run(main)


def test_a_clients_key_reads_metrics_and_nothing_else() -> None:
    async def main() -> None:
        notes = Notes()
        async with serving(admin(*ECHO, authenticate=authenticate, audit=notes)) as caller:
            client = {"Authorization": "Bearer client"}
            assert (await caller.ask("/metrics", **client))[0] == 200
            refused(await caller.ask("/admin/routes", **client), 403, "admin_key_needed")
            refused(await caller.ask("/admin/echo/x", "DELETE", **client), 403, "admin_key_needed")
            got = await caller.ask("/admin/echo/x", "POST", body=b"1", Authorization="Bearer right", **JSON)
            assert json.loads(got[2])["who"] == "right"
            refused(await caller.ask("/admin/echo/x", "DELETE"), 401, "invalid_api_key")
        # Who has no key is not written down: anybody could fill the log.
        assert notes.notes == [
            ("client", "DELETE /admin/echo/x", 403, "admin_key_needed"),
            ("right", "POST /admin/echo/x", 200, ""),
        ]

    run(main)


def waiting(handle: Callable[[Asked], Any], **more: Any) -> Route:
    return Route("POST", b"/admin/wait", handle, "waits", **more)


def test_a_handler_may_wait_and_fail() -> None:
    async def later(asked: Asked) -> Said:
        await asyncio.sleep(0)
        if asked.query == b"fail":
            raise RequestError("no such thing", status=404, code="not_found")
        if asked.query == b"break":
            raise ValueError("secret detail")
        return answer({"done": True})

    async def main() -> None:
        notes = Notes()
        async with serving(admin(waiting(later), audit=notes)) as caller:
            assert (await caller.ask("/admin/wait", "POST"))[2] == b'{"done":true}'
            refused(await caller.ask("/admin/wait?fail", "POST"), 404, "not_found")
            got = await caller.ask("/admin/wait?break", "POST")
            refused(got, 500, "internal_error")
            assert b"secret" not in got[2]
        assert [note[2:] for note in notes.notes] == [(200, ""), (404, "not_found"), (500, "internal_error")]

    run(main)


def test_a_handler_that_takes_too_long_is_ended() -> None:
    ended: list[str] = []

    async def forever(asked: Asked) -> Said:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("cancelled")
        raise AssertionError

    async def main() -> None:
        async with serving(admin(waiting(forever, deadline_s=0.01))) as caller:
            refused(await caller.ask("/admin/wait", "POST"), 504, "timeout")
        assert ended == ["cancelled"]

    run(main)


def test_a_handler_ends_when_its_client_leaves() -> None:
    async def main() -> None:
        begun, ended = asyncio.Event(), asyncio.Event()

        async def forever(asked: Asked) -> Said:
            begun.set()
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()
            raise AssertionError

        notes = Notes()
        service = admin(waiting(forever), audit=notes)
        async with serving(service) as caller:
            _, writer = await caller.connect()
            writer.write(b"POST /admin/wait HTTP/1.1\r\nHost: localhost\r\n\r\n")
            await asyncio.wait_for(begun.wait(), 10)
            writer.close()
            await writer.wait_closed()
            await asyncio.wait_for(ended.wait(), 10)
            while len(service.tasks):
                await asyncio.sleep(0)
        assert notes.notes == [("", "POST /admin/wait", 499, "client_closed_request")]

    run(main)


def streaming(source: Callable[[], AsyncIterator[bytes]]) -> Route:
    return Route("GET", b"/admin/live", lambda _: Events(source()), "goes on and on")


ASK_LIVE = b"GET /admin/live HTTP/1.1\r\nHost: localhost\r\n\r\n"


def test_events_come_as_they_are_made_and_end_with_their_source() -> None:
    async def main() -> None:
        step = asyncio.Event()

        async def two() -> AsyncIterator[bytes]:
            yield b'{"n":1}'
            await step.wait()
            yield b"two\nlines"

        async with serving(admin(streaming(two))) as caller:
            reader, writer = await caller.connect()
            writer.write(ASK_LIVE)
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
            assert b"Content-Type: text/event-stream\r\n" in head
            await asyncio.wait_for(reader.readuntil(b'data: {"n":1}\n\n'), 10)
            step.set()
            await asyncio.wait_for(reader.readuntil(b"data: two\ndata: lines\n\n"), 10)
            await asyncio.wait_for(reader.readuntil(b"0\r\n\r\n"), 10)
            writer.close()
            await writer.wait_closed()
            head_only = await caller.ask("/admin/live", "HEAD")
            assert (head_only[0], head_only[2]) == (200, b"")

    run(main)


def test_a_source_ends_when_its_client_leaves_and_a_broken_one_is_cut(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        ended = asyncio.Event()

        async def forever() -> AsyncIterator[bytes]:
            try:
                yield b"1"
                await asyncio.Event().wait()
            finally:
                ended.set()

        async def broken() -> AsyncIterator[bytes]:
            yield b"1"
            raise ValueError("secret detail")

        service = admin(streaming(forever))
        async with serving(service) as caller:
            reader, writer = await caller.connect()
            writer.write(ASK_LIVE)
            await asyncio.wait_for(reader.readuntil(b"data: 1\n\n"), 10)
            writer.close()
            await writer.wait_closed()
            await asyncio.wait_for(ended.wait(), 10)
            while service.streams:
                await asyncio.sleep(0)
        async with serving(admin(streaming(broken))) as caller:
            data = await caller.raw(ASK_LIVE)
            assert b"data: 1\n\n" in data
            assert b"secret" not in data
            assert not data.endswith(b"0\r\n\r\n")

    with caplog.at_level(logging.ERROR, "dandolo"):
        run(main)


def test_streams_are_bounded_in_number() -> None:
    async def main() -> None:
        async def forever() -> AsyncIterator[bytes]:
            yield b"1"
            await asyncio.Event().wait()

        service = admin(streaming(forever))
        async with serving(service) as caller:
            writers = []
            for _ in range(STREAMS_MAX):
                reader, writer = await caller.connect()
                writers.append(writer)
                writer.write(ASK_LIVE)
                await asyncio.wait_for(reader.readuntil(b"data: 1\n\n"), 10)
            refused(await caller.ask("/admin/live"), 503, "overloaded")
            assert (await caller.ask("/healthz"))[0] == 200
            for writer in writers:
                writer.close()
            while service.streams:
                await asyncio.sleep(0)

    run(main)


def test_a_client_that_does_not_read_is_cut_and_holds_little() -> None:
    async def main() -> None:
        made = 0

        async def flood() -> AsyncIterator[bytes]:
            nonlocal made
            while True:
                made += 1
                yield b"x" * 10_000
                await asyncio.sleep(0)

        service = admin(streaming(flood))
        async with serving(service) as caller:
            _, writer = await caller.connect()
            writer.write(ASK_LIVE)
            before = -1
            while made != before or made < 10:
                before = made
                for _ in range(50):
                    await asyncio.sleep(0)
            assert made < 2000, "what nobody reads is not made"
            while service.streams:
                service.sweep.tick(service.now() + 100.0)
                await asyncio.sleep(0)
            writer.close()

    run(main)


def test_the_description_is_openapi_and_tells_all_routes() -> None:
    schema = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
    more = [*ECHO, Route("POST", b"/admin/keys", echo, "makes a key", schema=schema, parameters={"dry": "or not"})]

    async def main() -> None:
        async with serving(admin(*more)) as caller:
            document = json.loads((await caller.ask("/admin/openapi.json"))[2])
            OpenAPIV31SpecValidator(document).validate()
            assert set(document["paths"]) >= {"/", "/metrics", "/healthz", "/admin/echo/{id}", "/admin/openapi.json"}
            assert document["paths"]["/healthz"]["get"]["security"] == []
            made = document["paths"]["/admin/keys"]["post"]
            assert made["requestBody"]["content"]["application/json"]["schema"] == schema
            listing = (await caller.ask("/"))[2].decode()
            assert "/admin/echo/{id}" in listing
            assert "makes a key" in listing

    run(main)


def test_a_body_says_each_thing_once_and_comes_only_where_one_is_wanted() -> None:
    async def main() -> None:
        bare = Route("POST", b"/admin/bare", echo, "wants nothing")
        async with serving(admin(*ECHO, bare)) as caller:
            for body in (b'{"a":1,"a":2}', b'{"a":1,"\\u0061":2}', b'[{"b":{"c":1,"c":1}}]'):
                refused(await caller.ask("/admin/echo/x", "POST", body=body, **JSON), 400, "duplicate_name")
            many = b"{" + b",".join(b'"%d":0' % number for number in range(6000)) + b',"5999":1}'
            refused(await caller.ask("/admin/echo/x", "POST", body=many, **JSON), 400, "duplicate_name")
            for body in (b"null", b"[]", b'{"a":1}'):
                refused(await caller.ask("/admin/bare", "POST", body=body, **JSON), 400, "body_not_expected")
            for body in (None, b"", b"{}", b" {} "):
                assert (await caller.ask("/admin/bare", "POST", body=body, **JSON))[0] == 200

    run(main)
