"""Keys that are read and checked but that this version does not act on yet.

Whoever makes one work takes its entry out. An operator who sets such a key is told so at every start:
a limit that is silently not kept is worse than one that is missing.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from dandolo.config.spec import At

NOT_YET: Final[Mapping[str, tuple[str, tuple[Any, ...]]]] = MappingProxyType(
    {
        # key: (what happens instead, values that ask for nothing)
    }
)


def warn_unenforced(document: Mapping[str, Any], at: At) -> None:
    """Warns of every key of NOT_YET that `document` (what TOML gave, already checked) sets."""
    for dotted, (instead, harmless) in NOT_YET.items():
        section, name = dotted.split(".")
        tables = document.get(section, {})
        here = at.child(section)
        for table, place in (
            [(one, here.child(index)) for index, one in enumerate(tables)]
            if isinstance(tables, list)
            else [(tables, here)]
        ):
            # 1.0 == True in Python; what is harmless must be of the same type.
            if name in table and not any(
                table[name] == value and type(table[name]) is type(value) for value in harmless
            ):
                place.child(name).warn(f"is accepted but not enforced yet: {instead}")
