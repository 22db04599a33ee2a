"""Markers of the whole suite."""

from __future__ import annotations

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Register `promise`: the entries of promises.toml that a test holds us to."""
    config.addinivalue_line("markers", "promise(*ids): what the test holds us to, by the ids of tests/promises.toml")
