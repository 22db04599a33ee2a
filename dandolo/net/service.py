"""What a client's connection needs from whoever it serves, and the limits it keeps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

from dandolo.errors import GatewayError
from dandolo.net.sweep import Sweep
from dandolo.wire.server import HeadLimits, Request

if TYPE_CHECKING:
    from dandolo.net.downstream import Downstream


@dataclass(frozen=True, slots=True)
class DownstreamLimits:
    """What a client's connection may do: seconds, bytes and counts of the configuration."""

    head: HeadLimits
    header_read_s: float = 10.0
    body_idle_s: float = 15.0
    body_total_s: float = 60.0
    first_request_s: float = 10.0
    keep_alive_idle_s: float = 75.0
    write_stall_s: float = 30.0
    requests_max: int = 1000
    age_max_s: float = 3600.0


class Flow(Protocol):
    """Whoever feeds a stream: told when the client cannot keep up."""

    def pause(self) -> None:
        """Stop producing."""

    def resume(self) -> None:
        """Go on."""


class Repeats(Protocol):
    """Requests that may come again, byte for byte, and be answered without being read."""

    @property
    def slots(self) -> Mapping[int, Any]:
        """Empty: there are none, and nobody need ask."""

    candidate: Any
    """Something to be remembered with the bytes of the request that was handled just now."""

    def give(self, connection: Downstream, data: bytes) -> bytes | None:
        """The whole answer to a whole request, None when it is to be handled like any other."""

    def learn(self, connection: Downstream, data: bytes) -> None:
        """These were the bytes of the whole request."""


class NoRepeats:
    """For services that answer every request anew."""

    slots: Mapping[int, Any] = MappingProxyType({})
    candidate: Any = None

    def give(self, connection: Downstream, data: bytes) -> bytes | None:
        """Never."""
        return None

    def learn(self, connection: Downstream, data: bytes) -> None:
        """Nothing."""


class Service(Protocol):
    """What a connection needs from the gateway."""

    limits: DownstreamLimits

    @property
    def repeats(self) -> Repeats:
        """Requests that are answered without being read."""

    sweep: Sweep
    draining: bool

    def now(self) -> float:
        """Monotonic seconds."""

    def admit(self, connection: Downstream, request: Request) -> int:
        """Judge a head before its body is read; the body's limit in bytes, or raise GatewayError."""

    def enter_again(self, connection: Downstream, request: Request) -> bool:
        """Let in a complete request whose head repeats one that was admitted on this connection.

        After True `begin` must follow. False sends it the long way, where it is judged as if it were new.
        """

    def begin(self, connection: Downstream, request: Request) -> None:
        """Handle a request that has entered; must lead to `finish` exactly once."""

    def body_grew(self, connection: Downstream, size: int) -> None:
        """`size` more bytes of an unfinished body are held; may raise GatewayError."""

    def start(self, connection: Downstream, request: Request) -> None:
        """Handle a complete request; must lead to `finish` exactly once."""

    def refusal(self, connection: Downstream, request: Request | None, error: GatewayError) -> tuple[int, bytes, bytes]:
        """Status, encoded header lines and body that tell `error`."""

    def gone(self, connection: Downstream) -> None:
        """The client has disconnected; cancel what runs for it."""
