"""Alerts and the export come and go with a reload, while workers go on."""

import hashlib
import http.server
import json
import signal
import sys
import threading
from pathlib import Path

import pytest

from dandolo.sim import Script, SimProvider, SimThread

sys.path.insert(0, str(Path(__file__).parents[1] / "control"))

from collector import Collector

FAILING = '[routing]\nbreaker = false\n[alerts]\nhold = "0s"\nsamples_min = 2\n'


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


def test_a_reload_changes_who_is_told_and_keeps_what_is_known(begin, configure, eventually, receiver):
    with SimThread(SimProvider("ill", script=Script(error_rate=1.0))) as sims:
        configure(sims["ill"], more=FAILING)
        served = begin("serve", "--workers", 2).ready()
        eventually(lambda: (served.chat(), "alert firing errors" in served.err)[1], "an alert in the log")
        url = f"http://127.0.0.1:{receiver.server_port}/h"
        calmer = FAILING.replace("samples_min = 2", "samples_min = 1000000")
        configure(sims["ill"], more=f'{calmer}recover = "1s"\n[[alerts.webhooks]]\nurl = "{url}"\n')
        served.kill(signal.SIGHUP)
        # What began before is ended at the new receiver, by the new thresholds.
        eventually(lambda: receiver.got, "a notice")
        assert (receiver.got[0]["alert"], receiver.got[0]["state"]) == ("errors", "recovered")
        status, page = served.of_admin("/admin/alerts")
        assert status == 200
        assert [one["state"] for one in json.loads(page)["recent"]][:2] == ["recovered", "firing"]
        assert served.of_admin("/admin/alerts?state=angry")[0] == 400


def test_a_reload_turns_tracing_on_and_off(begin, configure, eventually):
    with SimThread(SimProvider("one")) as sims, Collector() as collector:
        configure(sims["one"])
        served = begin("serve").ready()

        def told():
            served.chat(temperature=1)
            return sims["one"].requests[-1].header("traceparent")

        assert told() is None
        configure(sims["one"], more=f'[otel]\nendpoint = "{collector.url}"\n')
        served.kill(signal.SIGHUP)
        eventually(told, "a traceparent")
        eventually(lambda: collector.spans, "spans")
        configure(sims["one"])
        served.kill(signal.SIGHUP)
        eventually(lambda: told() is None, "no traceparent")


def test_what_was_not_exported_yet_is_at_the_end(begin, configure):
    with SimThread(SimProvider("one")) as sims, Collector() as collector:
        configure(sims["one"], more=f'[otel]\nendpoint = "{collector.url}"\n')
        served = begin("serve").ready()
        assert served.chat()[0] == 200
        served.kill(signal.SIGINT)
        assert served.wait() == 0
        assert len(collector.spans) == 2


def test_a_budget_that_is_nearly_spent_is_told(begin, configure, eventually):
    key = "dnd_0123456789abcdefghijklmnopqrstuv"
    digest = hashlib.sha256(key.encode()).hexdigest()
    priced = '[[providers.models]]\nid = "m"\ninput_usd_per_mtok = 1000.0\noutput_usd_per_mtok = 1000.0\n'
    keys = f'[[keys]]\nname = "ci"\nsha256 = "{digest}"\nbudget_usd_per_day = 1.0\n'
    with SimThread(SimProvider("one")) as sims:
        configure(sims["one"], more=f"{priced}{keys}[alerts]\nbudget_share = 0.01\n")
        served = begin("serve").ready()
        bearer = (("Authorization", f"Bearer {key}"),)
        assert served.chat(headers=bearer, max_tokens=20)[0] == 200
        served.says("alert firing budget (ci/day)")
        assert 'dandolo_budget_used_share{key="ci",period="day"} 0.0' in served.of_admin("/metrics", bearer)[1]
