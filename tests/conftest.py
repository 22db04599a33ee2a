"""Markers of the whole suite."""

from __future__ import annotations

import pytest

REAL = frozenset(("bench", "cache", "cli", "control", "e2e"))
"""Folders whose tests have real processes, disks and browsers, and deadlines with them."""


def pytest_configure(config: pytest.Config) -> None:
    """Register `promise`: the entries of promises.toml that a test holds us to."""
    config.addinivalue_line("markers", "promise(*ids): what the test holds us to, by the ids of tests/promises.toml")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What fails among real processes is tried once more: a machine that others use too may have kept them waiting
    beyond a deadline. A fault fails twice; what passed at the second try is listed as rerun."""
    for item in items:
        if not REAL.isdisjoint(item.path.parts):
            item.add_marker(pytest.mark.flaky(reruns=1))
