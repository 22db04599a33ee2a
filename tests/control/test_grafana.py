"""The dashboard for Grafana and the rules for Prometheus ask for metrics that exist."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dandolo.control.exposition import Gauge
from dandolo.control.families import GAUGES
from dandolo.control.metrics import Metrics

HOME = Path(__file__).parents[2] / "systemd"
DASHBOARD = json.loads((HOME / "grafana.json").read_text())
RULES = (HOME / "prometheus-rules.yml").read_text()
METRIC = re.compile(r"\b(?:dandolo|gen_ai|process)_[a-z_]+\b")
LABEL = re.compile(r"(?:by|without) \(([^)]*)\)|([a-z_]+)(?:=~?|!=|!~)\"")


def exposed() -> dict[str, set[str]]:
    """Every name a sample may have, with the labels of its family."""
    gauges = [Gauge(name, 1) for name in GAUGES if not name.startswith("process_")]
    found: dict[str, set[str]] = {}
    metrics = Metrics()
    for family in metrics._families:
        endings = ("_bucket", "_sum", "_count") if family.kind == "histogram" else ("",)
        for ending in endings:
            found[family._name + ending] = set(family._labels)
    for line in metrics.text(gauges).decode().splitlines():
        if not line.startswith("#"):
            found.setdefault(re.split(r"[{ ]", line)[0], set())
    return found


EXPOSED = exposed()
LABELS = {label for labels in EXPOSED.values() for label in labels}


def panels() -> Iterator[dict[str, Any]]:
    yield from (panel for panel in DASHBOARD["panels"] if panel["type"] != "row")


def expressions() -> list[str]:
    found = [target["expr"] for panel in panels() for target in panel["targets"]]
    rules = re.findall(r"expr: (?:\|\n((?: {10,}.*\n)+)|(.*))", RULES)
    assert len(rules) == RULES.count("- alert:")
    return found + [block or line for block, line in rules]


@pytest.mark.parametrize("expression", expressions())
def test_every_metric_exists(expression: str) -> None:
    named = set(METRIC.findall(expression)) - LABELS
    if "up{" not in expression:
        assert named
    assert named <= set(EXPOSED), named - set(EXPOSED)
    assert expression.count("(") == expression.count(")")
    assert expression.count("{") == expression.count("}")


@pytest.mark.parametrize("expression", expressions())
def test_labels_that_metrics_of_records_are_asked_for_are_theirs(expression: str) -> None:
    for name in METRIC.findall(expression):
        if EXPOSED.get(name):
            asked = {word.strip() for many, one in LABEL.findall(expression) for word in (many or one).split(",")}
            assert asked <= EXPOSED[name] | {"le", "instance", ""}, asked


def test_the_dashboard_is_whole() -> None:
    identifiers = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(identifiers)) == len(identifiers)
    assert {variable["name"] for variable in DASHBOARD["templating"]["list"]} == {"datasource", "instance"}
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells
    for panel in panels():
        assert panel["datasource"]["uid"] == "${datasource}"
        assert all("$instance" in target["expr"] for target in panel["targets"])
