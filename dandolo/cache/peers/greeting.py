"""How two peers come to believe each other. Sans-I/O: frames in, frames out.

The dialler says HELLO with a nonce, the acceptor HELLO with its own; then the dialler proves that it has the secret,
and only then the acceptor. A proof is an HMAC over role, both nonces, names and instances under a key that follows
from the cache's secret: it is worth nothing on any other connection, nor in the other direction.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Final

import msgspec

from dandolo.cache.peers.frames import Auth, Frame, Hello

GREETING_S: Final = 2.0
"""For everything up to the last proof."""
_PURPOSE: Final = b"dandolo peers 1"


class Refused(Exception):
    """The other side is not let in, or does not let us in. The text holds nothing secret."""


def key_of(secret: bytes) -> bytes:
    """The key of proofs: knowing it gives no other use of the secret."""
    return hmac.digest(secret, _PURPOSE, hashlib.sha256)


class Greeting:
    """One side of it. `name` and `instance` are ours, `nonce` fresh random bytes."""

    __slots__ = ("_believes", "_dials", "_heard", "_key", "_own", "ourselves")

    def __init__(self, key: bytes, name: str, instance: bytes, nonce: bytes, *, dials: bool) -> None:
        self._key = key
        self._own = Hello(0, name, instance, nonce)
        self._heard: Hello | None = None
        self._dials = dials
        self._believes = False
        self.ourselves = False
        """Whether we have reached this very process."""

    def believes(self) -> bool:
        """Whether both sides have proved themselves."""
        return self._believes

    @property
    def name(self) -> str:
        """Theirs, "" until they said it; proved once `believes()`."""
        return "" if self._heard is None else self._heard.name

    @property
    def instance(self) -> bytes:
        """Theirs."""
        return b"" if self._heard is None else self._heard.instance

    def begin(self) -> list[Frame]:
        """What is to be said first."""
        return [self._own] if self._dials else []

    def hear(self, frame: Frame) -> list[Frame]:
        """What is to be said to it. Raises Refused."""
        if self._heard is None:
            if not isinstance(frame, Hello):
                raise Refused("it did not say who it is")
            if hmac.compare_digest(frame.nonce, self._own.nonce):
                raise Refused("it said our own words")
            self._heard = frame
            self.ourselves = frame.instance == self._own.instance
            if frame.name == self._own.name and (self._dials or not self.ourselves):
                raise Refused("it has our own name: expected another for every process")
            return [self._proof(self._dials)] if self._dials else [self._own]
        if not isinstance(frame, Auth):
            raise Refused("it spoke before it had proved who it is")
        expected = self._proof(not self._dials)
        if not hmac.compare_digest(frame.proof, expected.proof):
            raise Refused("its proof is wrong: expected the same cache.secret on both sides")
        self._believes = True
        return [] if self._dials else [self._proof(False)]

    def _proof(self, dialler: bool) -> Auth:
        """The proof that the dialler gives, or the acceptor."""
        assert self._heard is not None
        dialled, accepted = (self._own, self._heard) if self._dials else (self._heard, self._own)
        said = msgspec.msgpack.encode((b"dials" if dialler else b"accepts", dialled, accepted))
        return Auth(0, hmac.digest(self._key, said, hashlib.sha256))
