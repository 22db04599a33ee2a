"""The audit log: what stands in it, what never does, and what a disk or a crash does to it."""

from __future__ import annotations

import json
import logging
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from dandolo.control.audit import ENTRIES_MAX, FILE, OLDER, AuditLog
from dandolo.control.route import Asked, Route, answer
from dandolo.errors import RequestError

NOW = 1_700_000_000.0
KEYS = Route("POST", b"/admin/keys", lambda _: answer({}), "makes a key", facts=("name", "rpm", "models"))


def asked(path: bytes = b"/admin/keys", body: bytes = b"", who: str = "ops") -> Asked:
    return Asked("POST", path, b"token=secret", body, who)


def told(log: AuditLog, query: bytes = b"") -> dict[str, Any]:
    (route,) = log.routes()
    said = route.handle(Asked("GET", b"/admin/audit", query, b"", ""))
    told: dict[str, Any] = json.loads(said.body)  # type: ignore[union-attr]
    return told


def lines(folder: Path, name: str = FILE) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).read_bytes().splitlines()]


def test_who_when_what_and_how_it_ended(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "state", lambda: NOW)
    body = b'{"name":"ci","key":"sk-secret","rpm":60,"models":["a"]}'
    log.note(asked(body=body), KEYS, 200, "")
    log.note(asked(b"/admin/keys/\x1b[31m\xff"), KEYS, 404, "not_found")
    log.close()
    first, second = lines(tmp_path / "state")
    assert first == {
        "form": 1, "time": "2023-11-14T22:13:20.000Z", "who": "ops", "method": "POST", "path": "/admin/keys",
        "status": 200, "facts": {"name": "ci", "rpm": 60},
    }  # fmt: skip
    assert (second["path"], second["code"]) == ("/admin/keys/\\u001b[31mÿ", "not_found")
    text = (tmp_path / "state" / FILE).read_text()
    assert "secret" not in text
    assert stat.S_IMODE(os.stat(tmp_path / "state" / FILE).st_mode) == 0o600


def test_nothing_is_made_before_something_changes(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "state", lambda: NOW)
    assert told(log) == {"entries": [], "kept": "file", "lost": 0}
    log.close()
    assert not (tmp_path / "state").exists()


def test_it_is_read_back_at_the_next_start_also_when_torn(tmp_path: Path) -> None:
    log = AuditLog(tmp_path, lambda: NOW)
    for number in range(3):
        log.note(asked(b"/admin/keys/%d" % number), KEYS, 200, "")
    log.close()
    with (tmp_path / FILE).open("ab") as file:
        file.write(b'{"time":"2023')
    log = AuditLog(tmp_path, lambda: NOW)
    log.note(asked(b"/admin/keys/3"), KEYS, 200, "")
    assert [one["path"][-1] for one in told(log)["entries"]] == ["3", "2", "1", "0"]
    assert [one["path"][-1] for one in told(log, b"limit=2")["entries"]] == ["3", "2"]
    log.close()


@pytest.mark.parametrize(
    "query", [b"limit=0", b"limit=x", b"limit=-1", b"limit=99999999999999999999", b"limit=%d" % 1001]
)
def test_limits_that_are_refused(tmp_path: Path, query: bytes) -> None:
    with pytest.raises(RequestError, match=r"expected a whole number"):
        told(AuditLog(tmp_path, lambda: NOW), query)


def test_both_files_are_bounded(tmp_path: Path) -> None:
    log = AuditLog(tmp_path, lambda: NOW, bytes_max=2000)
    for number in range(200):
        log.note(asked(b"/admin/keys/%03d" % number), KEYS, 200, "")
    log.close()
    assert {path.name for path in tmp_path.iterdir()} == {FILE, OLDER}
    # Lines that were held while a file was turned over go to the next one: at most what the writer holds.
    numbers = [int(one["path"][-3:]) for one in [*lines(tmp_path, OLDER), *lines(tmp_path)]]
    assert numbers == sorted(numbers)
    assert numbers[-1] == 199
    assert len(told(AuditLog(tmp_path, lambda: NOW), b"limit=1000")["entries"]) == len(numbers)


def test_a_key_that_may_not_cannot_push_out_what_happened(tmp_path: Path) -> None:
    clock = [NOW]
    log = AuditLog(tmp_path, lambda: clock[0])
    log.note(asked(), KEYS, 200, "")
    for _ in range(5000):
        log.note(asked(who="client"), KEYS, 403, "admin_key_needed")
        log.note(asked(who="ops"), KEYS, 404, "not_found")
    clock[0] += 61.0
    log.note(asked(who="client"), KEYS, 403, "admin_key_needed")
    log.close()
    refused = [one for one in lines(tmp_path) if one["status"] == 403]
    assert [one.get("refused_before") for one in refused] == [None, 4999]
    assert sum(one["status"] == 404 for one in lines(tmp_path)) == 5000


def test_memory_is_bounded() -> None:
    log = AuditLog(None, lambda: NOW)
    for _ in range(ENTRIES_MAX + 10):
        log.note(asked(), KEYS, 200, "")
    said = told(log, b"limit=1000")
    assert (len(said["entries"]), said["kept"]) == (ENTRIES_MAX, "memory")


def test_a_folder_that_cannot_be_used_stops_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    log = AuditLog(tmp_path / "file" / "state", lambda: NOW)
    with caplog.at_level(logging.ERROR, "dandolo"):
        log.note(asked(), KEYS, 200, "")
        log.note(asked(), KEYS, 200, "")
    assert told(log)["kept"] == "memory"
    assert len(told(log)["entries"]) == 2
    assert len(caplog.records) == 1


def test_no_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / FILE).symlink_to(tmp_path / "elsewhere")
    log = AuditLog(tmp_path, lambda: NOW)
    log.note(asked(), KEYS, 200, "")
    log.close()
    assert not (tmp_path / "elsewhere").exists()
