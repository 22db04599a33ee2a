"""How one generation of processes takes over from another: listening sockets, and the word that they are served.

Whoever can be followed listens at an abstract Unix address that follows from where the gateway listens (`identity`):
a control process under the name itself, a worker without one under the name and its slot. Who follows connects, is
given the listening sockets with their queues, and says so once it accepts; only then does the other one finish. Both
ends must be of the same user: abstract addresses have no owner.

    successor              predecessor
      "sockets"     →
                    ←      slots of the sockets, and the sockets
      "serving"     →      (begins to drain)
      + a pipe             what it has still to tell
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import json
import logging
import os
import socket
import struct
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

ANSWER_S = 2.0
MESSAGE_BYTES_MAX = 64 * 1024
DESCRIPTORS_MAX = 253
"""SCM_MAX_FD of the kernel."""
CALLERS_MAX = 8
RETRY_S = 1.0
SLOTS_MAX = 256

_SOCKETS, _SERVING = b"sockets", b"serving"
_log = logging.getLogger("dandolo")


def identity(addresses: Iterable[str]) -> str:
    """Under which name whoever listens at these addresses is found; "" where a port is for the kernel to choose,
    which nobody can follow."""
    listed = sorted(addresses)
    if not listed or any(one.endswith(":0") and not one.startswith("unix:") for one in listed):
        return ""
    text = "\0".join([str(os.geteuid()), *listed])
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _address(name: str, slot: int | None) -> bytes:
    return f"\0dandolo/{name}".encode() + (b"" if slot is None else b"/%d" % slot)


def _peer(sock: socket.socket) -> tuple[int, int]:
    """Process and user at the other end, as the kernel saw them (SO_PEERCRED)."""
    pid, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    return pid, uid


def _is_ours(sock: socket.socket) -> bool:
    return _peer(sock)[1] == os.geteuid()


class Given(NamedTuple):
    """A listening socket and what its holder says of it."""

    sock: socket.socket
    slot: int


class Predecessor:
    """A connection to somebody who can be followed. Blocking, each step within ANSWER_S."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    @classmethod
    def find(cls, name: str, slot: int | None) -> Predecessor | None:
        """Whoever is there under this name and slot (None: the control process)."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            sock.settimeout(ANSWER_S)
            sock.connect(_address(name, slot))
            if _is_ours(sock):
                return cls(sock)
            _log.warning("a process of another user sits at our address: it is passed over")
        except OSError:
            pass
        sock.close()
        return None

    @property
    def pid(self) -> int:
        """Its process."""
        return _peer(self._sock)[0]

    def sockets(self) -> list[Given]:
        """The listening sockets that it holds, with their slots. Raises OSError."""
        self._sock.send(_SOCKETS)
        message, descriptors, _, _ = socket.recv_fds(self._sock, MESSAGE_BYTES_MAX, DESCRIPTORS_MAX)
        for number in descriptors:
            # What is received is inheritable, and a worker that had the admin listener's would keep its port from
            # whoever comes after us.
            os.set_inheritable(number, False)
        given = [socket.socket(fileno=number) for number in descriptors]
        try:
            slots = json.loads(message)
            if not isinstance(slots, list) or len(slots) != len(given):
                raise ValueError("slots and sockets do not match")
            return [Given(sock, int(slot)) for sock, slot in zip(given, slots, strict=True)]
        except (ValueError, TypeError):
            for sock in given:
                sock.close()
            raise OSError(errno.EPROTO, "what came is no list of sockets") from None

    def serving(self, pipe: socket.socket | None = None) -> None:
        """Say that we accept: it finishes now, and may tell what it has to through `pipe`, of which it is given a
        copy."""
        with contextlib.suppress(OSError):
            socket.send_fds(self._sock, [_SERVING], [] if pipe is None else [pipe.fileno()])
        self._sock.close()

    def close(self) -> None:
        """Leave it alone."""
        self._sock.close()


def orphans(name: str) -> list[Predecessor]:
    """All workers under this name whose control process has gone. Takes about a millisecond."""
    if not name:
        return []
    return [found for slot in range(SLOTS_MAX) if (found := Predecessor.find(name, slot)) is not None]


class Followed:
    """Lets itself be followed: listens under a name, gives its sockets, and calls `on_followed` with the process id
    of the successor once that one serves. The name is taken as soon as it is free.

    While `on_followed` is called, `take_pipe` gives what the successor listens to."""

    def __init__(
        self,
        name: str,
        slot: int | None,
        sockets: Callable[[], Sequence[Given]],
        on_followed: Callable[[int], None],
    ) -> None:
        self._address = _address(name, slot)
        self._sockets = sockets
        self._on_followed = on_followed
        self._loop = asyncio.get_running_loop()
        self._sock: socket.socket | None = None
        self._callers: set[socket.socket] = set()
        self._retry: asyncio.TimerHandle | None = None
        self._pipe: socket.socket | None = None

    def take_pipe(self) -> socket.socket | None:
        """A stream socket to the successor; None where it listens to nothing, or it was taken already."""
        pipe, self._pipe = self._pipe, None
        return pipe

    def start(self) -> None:
        """Take the name, now or when it becomes free."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            sock.bind(self._address)
            sock.listen(CALLERS_MAX)
            sock.setblocking(False)
        except OSError:
            sock.close()
            self._retry = self._loop.call_later(RETRY_S, self.start)
            return
        self._sock = sock
        self._loop.add_reader(sock.fileno(), self._accept)

    def close(self) -> None:
        """Give the name up."""
        if self._retry is not None:
            self._retry.cancel()
        if self._sock is not None:
            self._loop.remove_reader(self._sock.fileno())
            self._sock.close()
            self._sock = None
        for caller in list(self._callers):
            self._let_go(caller)

    def _accept(self) -> None:
        assert self._sock is not None
        try:
            caller, _ = self._sock.accept()
        except OSError:
            return
        caller.setblocking(False)
        if len(self._callers) >= CALLERS_MAX or not _is_ours(caller):
            caller.close()
            return
        self._callers.add(caller)
        self._loop.add_reader(caller.fileno(), self._said, caller)

    def _said(self, caller: socket.socket) -> None:
        pipe: socket.socket | None = None
        try:
            word, descriptors, _, _ = socket.recv_fds(caller, 64, 1)
            if descriptors:
                os.set_inheritable(descriptors[0], False)
                pipe = socket.socket(fileno=descriptors[0])
            if word == _SOCKETS:
                given = self._sockets()
                slots = json.dumps([one.slot for one in given]).encode()
                socket.send_fds(caller, [slots], [one.sock.fileno() for one in given])
                return
        except BlockingIOError:
            return
        except OSError:
            word = b""
        pid, _ = _peer(caller)
        self._let_go(caller)
        if word == _SERVING:
            self.close()
            self._pipe = pipe
            self._on_followed(pid)
            pipe = self.take_pipe()
        if pipe is not None:
            pipe.close()

    def _let_go(self, caller: socket.socket) -> None:
        self._callers.discard(caller)
        self._loop.remove_reader(caller.fileno())
        caller.close()
