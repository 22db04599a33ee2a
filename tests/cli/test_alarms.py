"""Alerts of a running gateway: what its gauges tell, and a notice that arrives."""

from __future__ import annotations

import http.server
import json
import threading

import pytest

from dandolo.cli.alarms import facts
from dandolo.cli.watching import budget_gauges
from dandolo.control.exposition import Gauge
from dandolo.sim import Script, SimProvider, SimThread


def limits(*accounts):
    return [Gauge("dandolo_slots_limit", 10, (("account", one),)) for one in accounts]


def breaker(account, model, state):
    return Gauge("dandolo_breaker_state", state, (("account", account), ("model", model)))


@pytest.mark.parametrize(
    ("gauges", "open_"),
    [
        ([], False),
        (limits("a"), False),
        ([*limits("a"), breaker("a", "m", 2)], True),
        ([*limits("a"), breaker("a", "m", 1)], False),
        ([*limits("a"), breaker("a", "m", 2), breaker("a", "n", 0)], False),
        ([*limits("a"), breaker("a", "m", 0), breaker("a", "n", 2)], False),
        ([*limits("a", "b"), breaker("a", "m", 2)], False),
        ([*limits("a", "b"), breaker("a", "m", 2), breaker("b", "m", 2)], True),
    ],
)
def test_all_providers_are_open_when_no_model_of_any_account_can_be_asked(gauges, open_):
    assert facts([gauges]).providers_open is open_
    assert facts([[], list(reversed(gauges))]).providers_open is open_
    # Another worker that can ask somebody is enough.
    assert not facts([gauges, limits("a")]).providers_open


def test_budgets_of_keys_are_shares():
    budgets = budget_gauges([("ci", "day", 10_000_000, 9_000_000, 500_000), ("web", "month", 0, 0, 0)])
    assert facts([list(budgets)]).budgets == {"ci/day": 0.9, "web/month": 1.0}


def test_tiers_budgets_and_the_ledger_are_read():
    found = facts(
        [
            [
                Gauge("dandolo_cache_tier_up", 1, (("tier", "l2"),)),
                Gauge("dandolo_cache_tier_breaker_open", 1, (("tier", "l2"),)),
                Gauge("dandolo_cache_tier_up", 1, (("tier", "l3"),)),
                Gauge("dandolo_cache_tier_breaker_open", 0, (("tier", "l3"),)),
            ],
            [Gauge("dandolo_cache_tier_up", 1, (("tier", tier),)) for tier in ("l2", "l3")],
            [
                Gauge("dandolo_budget_used_share", 0.9, (("key", "ci"), ("period", "day"))),
                Gauge("dandolo_ledger_up", 0),
            ],
        ]
    )
    assert found.tiers_down == ("l2",)
    assert found.budgets == {"ci/day": 0.9}
    assert found.ledger == "it cannot be written"
    assert not facts([[Gauge("dandolo_ledger_up", 1)], [Gauge("dandolo_journal_up", 1)]]).ledger
    assert "journal" in facts([[Gauge("dandolo_ledger_up", 1)], [Gauge("dandolo_journal_up", 0)]]).ledger


@pytest.fixture
def receiver():
    got = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            got.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    server.got = got
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_running_gateway_tells_that_its_requests_fail(begin, configure, eventually, receiver):
    with SimThread(SimProvider("ill", script=Script(error_rate=1.0))) as sims:
        port = receiver.server_port
        configure(
            sims["ill"],
            more="[routing]\nbreaker = false\n"
            '[alerts]\nhold = "0s"\nsamples_min = 2\n'
            f'[[alerts.webhooks]]\nurl = "http://127.0.0.1:{port}/h?k=sesame"\n',
        )
        served = begin("serve").ready()

        def told():
            served.chat()
            return {one["alert"]: one for one in receiver.got}.get("errors")

        notice = eventually(told, "a notice of errors")
        assert notice["state"] == "firing"
        status, page = served.of_admin("/metrics")
        assert status == 200
        assert 'dandolo_alert_firing{alert="errors"} 1\n' in page
        served.says("alert firing errors")
        served.kill()
        assert served.wait() == 0
        assert "sesame" not in served.err + served.out


def test_every_provider_open_is_one_notice(begin, configure, eventually, receiver):
    with SimThread(SimProvider("ill", script=Script(error_rate=1.0))) as sims:
        port = receiver.server_port
        configure(
            sims["ill"],
            more=f'[alerts]\nhold = "3s"\nsamples_min = 5\n[[alerts.webhooks]]\nurl = "http://127.0.0.1:{port}/h"\n',
        )
        served = begin("serve").ready()
        eventually(lambda: (served.chat(), receiver.got)[1], "a notice")
        for _ in range(60):
            served.chat()
        assert [one["alert"] for one in receiver.got] == ["providers_open"]


def test_a_bundle_that_is_none_is_refused_at_once(begin, configure, tmp_path):
    (tmp_path / "ca.pem").write_text("no certificate")
    with SimThread(SimProvider("one")) as sims:
        configure(sims["one"], more='[[alerts.webhooks]]\nurl = "https://127.0.0.1/"\nca = "ca.pem"\n')
        served = begin("serve")
        assert served.wait() == 78
        assert "holds no certificate" in served.err
