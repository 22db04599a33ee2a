"""What only the kernel knows of a transport's socket, and one thing only it can be told."""

from __future__ import annotations

import asyncio
import fcntl
import select
import struct
import termios
from array import array
from socket import SO_LINGER, SOL_SOCKET

from dandolo.net.tls import TlsTransport

_RESET = struct.pack("ii", 1, 0)


def unsent_bytes(transport: asyncio.BaseTransport) -> int:
    """Bytes that the kernel holds for the peer: they shrink while it reads (tcp(7), SIOCOUTQ). 0 when unknown."""
    socket = transport.get_extra_info("socket")
    held = array("i", [0])
    try:
        fcntl.ioctl(socket.fileno(), termios.TIOCOUTQ, held)
    except (OSError, AttributeError, ValueError):
        return 0
    return held[0]


def hung_up(transport: asyncio.BaseTransport) -> bool:
    """Whether the peer has closed, also behind bytes that nobody has read yet."""
    socket = transport.get_extra_info("socket")
    poll = select.poll()
    poll.register(socket.fileno(), select.POLLRDHUP)
    return bool(poll.poll(0))


def reset_on_close(transport: asyncio.BaseTransport) -> None:
    """Let the end of the connection be a reset, so that nobody takes what came for complete."""
    if isinstance(transport, TlsTransport):
        transport.withhold_end()
    socket = transport.get_extra_info("socket")
    if socket is not None:
        socket.setsockopt(SOL_SOCKET, SO_LINGER, _RESET)
