"""The way to one Redis server: connecting, logging in, tracking, and coming back after a loss.

There is at most one connection, and at most one attempt at a time to make one; while there is none every
command is declined at once, so that a server that is down costs nothing. A server that is there and does not
answer is left alone by the breaker. Logging in is HELLO 3 with the user and password, SELECT, and
CLIENT TRACKING in broadcasting mode for our prefix; servers before Redis 6 are spoken to in RESP2, without
tracking. Invalidations come on the same connection, hence in order with replies. (The other way, a second
connection in RESP2 with REDIRECT, is for clients that cannot read pushes, and loses that order.)
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from dandolo.cache.breaker import Backoff, Breaker
from dandolo.cache.redis.connection import Call, Command, Connection, Failure, Outcome
from dandolo.config.secret import Secret
from dandolo.wire.resp import ErrorReply, Push, encode

_log = logging.getLogger("dandolo")

DIAL_S: Final = 2.0
"""For name, connection, TLS and login together."""
NAME: Final = b"dandolo"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a server listens: a Unix socket's `path`, else `host` and `port`."""

    host: str = ""
    port: int = 0
    path: str = ""

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Login:
    """As whom and how: `tracked` is the prefix of keys whose changes are to be told, None for none."""

    username: str = ""
    password: Secret | None = None
    database: int = 0
    tls: ssl.SSLContext | None = None
    tracked: bytes | None = None


class LinkOwner(Protocol):
    """Whom a link tells."""

    def up(self, link: Link) -> None:
        """There is a connection, logged in, and tracking if it can: what changed before was not told."""

    def down(self, link: Link) -> None:
        """There is none any more."""

    def invalidated(self, link: Link, keys: list[bytes] | None) -> None:
        """These keys have changed on the server; None: all of them."""


class Refused(Exception):
    """The server, or what answers for it, does not let us in. The text names no argument of ours."""


class Link:
    """One server. `random` gives numbers in [0, 1). Needs the running loop only from `start` on."""

    def __init__(self, endpoint: Endpoint, login: Login, owner: LinkOwner, random: Callable[[], float]) -> None:
        self.endpoint = endpoint
        self.breaker = Breaker()
        self.backoff = Backoff(random)
        self.connection: Connection | None = None
        """Logged in, or None."""
        self.tracking = False
        self.connects = 0
        self.reason = "not connected yet"
        """Why there is no connection."""
        self._login = login
        self._owner = owner
        self._loop: asyncio.AbstractEventLoop | None = None
        self._dialling: asyncio.Task[None] | None = None
        self._again: asyncio.TimerHandle | None = None
        self._since = 0.0
        self._stopped = False

    def start(self) -> None:
        """Begin to connect. Returns at once; the owner is told when it is up."""
        self._loop = asyncio.get_running_loop()
        self._dial_now()

    def stop(self) -> None:
        """Close the connection or give up making one; what is in flight fails before this returns."""
        self._stopped = True
        if self._again is not None:
            self._again.cancel()
        if self._dialling is not None:
            self._dialling.cancel()
        self.drop("we stop")

    async def stopped(self) -> None:
        """Wait, after `stop`, until an attempt to connect has cleaned up after itself."""
        if self._dialling is not None:
            await asyncio.wait((self._dialling,))

    def send(self, command: Command) -> Failure | None:
        """Send a command. None: it will hear one outcome; else it will hear nothing, and this is why."""
        connection = self.connection
        if connection is None:
            return Failure.DOWN
        breaker = self.breaker
        if not breaker.closed and not breaker.admits(self._now()):
            return Failure.OPEN
        command.taker = self
        return None if connection.send(command) else Failure.BUSY

    def send_asking(self, command: Command) -> Failure | None:
        """Send a command to a node that is about to own its slot (ASK): the permission goes just before it."""
        failure = self.send(Call(encode(b"ASKING"), command.deadline, _ignore))
        return failure or self.send(command)

    def drop(self, reason: str) -> None:
        """Close the connection, if there is one, and connect anew after a while."""
        if self.connection is not None:
            self.connection.close(reason)

    def answered(self) -> None:
        """From the connection: a reply came in time."""
        if not self.breaker.closed:
            self.breaker.succeeded()

    def failed(self) -> None:
        """From the connection or a command: no reply, or one by which the server says it cannot serve."""
        # Before the login is through there was no call that could have failed.
        if self.connection is not None:
            self.breaker.failed(self._now())

    def pushed(self, push: Push) -> None:
        """From the connection: an invalidation, or something that we did not ask for."""
        if push.kind != b"invalidate" or len(push.items) != 1:
            return
        (keys,) = push.items
        if keys is None:
            self._owner.invalidated(self, None)
        elif isinstance(keys, list):
            self._owner.invalidated(self, [key for key in keys if isinstance(key, bytes)])

    def ended(self, reason: str) -> None:
        """From the connection: it is gone."""
        if self.connection is None:
            # Still logging in: the attempt sees it and tries again.
            return
        self.connection = None
        self.tracking = False
        self.backoff.lived(self._now() - self._since)
        if not self._stopped:
            _log.warning("Redis %s: %s", self.endpoint, reason)
        self._owner.down(self)
        self._dial_later(reason)

    def _now(self) -> float:
        assert self._loop is not None, "a link is used after start"
        return self._loop.time()

    def _dial_later(self, reason: str) -> None:
        self.reason = reason
        if self._loop is not None and not self._stopped:
            self._again = self._loop.call_later(self.backoff.wait_s(), self._dial_now)

    def _dial_now(self) -> None:
        assert self._loop is not None
        # Kept here until it ends; it lets nothing out but its cancellation.
        self._dialling = self._loop.create_task(self._dial(), name=f"redis {self.endpoint}")

    async def _dial(self) -> None:
        try:
            async with asyncio.timeout(DIAL_S):
                connection = await self._connect()
                try:
                    tracking = await self._log_in(connection)
                    if not connection.open:
                        raise Refused("the connection ended after the login")
                except BaseException:
                    connection.close("the login did not end")
                    raise
        except TimeoutError:
            self._failed_to_dial(f"no connection and login within {DIAL_S:g} s")
        except ssl.SSLCertVerificationError as error:
            self._failed_to_dial(f"its certificate was not accepted: {error.verify_message}")
        except OSError as error:
            self._failed_to_dial(f"no connection: {error.strerror or type(error).__name__}")
        except Refused as error:
            self._failed_to_dial(str(error))
        except Exception as error:
            _log.exception("Redis %s: connecting failed in a way that is not expected", self.endpoint)
            self._failed_to_dial(type(error).__name__)
        else:
            self.connection = connection
            self.tracking = tracking
            self.connects += 1
            self.reason = ""
            self._since = self._now()
            self.breaker.renewed()
            _log.info("Redis %s: connected%s", self.endpoint, ", tracking changes" if tracking else "")
            self._owner.up(self)

    def _failed_to_dial(self, reason: str) -> None:
        if reason != self.reason:
            # Once for a row of the same.
            _log.warning("Redis %s: %s", self.endpoint, reason)
        self._dial_later(reason)

    async def _connect(self) -> Connection:
        loop = asyncio.get_running_loop()
        where, tls = self.endpoint, self._login.tls
        if where.path:
            _, connection = await loop.create_unix_connection(lambda: Connection(loop, self), where.path)
            return connection
        _, connection = await loop.create_connection(
            lambda: Connection(loop, self),
            where.host,
            where.port,
            ssl=tls,
            server_hostname=where.host if tls is not None else None,
        )
        return connection

    async def _log_in(self, connection: Connection) -> bool:
        """Come in as configured; whether changes of our keys will be told. Raises Refused."""
        login = self._login
        password = None if login.password is None else login.password.reveal().encode()
        username = login.username.encode()
        auth = [] if password is None else [b"AUTH", username or b"default", password]
        reply = await _ask(connection, b"HELLO", b"3", *auth, b"SETNAME", NAME)
        speaks_resp3 = isinstance(reply, dict)
        if isinstance(reply, ErrorReply) and _is_old(reply):
            if password is not None:
                reply = await _ask(connection, b"AUTH", *([username] if username else []), password)
                if reply != b"OK":
                    raise Refused(f"the login was not accepted: {_said(reply)}")
        elif not speaks_resp3:
            raise Refused(f"the login was not accepted: {_said(reply)}")
        if login.database:
            reply = await _ask(connection, b"SELECT", b"%d" % login.database)
            if reply != b"OK":
                raise Refused(f"database {login.database} cannot be selected: {_said(reply)}")
        if login.tracked is None or not speaks_resp3:
            return False
        reply = await _ask(
            connection, b"CLIENT", b"TRACKING", b"ON", b"BCAST", b"PREFIX", login.tracked, b"NOLOOP"
        )  # fmt: skip
        if reply != b"OK":
            # It serves all the same; the owner sees in `tracking` that it must not rely on being told.
            _log.warning("Redis %s: changes of keys are not tracked: %s", self.endpoint, _said(reply))
        return reply == b"OK"


async def _ask(connection: Connection, *parts: bytes) -> Outcome:
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Outcome] = loop.create_future()

    def heard(outcome: Outcome) -> None:
        if not future.done():
            future.set_result(outcome)

    if not connection.send(Call(encode(*parts), loop.time() + DIAL_S, heard)):
        raise Refused("the connection ended during the login")
    outcome = await future
    if isinstance(outcome, Failure):
        raise Refused(f"{outcome.value} during the login")
    return outcome


def _is_old(error: ErrorReply) -> bool:
    """Whether a server declined HELLO itself: it is older than Redis 6, or something that speaks for one."""
    return error.code == b"NOPROTO" or error.message.lower().startswith(b"err unknown command")


def _said(outcome: Outcome) -> str:
    """An error's code; never more, since an error may quote what was sent."""
    if isinstance(outcome, ErrorReply):
        return outcome.code.decode("ascii", "replace")[:32]
    return "a reply that makes no sense"


def _ignore(outcome: Outcome) -> None:
    """ASKING's outcome: the command behind it tells."""
