"""Every promise has a test over a real socket, and every test that names a promise names a real one.

Markers are found in the source (`pytest.mark.promise("12", "limit:body")`), so that a test counts whether or not
it is selected, and so that a misspelt id cannot hide.
"""

from __future__ import annotations

import ast
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parent
OVER_SOCKETS = ("e2e", "net", "cli")
"""Folders whose tests talk over real sockets."""
LAST_NUMBER = 55

PROMISES: list[dict[str, Any]] = tomllib.loads((TESTS / "promises.toml").read_text("utf-8"))["promise"]
KNOWN = {promise["id"] for promise in PROMISES}


def named(source: str, path: str = "test.py") -> Iterator[tuple[str, str]]:
    """Each promise that a file's markers name, and where."""
    for node in ast.walk(ast.parse(source)):
        if not (isinstance(node, ast.Call) and ast.unparse(node.func).endswith("mark.promise")):
            continue
        place = f"{path}:{node.lineno}"
        assert node.args, f"{place}: a marker without a promise"
        for argument in node.args:
            assert isinstance(argument, ast.Constant), f"{place}: a promise is named by a literal"
            assert isinstance(argument.value, str), f"{place}: a promise is named by a text"
            yield argument.value, place


def all_named() -> list[tuple[str, str]]:
    return [
        pair
        for path in sorted(TESTS.rglob("test_*.py"))
        for pair in named(path.read_text("utf-8"), path.relative_to(TESTS).as_posix())
    ]


def test_every_promise_has_a_test_over_a_real_socket() -> None:
    kept = {name for name, place in all_named() if place.startswith(OVER_SOCKETS)}
    missing = [f"{one['id']}: {one['text']}" for one in PROMISES if one["id"] not in kept and "unkept" not in one]
    assert not missing, "no test over a real socket for\n" + "\n".join(missing)


def test_no_test_names_an_unknown_promise() -> None:
    unknown = [f"{place} names {name!r}" for name, place in all_named() if name not in KNOWN]
    assert not unknown, "\n".join(unknown)


def test_what_is_said_to_be_untested_is_untested() -> None:
    named_somewhere = {name for name, _ in all_named()}
    stale = [one["id"] for one in PROMISES if "unkept" in one and one["id"] in named_somewhere]
    assert not stale, f"these have tests now, take `unkept` out: {stale}"


def test_list_is_whole_and_in_order() -> None:
    assert not [name for name, count in Counter(one["id"] for one in PROMISES).items() if count > 1]
    assert [one["id"] for one in PROMISES if one["id"].isdigit()] == [str(n) for n in range(1, LAST_NUMBER + 1)]
    assert all(one["id"].startswith("limit:") == (one["section"] == 0) for one in PROMISES)
    assert [one["section"] for one in PROMISES] == sorted(one["section"] for one in PROMISES)
    for one in PROMISES:
        assert set(one) <= {"id", "section", "text", "unkept"}
        assert one["text"].endswith(".")
        assert "\n" not in one["text"]


def test_markers_are_found_wherever_they_stand() -> None:
    source = """
pytestmark = pytest.mark.promise("1")
@pytest.mark.promise("2", "limit:body")
def test_a(): ...
@pytest.mark.parametrize("x", [pytest.param(1, marks=pytest.mark.promise("3"))])
def test_b(x): ...
"""
    assert [name for name, _ in named(source)] == ["1", "2", "limit:body", "3"]
