"""Listening sockets: opening them, taking those that systemd passed, accepting within bounds.

Accepting is our own so that its limits are: connections of the process and of one address, a pause when
descriptors run out (one is kept in reserve, so that the client is told by a close instead of waiting), a
PROXY header read before TLS begins. What is accepted becomes a `Downstream`.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import logging
import os
import socket
import ssl
import stat
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping

from dandolo.net.downstream import Downstream, Service
from dandolo.net.tasks import Tasks
from dandolo.net.tls import TlsTransport
from dandolo.wire import proxy
from dandolo.wire.tls import harden

BACKLOG = 4096
ACCEPTS_PER_TURN = 64
PAUSE_S = 0.1
LOG_INTERVAL_S = 10.0
PROXY_HEADER_S = 5.0

_EXHAUSTED = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))
_log = logging.getLogger("dandolo")

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def trusts(networks: Iterable[Network], address: str) -> bool:
    """Whether an address lies in one of `networks`; never for something that is no address."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    ip = getattr(ip, "ipv4_mapped", None) or ip
    return any(ip.version == network.version and ip in network for network in networks)


def open_tcp(host: str, port: int) -> list[socket.socket]:
    """Listening sockets for every address of `host` ("" or "*" for all), which `open_beside` can join. Raises
    OSError with the address in it."""
    opened: list[socket.socket] = []
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, kind, protocol, _, address in dict.fromkeys(found):
            sock = socket.socket(family, kind, protocol)
            opened.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind(address)
            # Only now: an address that somebody else listens at is refused, even if that one would share it.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            sock.listen(BACKLOG)
            sock.setblocking(False)
            if port == 0:
                port = sock.getsockname()[1]
    except OSError as error:
        for sock in opened:
            sock.close()
        raise OSError(error.errno, f"cannot listen on {host}:{port}: {error.strerror or error}") from None
    return opened


def open_beside(first: socket.socket, *, listens: bool = True) -> socket.socket:
    """One more listening socket at the address of one that `open_tcp` opened: the kernel spreads new connections
    over both. Not before it listens, which a `Listener` on it sees to when it starts. Raises OSError."""
    sock = socket.socket(first.family, first.type, first.proto)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if first.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(first.getsockname())
        if listens:
            sock.listen(BACKLOG)
        sock.setblocking(False)
    except OSError:
        sock.close()
        raise
    return sock


def open_unix(path: str) -> socket.socket:
    """A listening Unix socket. A stale file of the same name is replaced, a live one is not. Raises OSError."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if os.path.exists(path):
            if not stat.S_ISSOCK(os.stat(path).st_mode):
                raise OSError(errno.EEXIST, "a file that is no socket stands there")
            probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            probe.setblocking(False)
            try:
                probe.connect(path)
            except (ConnectionRefusedError, FileNotFoundError):
                # Only this proves that nobody listens; a full queue (EAGAIN) or a lack of rights does not.
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)
            except BlockingIOError:
                raise OSError(errno.EADDRINUSE, "another process listens there") from None
            else:
                raise OSError(errno.EADDRINUSE, "another process listens there")
            finally:
                probe.close()
        sock.bind(path)
        os.chmod(path, 0o660)
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        raise OSError(error.errno, f"cannot listen on unix:{path}: {error.strerror or error}") from None
    return sock


def from_systemd(environ: Mapping[str, str], pid: int) -> list[socket.socket]:
    """Listening sockets passed by file descriptor (sd_listen_fds(3)); empty when there are none."""
    if environ.get("LISTEN_PID") != str(pid):
        return []
    count = environ.get("LISTEN_FDS", "")
    if not count.isascii() or not count.isdigit():
        return []
    sockets = []
    for descriptor in range(3, 3 + min(int(count), 64)):
        os.set_inheritable(descriptor, False)
        sock = socket.socket(fileno=descriptor)
        sock.setblocking(False)
        sockets.append(sock)
    return sockets


def describe(sock: socket.socket) -> str:
    """Where a socket listens, as a person would write it."""
    name = sock.getsockname()
    if sock.family == socket.AF_UNIX:
        return f"unix:{name}"
    host = f"[{name[0]}]" if sock.family == socket.AF_INET6 else name[0]
    return f"{host}:{name[1]}"


class Listener:
    """Accepts on one socket.

    `ledger` is shared by the listeners of a process and counts connections. `refuse` writes the answer for
    a connection beyond the process's limit. `on_accept` and the ends of connections keep the counts.
    """

    def __init__(
        self,
        sock: socket.socket,
        service: Service,
        census: Census,
        tasks: Tasks,
        *,
        tls: ssl.SSLContext | None = None,
        proxy_protocol: bool = False,
        trusted: tuple[Network, ...] = (),
        busy_answer: Callable[[], bytes] = lambda: b"",
    ) -> None:
        self.sock = sock
        self._service = service
        self._census = census
        self._tasks = tasks
        self._tls = None if tls is None else harden(tls)
        self._proxy_protocol = proxy_protocol
        self._trusted = trusted
        self._busy_answer = busy_answer
        self._loop = asyncio.get_running_loop()
        self._open = False
        self._resume: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin to accept, or go on after `pause`."""
        if not self._open:
            self._open = True
            if not self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                # Opened for a worker that was not there yet: nobody was to wait in its queue.
                self.sock.listen(BACKLOG)
            self._loop.add_reader(self.sock.fileno(), self._accept)

    def adopt(self, tls: ssl.SSLContext | None, *, proxy_protocol: bool, trusted: tuple[Network, ...]) -> None:
        """Go on like this with connections that are accepted from now on."""
        self._tls = None if tls is None else harden(tls)
        self._proxy_protocol, self._trusted = proxy_protocol, trusted

    def pause(self) -> None:
        """Stop accepting; who comes waits in the socket's queue, for us or for somebody else."""
        if self._open:
            self._open = False
            self._loop.remove_reader(self.sock.fileno())
        if self._resume is not None:
            self._resume.cancel()
            self._resume = None

    def renew(self, tls: ssl.SSLContext) -> None:
        """Show another certificate to those who connect from now on; for a listener that had one."""
        assert self._tls is not None, "a listener does not change its protocol"
        self._tls = harden(tls)

    def close(self) -> None:
        """Stop accepting and close the socket."""
        self.pause()
        self.sock.close()

    def _accept(self) -> None:
        for _ in range(ACCEPTS_PER_TURN):
            try:
                client, address = self.sock.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if error.errno in _EXHAUSTED:
                    self._exhausted(error)
                    return
                continue  # the client went away in the queue (ECONNABORTED and its kin)
            client.setblocking(False)
            self._admit(client, address)

    def _exhausted(self, error: OSError) -> None:
        """Out of descriptors: use the reserve to close one waiting client, then pause (promise 40)."""
        self._census.shed_one(self.sock)
        now = self._loop.time()
        if now - self._census.logged_at > LOG_INTERVAL_S:
            self._census.logged_at = now
            _log.error("cannot accept connections: %s; accepting pauses for %d ms", error.strerror, PAUSE_S * 1000)
        self._loop.remove_reader(self.sock.fileno())
        self._resume = self._loop.call_later(PAUSE_S, self._again)

    def _again(self) -> None:
        self._resume = None
        if self._open:
            self._loop.add_reader(self.sock.fileno(), self._accept)

    def _admit(self, client: socket.socket, address: object) -> None:
        # Interned: behind a balancer thousands of connections share one.
        peer = sys.intern(str(address[0])) if isinstance(address, tuple) else ""
        if peer.startswith("::ffff:"):
            peer = peer[7:]
        if peer:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        trusted = not peer or trusts(self._trusted, peer)
        if not self._census.enter(peer, exempt=trusted):
            # Beyond one address's share: closed. Beyond the process's: told so, then closed.
            if self._census.full and self._tls is None:
                try:
                    client.send(self._busy_answer())
                    client.shutdown(socket.SHUT_WR)
                except OSError:
                    pass
            client.close()
            return
        self._tasks.spawn(self._serve(client, peer, trusted), "accept")

    async def _serve(self, client: socket.socket, peer: str, trusted: bool) -> None:
        counted = peer
        connection: _Counted | None = None

        def accepted() -> asyncio.BaseProtocol:
            nonlocal connection
            made = connection = _Counted(self._service, peer, self._tls is not None, self._census, counted)
            if self._tls is None:
                return made
            time_s = self._service.limits.header_read_s
            return TlsTransport(self._tls, None, lambda: made, lambda _: made.uncount(), handshake_s=time_s)

        try:
            if self._proxy_protocol and trusted:
                async with asyncio.timeout(PROXY_HEADER_S):
                    peer = await self._proxy_header(client) or peer
            await self._loop.connect_accepted_socket(accepted, client)
        except BaseException as error:
            client.close()
            if connection is None:
                self._census.leave(counted)
            else:
                connection.uncount()
            # What a client does wrong before its first request is not worth a line in the log.
            if not isinstance(error, (OSError, TimeoutError, proxy.ProxyHeaderError)):
                raise

    async def _proxy_header(self, client: socket.socket) -> str | None:
        received = b""
        while missing := proxy.needed(received):
            piece = await self._loop.sock_recv(client, missing)
            if not piece:
                raise proxy.ProxyHeaderError("the connection ended within its PROXY header")
            received += piece
        return proxy.parse(received)


class _Counted(Downstream):
    """A connection that tells the census when it ends."""

    __slots__ = ("_census", "_counted")

    def __init__(self, service: Service, peer: str, secure: bool, census: Census, counted: str) -> None:
        super().__init__(service, peer, secure=secure)
        self._census = census
        self._counted: str | None = counted

    def connection_lost(self, exc: Exception | None) -> None:
        """Leave the count, then do what every connection does."""
        self.uncount()
        super().connection_lost(exc)

    def uncount(self) -> None:
        """Leave the count, once."""
        if self._counted is not None:
            self._census.leave(self._counted)
            self._counted = None


class Census:
    """How many connections there are, in all and by address, with the limits on both, and the spare descriptor."""

    def __init__(self, connections_max: int, per_address_max: int) -> None:
        self._max = connections_max
        self._per_address_max = per_address_max
        self._by_address: Counter[str] = Counter()
        self.count = 0
        self.refused = 0
        self.logged_at = -LOG_INTERVAL_S
        self._spare: int | None = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)

    def adopt(self, connections_max: int, per_address_max: int) -> None:
        """Go on with other limits; who is there already may stay."""
        self._max, self._per_address_max = connections_max, per_address_max

    @property
    def full(self) -> bool:
        """Whether the process's limit is reached."""
        return self.count >= self._max

    def enter(self, address: str, *, exempt: bool) -> bool:
        """Count a new connection, or say no. Trusted proxies are exempt from the limit by address."""
        if self.full or (not exempt and self._by_address[address] >= self._per_address_max):
            self.refused += 1
            return False
        self.count += 1
        self._by_address[address] += 1
        return True

    def leave(self, address: str) -> None:
        """Count a connection's end."""
        self.count -= 1
        self._by_address[address] -= 1
        if self._by_address[address] <= 0:
            del self._by_address[address]

    def shed_one(self, sock: socket.socket) -> None:
        """With the reserve descriptor, accept one waiting connection and close it."""
        if self._spare is None:
            return
        os.close(self._spare)
        self._spare = None
        try:
            client, _ = sock.accept()
            client.close()
        except OSError:
            pass
        try:
            self._spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            self._spare = None

    def close(self) -> None:
        """Give the reserve back."""
        if self._spare is not None:
            os.close(self._spare)
            self._spare = None
