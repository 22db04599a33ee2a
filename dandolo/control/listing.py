"""Keys as people are shown them, by admin API, page and command line: nothing secret, and what each uses."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import msgspec

from dandolo.clock import timestamp
from dandolo.config.schema import Key
from dandolo.control.keys import TERMS, Kept
from dandolo.policy import KeyTerms, terms


def listing(
    file: Sequence[Key],
    kept: Sequence[Kept],
    usage: Callable[[str], dict[str, Any] | None] = lambda name: None,
    without: Collection[str] = (),
) -> list[dict[str, Any]]:
    """All keys for people: those of the file first, which win; of the database those that are valid, then the others.

    `status` is valid, revoked, shadowed (the file has the name), or no place (`without`: too many have limits).
    """
    names = {key.name.casefold() for key in file}
    rows = [{**shown_key(terms(key), "file", None), "usage": usage(key.name)} for key in file]
    for one in sorted(kept, key=lambda one: one.revoked is not None):
        row = shown_key(one.terms, "database", one)
        if one.revoked is None and one.name.casefold() in names:
            row["status"] = "shadowed"
        elif one.revoked is None and one.name in without:
            row["status"] = "no place"
        elif one.revoked is None:
            row["usage"] = usage(one.name)
        rows.append(row)
    return rows


def shown_key(terms: KeyTerms, source: str, kept: Kept | None) -> dict[str, Any]:
    """A key without anything secret; the beginning of its digest tells two of the same name apart."""
    row: dict[str, Any] = {
        "name": terms.name,
        "source": source,
        "status": "valid" if kept is None or kept.revoked is None else "revoked",
        "sha256": terms.digests[0].sha256.hex()[:12] if terms.digests else "",
    }
    if kept is not None:
        row["created"] = timestamp(kept.created)
        if kept.revoked is not None:
            row["revoked"] = timestamp(kept.revoked)
        if kept.before_until is not None and kept.revoked is None:
            row["old_key_valid_until"] = timestamp(kept.before_until)
    values = msgspec.structs.asdict(terms)
    values["budget_usd_per_day"] = None if terms.budget_day is None else terms.budget_day / 1e6
    values["budget_usd_per_month"] = None if terms.budget_month is None else terms.budget_month / 1e6
    row.update({name: values[name] for name in TERMS if values[name] is not None})
    return row
