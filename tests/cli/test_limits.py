"""Keys and their limits in the control process, where configurations change."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from dandolo.cli.limits import Limits
from dandolo.config import Config, parse

TEXT = """
[server]
state_dir = "{folder}"
[ledger]
enabled = {ledger}
[[keys]]
name = "web"
sha256 = "{digest}"
budget_usd_per_day = 1.0
[[providers]]
name = "p"
base_url = "http://127.0.0.1:9/v1"
"""


def test_budgets_are_held_against_the_ledger_as_soon_as_a_reload_wants_one(tmp_path: Path) -> None:
    def config(ledger: bool) -> Config:
        text = TEXT.format(folder=tmp_path, ledger=str(ledger).lower(), digest="1" * 64)
        return parse(text, "d.toml", {"HOME": "/x"})

    provisions: Any = SimpleNamespace(workers=1, descriptors={}, strings={}, blobs={})
    limits = Limits(config(False), provisions)
    try:
        assert limits.keyring.spent is None
        limits.adopt(config(True))
        assert limits.keyring.spent is not None
        assert limits.keyring.spent(0.0) == {}
        limits.adopt(config(False))
        assert limits.keyring.spent is None
    finally:
        os.close(limits.fd)
