"""What is wrong with a configuration: where, which key, and what to write instead.

A problem's reason says what was observed, what was expected and what to do. Values that may be secret
never enter a reason: the modules that write reasons show a value only where its kind cannot hold one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

Path = tuple[str | int, ...]
"""Where a value sits in the document: ("providers", 0, "accounts", 1, "key")."""

EX_CONFIG: Final = 78
"""sysexits.h: "something was found in an unconfigured or misconfigured state"; systemd shows it by name."""

_BARE = re.compile(r"[A-Za-z0-9_-]{1,80}", re.ASCII)


def show_path(path: Path) -> str:
    """The path as people write it: providers[0].accounts[1].key, models."gpt-4.1"."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
            continue
        # A name that TOML would quote is quoted here too, with its control characters escaped: an error
        # is printed on terminals and written to logs.
        shown = part if _BARE.fullmatch(part) else quote(part)
        text += f".{shown}" if text else shown
    return text


def quote(text: str, most: int = 80) -> str:
    """`text` in double quotes, escaped to printable ASCII and cut at `most` characters."""
    cut = text if len(text) <= most else text[: most - 1] + "…"
    body = "".join(c if c.isprintable() and c not in '"\\' else _escape(c) for c in cut)
    return f'"{body}"'


def _escape(char: str) -> str:
    return "\\" + char if char in '"\\' else f"\\u{ord(char):04x}"


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing to mend. `line` counts from 1; 0 when the value came from no file."""

    file: str
    line: int
    key: str
    reason: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        return f"{place}: {self.key}: {self.reason}" if self.key else f"{place}: {self.reason}"


class ConfigError(Exception):
    """The configuration cannot be used; `problems` holds all of it, in the order of the file.

    `str()` prints one `FILE:LINE: key: reason` line a problem. A program that ends because of it exits
    with `exit_code`.
    """

    exit_code: Final = EX_CONFIG

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems: tuple[Problem, ...] = tuple(sorted(problems, key=lambda problem: problem.line))
        super().__init__("\n".join(map(str, self.problems)))


class Unfit(ValueError):
    """A value that its key cannot take; the text is the reason, without file, line or key."""
