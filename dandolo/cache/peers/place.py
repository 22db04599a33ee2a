"""Where a process stands among its peers: its name, its addresses, its papers."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import ssl
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from dandolo.config.address import Listen

BACKLOG: Final = 64


@dataclass(frozen=True, slots=True)
class Papers:
    """Files (PEM) for mutual TLS: our certificate and key, and who signs those of all peers."""

    cert: Path
    key: Path
    ca: Path


@dataclass(frozen=True, slots=True)
class Membership:
    """A process among its peers. `name` is unique among them; `peers` may hold its own address, which is passed over.

    `papers` are needed where any address is TCP.
    """

    name: str
    listen: tuple[Listen, ...] = ()
    peers: tuple[Listen, ...] = ()
    papers: Papers | None = None


def dialling(papers: Papers) -> ssl.SSLContext:
    """How we come to others. Raises OSError (ssl.SSLError) when a file cannot be used."""
    context = ssl.create_default_context(cafile=papers.ca)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(papers.cert, papers.key)
    return context


def accepting(papers: Papers) -> ssl.SSLContext:
    """How others come to us: with a certificate of the same authority, or not at all. Raises OSError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(papers.ca)
    context.load_cert_chain(papers.cert, papers.key)
    return context


def opened(place: Listen) -> list[socket.socket]:
    """Listening sockets. A Unix socket is for its owner only, from the moment it exists. Raises OSError."""
    if place.kind == "unix":
        return [_unix(place.path)]
    sockets: list[socket.socket] = []
    try:
        found = socket.getaddrinfo(place.host or None, place.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, kind, protocol, _, address in dict.fromkeys(found):
            sock = socket.socket(family, kind, protocol)
            sockets.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind(address)
            sock.listen(BACKLOG)
            sock.setblocking(False)
    except OSError as error:
        for sock in sockets:
            sock.close()
        raise OSError(error.errno, f"cannot listen for cache peers on {place}: {error.strerror or error}") from None
    return sockets


def _unix(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISSOCK(os.lstat(path).st_mode):
                raise OSError(errno.EEXIST, "a file that is no socket stands there")
            if _answers(path):
                raise OSError(errno.EADDRINUSE, "another process listens there")
            os.unlink(path)
        before = os.umask(0o177)
        try:
            sock.bind(path)
        finally:
            os.umask(before)
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        reason = error.strerror or error
        raise OSError(error.errno, f"cannot listen for cache peers on unix:{path}: {reason}") from None
    return sock


def _answers(path: str) -> bool:
    """Whether somebody listens: only a refusal proves that nobody does."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except BlockingIOError:
            return True
        return True
