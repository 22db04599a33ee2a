"""The load bench: its arithmetic, and its generator against its stub."""

import os
import shutil
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from bench.load import generator, report, run, workers
from bench.load.scenarios import SCENARIOS, Measure
from bench.load.targets import PROVIDER_KEY, TARGETS, Place, ask, stub

CPU = Measure("cpu", "CPU", "cpu_us_per_request", "µs", "nginx", 2.0, 1.4)
ADDED = Measure("added", "added p50", "p50_us", "µs", "added", 1.5, 1.15)
RIVAL = Measure("rival", "rival over ours", "cpu_us_per_request", "µs", "starlette", 5.0, 8.0)
DELAY = Measure("delay", "delay", "delay_p99_9_ms", "ms", "itself", 150.0, 50.0)


def cpu(*numbers):
    return [None if number is None else {"cpu_us_per_request": number, "p50_us": number} for number in numbers]


@pytest.mark.parametrize(
    ("number", "measure", "expected"),
    [
        (1.4, CPU, "aim"),
        (1.41, CPU, "gate"),
        (2.01, CPU, "missed"),
        (None, CPU, "not measured"),
        (60.0, DELAY, "gate"),
    ],
)
def test_verdict_where_less_is_better(number, measure, expected):
    assert run.verdict(number, measure, more_is_better=False) == expected


@pytest.mark.parametrize(("number", "expected"), [(8.0, "aim"), (7.9, "gate"), (4.9, "missed")])
def test_verdict_where_more_is_better(number, expected):
    assert run.verdict(number, RIVAL, more_is_better=True) == expected


def test_ratio_is_taken_inside_each_round():
    outcome = run.judge(CPU, {"nginx": cpu(10, 20, 40), "dandolo": cpu(15, 20, 44)})
    assert outcome["ratios"]["dandolo"] == {"median": 1.1, "min": 1.0, "max": 1.5, "values": [1.5, 1.0, 1.1]}
    assert outcome["verdict"] == "aim"


def test_round_that_did_not_count_gives_no_ratio():
    outcome = run.judge(CPU, {"nginx": cpu(10, None, 10), "dandolo": cpu(None, 10, 30)})
    assert outcome["ratios"]["dandolo"]["values"] == [3.0]
    assert outcome["verdict"] == "missed"


def test_the_better_nginx_is_the_base():
    outcome = run.judge(CPU, {"nginx": cpu(30, 30), "nginx-512k": cpu(20, 20), "dandolo": cpu(30, 30)})
    assert outcome["base"] == "nginx-512k"
    assert outcome["ratios"]["dandolo"]["median"] == 1.5


def test_added_latency_takes_the_direct_path_from_both():
    outcome = run.judge(ADDED, {"direct": cpu(20), "nginx": cpu(120), "dandolo": cpu(140)})
    assert outcome["ratios"]["dandolo"]["median"] == pytest.approx(1.2)


def test_rival_is_divided_by_ours():
    outcome = run.judge(RIVAL, {"nginx": cpu(10), "starlette": cpu(90), "dandolo": cpu(10)})
    assert outcome["ratios"]["dandolo"]["median"] == 9.0
    assert outcome["verdict"] == "aim"


def test_run_with_one_failed_request_does_not_count():
    result = {"failures": 1, "failed": {"status": 1}, "dropped": 0, "requests": 100, "stderr": ""}
    with pytest.raises(run.RunInvalid, match="1 failed"):
        run.checked(result)


def test_generator_that_is_not_faster_is_reported():
    proven = run.proof({"direct": [{"rate": 140.0}], "nginx": [{"rate": 100.0}], "dandolo": [None]})
    assert proven is not None
    assert not proven["enough"]


def test_scenarios_name_known_targets_and_each_measure_once():
    names = [measure.name for scenario in SCENARIOS for measure in scenario.measures]
    assert len(set(names)) == len(names)
    assert {target for scenario in SCENARIOS for target in scenario.targets} <= set(TARGETS)


def test_report_and_picture_of_a_small_result(tmp_path):
    rounds = {"nginx": cpu(10, 12), "dandolo": cpu(14, 15)}
    measures = [run.judge(Measure("cpu_1k", "CPU & more", "cpu_us_per_request", "µs", "nginx", 2.0, 1.4), rounds)]
    machine = {
        "cpu": "A <fast> one",
        "cores": 2,
        "kernel": "6",
        "nginx": "1",
        "openssl": "3",
        "date": "now",
        "dandolo": {},
    }
    results = {
        "machine": machine,
        "options": {"rounds": 2, "duration_s": 1.0, "quick": False},
        "measures": measures,
        "generator": {},
        "invalid": [],
    }
    report.write(results, tmp_path)
    assert "| CPU & more | Dandolo | 14.5 [14–15] µs | nginx 11 [10–12] µs | 1.32 [1.25–1.4] |" in (
        tmp_path / "results.md"
    ).read_text().replace("**", "")
    ElementTree.parse(tmp_path / "picture.svg")


needs_compiler = pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")


@pytest.fixture
def place(tmp_path):
    try:
        generator.build()
    except generator.GeneratorError as error:
        pytest.skip(str(error).splitlines()[0])
    core = min(os.sched_getaffinity(0))
    return Place(Path(tmp_path), core, core, "", "", "")


@needs_compiler
def test_closed_loop_against_the_stub(place):
    with stub(place) as port:
        words = ["--port", str(port), "--key", PROVIDER_KEY, "--connections", "4", "--duration", "0.2", "--warmup", "0"]
        for form in ((), ("--spaced", "--full-headers"), ("--bytes", "262144"), ("--rate", "200")):
            result = run.checked(generator.load([*words, *form], core=place.load_core))
            assert result["latency_us"]["count"] == result["requests"]


@needs_compiler
def test_every_event_of_every_stream_arrives(place):
    with stub(place) as port:
        words = ["--port", str(port), "--key", PROVIDER_KEY, "--streams", "5", "--repeat", "2", "--ramp", "0"]
        form = ["--chunks", "10", "--interval-us", "1000", "--usage"]
        result = run.checked(generator.load([*words, *form], core=place.load_core), least=10)
    assert result["chunks"] == 100


@needs_compiler
def test_idle_connections_are_held_until_told(place):
    held = []
    with stub(place) as port:
        words = ["--port", str(port), "--key", PROVIDER_KEY, "--idle", "20", "--wave", "7"]
        result = generator.load(words, core=place.load_core, at_ready=lambda: held.append(True))
    assert (run.checked(result, least=20)["dropped"], held) == (0, [True])


@needs_compiler
def test_wrong_key_is_a_failure_and_not_a_fast_request(place):
    with stub(place) as port:
        assert ask(port, "wrong", tls=False) == 401
        words = ["--port", str(port), "--key", "wrong", "--connections", "1", "--duration", "0.1", "--warmup", "0"]
        result = generator.load(words, core=place.load_core)
    assert result["requests"] == 0
    assert result["failed"].keys() == {"status"}


# -- what a second worker gives --


def alternated(one: float, beside: float, two: float) -> dict[str, dict[str, float] | None]:
    """A round of three cases of plain requests, with these CPU times (µs)."""
    times = {"one": one, "one_beside": beside, "two_double": two}
    shares = {
        "rate": 1000.0,
        "control_us": 5.0,
        "workers": 0.3,
        "load": 0.1,
        "stub": 0.1,
        "control": 0.05,
        "others": 0.02,
        "wakes": 0.4,
    }
    return {name: {"worker_us": us, **shares} for name, us in times.items()}


def test_two_workers_give_twice_as_much_where_a_request_costs_the_same():
    found = workers.gains([alternated(40.0, 50.0, 45.0), alternated(40.0, 50.0, 50.0)])
    assert found == {"plain requests": [2.0, 1.8]}


def test_round_in_which_one_case_did_not_count_gives_no_gain():
    broken = {**alternated(40.0, 50.0, 45.0), "one_beside": None}
    assert workers.gains([broken]) == {}
    assert workers.median([broken, alternated(40.0, 52.0, 45.0)], "one_beside", "worker_us") == 52.0


def test_cases_of_a_gain_do_the_same_a_worker():
    cases = {case.name: case for case in workers.CASES}
    for _, two, ones in workers.GAINS:
        for name in ones:
            one, other = cases[name], cases[two]
            assert (one.workers, other.workers, one.streams) == (1, 2, other.streams)
            assert (one.amount is None) == (other.amount is None)
            assert one.amount is None or one.amount * 2 == other.amount


def test_table_of_workers_tells_gains_and_what_was_not_measured_not():
    rounds = [alternated(40.0, 50.0, 45.0)]
    machine = {"cpu": "One", "cores": 2, "kernel": "6", "date": "now", "dandolo": {}}
    options = {"duration": 1.0, "streams": 10, "quick": False}
    told = workers.markdown({"machine": machine, "options": options, "rounds": rounds, "gains": workers.gains(rounds)})
    assert "| plain requests: 2.00 | 2.00–2.00 | ≥ 1.8 | holds |" in told
    assert "| 1 KB | one worker | 1,000 | 40.0 | 0.40 | 5.00 |" in told
    assert "proves nothing" not in told
    assert "saturated" not in told
    assert "allowed" not in told


def test_run_beside_other_work_says_that_it_proves_nothing():
    calm, busy = alternated(40.0, 50.0, 45.0), alternated(40.0, 50.0, 45.0)
    for numbers in busy.values():
        assert numbers is not None
        numbers["others"] = 0.6
    assert workers.disturbed([calm, calm, busy]) == 0.02
    assert workers.disturbed([calm, busy, busy]) == 0.6
