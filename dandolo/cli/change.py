"""What one configuration changes in another, and what a reload can do about it.

Nearly everything is swapped in living workers, or in the control process. What a worker makes once, when it begins,
wants new workers (RENEWING); what the control process holds for as long as it lives waits for the next start (FIXED).
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from dandolo.config import Config
from dandolo.provision import Document

FIXED: Mapping[str, str] = {
    "server.listen": "a successor finds the sockets by these addresses",
    "server.admin": "a successor finds the socket by its address",
    "server.state_dir": "the database of keys, the ledger and the audit log are open there",
}
"""Keys that change at the next start only, and why."""
RENEWING = (
    "server.workers",
    "server.privacy",
    "limits.shared",
    "cache.levels",
    "cache.redis",
    "cache.sqlite",
    "cache.peers",
    "cache.secret",
    "ledger.enabled",
    "ledger.journal_bytes",
    "prompt_log.enabled",
)
"""Keys, or sections, for which workers are replaced: tiers, peers, books and the board are joined once."""
_NOT_KEYS = frozenset(("source", "warnings", "lines"))
SHOWN_MAX = 12


def changes(before: Config, after: Config) -> list[str]:
    """The keys that differ, with their sections, in the order of the schema. Tables of which there may be many
    (providers, keys, …) are one each."""
    return [".".join(path) for path in _differing(before, after, ())]


def _differing(before: Any, after: Any, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    for field in dataclasses.fields(before):
        one, other = getattr(before, field.name), getattr(after, field.name)
        here = (*path, field.name)
        if here[0] in _NOT_KEYS or one == other:
            continue
        if dataclasses.is_dataclass(one) and dataclasses.is_dataclass(other) and len(path) < 2 and _section(one):
            yield from _differing(one, other, here)
        else:
            yield here


def _section(value: Any) -> bool:
    """Whether a value is a section of the file, and not an address or what else has parts."""
    return type(value).__module__.startswith("dandolo.config.") and type(value).__name__ != "Listen"


def wants_workers(changed: Sequence[str]) -> bool:
    """Whether any of the keys wants new workers."""
    return any(key == one or key.startswith(f"{one}.") for key in changed for one in RENEWING)


def shown(changed: Sequence[str]) -> str:
    """The keys for a line of the log."""
    if not changed:
        return "nothing has changed"
    more = len(changed) - SHOWN_MAX
    return "changed " + ", ".join(changed[:SHOWN_MAX]) + (f" and {more} more" if more > 0 else "")


def kept(before: Config, after: Config, document: Document) -> tuple[Config, Document, list[str]]:
    """`after` and its document with what cannot change as it was, and the names of those keys."""
    server = dataclasses.replace(
        after.server, listen=before.server.listen, admin=before.server.admin, state_dir=before.server.state_dir
    )
    asked = [key for key in changes(before, after) if key in FIXED]
    document = msgspec.structs.replace(
        document,
        listen=tuple(map(str, server.listen)),
        admin=str(server.admin),
        state_dir=str(server.state_dir),
    )
    return dataclasses.replace(after, server=server), document, asked


def bounded(config: Config, document: Document, most: int) -> tuple[Config, Document, int]:
    """Both for at most so many workers, and how many were asked for if those are more, otherwise 0."""
    wanted = document.workers
    if wanted <= most:
        return config, document, 0
    server = dataclasses.replace(config.server, workers=most)
    return dataclasses.replace(config, server=server), msgspec.structs.replace(document, workers=most), wanted


def files(config: Config) -> dict[str, bytes]:
    """Digests of the files that the configuration names and that are read when it is put to use, by key; certificates
    are renewed under the same name. What cannot be read has none: whoever needs it says so. Blocks."""
    tls, admin, peers = config.server.tls, config.server.admin_tls, config.cache.peers.tls
    found: dict[str, bytes] = {}
    named: dict[str, Sequence[Path | None]] = {
        "server.tls": (tls.cert, tls.key) if tls is not None else (),
        "server.admin_tls": (admin.cert, admin.key, admin.client_ca) if admin is not None else (),
        "cache.redis.ca": (config.cache.redis.ca,),
        "cache.peers.tls": (peers.cert, peers.key, peers.ca) if peers is not None else (),
        "otel.ca": (config.otel.ca,),
    }
    for key, paths in named.items():
        digest = hashlib.sha256()
        for path in paths:
            if path is not None:
                try:
                    digest.update(path.read_bytes())
                except OSError:
                    digest.update(b"\0")
        found[key] = digest.digest()
    return found
