"""Who is asked for a key: one server, or the node of a cluster that owns the key's slot.

A cluster's map comes from CLUSTER SLOTS: at the start, every REFRESH_S, and soon after a redirection or the
loss of a node. The node named in the configuration keeps a connection of its own for that, beside those to the
masters, so that a name which stands for any node goes on working when all addresses change. A node that is lost
costs its own slots, and only until the map names another.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Final, Protocol

from dandolo.cache.redis.connection import Call, Command, Failure, Outcome
from dandolo.cache.redis.link import Endpoint, Link, Login
from dandolo.cache.redis.slots import SLOTS, ranges, redirection, slot_of
from dandolo.wire.resp import ErrorReply, encode

_log = logging.getLogger("dandolo")

REFRESH_S: Final = 10.0
REFRESH_SOON_S: Final = 0.5
"""Between refreshes while the map is known to be wrong; redirections in a row ask for no more than this."""
REFRESH_DEADLINE_S: Final = 1.0
NODES_MAX: Final = 256

Concerned = Callable[[bytes], bool]


class Watcher(Protocol):
    """Whom the servers tell of keys as they are stored, with our prefix."""

    def came_up(self) -> None:
        """A server can be asked again."""

    def invalidated(self, keys: list[bytes]) -> None:
        """These have changed."""

    def lost_track(self, concerned: Concerned) -> None:
        """Any key for which `concerned` is true may have changed."""


class Servers(Protocol):
    """What the tier asks of one server or many. Keys are given without the prefix that commands have."""

    def start(self) -> None: ...
    async def stop(self) -> None: ...
    def links(self) -> Collection[Link]: ...
    def send(self, command: Command, key: bytes) -> Failure | None: ...
    def redirected(self, command: Command, error: ErrorReply) -> Failure | None: ...


def _every(key: bytes) -> bool:
    return True


class SingleServer:
    """One server for all keys."""

    def __init__(
        self, endpoint: Endpoint, login: Login, prefix: bytes, watcher: Watcher, random: Callable[[], float]
    ) -> None:
        self._link = Link(endpoint, login, self, random)
        self._watcher = watcher

    def start(self) -> None:
        """Begin to connect."""
        self._link.start()

    async def stop(self) -> None:
        """Close the connection."""
        self._link.stop()
        await self._link.stopped()

    def links(self) -> Collection[Link]:
        """Its one link."""
        return (self._link,)

    def send(self, command: Command, key: bytes) -> Failure | None:
        """As Link.send."""
        return self._link.send(command)

    def redirected(self, command: Command, error: ErrorReply) -> Failure | None:
        """One server redirects nobody: it is a node of a cluster, which the URL must say."""
        self._link.failed()
        self._link.reason = "it is a node of a cluster: the URL must begin with redis+cluster://"
        return Failure.DOWN

    def up(self, link: Link) -> None:
        """From the link."""
        self._watcher.came_up()
        if link.tracking:
            self._watcher.lost_track(_every)

    def down(self, link: Link) -> None:
        """From the link: nothing to do before it is up."""

    def invalidated(self, link: Link, keys: list[bytes] | None) -> None:
        """From the link."""
        if keys is None:
            self._watcher.lost_track(_every)
        else:
            self._watcher.invalidated(keys)


class Cluster:
    """The masters of a cluster."""

    def __init__(
        self, endpoint: Endpoint, login: Login, prefix: bytes, watcher: Watcher, random: Callable[[], float]
    ) -> None:
        # It owns no slots and is told of no changes: those come from the masters, once each.
        self._seed = Link(endpoint, replace(login, tracked=None), self, random)
        self._login = login
        self._prefix = prefix
        self._watcher = watcher
        self._random = random
        self._nodes: dict[Endpoint, Link] = {}
        self._owners: list[Link | None] = [None] * SLOTS
        self._leaving: set[Link] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._due_at = 0.0
        self._trouble = ""
        self._asked = 0
        self._stopped = False

    def start(self) -> None:
        """Begin to connect, and to ask for the map."""
        self._seed.start()

    async def stop(self) -> None:
        """Close all connections."""
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()
        links = (self._seed, *self._nodes.values(), *self._leaving)
        for link in links:
            link.stop()
        for link in links:
            await link.stopped()

    def links(self) -> Collection[Link]:
        """Those to the masters."""
        return self._nodes.values()

    def send(self, command: Command, key: bytes) -> Failure | None:
        """As Link.send, to the owner of the key's slot."""
        link = self._owners[slot_of(self._prefix + key)]
        return Failure.DOWN if link is None else link.send(command)

    def redirected(self, command: Command, error: ErrorReply) -> Failure | None:
        """Send a command where MOVED or ASK points. As Link.send; the caller bounds how often."""
        asked = command.taker
        assert isinstance(asked, Link), "only a link's reply redirects"
        found = redirection(error, asked.endpoint)
        if found is None:
            asked.failed()
            return Failure.DOWN
        once_only, slot, endpoint = found
        link = self._node(endpoint)
        if link is None:
            return Failure.DOWN
        if once_only:
            return link.send_asking(command)
        if self._owners[slot] is not link:
            self._owners[slot] = link
            self._watcher.lost_track(lambda key: slot_of(key) == slot)
            self._refresh_in(REFRESH_SOON_S)
        return link.send(command)

    def up(self, link: Link) -> None:
        """From a link."""
        if link is self._seed:
            if not any(node.connection is not None for node in self._nodes.values()):
                self._refresh_in(0.0)
            return
        self._watcher.came_up()
        if link.tracking:
            self._lost_track_of(link)

    def down(self, link: Link) -> None:
        """From a link: a replica may take over."""
        if link is not self._seed:
            self._refresh_in(REFRESH_SOON_S)

    def invalidated(self, link: Link, keys: list[bytes] | None) -> None:
        """From a link."""
        if link is self._seed:
            return
        if keys is None:
            self._lost_track_of(link)
        else:
            self._watcher.invalidated(keys)

    def _lost_track_of(self, link: Link) -> None:
        owners = self._owners
        mine = frozenset(slot for slot in range(SLOTS) if owners[slot] is link)
        if mine:
            self._watcher.lost_track(lambda key: slot_of(key) in mine)

    def _node(self, endpoint: Endpoint) -> Link | None:
        """The link to a node; a new one begins to connect. None where there are too many."""
        link = self._nodes.get(endpoint)
        if link is None and len(self._nodes) < NODES_MAX and not self._stopped:
            link = self._nodes[endpoint] = Link(endpoint, self._login, self, self._random)
            link.start()
        return link

    def _refresh_in(self, wait_s: float) -> None:
        """Ask for the map after `wait_s`, unless that is to happen sooner anyway."""
        if self._stopped:
            return
        loop = asyncio.get_running_loop()
        due_at = loop.time() + wait_s
        if self._timer is not None:
            if self._due_at <= due_at:
                return
            self._timer.cancel()
        self._due_at = due_at
        self._timer = loop.call_later(wait_s, self._refresh)

    def _refresh(self) -> None:
        self._timer = None
        links = [link for link in (*self._nodes.values(), self._seed) if link.connection is not None]
        if not links:
            # The seed's coming up asks again.
            self._refresh_in(REFRESH_SOON_S)
            return
        # Each in turn: one that is cut off from the others believes an old map.
        self._asked += 1
        link = links[self._asked % len(links)]
        deadline = asyncio.get_running_loop().time() + REFRESH_DEADLINE_S

        def heard(outcome: Outcome) -> None:
            self._learn(outcome, link)

        if link.send(Call(encode(b"CLUSTER", b"SLOTS"), deadline, heard)) is not None:
            self._refresh_in(REFRESH_SOON_S)

    def _learn(self, outcome: Outcome, link: Link) -> None:
        if self._stopped:
            return
        try:
            if isinstance(outcome, Failure):
                raise ValueError(outcome.value)
            found = ranges(outcome, link.endpoint)
        except ValueError as error:
            if str(error) != self._trouble:
                # Once for a row of the same.
                _log.warning("Redis %s: no map of the cluster: %s", link.endpoint, error)
            self._trouble = str(error)
            self._refresh_in(REFRESH_SOON_S)
            return
        self._trouble = ""
        owners: list[Link | None] = [None] * SLOTS
        for first, last, endpoint in found:
            node = self._node(endpoint)
            owners[first : last + 1] = [node] * (last + 1 - first)
        before, self._owners = self._owners, owners
        if before != owners:
            moved = frozenset(slot for slot in range(SLOTS) if before[slot] not in (None, owners[slot]))
            if moved:
                self._watcher.lost_track(lambda key: slot_of(key) in moved)
        masters = set(owners)
        for endpoint in [endpoint for endpoint, node in self._nodes.items() if node not in masters]:
            self._leave(self._nodes.pop(endpoint))
        whole = all(owner is not None and owner.connection is not None for owner in masters)
        self._refresh_in(REFRESH_S if whole else REFRESH_SOON_S)

    def _leave(self, link: Link) -> None:
        """Close the link to a node that is no master any more."""
        self._leaving.add(link)
        link.stop()
        ended = asyncio.ensure_future(link.stopped())
        ended.add_done_callback(lambda _: self._leaving.discard(link))
