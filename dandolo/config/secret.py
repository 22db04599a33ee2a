"""Secrets: how the file refers to them, and the box that keeps them out of logs.

A secret is never written in the file. It comes from the environment, from a file of its own, or from
systemd's credentials directory; the configuration holds the reference, `Secret` holds the value.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NoReturn

from dandolo.config.problem import Unfit, quote

SECRET_BYTES_MAX: Final = 16 * 1024
REFERENCE_FORM: Final = '{ env = "NAME" }, { file = "/path" } or { credential = "name" }'

# Visible ASCII; spaces inside only. Such a value can stand in a header as it is.
_PRINTABLE = re.compile(r"[!-~](?:[ -~]*[!-~])?")
# A key pasted where a name belongs must not be printed as if it were one: names that look as names of
# environment variables and credentials do are shown, others are not.
_NAME_TO_SHOW = re.compile(r"[A-Z_][A-Z0-9_]{0,63}|[a-z_][a-z0-9_.-]{0,23}", re.ASCII)


class Secret:
    """A value that is used, never shown. `reveal()` is the only way to it: search for that name.

    `repr`, `str` and formatting give a fixed text; comparing takes constant time; it cannot be pickled.
    """

    __slots__ = ("_value",)
    _value: str

    def __init__(self, value: str) -> None:
        object.__setattr__(self, "_value", value)

    def reveal(self) -> str:
        """The value itself. The caller must see to it that it reaches no log, error, metric or file."""
        return self._value

    def digest(self) -> bytes:
        """SHA-256 of the value: 32 bytes."""
        return hashlib.sha256(self._value.encode()).digest()

    def __repr__(self) -> str:
        return "Secret(…)"

    __str__ = __repr__

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return hmac.compare_digest(self._value.encode(), other._value.encode())

    def __hash__(self) -> int:
        return hash((Secret, self._value))

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError("a Secret cannot be changed")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError("a Secret cannot be changed")

    def __copy__(self) -> Secret:
        return self

    def __deepcopy__(self, memo: object) -> Secret:
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Secret cannot be pickled")


def resolve(
    value: object,
    environ: Mapping[str, str],
    base: Path,
    files: dict[str, str] | None = None,
    *,
    unset_is_none: bool = False,
) -> Secret | None:
    """The secret that a reference in the file stands for.

    `base` is the directory that relative paths of `file` start from. `files` remembers contents by path: what it
    has is not read, what is read is put there. With `unset_is_none`, a variable
    that is unset or empty gives None. Raises Unfit, never with the value or anything that may be one.
    """
    if isinstance(value, str):
        raise Unfit(
            f"a secret is never written in the file: put it elsewhere and write {REFERENCE_FORM} here"
            " (the value found here is not shown; if it is a real key, replace it)"
        )
    if not isinstance(value, dict) or len(value) != 1:
        raise Unfit(f"expected exactly one reference: {REFERENCE_FORM}")
    ((way, name),) = value.items()
    if way not in ("env", "file", "credential"):
        raise Unfit(f"unknown kind of reference: expected {REFERENCE_FORM}")
    if not isinstance(name, str) or not name or "\0" in name:
        raise Unfit(f"{way} must name something: expected {REFERENCE_FORM}")
    if way == "env":
        variable = environ.get(name, "")
        if not variable:
            if unset_is_none:
                return None
            state = "empty" if name in environ else "unset"
            raise Unfit(f"environment variable {_shown(name)} is {state}: set it to the secret")
        return Secret(_checked(variable, f"environment variable {_shown(name)}"))
    if way == "credential":
        directory = environ.get("CREDENTIALS_DIRECTORY", "")
        if "/" in name or name in (".", ".."):
            raise Unfit("credential must be a plain name, as in LoadCredential=name:/path")
        if not directory:
            raise Unfit(
                f"credential {_shown(name)}: CREDENTIALS_DIRECTORY is unset;"
                " systemd sets it for units with LoadCredential="
            )
        path, shown = Path(directory, name), f"credential {_shown(name)}"
    else:
        path = base / name
        shown = show_file(name)
    known = {} if files is None else files
    text = known.get(str(path))
    if text is None:
        text = known[str(path)] = _read(path, shown)
    return Secret(_checked(text, shown))


def show_file(name: str) -> str:
    """What to call a file in an error. A path has a slash or an extension, a pasted key has not: what does
    not look like a path is not shown."""
    if len(name) < 200 and ("/" in name or re.fullmatch(r"[\w-]{1,60}\.[a-z]{1,5}", name, re.ASCII)):
        return f"file {quote(name, 200)}"
    return "the file named here"


def _shown(name: str) -> str:
    return name if _NAME_TO_SHOW.fullmatch(name) else "named here (not shown: it does not look like a name)"


def _read(path: Path, shown: str) -> str:
    try:
        # A FIFO would block here for ever, a device would never end.
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise Unfit(f"{shown} is not a regular file")
        with open(path, "rb") as file:
            data = file.read(SECRET_BYTES_MAX + 1)
    except OSError as error:
        raise Unfit(f"cannot read {shown}: {error.strerror}") from None
    if len(data) > SECRET_BYTES_MAX:
        raise Unfit(f"{shown} holds more than {SECRET_BYTES_MAX} bytes: expected one secret on one line")
    # Editors and `echo` end a file with one newline; anything more was not meant to be a key.
    return data.decode("latin-1").removesuffix("\n").removesuffix("\r")


def _checked(text: str, shown: str) -> str:
    if not text:
        raise Unfit(f"{shown} is empty: expected a secret")
    if len(text) > SECRET_BYTES_MAX:
        raise Unfit(f"{shown} is longer than {SECRET_BYTES_MAX} bytes")
    if not _PRINTABLE.fullmatch(text):
        raise Unfit(
            f"{shown} holds line ends, control or non-ASCII characters, or spaces around it:"
            " expected one line of printable ASCII"
        )
    return text
