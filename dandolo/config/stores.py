"""The `[cache]` sections: which tiers there are, how large, and which requests they serve (see `config.schema`)."""

# ruff: noqa: RUF009 (the calls in the class bodies make fields, once, as `dataclasses.field` does)

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dandolo.config import address, kinds, redisurl
from dandolo.config.address import Listen
from dandolo.config.secret import Secret
from dandolo.config.spec import Kind, absent, key, required, section

Level = Literal["memory", "redis", "sqlite"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheMemory:
    entries: int = key(kinds.whole(1, 10_000_000), "1000", "answers kept")
    bytes: int = key(kinds.byte_size("64KiB", "1TiB"), '"64MiB"', "memory for them")


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheRedis:
    url: Secret = key(
        redisurl.redis_url(),
        '"redis://127.0.0.1:6379/0"',
        "server, or cluster; rediss:// is TLS",
    )
    ca: Path | None = absent(kinds.readable_file("a PEM bundle"), "private CA bundle (PEM)", example='"/path/ca.pem"')


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheSqlite:
    bytes_max: int = key(kinds.byte_size("1MiB", "64TiB"), '"10GiB"', "size of the file in state_dir")


@dataclass(frozen=True, slots=True, kw_only=True)
class PeersTls:
    cert: Path = required(kinds.readable_file("a PEM certificate chain"), "certificate chain, leaf first (PEM)")
    key: Path = required(kinds.readable_file("a PEM private key"), "its private key (PEM)")
    ca: Path = required(kinds.readable_file("a PEM bundle"), "who signs the certificates of all peers (PEM)")


@dataclass(frozen=True, slots=True, kw_only=True)
class CachePeers:
    name: str | None = absent(
        kinds.name(), "of this host, another for each; its own workers share without one", example='"edge-1"'
    )
    listen: tuple[Listen, ...] = key(
        kinds.array(address.listen(), 4),
        "[]",
        "where others reach the first worker: unix:/path or HOST:PORT; the n-th is n ports further",
    )
    peers: tuple[Listen, ...] = key(
        kinds.array(address.listen(), 64), "[]", "where it reaches the others; its own addresses may be among them"
    )
    tls: PeersTls | None = absent(
        Kind("table", "cert, key and ca", section=PeersTls),
        "mutual TLS, needed for HOST:PORT; certificates name the hosts they are dialled by",
        example='{ cert = "/path/chain.pem", key = "/path/key.pem", ca = "/path/ca.pem" }',
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Cache:
    levels: tuple[Level, ...] = key(
        kinds.array(kinds.choice("memory", "redis", "sqlite"), 3),
        '["memory"]',
        "tiers, in order; []: off",
        example='["memory", "redis", "sqlite"]',
    )
    sampled: Literal["bypass", "reuse"] = key(
        kinds.choice("bypass", "reuse"), '"bypass"', "requests that ask for a sample: bypass, or reuse one answer"
    )
    semantic: Literal["off", "normal"] = key(
        kinds.choice("off", "normal"),
        '"off"',
        "normal: short questions that surely ask the same in other words share an answer",
    )
    secret: Secret | None = absent(
        kinds.secret_reference(),
        "shared by hosts that share a tier; left out: made once in state_dir",
        example='{ env = "DANDOLO_CACHE_SECRET" }',
    )
    memory: CacheMemory = section(CacheMemory, "the tier in a worker's memory")
    redis: CacheRedis = section(CacheRedis, "the tier that hosts share")
    sqlite: CacheSqlite = section(CacheSqlite, "the tier on disk")
    peers: CachePeers = section(CachePeers, "other processes that share the cache")
