"""Which package may import which, and a few habits that only hold when something holds them."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import dandolo

HOME = Path(dandolo.__file__).parent
LINES_MAX = 450

LEAVES = {
    "errors", "record", "notice", "policy", "stats", "config", "clock", "values", "board", "frames", "provision",
    "journal", "tally", "text",
}  # fmt: skip
BELOW_GATEWAY = LEAVES | {"wire", "api", "route", "cache", "net"}
MAY_IMPORT: dict[str, set[str]] = {
    **dict.fromkeys(LEAVES, LEAVES),
    "wire": {"errors"},
    "api": LEAVES,
    "route": LEAVES | {"api"},
    "cache": LEAVES | {"api", "wire.resp"},
    "net": LEAVES | {"wire"},
    "gateway": BELOW_GATEWAY,
    "control": LEAVES | {"wire", "net", "api.openai"},
    "mind": LEAVES | {"net"},
    "sim": LEAVES | {"wire", "net"},
    "cli": BELOW_GATEWAY | {"gateway", "control", "mind", "sim"},
    "__main__": {"cli"},
}
"""Package → packages or single modules of ours. `from dandolo import __version__` is everybody's."""

PURE = {
    "wire",
    "api",
    "route",
    "errors",
    "record",
    "policy",
    "stats",
    "tally",
    "clock",
    "values",
    "frames",
    "provision",
    "text",
}
"""What decides without doing: no event loop, no socket, no thread."""
DOING = {"asyncio", "socket", "select", "selectors", "threading", "subprocess", "uvloop"}

THIRD_PARTY = {"msgspec", "msgpack", "httptools", "uvloop", "xxhash", "h11"}
THIRD_PARTY_OF = {
    "wire": {"httptools"},
    "cli": {"msgspec", "uvloop"},
    "sim": {"h11", "msgspec", "uvloop"},
    "mind": {"h11", "msgspec"},
}
"""Packages with a list of their own; for the others everything but uvloop and h11."""
NEVER = {"numpy", "pydantic", "fastapi", "httpx", "aiohttp", "starlette", "requests", "openai", "anthropic", "redis"}

VAGUE = {"utils", "util", "helpers", "helper", "manager", "managers", "common", "misc"}

MODULES = sorted(HOME.rglob("*.py"))


def name_of(path: Path) -> str:
    """dandolo/wire/sse.py → wire.sse; dandolo/wire/__init__.py → wire; dandolo/__init__.py → ""."""
    parts = path.relative_to(HOME).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def package_of(name: str) -> str:
    return name.partition(".")[0]


OURS = {name_of(path) for path in MODULES}


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and absolute name of everything imported, also within functions and for type checking only."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            assert node.module is not None
            inner = node.module.removeprefix("dandolo").removeprefix(".")
            for alias in node.names:
                # `from dandolo.api import openai` imports a module, `from dandolo.errors import Refusal` does not.
                submodule = f"{inner}.{alias.name}".removeprefix(".")
                is_module = node.module.split(".")[0] == "dandolo" and submodule in OURS
                yield node.lineno, f"dandolo.{submodule}" if is_module else node.module


def own_imports(path: Path) -> Iterator[tuple[int, str]]:
    """The imports of our own modules, without `dandolo.`."""
    return ((line, name[8:]) for line, name in imports(path) if name.startswith("dandolo."))


def foreign_imports(path: Path) -> Iterator[tuple[int, str]]:
    return ((line, name.split(".")[0]) for line, name in imports(path) if name.split(".")[0] != "dandolo")


def shown(path: Path) -> str:
    return str(path.relative_to(HOME.parent))


each_module = pytest.mark.parametrize("path", MODULES, ids=shown)


@each_module
def test_imports_go_one_way(path: Path) -> None:
    package = package_of(name_of(path))
    if not package:
        assert not list(own_imports(path))
        return
    assert package in MAY_IMPORT, f"{package} is new here: say in MAY_IMPORT what it may import"
    allowed = MAY_IMPORT[package] | {package}
    wrong = [
        f"{shown(path)}:{line} imports {name}"
        for line, name in own_imports(path)
        if package_of(name) not in allowed and not any(name == one or name.startswith(f"{one}.") for one in allowed)
    ]
    assert not wrong


@each_module
def test_foreign_packages_are_the_declared_ones(path: Path) -> None:
    package = package_of(name_of(path))
    allowed = THIRD_PARTY_OF.get(package, THIRD_PARTY - {"uvloop", "h11"})
    for line, name in foreign_imports(path):
        assert name not in NEVER, f"{shown(path)}:{line} imports {name}"
        assert name not in THIRD_PARTY or name in allowed, f"{shown(path)}:{line} imports {name}"
        assert package not in PURE or name not in DOING, f"{shown(path)}:{line} imports {name}"


def test_no_circle_between_packages() -> None:
    graph: dict[str, set[str]] = {}
    for path in MODULES:
        package = package_of(name_of(path))
        graph.setdefault(package, set()).update(package_of(name) for _, name in own_imports(path))
    done: set[str] = set()

    def visit(package: str, way: tuple[str, ...]) -> None:
        assert package not in way, f"a circle: {' → '.join((*way[way.index(package) :], package))}"
        if package not in done:
            for other in graph.get(package, set()) - {package}:
                visit(other, (*way, package))
            done.add(package)

    for package in graph:
        visit(package, ())


@each_module
def test_names_say_something_and_modules_fit_in_one_reading(path: Path) -> None:
    assert not VAGUE & set(path.relative_to(HOME).with_suffix("").parts)
    lines = len(path.read_text().splitlines())
    assert lines <= LINES_MAX, f"{shown(path)} has {lines} lines: it is asking to become two"


@each_module
def test_only_the_command_line_prints(path: Path) -> None:
    package, name = package_of(name_of(path)), path.name
    if package == "cli" or name == "__main__.py":
        return
    for node in ast.walk(ast.parse(path.read_text())):
        called = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
        assert not called, f"{shown(path)}:{node.lineno} prints"
