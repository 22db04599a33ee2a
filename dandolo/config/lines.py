"""Which line of a TOML text each key stands on.

`tomllib` gives values and forgets where they were. This walks the same text once more and knows only
enough TOML to find keys: headers, arrays of tables, dotted and quoted keys, arrays and inline tables,
the four kinds of string. It validates nothing: the text has already been parsed by `tomllib`.
"""

from __future__ import annotations

import re
import tomllib
from bisect import bisect_left
from collections.abc import Mapping
from types import MappingProxyType

from dandolo.config.problem import Path

_SPACE = re.compile(r"[ \t]*")
_FILLER = re.compile(r"(?:[ \t\n]|#[^\n]*)*")
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_SCALAR = re.compile(r"[^,\]}#\n]+")
_STRINGS = (
    # The longer delimiters first; up to two quotes may stand before a closing triple.
    re.compile(r'"""(?:[^\\]|\\.)*?"""(?!"""")"{0,2}', re.DOTALL),
    re.compile(r"'''.*?'''(?!'''')'{0,2}", re.DOTALL),
    re.compile(r'"(?:[^"\\\n]|\\.)*"'),
    re.compile(r"'[^'\n]*'"),
)


def find_lines(text: str) -> Mapping[Path, int]:
    """Every key, table and array element of `text` with its line, counted from 1.

    `text` must be valid TOML. A table that is never written out (`a` of `[a.b]`) has the line that
    first implies it.
    """
    walk = _Walk(text.replace("\r\n", "\n"))
    # Nesting deep enough to exhaust our stack is deep enough for a problem to be said without a line.
    try:
        walk.document()
    except (LookupError, RecursionError, ValueError):
        pass
    return MappingProxyType(walk.lines)


def line_of(lines: Mapping[Path, int], path: Path) -> int:
    """The line of `path`, or of the nearest thing around it that has one; 1 when nothing has."""
    while path:
        if path in lines:
            return lines[path]
        path = path[:-1]
    return 1


class _Walk:
    __slots__ = ("at", "ends", "lengths", "lines", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.lines: dict[Path, int] = {}
        self.ends = [match.start() for match in re.finditer("\n", text)]
        # How many elements each array of tables has so far.
        self.lengths: dict[Path, int] = {}

    def document(self) -> None:
        table: Path = ()
        while True:
            self.skip(_FILLER)
            if self.at >= len(self.text):
                return
            if self.text.startswith("[[", self.at):
                table = self.header(array=True)
            elif self.text[self.at] == "[":
                table = self.header(array=False)
            else:
                self.pair(table)

    def header(self, *, array: bool) -> Path:
        line = self.line()
        self.at += 2 if array else 1
        parts = self.key()
        self.at = self.text.index("]", self.at) + (2 if array else 1)
        path: Path = ()
        for depth, part in enumerate(parts, 1):
            path = (*path, part)
            self.lines.setdefault(path, line)
            if array and depth == len(parts):
                count = self.lengths.get(path, 0)
                self.lengths[path] = count + 1
                path = (*path, count)
            elif path in self.lengths:
                # "[fruit.variety]" after "[[fruit]]" belongs to the array's last element.
                path = (*path, self.lengths[path] - 1)
        self.lines[path] = line
        return path

    def pair(self, table: Path) -> None:
        line = self.line()
        path = table
        for part in self.key():
            path = (*path, part)
            self.lines.setdefault(path, line)
        self.lines[path] = line
        self.at = self.text.index("=", self.at) + 1
        self.skip(_SPACE)
        self.value(path)

    def key(self) -> list[str]:
        parts = []
        while True:
            self.skip(_SPACE)
            if self.text[self.at] in "\"'":
                raw = self.string()
                parts.append(next(iter(tomllib.loads(f"{raw} = 0"))) if "\\" in raw else raw[1:-1])
            else:
                parts.append(self.take(_BARE_KEY))
            self.skip(_SPACE)
            if self.text[self.at] != ".":
                return parts
            self.at += 1

    def value(self, path: Path) -> None:
        first = self.text[self.at]
        if first in "\"'":
            self.string()
        elif first == "[":
            self.array(path)
        elif first == "{":
            self.inline_table(path)
        else:
            self.take(_SCALAR)

    def array(self, path: Path) -> None:
        self.at += 1
        count = 0
        while True:
            self.skip(_FILLER)
            if self.text[self.at] in "],":
                self.at += 1
                if self.text[self.at - 1] == "]":
                    return
                continue
            self.lines[(*path, count)] = self.line()
            self.value((*path, count))
            count += 1

    def inline_table(self, path: Path) -> None:
        self.at += 1
        while True:
            self.skip(_FILLER)
            if self.text[self.at] in "},":
                self.at += 1
                if self.text[self.at - 1] == "}":
                    return
                continue
            self.pair(path)

    def string(self) -> str:
        for pattern in _STRINGS:
            if match := pattern.match(self.text, self.at):
                self.at = match.end()
                return match[0]
        raise ValueError("not a TOML string")

    def take(self, pattern: re.Pattern[str]) -> str:
        match = pattern.match(self.text, self.at)
        if match is None:
            raise ValueError("not TOML")
        self.at = match.end()
        return match[0]

    def skip(self, pattern: re.Pattern[str]) -> None:
        match = pattern.match(self.text, self.at)
        assert match is not None
        self.at = match.end()

    def line(self) -> int:
        return bisect_left(self.ends, self.at) + 1
