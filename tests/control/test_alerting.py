"""Alerts on their way out: real webhook servers that fail, hang and redirect, real programs, the admin route."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import logging
import os
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trustme

from dandolo.config.alerts import Alerts as Settings
from dandolo.config.alerts import Command, Webhook
from dandolo.config.secret import Secret
from dandolo.control.alerting import Alerting
from dandolo.control.alerting_command import CommandSink
from dandolo.control.alerting_routes import alerting_routes
from dandolo.control.alerting_webhook import WebhookSink
from dandolo.control.courier import QUEUE_MAX, Courier, Undelivered
from dandolo.control.route import Answer, Asked
from dandolo.errors import Refusal, RequestError
from dandolo.mind.alert import Alerts, Facts, Thresholds
from dandolo.net.dial import Dialer
from dandolo.notice import Notice
from dandolo.record import Record

PATIENCE_S = 10.0
Served = Callable[[str, dict[str, str], bytes], bytes | None]


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    # The control process's own loop.
    with asyncio.Runner() as runner:
        runner.run(main())


async def until(true: Callable[[], Any]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not true():
            await asyncio.sleep(0.005)


def notice(number: int = 1, **changes: Any) -> Notice:
    made = Notice(
        f"errors-{number}", "errors", "", "firing", "page", 1000.5, 970.5, 0.2, 0.05, "share", "20 % of requests failed"
    )
    return msgspec.structs.replace(made, **changes)


class Receiver:
    """A webhook's server: what it was sent, and an answer by the number of the request."""

    def __init__(self, answers: Callable[[int], bytes | None]) -> None:
        self.answers = answers
        self.got: list[tuple[str, dict[str, str], bytes]] = []
        self.open = 0
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            fields = {n.lower(): v for n, v in (line.split(": ", 1) for line in head[1:] if line)}
            body = await reader.readexactly(int(fields["content-length"]))
            self.got.append((head[0], fields, body))
            answer = self.answers(len(self.got))
            if answer is None:
                await reader.read()
            else:
                writer.write(answer)
                await writer.drain()
                if b"Content-Length: 99" in answer:
                    await reader.read()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.open -= 1
            writer.close()


def plain(status: int, *lines: str) -> bytes:
    return ("\r\n".join([f"HTTP/1.1 {status} X", "Content-Length: 0", *lines]) + "\r\n\r\n").encode()


@asynccontextmanager
async def receiving(
    answers: Callable[[int], bytes | None], tls: ssl.SSLContext | None = None
) -> AsyncIterator[Receiver]:
    receiver = Receiver(answers)
    server = await asyncio.start_server(receiver.serve, "127.0.0.1", 0, ssl=tls)
    receiver.port = server.sockets[0].getsockname()[1]
    try:
        yield receiver
    finally:
        server.close()
        await until(lambda: not receiver.open)


def webhook(port: int, path: str = "/hook?v=1", **changes: Any) -> Webhook:
    values: dict[str, Any] = {"url": Secret(f"http://127.0.0.1:{port}{path}"), "timeout": 5.0}
    return Webhook(**{**values, **changes})


def sink(hook: Webhook) -> WebhookSink:
    return WebhookSink(hook, "edge-1", Dialer(), now=lambda: 1_764_000_000.9)


def test_a_notice_is_posted_signed() -> None:
    async def main() -> None:
        async with receiving(lambda _: plain(204)) as receiver:
            await sink(webhook(receiver.port, secret=Secret("sesame"))).deliver(notice())
            line, fields, body = receiver.got[0]
            assert line == "POST /hook?v=1 HTTP/1.1"
            assert fields["host"] == f"127.0.0.1:{receiver.port}"
            assert fields["content-type"] == "application/json"
            assert fields["x-dandolo-delivery"] == "errors-1-firing"
            assert fields["x-dandolo-timestamp"] == "1764000000"
            expected = hmac.new(b"sesame", b"1764000000." + body, hashlib.sha256).hexdigest()
            assert fields["x-dandolo-signature"] == f"v1={expected}"
            posted = json.loads(body)
            assert posted["text"] == "[firing] errors: 20 % of requests failed"
            assert posted["instance"] == "edge-1"
            assert posted["value"] == 0.2
            assert msgspec.json.decode(body, type=Notice) == notice()

    run(main)


def test_without_a_secret_nothing_is_signed() -> None:
    async def main() -> None:
        async with receiving(lambda _: plain(200)) as receiver:
            await sink(webhook(receiver.port, "")).deliver(notice(subject="redis"))
            line, fields, body = receiver.got[0]
            assert line == "POST / HTTP/1.1"
            assert "x-dandolo-signature" not in fields
            assert json.loads(body)["text"].startswith("[firing] errors (redis): ")

    run(main)


@pytest.mark.parametrize(
    ("answer", "again", "reason"),
    [
        (plain(302, "Location: http://127.0.0.1:1/stolen"), False, "redirects are not followed"),
        (plain(307, "Location: /again"), False, "redirects are not followed"),
        (plain(400), False, "it answered 400"),
        (plain(404), False, "it answered 404"),
        (plain(429), True, "it answered 429"),
        (plain(500), True, "it answered 500"),
        (b"HTTP/1.1 503 X\r\nContent-Length: 99\r\n\r\nhalf", True, "it answered 503"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", True, "without an answer in HTTP"),
        (b"", True, "without an answer in HTTP"),
        (None, True, "no answer within 0.3 s"),
    ],
)
def test_what_is_no_success_is_told_from_what_may_pass(answer: bytes | None, again: bool, reason: str) -> None:
    async def main() -> None:
        async with receiving(lambda _: answer) as receiver:
            with pytest.raises(Undelivered, match=reason) as caught:
                await sink(webhook(receiver.port, timeout=0.3)).deliver(notice())
            assert caught.value.again == again
            assert len(receiver.got) == 1

    run(main)


def test_a_receiver_that_answers_and_goes_on_and_on_has_taken_it() -> None:
    async def main() -> None:
        async with receiving(lambda _: b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nhalf") as receiver:
            await sink(webhook(receiver.port, timeout=0.3)).deliver(notice())

    run(main)


def test_nobody_listens() -> None:
    async def main() -> None:
        with pytest.raises(Undelivered, match="no connection to") as caught:
            await sink(webhook(1)).deliver(notice())
        assert caught.value.again

    run(main)


@pytest.mark.parametrize("host", ["169.254.169.254", "[fe80::1]", "0.0.0.0", "[::ffff:169.254.169.254]"])
def test_metadata_services_are_never_called(host: str) -> None:
    async def main() -> None:
        hook = webhook(1, url=Secret(f"http://{host}/latest"), timeout=1.0)
        with pytest.raises(Undelivered, match="refused"):
            await sink(hook).deliver(notice())

    run(main)


def test_certificates_are_verified(tmp_path: Path) -> None:
    authority, stranger = trustme.CA(), trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    stranger.cert_pem.write_to_path(str(tmp_path / "other.pem"))

    async def main() -> None:
        async with receiving(lambda _: plain(200), context) as receiver:
            url = Secret(f"https://127.0.0.1:{receiver.port}/hook")
            await sink(webhook(0, url=url, ca=tmp_path / "ca.pem")).deliver(notice())
            assert len(receiver.got) == 1
            with pytest.raises(Undelivered, match="certificate"):
                await sink(webhook(0, url=url, ca=tmp_path / "other.pem")).deliver(notice())
            assert len(receiver.got) == 1

    run(main)


def test_what_fails_is_tried_again_in_order(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        answers = {1: plain(503), 2: None, 3: plain(200), 4: plain(410), 5: plain(200)}
        async with receiving(lambda number: answers[number]) as receiver:
            courier = Courier("webhook x", sink(webhook(receiver.port, timeout=0.2)).deliver, pause_s=0.01)
            for number in (1, 2, 3):
                courier.send(notice(number))
            assert courier.waiting == 3
            await until(lambda: not courier.waiting)
            got = [fields["x-dandolo-delivery"] for _, fields, _ in receiver.got]
            assert got == ["errors-1-firing"] * 3 + ["errors-2-firing", "errors-3-firing"]
            assert (courier.delivered, courier.failed, courier.dropped) == (2, 1, 0)
            await courier.close()

    run(main)
    assert "did not take notice errors-2, which is given up: it answered 410" in caplog.text


def test_attempts_are_bounded() -> None:
    async def main() -> None:
        async with receiving(lambda _: plain(503)) as receiver:
            courier = Courier("x", sink(webhook(receiver.port)).deliver, pause_s=0.001, attempts_max=4)
            courier.send(notice())
            await until(lambda: courier.failed)
            assert len(receiver.got) == 4

    run(main)


def test_the_queue_is_bounded_and_the_oldest_goes() -> None:
    async def main() -> None:
        async with receiving(lambda _: None) as receiver:
            courier = Courier("x", sink(webhook(receiver.port)).deliver)
            courier.send(notice(0))
            await until(lambda: receiver.got)
            for number in range(1, QUEUE_MAX + 10):
                courier.send(notice(number))
            assert courier.waiting == QUEUE_MAX
            assert courier.dropped == 10
            # The end cuts the attempt that hangs, and leaves nothing behind.
            await courier.close()
            assert courier.waiting == 0
            await until(lambda: not receiver.open)
            assert len(asyncio.all_tasks()) == 1

    run(main)


def test_a_fault_of_a_sink_does_not_stop_the_next_notice(caplog: pytest.LogCaptureFixture) -> None:
    got = []

    async def deliver(one: Notice) -> None:
        got.append(one.id)
        if one.id == "errors-1":
            raise ZeroDivisionError

    async def main() -> None:
        courier = Courier("x", deliver)
        courier.send(notice(1))
        courier.send(notice(2))
        await until(lambda: not courier.waiting)
        assert (courier.delivered, courier.failed) == (1, 1)

    run(main)
    assert got == ["errors-1", "errors-2"]
    assert "x failed at notice errors-1" in caplog.text


# -- programs ------------------------------------------------------------------------------------------------------


def script(folder: Path, text: str) -> str:
    path = folder / "notify"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_a_program_gets_the_notice_and_no_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VENICE_API_KEY", "sesame")
    out = tmp_path / "out"
    program = script(tmp_path, f'cat > {out}; env >> {out}; echo "$1" >> {out}; echo noise; echo noise >&2')

    async def main() -> None:
        await CommandSink(Command(argv=(program, "a b; $(id)")), "edge-1").deliver(notice())

    run(main)
    lines = out.read_text().splitlines()
    assert msgspec.json.decode(lines[0], type=Notice) == notice()
    assert "DANDOLO_ALERT=errors" in lines
    assert "DANDOLO_ALERT_STATE=firing" in lines
    assert lines[-1] == "a b; $(id)"
    assert "sesame" not in out.read_text()


@pytest.mark.parametrize(
    ("text", "reason", "again"),
    [("exit 3", "status 3", True), ("kill -9 $$", "signal 9", True), ("exec 0<&-; exit 0", "", True)],
)
def test_a_programs_end_is_judged(tmp_path: Path, text: str, reason: str, again: bool) -> None:
    async def main() -> None:
        command = CommandSink(Command(argv=(script(tmp_path, text),)), "edge-1")
        if not reason:
            await command.deliver(notice())
            return
        with pytest.raises(Undelivered, match=reason) as caught:
            await command.deliver(notice())
        assert caught.value.again == again

    run(main)


def test_a_program_that_is_not_there_is_not_tried_again() -> None:
    async def main() -> None:
        with pytest.raises(Undelivered, match="cannot be run") as caught:
            await CommandSink(Command(argv=("/nowhere/notify",)), "edge-1").deliver(notice())
        assert not caught.value.again

    run(main)


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    # Killed, and not yet waited for by whoever adopted it.
    return "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text()


@pytest.mark.parametrize("how", ["timeout", "cancel"])
def test_a_program_that_hangs_is_killed_with_its_children(tmp_path: Path, how: str) -> None:
    pids = tmp_path / "pids"
    program = script(tmp_path, f"sleep 600 & echo $! $$ > {pids}.new; mv {pids}.new {pids}; wait")

    async def main() -> None:
        timeout_s = 1.0 if how == "timeout" else 60.0
        command = CommandSink(Command(argv=(program,), timeout=timeout_s), "edge-1")
        task = asyncio.ensure_future(command.deliver(notice()))
        await until(pids.exists)
        if how == "cancel":
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        else:
            with pytest.raises(Undelivered, match="longer than 1 s"):
                await task
        for pid in map(int, pids.read_text().split()):
            await until(lambda: gone(pid))  # noqa: B023

    run(main)


# -- together ------------------------------------------------------------------------------------------------------

BAD = Record("2026-01-01T00:00:00.000Z", "req_1", 502, "POST", "chat", code="upstream_unavailable", duration_ms=1.0)


def test_an_incident_reaches_log_sinks_page_and_metrics(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    out = tmp_path / "out"
    program = script(tmp_path, f"cat >> {out}")
    caplog.set_level(logging.INFO, "dandolo")

    async def main() -> None:
        async with receiving(lambda _: plain(200)) as receiver:
            alerting = Alerting(Alerts(Thresholds(recover_s=10.0)), Facts)
            settings = Settings(webhooks=(webhook(receiver.port),), commands=(Command(argv=(program,)),))
            assert alerting.configure(settings, "edge-1", Dialer()) == []
            now = 1_764_000_000.0
            for _ in range(60):
                now += 1
                alerting.take([BAD] * 5, now)
                alerting.tick(now)
            await until(lambda: len(receiver.got) == 1 and out.exists())
            gauges = {(one.name, *dict(one.labels).values()): one.value for one in alerting.gauges()}
            assert gauges["dandolo_alert_firing", "errors"] == 1
            assert gauges["dandolo_alert_firing", "latency"] == 0
            assert gauges["dandolo_error_budget_burn_rate", "5m"] == pytest.approx(1000)
            for _ in range(600):
                now += 1
                alerting.tick(now)
            await until(lambda: all(one.delivered == 2 for one in alerting._couriers))
            assert len(out.read_text().splitlines()) == 2
            assert [json.loads(body)["state"] for _, _, body in receiver.got] == ["firing", "recovered"]
            (route,) = alerting_routes(lambda: alerting)
            shown = route.handle(Asked("GET", b"/admin/alerts", b"", b"", ""))
            assert isinstance(shown, Answer)
            page = json.loads(shown.body)
            assert [one["state"] for one in page["recent"]] == ["recovered", "firing"]
            assert page["recent"][0]["id"] == page["recent"][1]["id"]
            assert {one["alert"] for one in page["alerts"]} >= {"errors", "latency", "burn_fast", "providers_open"}
            assert [one["delivered"] for one in page["sinks"]] == [2, 2]
            assert page["sinks"][0]["name"] == f"webhook http://127.0.0.1:{receiver.port}"
            # Other sinks: the old ones are handed back to end their work.
            assert len(alerting.configure(Settings(log=False), "edge-1", Dialer())) == 2
            await alerting.close()

    run(main)
    lines = [one.getMessage() for one in caplog.records if one.getMessage().startswith("alert ")]
    assert [line.split()[1] for line in lines] == ["firing", "recovered"]


@pytest.mark.parametrize("query", [b"state=angry", b"stat=ok", b"state=ok&state=ok", b"a\xff=1", b"state=%00%0a"])
def test_a_query_that_is_none_is_refused(query: bytes) -> None:
    alerting = Alerting(Alerts(Thresholds()), Facts)
    (route,) = alerting_routes(lambda: alerting)
    with pytest.raises(RequestError, match="expected"):
        route.handle(Asked("GET", b"/admin/alerts", query, b"", ""))


def test_alerts_are_chosen_by_state() -> None:
    alerting = Alerting(Alerts(Thresholds(hold_s=0.0)), lambda: Facts(ledger="full"))
    alerting.tick(1000.0)
    (route,) = alerting_routes(lambda: alerting)
    shown = route.handle(Asked("GET", b"/admin/alerts", b"state=firing", b"", ""))
    assert isinstance(shown, Answer)
    assert [one["alert"] for one in json.loads(shown.body)["alerts"]] == ["ledger"]


def test_before_they_begin_there_is_nothing_to_show() -> None:
    (route,) = alerting_routes(lambda: None)
    with pytest.raises(Refusal, match="ask again"):
        route.handle(Asked("GET", b"/admin/alerts", b"", b"", ""))
