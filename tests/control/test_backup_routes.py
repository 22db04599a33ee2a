"""Backups that are asked for at the admin listener."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import pytest

from dandolo.control import backup_routes
from dandolo.control.backup_routes import Backups
from dandolo.control.route import Answer, Asked
from dandolo.errors import GatewayError, Refusal


async def ask(backups: Backups) -> Any:
    (route,) = backups.routes()
    answer = route.handle(Asked("POST", route.path, b"", b"", "ops"))
    assert isinstance(answer, Awaitable)
    found: Answer = await answer
    return json.loads(found.body)


def test_one_at_a_time_also_when_whoever_asked_has_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    began, go_on = threading.Event(), threading.Event()

    def slow(state_dir: Path, into: Path, unix_s: float) -> tuple[Path, list[dict[str, Any]]]:
        began.set()
        assert go_on.wait(20)
        return into / "made", []

    monkeypatch.setattr(backup_routes, "back_up", slow)

    async def story() -> None:
        backups = Backups(tmp_path)
        asking = asyncio.create_task(ask(backups))
        while not began.is_set():
            await asyncio.sleep(0.01)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        with pytest.raises(Refusal) as caught:
            await ask(backups)
        assert caught.value.code == "backup_under_way"
        go_on.set()
        while backups._running:
            await asyncio.sleep(0.01)
        assert (await ask(backups))["folder"] == str(tmp_path / "backups" / "made")

    asyncio.run(story())


def test_what_cannot_be_copied_is_told_and_the_next_may_try(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> Any:
        raise OSError(28, "No space left on device")

    async def story() -> None:
        with pytest.raises(GatewayError) as caught:
            await ask(Backups(tmp_path / "none"))
        assert caught.value.code == "no_state"
        monkeypatch.setattr(backup_routes, "back_up", full)
        backups = Backups(tmp_path)
        for _ in range(2):
            with pytest.raises(GatewayError) as caught:
                await ask(backups)
            assert (caught.value.status, caught.value.code) == (503, "backup_failed")
            assert "No space left" in caught.value.message

    asyncio.run(story())
