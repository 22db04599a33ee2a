"""Asking a running gateway as its operator does: the admin listener, from the command line.

The address is `--admin`, else `server.admin` of the configuration; the key, where one is wanted, DANDOLO_ADMIN_KEY.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dandolo.cli import configured
from dandolo.config import ConfigError
from dandolo.config.address import Listen, parse_listen

TIMEOUT_S = 90.0
BODY_BYTES_MAX = 64 * 1024 * 1024
EVENT_BYTES_MAX = 16 * 1024 * 1024
DEFAULT = "127.0.0.1:9180"
KEY = "DANDOLO_ADMIN_KEY"


class NotAnswered(Exception):
    """Nobody is there, or who is there declines; the text says which, and what to do."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class _Unix(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(TIMEOUT_S)
        self.sock.connect(self._path)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`--config` and `--admin`."""
    parser.add_argument("--config", metavar="FILE", help="where server.admin stands; left out: as for serve")
    parser.add_argument(
        "--admin", metavar="H:N", type=configured.address, help="the admin listener, else server.admin; also unix:/path"
    )


def connect(args: argparse.Namespace) -> tuple[http.client.HTTPConnection, str]:
    """A connection that is made when it is used, and where to. Raises ConfigError."""
    where = args.admin or _configured(args.config)
    if where.kind == "unix":
        return _Unix(where.path), f"unix:{where.path}"
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(where.host, where.host)  # noqa: S104 - compared, not bound
    return http.client.HTTPConnection(host, where.port, timeout=TIMEOUT_S), f"{host}:{where.port}"


def _configured(path: str | None) -> Listen:
    try:
        return configured.find(path, os.environ).server.admin
    except ConfigError:
        if path is not None or Path(configured.DEFAULT_FILE).exists():
            raise
        # Not configured here, which does not matter to whoever asks a gateway that runs.
        return parse_listen(DEFAULT)


def headers() -> dict[str, str]:
    """What every request says besides."""
    key = os.environ.get(KEY)
    return {"Accept": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}


def ask(args: argparse.Namespace, method: str, path: str, body: Any = None) -> tuple[int, bytes]:
    """Status and body of an answer below 300. Raises NotAnswered, ConfigError."""
    connection, where = connect(args)
    data = None if body is None else json.dumps(body).encode()
    said = headers() | ({"Content-Type": "application/json"} if data is not None else {})
    try:
        connection.request(method, path, data, said)
        answer = connection.getresponse()
        content = answer.read(BODY_BYTES_MAX)
    except (OSError, http.client.HTTPException) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else type(error).__name__
        raise NotAnswered(
            f"nobody answers at {where} ({reason}): is `dandolo serve` running? --admin says where it is asked"
        ) from error
    finally:
        connection.close()
    if answer.status >= 300:
        raise NotAnswered(_refusal(answer.status, content, where, path), answer.status)
    return answer.status, content


def ask_json(args: argparse.Namespace, method: str, path: str, body: Any = None) -> Any:
    """The same, as what JSON holds."""
    return json.loads(ask(args, method, path, body)[1] or b"null")


def events(args: argparse.Namespace, path: str) -> Iterator[Any]:
    """What a stream of events holds, as it comes, until it ends. Raises NotAnswered, ConfigError."""
    connection, where = connect(args)
    try:
        connection.request("GET", path, headers=headers())
        answer = connection.getresponse()
        if answer.status >= 300:
            raise NotAnswered(_refusal(answer.status, answer.read(BODY_BYTES_MAX), where, path), answer.status)
        while line := answer.readline(EVENT_BYTES_MAX):
            if line.startswith(b"data: "):
                yield json.loads(line[6:])
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else type(error).__name__
        raise NotAnswered(f"nobody answers at {where} any more ({reason})") from error
    finally:
        connection.close()


def _refusal(status: int, content: bytes, where: str, path: str) -> str:
    code = None
    try:
        error = json.loads(content)["error"]
        message, code = str(error["message"]), error.get("code")
    except (ValueError, KeyError, TypeError, AttributeError):
        message = f"status {status}"
    if status == 404 and code in (None, "not_found"):
        return f"{where} has no {path.partition('?')[0]}: --admin wants the admin listener, as `dandolo serve` names it"
    return f"{message} (put a key with admin = true into {KEY})" if status in (401, 403) else message


__all__ = ["KEY", "ConfigError", "NotAnswered", "add_arguments", "ask", "ask_json", "connect", "events", "headers"]
