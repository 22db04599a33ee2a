"""Two hosts behind HAProxy: one is taken out after the other under load, and no request fails."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.fleet.__main__ import drains, shared
from bench.fleet.hosts import Fleet, Missing, needed

try:
    needed()
except Missing as error:
    pytest.skip(str(error), allow_module_level=True)


def test_draining_either_host_fails_no_request_and_both_share_what_they_keep(tmp_path: Path) -> None:
    with Fleet(tmp_path, drain_delay_s=2.0) as fleet:
        assert shared(fleet) == []
        load, lines = drains(fleet, rounds=1, callers=8, more=60)
    assert load.failures == []
    assert len(lines) == 2
    assert set(load.done) == {"plain", "stream", "embedding"}
    # Callers' addresses came through HAProxy by the PROXY protocol.
    log = (tmp_path / "edge-1" / "log").read_text()
    assert '"client":"192.0.2.1"' in log
    assert '"client":"127.0.0.1"' in log
