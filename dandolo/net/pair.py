"""The socket pair of the control process and a worker, before there is an event loop on either side."""

from __future__ import annotations

import socket

SOCKET_BYTES = 1024 * 1024


def pair() -> tuple[socket.socket, socket.socket]:
    """Two ends of a new pipe, not inherited by anybody."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    for end in (ours, theirs):
        # As far as the system lets us: the records of a beat go out in one piece.
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BYTES)
    return ours, theirs
