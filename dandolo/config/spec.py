"""What a key of the file is: the value it takes, its default, its bound, and one line about it.

Every key is described once, in the metadata of the dataclass field that it fills (`key`, `required`,
`absent`). Reading, error texts, `dandolo init`, `dandolo check` and the reference table all use that
description. `At` is where a reader stands in the document, and where it reports what it finds wrong.
"""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any, Final

from dandolo.config.lines import line_of
from dandolo.config.problem import Path, Problem, show_path


@dataclass(slots=True)
class Reading:
    """One pass over one document: where it came from, what it may look up, what was found so far."""

    source: str
    environ: Mapping[str, str]
    base: FilePath
    lines: Mapping[Path, int]
    names: Mapping[Path, str] = field(default_factory=dict)
    """What to call paths that do not come from a file: the variable that gave the value."""
    secrets: dict[str, str] = field(default_factory=dict)
    """Contents of the secret files that the document names, by path: what stands here is not read again."""
    problems: list[Problem] = field(default_factory=list)
    failed: set[Path] = field(default_factory=set)
    """The paths of `problems`, and all that is around them."""
    warnings: list[str] = field(default_factory=list)

    def root(self) -> At:
        return At(self, ())


@dataclass(frozen=True, slots=True)
class At:
    """A place in the document."""

    reading: Reading
    path: Path

    def child(self, part: str | int) -> At:
        return At(self.reading, (*self.path, part))

    @property
    def name(self) -> str:
        return self.reading.names.get(self.path) or show_path(self.path)

    def report(self, reason: str) -> None:
        """Notes a problem here and goes on: one pass finds all of them."""
        line = line_of(self.reading.lines, self.path) if self.reading.lines else 0
        self.reading.failed.update(self.path[:depth] for depth in range(len(self.path) + 1))
        self.reading.problems.append(Problem(self.reading.source, line, self.name, reason))

    def is_sound(self) -> bool:
        """Whether no problem was reported here or inside."""
        return self.path not in self.reading.failed

    def warn(self, text: str) -> None:
        self.reading.warnings.append(f"{self.name} {text}")


Read = Callable[[Any, At], Any]


@dataclass(frozen=True, slots=True)
class Kind:
    """A sort of value. `read` turns what TOML gave into what the program uses, or raises Unfit.

    `unit` and `bound` are for people. `section` is the dataclass of a table, `many` says that it is an
    array of tables. `fallback` stands in for a value that could not be read, so that the rest can still
    be checked; it is never used by a program that starts.
    """

    unit: str
    bound: str = ""
    read: Read | None = None
    section: type | None = None
    many: bool = False
    fallback: Any = None


@dataclass(frozen=True, slots=True)
class KeySpec:
    """One key. `default` is TOML text, None where there is no default."""

    kind: Kind
    about: str
    default: str | None = None
    needed: bool = False
    example: str | None = None


_METADATA: Final = "dandolo.keys"


def key(kind: Kind, default: str, about: str, *, example: str | None = None, repr: bool = True) -> Any:
    """A field with a default, given as TOML text and read by the same rules as the file."""
    spec = KeySpec(kind, about, default, example=example)
    value = _value_of(spec)
    metadata = {_METADATA: {None: spec}}
    # dataclasses refuse unhashable defaults, to keep instances from sharing them; ours cannot change.
    if type(value).__hash__ is None:
        return field(default_factory=lambda: value, repr=repr, metadata=metadata)
    return field(default=value, repr=repr, metadata=metadata)


def absent(kind: Kind, about: str, *, example: str | None = None) -> Any:
    """A field that is None where the key is left out."""
    return field(default=None, metadata={_METADATA: {None: KeySpec(kind, about, example=example)}})


def required(kind: Kind, about: str, *, example: str | None = None) -> Any:
    """A field whose key must be in the file."""
    spec = KeySpec(kind, about, needed=True, example=example)
    return field(metadata={_METADATA: {None: spec}})


def computed(about: str, factory: Callable[[], Any], kind: Kind, *, default: str) -> Any:
    """A field whose default depends on the surroundings; `default` says it in words, as a TOML comment."""
    spec = KeySpec(kind, about, example=default)
    return field(default_factory=factory, metadata={_METADATA: {None: spec}})


def section(cls: type, about: str, *, many: bool = False) -> Any:
    """A field that is a table (always there, with its defaults), or an array of tables."""
    spec = KeySpec(Kind("tables" if many else "table", section=cls, many=many), about)
    if many:
        return field(default=(), metadata={_METADATA: {None: spec}})
    return field(default_factory=cls, metadata={_METADATA: {None: spec}})


def fed_by(keys: Mapping[str, KeySpec], **options: Any) -> Any:
    """A field that several keys may fill, put together by hand in `load`."""
    return field(metadata={_METADATA: dict(keys)}, **options)


def keys_of(cls: type) -> Mapping[str, KeySpec]:
    """The keys of a section in their order, by the names they have in the file."""
    found: dict[str, KeySpec] = {}
    for one in dataclasses.fields(cls):
        for name, spec in one.metadata.get(_METADATA, {}).items():
            found[name or one.name] = spec
    return found


def walk(cls: type, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], bool, type]]:
    """Every section from `cls` down: its path, whether it is an array of tables, its dataclass."""
    for name, spec in keys_of(cls).items():
        inner = spec.kind.section
        if inner is not None:
            yield (*path, name), spec.kind.many, inner
            yield from walk(inner, (*path, name))


def _value_of(spec: KeySpec) -> Any:
    assert spec.default is not None
    assert spec.kind.read is not None
    value = tomllib.loads(f"value = {spec.default}")["value"]
    reading = Reading("defaults", {}, FilePath(), {})
    read = spec.kind.read(value, reading.root())
    assert not reading.problems, f"default {spec.default}: {reading.problems}"
    return read
