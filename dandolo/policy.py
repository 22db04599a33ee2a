"""What the control process tells workers: a frozen snapshot, replaced whole.

A worker holds one and swaps it by one assignment; whoever began under the old one ends under it. It can be sent as
msgpack (`pack`, `unpack`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import msgspec

from dandolo.config.schema import Key

Priority = Literal["high", "normal", "low"]
Scope = Literal["key", "shared"]


class Digest(msgspec.Struct, frozen=True, gc=False):
    """The SHA-256 of a key, and until when it is valid (Unix seconds; None: always)."""

    sha256: bytes
    until: float | None = None


class KeyTerms(msgspec.Struct, frozen=True, kw_only=True):
    """A key: how it is known and what it may. None is no limit. Budgets are micro-USD of a day and a month (UTC)."""

    name: str
    digests: tuple[Digest, ...] = ()
    priority: Priority = "normal"
    rpm: int | None = None
    tpm: int | None = None
    concurrent: int | None = None
    budget_day: int | None = None
    budget_month: int | None = None
    models: tuple[str, ...] = ("*",)
    cache_scope: Scope = "key"
    privacy: bool = False
    tags: dict[str, str] = {}
    admin: bool = False
    """Whether it may change everything on the admin listener: only the configuration's file can say so."""

    @property
    def budgeted(self) -> bool:
        """Whether it may spend so much and no more."""
        return self.budget_day is not None or self.budget_month is not None

    @property
    def limited(self) -> bool:
        """Whether anything of it is counted on the board."""
        return not (self.rpm is None and self.tpm is None and self.concurrent is None and not self.budgeted)


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """All of it. `keys` are those of the database; `closed`: a key is wanted, even if there is none at the moment."""

    keys: tuple[KeyTerms, ...] = ()
    closed: bool = False


NO_POLICY = Policy()
_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Policy)


def pack(policy: Policy) -> bytes:
    """A policy for the way to a worker."""
    return _encoder.encode(policy)


def unpack(data: bytes) -> Policy:
    """Raises msgspec.ValidationError (a ValueError) for what is none."""
    return _decoder.decode(data)


def terms(key: Key) -> KeyTerms:
    """A key of the configuration."""
    return KeyTerms(
        name=key.name,
        digests=(Digest(key.digest),),
        priority=key.priority,
        rpm=key.rpm,
        tpm=key.tpm,
        concurrent=key.concurrent,
        budget_day=micro(key.budget_usd_per_day),
        budget_month=micro(key.budget_usd_per_month),
        models=key.models,
        cache_scope=key.cache_scope,
        privacy=key.privacy,
        tags=dict(key.tags),
        admin=key.admin,
    )


def effective(file: Iterable[Key], database: Iterable[KeyTerms]) -> list[KeyTerms]:
    """The keys that hold: those of the file, and those of the database whose name and digests it does not have."""
    keys = [terms(key) for key in file]
    names = {key.name.casefold() for key in keys}
    digests = {one.sha256 for key in keys for one in key.digests}
    for key in database:
        if key.name.casefold() not in names and not any(one.sha256 in digests for one in key.digests):
            names.add(key.name.casefold())
            digests.update(one.sha256 for one in key.digests)
            keys.append(key)
    return keys


def micro(usd: float | None) -> int | None:
    """USD as whole millionths, at least one."""
    return None if usd is None else max(1, round(usd * 1e6))
