"""The place of each worker among the processes that share a cache, as it follows from the configuration.

The workers of one host know each other by Unix sockets in the state folder; a host's first worker stands at the
configured addresses, the others at the ports (or paths) after them.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from dandolo.config.address import UNIX_PATH_BYTES_MAX, Listen
from dandolo.config.schema import Config

if TYPE_CHECKING:
    from dandolo.cache.peers.place import Membership

SOCKET = "peers.sock"
HOST = "worker"
"""The name of a host that nobody else knows."""

_log = logging.getLogger("dandolo")


def membership_of(config: Config, slot: int = 0, workers: int = 1) -> Membership | None:
    """Where the worker of a slot stands; None where nothing is shared, or nothing may leave a process.

    Workers of one host share whether or not that is said. Raises OSError when the state folder cannot be made, or its
    path is too long for a socket; where nothing was said, they then go without each other, and the log says so.
    """
    ours = config.cache.peers
    said = bool(ours.listen or ours.peers or ours.name is not None)
    if (workers == 1 and not (ours.listen or ours.peers)) or config.server.privacy:
        return None
    if "memory" not in config.cache.levels:
        return None
    try:
        return _place(config, slot, workers)
    except OSError as error:
        if said:
            raise
        _log.warning("workers do not share their caches: %s", error)
        return None


def _place(config: Config, slot: int, workers: int) -> Membership:
    ours = config.cache.peers
    name = ours.name or HOST
    # Loaded only where it is wanted.
    from dandolo.cache.peers.place import Membership, Papers

    listen = list(ours.listen)
    if workers > 1 and not any(one.kind == "unix" for one in listen):
        folder = config.server.state_dir
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = str(folder / SOCKET)
        if len(path.encode()) > UNIX_PATH_BYTES_MAX - 4:
            raise OSError(f"the path of {path} is too long for a Unix socket: choose another server.state_dir")
        listen.append(Listen("unix", path=path))
    near = next((one for one in listen if one.kind == "unix"), None)
    here = {of_slot(one, number) for one in listen for number in range(workers)}
    peers = [one for one in ours.peers if one not in here]
    if near is not None:
        peers += [of_slot(near, number) for number in range(workers) if number != slot]
    tls = ours.tls
    return Membership(
        name if workers == 1 else f"{name}-{slot}",
        tuple(of_slot(one, slot) for one in listen),
        tuple(peers),
        Papers(tls.cert, tls.key, tls.ca) if tls is not None else None,
    )


def of_slot(place: Listen, slot: int) -> Listen:
    """The address of a slot's worker where the first one has `place`. Raises OSError where there is none."""
    if not slot:
        return place
    if place.kind == "unix":
        return Listen("unix", path=f"{place.path}.{slot}")
    if place.port + slot > 65535:
        raise OSError(f"there is no port for worker {slot} after {place}: choose a lower one")
    return Listen("tcp", host=place.host, port=place.port + slot)
