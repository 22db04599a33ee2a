"""The plain sorts of values: flags, numbers with bounds, sizes, durations, text, choices, lists.

Each is a function of its bounds that gives a `Kind`. Zero never means "unlimited": where a bound is
meant, the lowest value is above it, and the error says so.
"""

from __future__ import annotations

import difflib
import math
import os
import re
import stat
from collections.abc import Callable, Iterable
from pathlib import Path as FilePath
from typing import Any, TypeVar

from dandolo.config import secret
from dandolo.config.problem import Unfit, quote
from dandolo.config.spec import At, Kind
from dandolo.config.units import describe, duration, show, show_duration, show_size, size

N = TypeVar("N", int, float)


def flag() -> Kind:
    def read(value: object, at: At) -> bool:
        if not isinstance(value, bool):
            raise Unfit(f"observed {describe(value)}, expected true or false (without quotes)")
        return value

    return Kind("boolean", "true, false", read, fallback=False)


def _bounded(value: N, low: N, high: N, say: Callable[[N], str]) -> N:
    if low <= value <= high:
        return value
    reason = f"observed {say(value)}, expected {say(low)} to {say(high)}"
    if value == 0:
        reason += "; 0 does not mean unlimited: leave the key out or write the largest value you want"
    raise Unfit(reason)


def whole(low: int, high: int, unit: str = "count") -> Kind:
    def read(value: object, at: At) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise Unfit(f"observed {describe(value)}, expected a whole number, {low} to {high}")
        return _bounded(value, low, high, show)

    return Kind(unit, f"{low} to {high}", read, fallback=low)


def number(low: float, high: float, unit: str, *, above: bool = False) -> Kind:
    """A float within [low, high], or (low, high] with `above`."""
    bound = f"above {low:g}, at most {high:g}" if above else f"{low:g} to {high:g}"

    def read(value: object, at: At) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise Unfit(f"observed {describe(value)}, expected a number: {bound}")
        if not (low <= value <= high) or (above and value == low):
            reason = f"observed {show(value)}, expected a number: {bound}"
            if value == 0 and not math.isnan(value):
                reason += "; 0 does not mean unlimited: leave the key out for no bound"
            raise Unfit(reason)
        return float(value)

    return Kind(unit, bound, read, fallback=high)


def byte_size(low: str, high: str) -> Kind:
    least, most = size(low), size(high)

    def read(value: object, at: At) -> int:
        return _bounded(size(value), least, most, show_size)

    return Kind("size", f"{low} to {high}", read, fallback=least)


def time_span(low: str, high: str) -> Kind:
    least, most = duration(low), duration(high)

    def read(value: object, at: At) -> float:
        return _bounded(duration(value), least, most, show_duration)

    return Kind("duration", f"{low} to {high}", read, fallback=least)


def text(form: str, words: str, *, unit: str = "text", hint: str = "") -> Kind:
    """A string that `form` matches whole. The value is not shown: people paste keys into wrong places."""
    pattern = re.compile(form, re.ASCII)

    def read(value: object, at: At) -> str:
        if not isinstance(value, str):
            raise Unfit(f"observed {describe(value)}, expected a string: {words}")
        if not pattern.fullmatch(value):
            what = "an empty string" if not value else f"a string of {len(value)} characters that does not fit"
            raise Unfit(f"observed {what}, expected {words}{hint}")
        return value

    return Kind(unit, words, read, fallback="")


def name() -> Kind:
    return text(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", "1 to 64 letters, digits, dots, dashes, underscores", unit="name")


def choice(*options: str) -> Kind:
    listed = " | ".join(options)

    def read(value: object, at: At) -> str:
        if isinstance(value, str) and value in options:
            return value
        if not isinstance(value, str):
            raise Unfit(f"observed {describe(value)}, expected {listed}")
        near = nearest(value, options)
        # Only a near miss is shown: something else entirely may be anything, a key too.
        raise Unfit(f"observed {show(value)}, did you mean {quote(near)}? ({listed})" if near else f"expected {listed}")

    return Kind("choice", listed, read, fallback=options[0])


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known name that `word` most likely meant, or None."""
    folded = {one.casefold(): one for one in known}
    found = difflib.get_close_matches(word[:100].casefold(), folded, n=1)
    return folded[found[0]] if found else None


def array(element: Kind, most: int, *, least: int = 0, ignore_case: bool = False) -> Kind:
    """A list of `least` to `most` different elements, as a tuple; every bad element is reported."""
    bound = f"{least} to {most} of: {element.bound}" if element.bound else f"{least} to {most}"
    read_one = element.read
    assert read_one is not None

    def read(value: object, at: At) -> tuple[Any, ...]:
        if not isinstance(value, list):
            raise Unfit(f"observed {describe(value)}, expected an array: [ … ]")
        if not least <= len(value) <= most:
            raise Unfit(f"observed {len(value)} elements, expected {least} to {most}")
        found: dict[Any, Any] = {}
        for index, one in enumerate(value):
            try:
                got = read_one(one, at.child(index))
            except Unfit as error:
                at.child(index).report(str(error))
                continue
            same = got.casefold() if ignore_case and isinstance(got, str) else got
            if same in found:
                at.child(index).report("is in the list twice: take one out")
            found[same] = got
        return tuple(found.values())

    return Kind(f"array of {element.unit}", bound, read, fallback=())


def secret_reference() -> Kind:
    def read(value: object, at: At) -> secret.Secret | None:
        return secret.resolve(value, at.reading.environ, at.reading.base, at.reading.secrets)

    return Kind("secret", secret.REFERENCE_FORM, read)


def readable_file(what: str) -> Kind:
    """The path of a file that exists and can be read now; relative ones start at the configuration's folder."""

    def read(value: object, at: At) -> FilePath:
        if not isinstance(value, str) or not value or "\0" in value:
            raise Unfit(f"expected the path of {what}")
        path = at.reading.base / value
        try:
            if not stat.S_ISREG(os.stat(path).st_mode):
                raise Unfit(f"{secret.show_file(value)} is not a regular file: expected {what}")
            with open(path, "rb") as file:
                file.read(1)
        except OSError as error:
            raise Unfit(f"cannot read {secret.show_file(value)}: {error.strerror}: expected {what}") from None
        return path

    return Kind("path", "a readable file", read, fallback=FilePath())


def folder() -> Kind:
    def read(value: object, at: At) -> FilePath:
        if not isinstance(value, str) or not value.startswith("/") or "\0" in value or len(value) > 1024:
            raise Unfit("expected an absolute path of at most 1024 characters")
        return FilePath(value)

    return Kind("path", "absolute", read, fallback=FilePath())


def whole_or_word(low: int, high: int, word: str) -> Kind:
    def read(value: object, at: At) -> int | str:
        if value == word and isinstance(value, str):
            return word
        if isinstance(value, bool) or not isinstance(value, int):
            raise Unfit(f'expected a whole number, {low} to {high}, or "{word}"')
        return _bounded(value, low, high, show)

    return Kind("count", f'{low} to {high}, or "{word}"', read, fallback=low)
