"""What a reload does about each key of the configuration: every one has its place in one of these lists."""

from __future__ import annotations

import dataclasses
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dandolo.cli.change import FIXED, RENEWING, bounded, changes, files, kept, shown, wants_workers
from dandolo.cli.leftover import remove
from dandolo.config import Config, parse
from dandolo.provision import Document

SWAPPED_IN_WORKERS = (
    "server.region", "server.tls", "server.proxy_protocol", "server.cors_origins", "server.forward_proxy",
    "server.heartbeat", "server.annotate", "server.trusted_proxies", "server.drain_delay", "server.drain_timeout",
    "server.log_format", "limits", "timeouts", "keys", "providers", "models", "routing", "auto",
    "cache.sampled", "cache.semantic", "cache.memory", "prompt_log.text_bytes_max", "prompt_log.bytes_max",
)  # fmt: skip
SWAPPED_IN_THE_CONTROL_PROCESS = (
    "server.admin_tls", "ledger.retention", "ledger.requests", "slo", "otel", "alerts", "prompt_log.retention",
)  # fmt: skip
PROVIDER = '[[providers]]\nname = "p"\nbase_url = "http://127.0.0.1:9/v1"\n'


def config(text: str = "") -> Config:
    return parse(PROVIDER + text, "test.toml", {"S": "s" * 32, "T": "t" * 32})


def every_key(value: Any, path: tuple[str, ...] = ()) -> Iterator[str]:
    for field in dataclasses.fields(value):
        inner = getattr(value, field.name)
        here = (*path, field.name)
        if here[0] in ("source", "warnings", "lines"):
            continue
        if dataclasses.is_dataclass(inner) and type(inner).__name__ != "Listen":
            yield from every_key(inner, here)
        else:
            yield ".".join(here)


def test_every_key_has_its_place() -> None:
    places = [*FIXED, *RENEWING, *SWAPPED_IN_WORKERS, *SWAPPED_IN_THE_CONTROL_PROCESS]
    for key in every_key(config()):
        found = [place for place in places if key == place or key.startswith(f"{place}.")]
        # limits.shared is the only one of its section that wants new workers.
        assert len(found) == 1 or key == "limits.shared", f"{key}: {found}"


@pytest.mark.parametrize(
    ("before", "after", "changed"),
    [
        ("", "", []),
        ("", "[server]\nworkers = 2\n", ["server.workers"]),
        ("", "[routing.weights]\ncost = 1.0\n", ["routing.weights.cost"]),
        ("", '[cache.redis]\nurl = "redis://127.0.0.1:1/0"\n', ["cache.redis.url"]),
        ('[cache]\nsecret = { env = "S" }\n', '[cache]\nsecret = { env = "T" }\n', ["cache.secret"]),
        ('[cache]\nsecret = { env = "S" }\n', "[cache]\n", ["cache.secret"]),
        ("", '[models]\na = ["p/b"]\n', ["models"]),
        ("", "[limits]\nshared = true\nheaders_max = 50\n", ["limits.headers_max", "limits.shared"]),
    ],
    ids=["nothing", "workers", "inner section", "url", "secret", "no secret", "map", "two"],
)
def test_changes_are_named_by_key(before: str, after: str, changed: list[str]) -> None:
    assert changes(config(before), config(after)) == changed


def test_only_what_is_made_once_wants_new_workers() -> None:
    assert wants_workers(["providers", "cache.redis.url"])
    assert wants_workers(["cache.peers.tls"])
    assert not wants_workers(["cache.memory.bytes", "limits.headers_max", "server.tls", "ledger.retention"])


def test_the_line_of_the_log_is_bounded() -> None:
    assert shown([]) == "nothing has changed"
    assert shown([f"a.{n}" for n in range(30)]).endswith("a.11 and 18 more")


def test_what_is_held_for_life_stays_in_configuration_and_document(tmp_path: Path) -> None:
    before = config('[server]\nlisten = ["127.0.0.1:1"]\n')
    after = config(f'[server]\nlisten = ["127.0.0.1:2"]\nstate_dir = "{tmp_path}"\nheartbeat = "9s"\n')
    found, document, waiting = kept(before, after, Document("test.toml", "", {}, ("127.0.0.1:2",), "x", 3))
    assert waiting == ["server.listen", "server.state_dir"]
    assert changes(before, found) == ["server.heartbeat"]
    assert document.listen == ("127.0.0.1:1",)
    assert document.admin == str(before.server.admin)
    assert document.state_dir == str(before.server.state_dir)
    assert bounded(found, document, 3) == (found, document, 0)
    found, document, wanted = bounded(found, document, 2)
    assert (found.server.workers, document.workers, wanted) == (2, 2, 3)


def test_files_that_are_renewed_under_their_name_are_seen(tmp_path: Path) -> None:
    ca = tmp_path / "ca.pem"
    ca.write_text("one")
    one = config(f'[cache.redis]\nca = "{ca}"\n')
    before = files(one)
    assert files(one) == before
    ca.write_text("two")
    assert [key for key, digest in files(one).items() if digest != before[key]] == ["cache.redis.ca"]
    ca.unlink()
    assert files(one)["cache.redis.ca"] != before["cache.redis.ca"]


def test_only_files_of_slots_that_are_no_more_are_removed(tmp_path: Path) -> None:
    for name in ("cache.db", "cache-1.db", "cache-2.db", "cache-2.db-wal", "cache-3.db", "cache-x.db", "cache-02.db"):
        (tmp_path / name).write_bytes(b"")
    # Somebody has it open still.
    lock = os.open(tmp_path / "cache-3.db.lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX)
    assert remove(tmp_path, 2) == ["cache-2.db"]
    os.close(lock)
    assert remove(tmp_path, 2) == ["cache-3.db"]
    assert sorted(one.name for one in tmp_path.iterdir()) == ["cache-02.db", "cache-1.db", "cache-x.db", "cache.db"]
