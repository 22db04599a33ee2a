"""The admin listener of the control process: its sockets and certificate, whose keys open it, and what it offers.

With `server.admin_tls` it speaks HTTPS, and asks callers for a certificate too where a `client_ca` is named: beside
their key, not in its place; a Unix socket stays plain. Certificates are read at the start and at every reload;
connections that are open keep the one that they began with.
"""

from __future__ import annotations

import logging
import socket
import ssl
from collections.abc import Sequence

from dandolo.config import Config, ConfigError, Problem
from dandolo.config.operators import AdminTls
from dandolo.control.admin import Admin, Audit
from dandolo.control.basic import with_index
from dandolo.control.callers import Callers
from dandolo.control.dashboard import page
from dandolo.control.route import Answer, Route
from dandolo.net.listen import Census, Listener
from dandolo.net.tasks import Tasks

CONNECTIONS_MAX = 128
CONNECTIONS_PER_ADDRESS_MAX = 64
"""So that one address, which needs no key to connect, cannot keep all others out."""

_log = logging.getLogger("dandolo")


class Administration:
    """Made with the start's configuration; raises ConfigError for a certificate that cannot be put to use.

    Call `offer` once, then `start`; `adopt` with each configuration that comes into force; `tick` every
    `net.sweep.PERIOD_S`; `stop` to take nobody new, `close` at the end.
    """

    def __init__(self, config: Config, sockets: Sequence[socket.socket], audit: Audit, tasks: Tasks) -> None:
        self.sockets = sockets
        self._keys = Callers(config.keys)
        self._keyed = bool(config.keys)
        self._audit = audit
        self._tasks = tasks
        self._tls: ssl.SSLContext | None = None
        if config.server.admin_tls is not None:
            try:
                self._tls = context(config.server.admin_tls)
            except (OSError, ValueError) as error:
                reason = f"cannot be put to use: {error}"
                raise ConfigError([Problem(config.source, 0, "server.admin_tls", reason)]) from error
        self._census = Census(CONNECTIONS_MAX, CONNECTIONS_PER_ADDRESS_MAX)
        self._listeners: list[Listener] = []
        self._admin: Admin | None = None

    @property
    def secure(self) -> bool:
        """Whether it speaks HTTPS."""
        return self._tls is not None

    def offer(self, routes: Sequence[Route]) -> None:
        """What is served, beside the page and the list of all."""
        self._admin = Admin(
            with_index(routes, self._page),
            audit=self._audit,
            authenticate=self._keys.authenticate if self._keyed else None,
            tasks=self._tasks,
        )

    def start(self) -> None:
        """Accept."""
        assert self._admin is not None
        for sock in self.sockets:
            tls = None if sock.family == socket.AF_UNIX else self._tls
            listener = Listener(sock, self._admin, self._census, self._tasks, tls=tls)
            self._listeners.append(listener)
            listener.start()

    def adopt(self, config: Config) -> None:
        """Judge callers by another configuration from now on, and show its certificate."""
        self._keys.keys, self._keyed = config.keys, bool(config.keys)
        assert self._admin is not None
        # The first key may have come with it: from then on one is wanted here too.
        self._admin.authenticate = self._keys.authenticate if config.keys else None
        tls = config.server.admin_tls
        if (tls is None) is self.secure:
            _log.warning("server.admin_tls comes and goes at the next start, not by a reload")
        elif tls is not None:
            try:
                self._tls = context(tls)
            except (OSError, ValueError) as error:
                # It was checked when it was read; a file may be gone since.
                _log.error("the admin listener's certificate stays as it was: %s", error)
                return
            for listener in self._listeners:
                if listener.sock.family != socket.AF_UNIX:
                    listener.renew(self._tls)

    def drain(self) -> None:
        """Answers are the last on their connections from now on."""
        if self._admin is not None:
            self._admin.draining = True

    def tick(self) -> None:
        """End what has passed its deadline."""
        if self._admin is not None:
            self._admin.sweep.tick(self._admin.now())

    def stop(self) -> None:
        """Accept no more."""
        for listener in self._listeners:
            listener.close()

    def close(self) -> None:
        """End every connection."""
        self.stop()
        if self._admin is not None:
            self._admin.close()

    def forget(self) -> None:
        """After the last connection's end."""
        self._census.close()

    def _page(self) -> Answer:
        return page(keyed=self._keyed)


def context(tls: AdminTls) -> ssl.SSLContext:
    """For the listener. Raises OSError (of which ssl.SSLError is one), ValueError."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    made.load_cert_chain(tls.cert, tls.key, _no_passphrase)
    made.set_alpn_protocols(["http/1.1"])
    if tls.client_ca is not None:
        made.verify_mode = ssl.CERT_REQUIRED
        made.load_verify_locations(tls.client_ca)
    return made


def _no_passphrase() -> str:
    # Without this, a key with one would be asked for on the terminal.
    raise ValueError("the private key has a passphrase")
