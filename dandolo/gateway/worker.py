"""One data plane: a gateway behind its listeners, with the timers that move it and an orderly end.

The worker is told where to listen and to whom records go; it reads no configuration file, opens no admin
listener and knows no signal. Draining: readiness fails at once, for `drain_delay` connections are still
accepted while answers say `Connection: close`, then listeners and idle connections close, requests may
finish until `drain_timeout`, and what is left is told so and cut.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING

from dandolo.board import Board
from dandolo.config.schema import Config
from dandolo.errors import Refusal
from dandolo.gateway.caching import secret_of
from dandolo.gateway.exchange import Exchange
from dandolo.gateway.gateway import Gateway
from dandolo.net.downstream import Downstream
from dandolo.net.listen import Census, Listener
from dandolo.net.outbox import running_outbox
from dandolo.net.sweep import PERIOD_S
from dandolo.policy import NO_POLICY, Policy
from dandolo.record import Record
from dandolo.text import Text

if TYPE_CHECKING:
    from dandolo.cache.peers.place import Membership
    from dandolo.gateway.sharing import Sharing

TEND_S = 5.0
FLUSH_S = 2.0
"""After the last requests were cut: how long their last bytes may take."""


class Worker:
    """A gateway at work on the running event loop.

    `take` receives the record of every request, up to a beat (`net.sweep.PERIOD_S`) after its end; `on_beat` is
    called at each. `membership` is its place among those that share its cache (`sharing.membership_of`), None for none;
    `board` and `policy` are the `Plane`'s; `take_text` receives what was asked and answered, where `prompt_log` keeps
    it. Raises OSError when the peers' listeners or certificates cannot be used.
    """

    def __init__(
        self,
        config: Config,
        take: Callable[[Record], None],
        on_beat: Callable[[], None] | None = None,
        slot: int = 0,
        membership: Membership | None = None,
        board: Board | None = None,
        policy: Policy = NO_POLICY,
        take_text: Callable[[Text], None] | None = None,
    ) -> None:
        self._on_beat = on_beat
        self._tls = tls_of(config)
        self.gateway = _gateway(config, take, slot, board, policy, take_text)
        self.gateway.sharing = _sharing(self.gateway, config, membership) if membership is not None else None
        self.census = Census(config.limits.connections_max, config.limits.connections_per_ip_max)
        self._config = config
        self._listeners: list[Listener] = []
        self._siblings: list[Listener] = []
        self._timers: list[asyncio.TimerHandle] = []
        self._loop = asyncio.get_running_loop()

    def start(self, sockets: Sequence[socket.socket], siblings: Sequence[socket.socket] = ()) -> None:
        """Accept on listening sockets, which become the worker's. Those of `siblings` do too, but are accepted on
        only while it stands in for one (`stand_in`)."""
        server = self._config.server
        for sock in (*sockets, *siblings):
            listener = Listener(
                sock,
                self.gateway,
                self.census,
                self.gateway.tasks,
                tls=self._tls,
                proxy_protocol=server.proxy_protocol,
                trusted=server.trusted_proxies,
                busy_answer=self.gateway.busy_answer,
            )
            self._listeners.append(listener)
            if len(self._listeners) <= len(sockets):
                listener.start()
        self._siblings = self._listeners[len(sockets) :]
        if self.gateway.sharing is not None:
            self.gateway.sharing.start()
        if self.gateway.tiers is not None:
            self.gateway.tasks.spawn(self.gateway.tiers.start(), "cache tiers")
        self._every(PERIOD_S, self._beat)
        self._every(TEND_S, self.gateway.tend)

    def adopt(self, config: Config, tls: ssl.SSLContext | None) -> None:
        """Let connections in from now on as another configuration says; `tls` is its `tls_of`."""
        self._config, self._tls = config, tls
        self.census.adopt(config.limits.connections_max, config.limits.connections_per_ip_max)
        server = config.server
        for listener in self._listeners:
            listener.adopt(tls, proxy_protocol=server.proxy_protocol, trusted=server.trusted_proxies)

    def stand_in(self, numbers: Collection[int]) -> None:
        """Accept on the siblings' sockets of these numbers, and on no other ones of theirs."""
        if self.gateway.draining:
            return
        for number, listener in enumerate(self._siblings):
            (listener.start if number in numbers else listener.pause)()

    def _beat(self) -> None:
        self.gateway.tick()
        self.gateway.admission.expire(time.time())
        running_outbox().beat()
        if self._on_beat is not None:
            self._on_beat()

    async def drain(self, delay_s: float, timeout_s: float, *, replaced: bool = False) -> None:
        """Stop in an orderly way within `delay_s` + `timeout_s` + FLUSH_S seconds.

        `replaced`: somebody else accepts already at the same sockets. Then this worker stops accepting at once and
        is still called ready; the delay gives its clients the time to hear `Connection: close`.
        """
        gateway = self.gateway
        gateway.replaced = replaced
        gateway.draining = True
        if replaced:
            for listener in self._listeners:
                listener.close()
        await asyncio.sleep(delay_s)
        for listener in self._listeners:
            listener.close()
        for connection in self._connections():
            connection.close_when_idle()
        await self._until_idle(timeout_s)
        error = Refusal("the gateway is shutting down", code="shutting_down", retry_after_s=1.0)
        for item in list(gateway.sweep.items):
            if isinstance(item, Exchange):
                item.interrupt(error)
        await self._until_idle(FLUSH_S)

    async def close(self) -> None:
        """End everything at once."""
        for listener in self._listeners:
            listener.close()
        for timer in self._timers:
            timer.cancel()
        for connection in self._connections():
            connection.abort()
        self.gateway.plane.fleet.close()
        if self.gateway.sharing is not None:
            await self.gateway.sharing.close()
        # Transports tell their protocols in the loop's next turns.
        for _ in range(3):
            await asyncio.sleep(0)
        await self.gateway.tasks.close()
        if self.gateway.tiers is not None:
            await self.gateway.tiers.close()
        self.census.close()
        # What was cut just now has its record too.
        self.gateway.settle()

    async def _until_idle(self, seconds: float) -> None:
        until = self._loop.time() + seconds
        while self.gateway.admission.in_flight or self._connections():
            left = until - self._loop.time()
            if left <= 0:
                return
            await asyncio.sleep(min(0.02, left))
            if not self.gateway.admission.in_flight:
                for connection in self._connections():
                    connection.close_when_idle()

    def _connections(self) -> list[Downstream]:
        return [item for item in self.gateway.sweep.items if isinstance(item, Downstream)]

    def _every(self, seconds: float, call: Callable[[], None]) -> None:
        index = len(self._timers)

        def run() -> None:
            self._timers[index] = self._loop.call_later(seconds, run)
            call()

        self._timers.append(self._loop.call_later(seconds, run))


def tls_of(config: Config) -> ssl.SSLContext | None:
    """How clients' connections are encrypted, None for not at all. Raises OSError (ssl.SSLError), which says what it
    is about."""
    paths = config.server.tls
    if paths is None:
        return None
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        tls.load_cert_chain(paths.cert, paths.key)
    except OSError as error:
        raise OSError(f"server.tls: {paths.cert} and {paths.key}: {error}") from None
    tls.set_alpn_protocols(["http/1.1"])
    return tls


def _gateway(
    config: Config,
    take: Callable[[Record], None],
    slot: int,
    board: Board | None,
    policy: Policy,
    take_text: Callable[[Text], None] | None,
) -> Gateway:
    """The one that keeps texts, where they are to be kept. Where not, its module is not even loaded."""
    if take_text is None or not config.prompt_log.enabled:
        return Gateway(config, take, slot, board, policy)
    from dandolo.gateway.witness import Witnessing

    return Witnessing(config, take, take_text, slot, board, policy)


def _sharing(gateway: Gateway, config: Config, membership: Membership) -> Sharing:
    """What joins this worker to others. Where there are none its modules are not even loaded."""
    from dandolo.gateway.sharing import Sharing

    return Sharing(gateway, membership, secret_of(config))
