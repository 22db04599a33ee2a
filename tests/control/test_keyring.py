"""The keys of a running gateway: the admin routes, whether file or database wins, changes from elsewhere, restarts."""

from __future__ import annotations

import asyncio
import inspect
import json
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from dandolo.board import DAY, MONTH, RESERVED, Board, Calendar, add_spent
from dandolo.config import Config, parse
from dandolo.control import keyring
from dandolo.control.keyring import WAITING_MAX, Keyring
from dandolo.control.keyring_routes import routes
from dandolo.control.keys import FILE, Keys
from dandolo.control.route import Answer, Asked
from dandolo.errors import GatewayError, InternalError, Refusal
from dandolo.policy import Policy

PROVIDER = '[[providers]]\nname = "p"\nbase_url = "http://127.0.0.1:9/v1"\n'


def config(keys: str = "") -> Config:
    return parse(PROVIDER + keys, "d.toml", {"HOME": "/x"})


def in_file(name: str, more: str = "", digit: str = "1") -> str:
    return f'[[keys]]\nname = "{name}"\nsha256 = "{digit * 64}"\n{more}\n'


class Ring:
    """A keyring with what it handed on."""

    def __init__(self, folder: Path, keys: str = "", **more: Any) -> None:
        self.board = Board.alone(100)
        self.adopted: list[Policy] = []
        self.config = config(keys)
        self.ring = Keyring(folder, self.board, lambda: self.config.keys, self.adopted.append, **more)

    async def ask(self, method: str, path: str, content: Any = None) -> tuple[int, Any]:
        """Ask the route of a path, as the listener would."""
        for route in routes(self.ring):
            at = route.path.decode()
            if route.method == method and (path == at or (at.endswith("/") and path.startswith(at))):
                body = (
                    content if isinstance(content, bytes) else b"" if content is None else json.dumps(content).encode()
                )
                rest = path[len(at) :].encode() if at.endswith("/") else b""
                answer = route.handle(Asked(method, path.encode(), b"", body, "", rest))
                if inspect.isawaitable(answer):
                    answer = await answer
                assert isinstance(answer, Answer)
                return answer.status, json.loads(answer.body)
        raise AssertionError(f"no route for {method} {path}")

    async def refused(self, method: str, path: str, content: Any = None) -> GatewayError:
        with pytest.raises(GatewayError) as caught:
            await self.ask(method, path, content)
        return caught.value


def run(story: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(20):
            await story()

    asyncio.run(bounded())


async def until(true: Callable[[], object]) -> None:
    while not true():
        await asyncio.sleep(0.01)


def test_a_key_is_made_listed_rotated_and_revoked(tmp_path: Path) -> None:
    async def story() -> None:
        one = Ring(tmp_path, in_file("ops"))
        assert one.ring.load() == Policy()
        status, made = await one.ask("POST", "/admin/keys", {"name": "web", "rpm": 60, "models": ["fast"]})
        assert status == 201
        assert made["key"].startswith("dnd_")
        assert [key.name for key in one.adopted[-1].keys] == ["web"]
        status, rotated = await one.ask("POST", "/admin/keys/web", {"overlap_s": 60})
        assert status == 200
        assert rotated["key"] != made["key"]
        assert len(one.adopted[-1].keys[0].digests) == 2
        status, listed = await one.ask("GET", "/admin/keys")
        assert [(row["name"], row["source"], row["status"]) for row in listed["keys"]] == [
            ("ops", "file", "valid"),
            ("web", "database", "valid"),
        ]
        assert listed["keys"][1]["rpm"] == 60
        text = json.dumps(listed)
        assert made["key"] not in text
        assert rotated["key"] not in text
        assert rotated["sha256"] == listed["keys"][1]["sha256"]
        assert len(rotated["sha256"]) == 12
        assert (await one.ask("DELETE", "/admin/keys/web"))[1]["status"] == "revoked"
        assert one.adopted[-1].keys == ()
        assert one.adopted[-1].closed
        await one.ring.close()

    run(story)


def test_the_file_wins_and_that_is_shown(tmp_path: Path) -> None:
    async def story() -> None:
        with Keys(tmp_path) as keys:
            keys.create("WEB", {"rpm": 1}, time.time())
        one = Ring(tmp_path, in_file("web", "rpm = 2"))
        one.ring.load()
        _, listed = await one.ask("GET", "/admin/keys")
        assert [(row["source"], row["status"], row["rpm"]) for row in listed["keys"]] == [
            ("file", "valid", 2),
            ("database", "shadowed", 1),
        ]
        error = await one.refused("POST", "/admin/keys", {"name": "Web"})
        assert (error.status, error.code) == (409, "key_exists")
        assert "file" in error.message
        await one.ring.close()

    run(story)


@pytest.mark.parametrize(
    ("method", "path", "content", "status"),
    [
        ("POST", "/admin/keys", b"", 400),
        ("POST", "/admin/keys", b"[]", 400),
        ("POST", "/admin/keys", b"{", 400),
        ("POST", "/admin/keys", b"[" * 100_000, 400),
        ("POST", "/admin/keys", b"\xff", 400),
        ("POST", "/admin/keys", {}, 400),
        ("POST", "/admin/keys", {"name": 1}, 400),
        ("POST", "/admin/keys", {"name": "a/b"}, 400),
        ("POST", "/admin/keys", {"name": "a", "digests": []}, 400),
        ("POST", "/admin/keys", {"name": "a", "admin": True}, 400),
        ("POST", "/admin/keys/web", {}, 404),
        ("POST", "/admin/keys/web/x", {}, 404),
        ("POST", "/admin/keys/web", {"overlap_s": "1"}, 400),
        ("POST", "/admin/keys/web", {"overlap_s": True}, 400),
        ("POST", "/admin/keys/web", {"overlap": 1}, 400),
        ("DELETE", "/admin/keys/", None, 404),
        ("DELETE", "/admin/keys/%00", None, 404),
        ("DELETE", "/admin/keys/" + "a" * 5000, None, 404),
        ("DELETE", "/admin/keys/web' OR '1'='1", None, 404),
    ],
)
def test_what_cannot_be_is_refused_in_words(tmp_path: Path, method: str, path: str, content: Any, status: int) -> None:
    async def story() -> None:
        one = Ring(tmp_path)
        error = await one.refused(method, path, content)
        assert error.status == status
        assert error.message.isprintable()
        assert len(error.message) < 500
        await one.ring.close()

    run(story)


def test_a_change_from_elsewhere_is_seen_within_a_second(tmp_path: Path) -> None:
    async def story() -> None:
        one = Ring(tmp_path)
        watching = asyncio.create_task(one.ring.watch())
        with Keys(tmp_path) as keys:
            keys.create("web", {}, time.time())
            await until(lambda: one.adopted and one.adopted[-1].keys)
            keys.revoke("web", time.time())
            await until(lambda: not one.adopted[-1].keys)
        before = len(one.adopted)
        # Nothing has changed: nothing is told.
        await one.ring._look(time.time())
        assert len(one.adopted) == before
        watching.cancel()
        await one.ring.close()

    run(story)


def test_the_end_of_an_overlap_is_told_though_nobody_changes_anything(tmp_path: Path) -> None:
    async def story() -> None:
        with Keys(tmp_path) as keys:
            keys.create("web", {}, time.time())
            keys.rotate("web", 0.5, time.time())
        one = Ring(tmp_path)
        assert len(one.ring.load().keys[0].digests) == 2
        watching = asyncio.create_task(one.ring.watch())
        await until(lambda: one.adopted)
        assert len(one.adopted[-1].keys[0].digests) == 1
        watching.cancel()
        await one.ring.close()

    run(story)


def test_a_database_that_breaks_leaves_the_keys_that_were_known(tmp_path: Path, caplog: Any) -> None:
    async def story() -> None:
        one = Ring(tmp_path)
        await one.ask("POST", "/admin/keys", {"name": "web"})
        watching = asyncio.create_task(one.ring.watch())
        (tmp_path / FILE).write_bytes(b"broken" * 1000)
        await until(lambda: "cannot be used" in caplog.text)
        assert [key.name for key in one.adopted[-1].keys] == ["web"]
        assert isinstance(await one.refused("POST", "/admin/keys", {"name": "other"}), InternalError)
        watching.cancel()
        await one.ring.close()
        assert caplog.text.count("the keys that were known stay") == 1

    run(story)


def test_a_backup_that_is_put_back_is_taken_over_and_an_empty_file_opens_nothing(tmp_path: Path) -> None:
    async def story() -> None:
        one = Ring(tmp_path)
        await one.ask("POST", "/admin/keys", {"name": "first"})
        backup = (tmp_path / FILE).read_bytes()
        await one.ask("POST", "/admin/keys", {"name": "second"})
        (tmp_path / "new").write_bytes(backup)
        (tmp_path / "new").rename(tmp_path / FILE)
        await one.ring._look(time.time())
        assert [key.name for key in one.adopted[-1].keys] == ["first"]
        (tmp_path / FILE).unlink()
        with Keys(tmp_path):
            pass
        await one.ring._look(time.time())
        assert one.adopted[-1] == Policy(closed=True)
        await one.ring.close()

    run(story)


def test_budgets_are_told_with_what_is_spent_and_set_aside(tmp_path: Path) -> None:
    async def story() -> None:
        one = Ring(
            tmp_path, in_file("web", "budget_usd_per_day = 1.0\nbudget_usd_per_month = 5.0") + in_file("x", "", "2")
        )
        one.ring.restore()
        place = one.board.find("web")
        assert place is not None
        one.board.cells[one.board.at(place, 0) + RESERVED] = 7
        assert one.ring.budgets() == [("web", "day", 1_000_000, 0, 7), ("web", "month", 5_000_000, 0, 7)]
        await one.ring.close()

    run(story)


def test_what_was_spent_is_there_after_a_restart(tmp_path: Path) -> None:
    async def story() -> None:
        keys = in_file("web", "budget_usd_per_day = 1.0")
        one = Ring(tmp_path, keys)
        one.ring.load()
        one.ring.restore()
        calendar, place = Calendar(time.time()), one.board.find("web")
        assert place is not None
        for cell, stamp in ((DAY, calendar.day_stamp), (MONTH, calendar.month_stamp)):
            add_spent(one.board.cells, one.board.at(place, 0) + cell, stamp, 250_000)
        await one.ring.close()
        after = Ring(tmp_path, keys)
        after.ring.load()
        after.ring.restore()
        assert after.ring.usage("web") == {
            "requests_per_minute": 0,
            "tokens_per_minute": 0,
            "in_flight": 0,
            "reserved_usd": 0.0,
            "spent_usd_day": 0.25,
            "spent_usd_month": 0.25,
        }
        await after.ring.close()

    run(story)


def test_the_larger_of_the_ledgers_account_and_what_was_saved_counts(tmp_path: Path) -> None:
    began = Calendar(time.time()).began

    async def story() -> None:
        asked: list[float] = []

        def ledger(since: float) -> dict[str, int]:
            asked.append(since)
            return {"web": 100_000 if len(asked) == 1 else 900_000}

        day, month = Calendar(time.time()).names
        with Keys(tmp_path) as keys:
            keys.save_spent({("web", day): 150_000, ("web", month): 150_000}, (day, month))
        one = Ring(tmp_path, in_file("Web", "budget_usd_per_month = 1.0") + in_file("web2", "", "2"), spent=ledger)
        one.config = config(in_file("web", "budget_usd_per_month = 1.0"))
        one.ring.restore()
        usage = one.ring.usage("web")
        assert usage is not None
        assert (usage["spent_usd_day"], usage["spent_usd_month"]) == (0.15, 0.9)
        assert tuple(asked) == began
        await one.ring.close()

    run(story)


def test_what_the_ledger_has_and_the_board_has_not_is_charged(tmp_path: Path) -> None:
    async def story() -> None:
        told = {"web": 100_000, "free": 5}
        one = Ring(
            tmp_path, in_file("web", "budget_usd_per_day = 1.0") + in_file("free", "", "2"), spent=lambda _: told
        )
        one.ring.load()
        one.ring.restore()
        calendar, place = Calendar(time.time()), one.board.find("web")
        assert place is not None
        for cell, stamp in ((DAY, calendar.day_stamp), (MONTH, calendar.month_stamp)):
            add_spent(one.board.cells, one.board.at(place, 0) + cell, stamp, 250_000)

        def spent() -> tuple[float, float]:
            usage = one.ring.usage("web")
            assert usage is not None
            return usage["spent_usd_day"], usage["spent_usd_month"]

        # The board is ahead of the ledger, as usual: nothing is charged.
        await one.ring._catch_up(time.time())
        assert spent() == (0.35, 0.35)
        # Workers of another control process have spent, too.
        told["web"] = 400_000
        for _ in range(2):
            await one.ring._catch_up(time.time())
            assert spent() == (0.4, 0.4)
        assert one.ring.usage("free") is None
        await one.ring.close()

    run(story)


def test_too_many_changes_at_once_are_refused(tmp_path: Path) -> None:
    async def story() -> None:
        one = Ring(tmp_path)
        several = [one.ask("POST", "/admin/keys", {"name": f"k{number}"}) for number in range(3 * WAITING_MAX)]
        outcomes = await asyncio.gather(*several, return_exceptions=True)
        made = [outcome for outcome in outcomes if not isinstance(outcome, BaseException)]
        refused = [outcome for outcome in outcomes if isinstance(outcome, Refusal)]
        assert len(made) + len(refused) == len(outcomes)
        assert made
        assert refused
        await one.ring.close()

    run(story)


def test_nothing_is_made_where_nothing_is_asked_for(tmp_path: Path) -> None:
    async def story() -> None:
        one = Ring(tmp_path / "state")
        one.ring.load()
        one.ring.restore()
        assert (await one.ask("GET", "/admin/keys"))[1] == {"keys": []}
        await one.ring._look(time.time())
        await one.ring.close()
        assert not (tmp_path / "state").exists()

    run(story)


def test_a_change_is_told_to_workers_though_whoever_asked_for_it_has_left(tmp_path: Path) -> None:
    async def story() -> None:
        one = Ring(tmp_path)
        await one.ask("POST", "/admin/keys", {"name": "web"})
        assert [key.name for key in one.adopted[-1].keys] == ["web"]
        asking = asyncio.create_task(one.ask("DELETE", "/admin/keys/web"))
        await asyncio.sleep(0)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        await until(lambda: not one.adopted[-1].keys)
        await one.ring.close()

    run(story)


def test_a_database_that_found_no_room_when_it_was_made_is_none(tmp_path: Path) -> None:
    async def story() -> None:
        (tmp_path / FILE).touch(0o600)
        one = Ring(tmp_path, in_file("web", "budget_usd_per_day = 1.0"))
        one.ring.load()
        one.ring.restore()
        assert [row["name"] for row in await one.ring.listed()] == ["web"]
        assert (tmp_path / FILE).stat().st_size == 0
        # And it is made where there is room again.
        status, _ = await one.ask("POST", "/admin/keys", {"name": "new"})
        assert status == 201
        assert (tmp_path / FILE).stat().st_size > 0
        await one.ring.close()

    run(story)


def test_a_key_that_was_revoked_stays_so_while_the_database_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a look finds that began before a change must not come after what the change has told."""
    monkeypatch.setattr(keyring, "WATCH_S", 0.0)

    async def story() -> None:
        one = Ring(tmp_path)
        one.ring.load()
        watching = [asyncio.ensure_future(one.ring.watch()) for _ in range(3)]
        wrong = []
        for number in range(40):
            name = f"k{number}"
            await one.ring.create(name, {})
            await one.ring.revoke(name)
            for _ in range(20):
                await asyncio.sleep(0)
            await one.ring._in_thread(lambda: None)
            await asyncio.sleep(0)
            if any(key.name == name for key in one.ring.policy.keys):
                wrong.append(name)
        for task in watching:
            task.cancel()
        await asyncio.gather(*watching, return_exceptions=True)
        assert wrong == []
        await one.ring.close()

    run(story)
