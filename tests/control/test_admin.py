"""The admin listener, over real sockets."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import uvloop

from dandolo.control.admin import Admin
from dandolo.errors import RequestError
from dandolo.net.listen import Census, Listener, open_tcp, open_unix
from dandolo.net.tasks import Tasks

Answer = tuple[int, dict[str, str], bytes]


def admin(**changes: Any) -> Admin:
    usual = {
        "metrics_text": lambda: b"up 1\n",
        "ready": lambda: (True, ""),
        "routes": lambda query: {"query": query.decode()},
    }
    return Admin(**{**usual, **changes})


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

    async def ask(self, path: str, method: str = "GET", host: str = "localhost", **headers: str) -> Answer:
        lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", "Connection: close"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        data = await self.raw(("\r\n".join(lines) + "\r\n\r\n").encode())
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
        for service in (admin(), admin(authenticate=lambda head: None)):
            async with serving(service) as caller:
                for path in ("/metrics", "/healthz"):
                    refused(await caller.ask(path, Origin=origin), 403, "origin_not_allowed")

    run(main)


def authenticate(head: dict[bytes, bytes]) -> None:
    if head.get(b"authorization") != b"Bearer right":
        raise RequestError("the key is missing", status=401, type="authentication_error", code="invalid_api_key")


def test_with_keys_all_but_the_probes_want_one() -> None:
    async def main() -> None:
        async with serving(admin(authenticate=authenticate)) as caller:
            for path in ("/metrics", "/", "/nothing"):
                answer = await caller.ask(path, host="gateway.example")
                refused(answer, 401, "invalid_api_key")
                assert answer[1]["www-authenticate"] == "Bearer"
            answer = await caller.ask("/metrics", host="gateway.example", Authorization="Bearer right")
            assert answer[0] == 200
            for path in ("/healthz", "/readyz"):
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

    def revocable(head: dict[bytes, bytes]) -> None:
        if head.get(b"authorization") not in keys:
            raise RequestError("the key is not known", status=401, code="invalid_api_key")

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
