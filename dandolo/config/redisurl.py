"""Redis URLs: where a server or cluster listens, and as whom we come. Reasons never show the URL.

    redis://[[USER]:PASSWORD@]HOST[:PORT][/DATABASE]     rediss:// with TLS
    redis+cluster://[[USER]:PASSWORD@]HOST[:PORT]        rediss+cluster:// with TLS; HOST is any node
    unix://[[USER]:PASSWORD@]/PATH                       a socket on this machine, database 0

User and password are percent-encoded where they hold what a URL cannot.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote

from dandolo.config import secret
from dandolo.config.address import UNIX_PATH_BYTES_MAX, split_url
from dandolo.config.problem import Unfit
from dandolo.config.spec import At, Kind

SCHEMES: Final = ("redis", "rediss", "redis+cluster", "rediss+cluster")
PORT: Final = 6379
DATABASE_MAX: Final = 9999

_UNIX = re.compile(r"unix://(?:(?P<user>[^/:@]*)(?::(?P<password>[^/@]*))?@)?(?P<path>/[!-~]+)", re.ASCII)


@dataclass(frozen=True, slots=True)
class RedisUrl:
    """Where and as whom: `path` holds for a Unix socket, else `host` and `port`. `username` is "" for the default
    user, `password` None where there is none."""

    host: str = ""
    port: int = PORT
    path: str = ""
    tls: bool = False
    cluster: bool = False
    username: str = ""
    password: secret.Secret | None = None
    database: int = 0

    def __str__(self) -> str:
        """Where, and nothing of as whom."""
        if self.path:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_redis_url(url: str) -> RedisUrl:
    """Raises Unfit, never with the URL or a part of it."""
    if url.startswith("unix:"):
        match = _UNIX.fullmatch(url)
        if match is None:
            raise Unfit("expected an absolute path after unix://, as in unix:///run/redis/redis.sock")
        path = unquote(match["path"])
        if "\0" in path or len(path.encode()) > UNIX_PATH_BYTES_MAX:
            raise Unfit(f"a Unix socket's path has at most {UNIX_PATH_BYTES_MAX} bytes")
        username, password = _login(match["user"], match["password"])
        return RedisUrl(path=path, username=username, password=password)
    parts = split_url(url, SCHEMES)
    cluster = parts.scheme.endswith("+cluster")
    text = parts.path.strip("/")
    if text and not re.fullmatch(r"[0-9]{1,4}", text, re.ASCII):
        raise Unfit(f"expected a database number of 0 to {DATABASE_MAX}, or nothing, after the host")
    if cluster and int(text or 0):
        raise Unfit("a cluster has database 0 only")
    username, password = _login(parts.username, parts.password)
    return RedisUrl(
        host=parts.hostname or "",
        port=parts.port or PORT,
        tls=parts.scheme.startswith("rediss"),
        cluster=cluster,
        database=int(text or 0),
        username=username,
        password=password,
    )


def _login(username: str | None, password: str | None) -> tuple[str, secret.Secret | None]:
    if username and not password:
        raise Unfit("a user without a password: expected USER:PASSWORD@ or :PASSWORD@")
    return unquote(username or ""), secret.Secret(unquote(password)) if password else None


def redis_url() -> Kind:
    """The Secret that holds a URL which parse_redis_url takes; in the file only without a password."""

    def read(value: object, at: At) -> secret.Secret:
        if isinstance(value, str):
            if "@" in value:
                raise Unfit(
                    f"a URL with credentials is a secret: put it elsewhere and write {secret.REFERENCE_FORM} here"
                )
            found: secret.Secret | None = secret.Secret(value)
        else:
            found = secret.resolve(value, at.reading.environ, at.reading.base, at.reading.secrets)
        assert found is not None
        parse_redis_url(found.reveal())
        return found

    listed = ", ".join(f"{scheme}://" for scheme in (*SCHEMES, "unix"))
    return Kind("URL or secret", f"{listed}; with a password only by reference", read)
