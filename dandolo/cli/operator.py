"""Asking a running gateway as its operator does: the admin listener, from the command line.

The address is `--admin`, else `server.admin` of the configuration; the key, where one is wanted, DANDOLO_ADMIN_KEY.
Over HTTPS (`--admin https://…`, or `server.admin_tls`) the certificate must be one that `--ca` vouches for, else one of
the system's authorities. That of the configuration on this machine is known itself: it need not name the address.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import re
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dandolo.cli import configured
from dandolo.config import Config, ConfigError
from dandolo.config.address import Listen, parse_listen

TIMEOUT_S = 90.0
BODY_BYTES_MAX = 64 * 1024 * 1024
EVENT_BYTES_MAX = 16 * 1024 * 1024
DEFAULT = "127.0.0.1:9180"
TLS_FAILED = 495
"""In place of a status: somebody is there, but no one that we know (nginx's number for a certificate in doubt)."""
KEY = "DANDOLO_ADMIN_KEY"
_PEM = re.compile(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)


class NotAnswered(Exception):
    """Nobody is there, or who is there declines; the text says which, and what to do."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class Where:
    """An admin listener: where, whether by HTTPS, and the file with the very certificate that it shows (None: one that
    an authority vouches for)."""

    listen: Listen
    secure: bool = False
    pinned: Path | None = None

    def __str__(self) -> str:
        return f"https://{self.listen}" if self.secure else str(self.listen)


class _Pinned(http.client.HTTPSConnection):
    """Takes one certificate and no other, before anything is said."""

    def __init__(self, host: str, port: int, pinned: Path, context: ssl.SSLContext) -> None:
        super().__init__(host, port, timeout=TIMEOUT_S, context=context)
        self._certificate = first_certificate(pinned)

    def connect(self) -> None:
        super().connect()
        assert isinstance(self.sock, ssl.SSLSocket)
        if self.sock.getpeercert(binary_form=True) != self._certificate:
            self.close()
            raise ssl.SSLCertVerificationError("it shows another certificate than server.admin_tls names")


class _Unix(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(TIMEOUT_S)
        self.sock.connect(self._path)


def add_arguments(parser: argparse.ArgumentParser, *, about: str = "the admin listener, else server.admin") -> None:
    """`--config`, and what `add_place` adds."""
    parser.add_argument("--config", metavar="FILE", help="where server.admin stands; left out: as for serve")
    add_place(parser, about)


def add_place(parser: argparse.ArgumentParser, about: str) -> None:
    """`--admin`, `--ca` and `--cert`."""
    parser.add_argument("--admin", metavar="H:N", type=place, help=f"{about}; also https://H:N, unix:/path")
    parser.add_argument("--ca", metavar="FILE", help="who signs its certificate (PEM), in place of the system's list")
    parser.add_argument("--cert", metavar="FILE", help="certificate and key to show it (PEM), where it asks for one")


def place(text: str) -> Where:
    """HOST:PORT, http(s)://HOST:PORT or unix:/path for argparse."""
    scheme, mark, rest = text.partition("://")
    if mark and scheme not in ("http", "https"):
        raise argparse.ArgumentTypeError("expected HOST:PORT, https://HOST:PORT or unix:/path")
    return Where(configured.address(rest.removesuffix("/") if mark else text), bool(mark) and scheme == "https")


def place_of(config: Config) -> Where:
    """The admin listener of a configuration, as it is reached from its own machine."""
    admin, tls = config.server.admin, config.server.admin_tls
    if tls is None or admin.kind == "unix":
        return Where(admin)
    return Where(admin, secure=True, pinned=tls.cert)


def connect(args: argparse.Namespace) -> tuple[http.client.HTTPConnection, str]:
    """A connection that is made when it is used, and where to. Raises ConfigError, NotAnswered for files that are no
    certificates and for certificates that nobody would look at."""
    where: Where = args.admin or _configured(args.config)
    if where.listen.kind == "unix":
        return _Unix(where.listen.path), f"unix:{where.listen.path}"
    host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(where.listen.host, where.listen.host)  # noqa: S104 - compared, not bound
    port = where.listen.port
    named = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    if not where.secure:
        if args.ca is not None or args.cert is not None:
            # Whoever names certificates takes it for granted that nobody else can listen to the key.
            said = f"{named} is asked without TLS: --ca and --cert go with --admin https://{named}"
            raise NotAnswered(said, TLS_FAILED)
        return http.client.HTTPConnection(host, port, timeout=TIMEOUT_S), named
    try:
        if where.pinned is not None and args.ca is None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname = False
            # Not by an authority: it is compared with the one in the file.
            context.verify_mode = ssl.CERT_NONE
        else:
            context = ssl.create_default_context(cafile=args.ca)
        if args.cert is not None:
            context.load_cert_chain(args.cert)
        if where.pinned is not None and args.ca is None:
            return _Pinned(host, port, where.pinned, context), f"https://{named}"
    except (OSError, ValueError) as error:
        files = " and ".join(str(file) for file in (args.ca or where.pinned, args.cert) if file is not None)
        said = f"certificates cannot be used ({_why(error)}): expected PEM in {files or 'the system’s list'}"
        raise NotAnswered(said, TLS_FAILED) from error
    return http.client.HTTPSConnection(host, port, timeout=TIMEOUT_S, context=context), f"https://{named}"


def first_certificate(path: Path) -> bytes:
    """The leaf of a chain, in DER. Raises OSError, ValueError."""
    found = _PEM.search(path.read_text("latin-1"))
    if found is None:
        raise ValueError(f"{path} holds no certificate")
    return ssl.PEM_cert_to_DER_cert(found[0])


def _configured(path: str | None) -> Where:
    try:
        return place_of(configured.find(path, os.environ))
    except ConfigError:
        if path is not None or Path(configured.DEFAULT_FILE).exists():
            raise
        # Not configured here, which does not matter to whoever asks a gateway that runs.
        return Where(parse_listen(DEFAULT))


def _why(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message if getattr(error, "verify_message", "") else str(error.args[-1])
    if isinstance(error, ssl.SSLError):
        return error.reason or "no TLS"
    return error.strerror if isinstance(error, OSError) and error.strerror else type(error).__name__


def _unanswered(error: Exception, where: str) -> NotAnswered:
    """Nobody is there, or somebody who is not to be told our key."""
    if isinstance(error, ssl.SSLError):
        if isinstance(error, ssl.SSLCertVerificationError):
            return NotAnswered(
                f"{where} is not trusted ({_why(error)}): --ca names who signs its certificate", TLS_FAILED
            )
        if "ALERT" in _why(error):
            # RFC 8446 6.2: certificate_required, unknown_ca and their kin.
            return NotAnswered(f"{where} declines ({_why(error)}): --cert names the certificate to show", TLS_FAILED)
        return NotAnswered(f"{where} does not speak TLS ({_why(error)}): without https:// perhaps?", TLS_FAILED)
    hint = "is `dandolo serve` running? --admin says where it is asked"
    if where.startswith("https:"):
        hint += ", --cert with which certificate"
    elif not isinstance(error, ConnectionRefusedError):
        hint += ", as https://HOST:PORT where it speaks TLS"
    return NotAnswered(f"nobody answers at {where} ({_why(error)}): {hint}")


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
        raise _unanswered(error, where) from error
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
        if isinstance(error, ssl.SSLError):
            raise _unanswered(error, where) from error
        raise NotAnswered(f"nobody answers at {where} any more ({_why(error)})") from error
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
