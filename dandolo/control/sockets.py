"""The listening sockets of all workers, held by the control process for as long as it lives.

Every slot has a TCP socket of its own at each address (SO_REUSEPORT: the kernel spreads new connections over them),
so that what waits for a worker that has died waits for its successor. Unix sockets, and those that systemd passes,
are one for all.
"""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from dandolo.config.schema import Listen
from dandolo.net import listen
from dandolo.net.succession import Given, Predecessor, orphans

SHARED = -1
"""The slot of a socket that every worker accepts at."""
ADMIN = -2
"""The slot of a socket that the control process accepts at."""


ORPHANS_S = 1.0


class Held(NamedTuple):
    """A listening socket, and the slot it belongs to."""

    sock: socket.socket
    slot: int


def open_all(addresses: Iterable[Listen], slots: int) -> list[Held]:
    """Open every address once a slot. Raises OSError; then nothing is left open."""
    held: list[Held] = []
    try:
        for one in addresses:
            if one.kind == "unix":
                held.append(Held(listen.open_unix(one.path), SHARED))
                continue
            for first in listen.open_tcp(one.host, one.port):
                held.append(Held(first, 0))
                held += [Held(listen.open_beside(first), slot) for slot in range(1, slots)]
    except OSError:
        close_all(held)
        raise
    return held


def adopt(given: Sequence[Given], slots: int) -> list[Held]:
    """The sockets of a predecessor, for our own number of slots: what is missing is opened beside them, what is left
    over is shared out, so that whoever waits in its queue is let in. Raises OSError."""
    held: list[Held] = []
    by_address: dict[object, list[Given]] = {}
    for one in given:
        if one.slot == SHARED:
            held.append(Held(one.sock, SHARED))
        elif one.slot >= 0:
            by_address.setdefault((one.sock.family, one.sock.getsockname()), []).append(one)
    for ones in by_address.values():
        held += [Held(one.sock, number % slots) for number, one in enumerate(ones)]
        held += [Held(listen.open_beside(ones[0].sock), slot) for slot in range(len(ones), slots)]
    for ours in held:
        ours.sock.setblocking(False)
    return held


def resized(held: Sequence[Held], slots: int) -> list[Held]:
    """The same sockets for another number of slots.

    What is missing is opened beside them, and listens once a worker accepts at it. What is left over is everybody's
    from then on: connections that wait in a queue, or whose handshake is under way, would be lost with the socket, and
    should there be more slots again, it has one. Raises OSError; then nothing new is left open.
    """
    result: list[Held] = []
    new: list[socket.socket] = []
    by_address: dict[object, list[Held]] = {}
    for one in held:
        by_address.setdefault((one.sock.family, one.sock.getsockname()), []).append(one)
    try:
        for ones in by_address.values():
            if all(one.slot == SHARED for one in ones):
                result += ones
                continue
            ones.sort(key=lambda one: one.slot if one.slot != SHARED else len(held) + slots)
            for number, one in enumerate(ones):
                result.append(Held(one.sock, number if number < slots else SHARED))
            for number in range(len(ones), slots):
                new.append(listen.open_beside(ones[0].sock, listens=False))
                result.append(Held(new[-1], number))
    except OSError:
        for sock in new:
            sock.close()
        raise
    return result


class Taken(NamedTuple):
    """What there is to listen at: workers' sockets, the admin listener's if a predecessor had it, and those who
    finish once we serve."""

    held: list[Held]
    admin: list[socket.socket]
    before: list[Predecessor]


def take(
    wanted: Sequence[Listen],
    slots: int,
    name: str,
    *,
    passed: Sequence[socket.socket],
    upgrade: bool = False,
    control: Predecessor | None = None,
    given: Sequence[Given] = (),
) -> Taken:
    """Listening sockets: those that were passed, those of a predecessor, or new ones. Raises OSError.

    `control` is a control process that gives way, and `given` what it gave; with `upgrade` one is looked for. Workers
    whose control process died a moment ago may not have noticed yet: an address in use is tried again for ORPHANS_S.
    Blocks.
    """
    if control is not None:
        admin = [one.sock for one in given if one.slot == ADMIN]
        return Taken(shared(passed) if passed else adopt(given, slots), admin, [control, *orphans(name)])
    until = time.monotonic() + ORPHANS_S
    while True:
        before = orphans(name)
        if upgrade and (other := Predecessor.find(name, None)) is not None:
            before.insert(0, other)
        given = first_given(before)
        admin = [one.sock for one in given if one.slot == ADMIN]
        if passed:
            for one in given:
                if one.slot != ADMIN:
                    one.sock.close()
            return Taken(shared(passed), admin, before)
        try:
            return Taken(adopt(given, slots) if given else open_all(wanted, slots), admin, before)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or given or not name or time.monotonic() > until:
                raise
        time.sleep(0.05)


def first_given(before: Sequence[Predecessor]) -> list[Given]:
    """The sockets of the first predecessor that gives any."""
    for one in before:
        try:
            return one.sockets()
        except OSError:
            continue  # it has ended meanwhile
    return []


def shared(socks: Iterable[socket.socket]) -> list[Held]:
    """Sockets that somebody else opened."""
    return [Held(sock, SHARED) for sock in socks]


def addresses(held: Sequence[Held]) -> list[str]:
    """Where they listen, each address once."""
    return list(dict.fromkeys(listen.describe(one.sock) for one in held))


def close_all(held: Iterable[Held]) -> None:
    """Let go of them."""
    for one in held:
        one.sock.close()
