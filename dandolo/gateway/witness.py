"""What is asked and answered, for operators who want to keep it (`[prompt_log]`). A worker without it never loads this.

Such a worker is made with a gateway that puts a `Witness` between an exchange and its client's connection: it passes
everything on and keeps the beginning of the answer. So nothing is asked of requests where nothing is kept, and where it
is every answer takes the way that can be watched, no shortcut of the relay and no repeat.

Never kept: requests of keys in privacy mode, all of them with `server.privacy`, uploads, and those that say
`Cache-Control: no-store` (RFC 9111 §5.2.1.5: no part of the request or its response).
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from dandolo.config.schema import Config
from dandolo.gateway.exchange import Exchange
from dandolo.gateway.gateway import Admitted, Gateway
from dandolo.net.downstream import Downstream
from dandolo.net.outbox import Outbox
from dandolo.record import Record
from dandolo.text import Text
from dandolo.values import cut
from dandolo.wire.server import Request

if TYPE_CHECKING:
    from dandolo.net.service import Flow

_KIND = re.compile(rb"(?:^|\r\n)content-type:[ \t]*([^\r\n]*)", re.IGNORECASE)
_TEXTS = (b"application/json", b"text/", b"application/problem+json")
_NO_STORE = re.compile(rb"(?:^|,)\s*no-store\s*(?:$|,)", re.IGNORECASE)


class Witnessing(Gateway):
    """A gateway that keeps texts: `keep` is given each when its request has ended. A reload can end that, and let it go
    on, with the plane that it brings."""

    def __init__(
        self, config: Config, take: Callable[[Record], None], keep: Callable[[Text], None], *more: Any
    ) -> None:
        super().__init__(config, take, *more)
        self._keep = keep
        self.held_bytes = 0
        """Of answers under way: at most `bytes_max`, as much as the control process keeps; what is beyond is cut."""

    def begin(self, connection: Downstream, request: Request) -> None:
        """Handle a request that has been counted in, in the presence of a witness where there may be one."""
        admitted = request.context
        assert isinstance(admitted, Admitted)
        if not may_be_kept(admitted, request):
            super().begin(connection, request)
            return
        witness = Witness(connection, self, admitted.plane.config.prompt_log.text_bytes_max)
        exchange = connection.exchange = Exchange(self, admitted, cast(Downstream, witness), request, self.next_id())
        exchange.number = self.requests
        self.sweep.items.add(exchange)
        exchange.begin()

    def ended(self, exchange: Exchange) -> None:
        """The same as ever, and the text of it."""
        witness, asked = cast(object, exchange.client), exchange.request.body
        super().ended(exchange)
        if isinstance(witness, Witness):
            self._keep(witness.text(exchange, asked))


class Witness:
    """Stands where a client's connection stands, and passes everything on to it."""

    __slots__ = ("_client", "_gateway", "_kept", "_most", "_pieces", "_whole", "answered_bytes", "kind")

    watched = True
    chunked = False
    """So that the relay sends nothing past it."""

    def __init__(self, client: Downstream, gateway: Witnessing, most: int) -> None:
        self._client = client
        self._gateway = gateway
        self._most = most
        self._pieces: list[bytes] = []
        self._kept = 0
        self._whole = False
        self.kind = b""
        self.answered_bytes = 0

    # -- what an exchange asks of a connection ---------------------------------------------------------

    @property
    def peer(self) -> str:
        """The connection's own."""
        return self._client.peer

    @property
    def lost(self) -> bool:
        """The connection's own."""
        return self._client.lost

    @property
    def stalled(self) -> bool:
        """The connection's own."""
        return self._client.stalled

    @property
    def outbox(self) -> Outbox:
        """The connection's own."""
        return self._client.outbox

    @property
    def held_bytes(self) -> int:
        """The connection's own."""
        return self._client.held_bytes

    @held_bytes.setter
    def held_bytes(self, size: int) -> None:
        self._client.held_bytes = size

    def answer(self, status: int, head: bytes, body: bytes, *, close: bool = False) -> None:
        """A whole answer."""
        self._begin(head)
        self._note(body)
        self._whole = True
        self._client.answer(status, head, body, close=close)

    def begin_stream(self, status: int, head: bytes, flow: Flow, length: int | None = None, first: bytes = b"") -> None:
        """An answer in pieces."""
        self._begin(head)
        self._note(first)
        self._client.begin_stream(status, head, flow, length, first)

    def write(self, content: bytes) -> None:
        """A piece."""
        self._note(content)
        self._client.write(content)

    def end_stream(self, last: bytes = b"") -> None:
        """The last piece."""
        self._note(last)
        self._whole = True
        self._client.end_stream(last)

    def cut(self) -> None:
        """It broke off."""
        self._client.cut()

    def finish(self) -> None:
        """The connection may go on."""
        self._client.finish()

    # -- what it saw -----------------------------------------------------------------------------------

    def _begin(self, head: bytes) -> None:
        found = _KIND.search(head)
        self.kind = found[1].lower() if found is not None else b""
        if not self.kind.startswith(_TEXTS):
            self._most = 0

    def _note(self, content: bytes) -> None:
        self.answered_bytes += len(content)
        room = min(self._most - self._kept, self._room())
        if content and room > 0:
            # A copy: a slice of a view would keep a whole read alive.
            piece = bytes(content[:room])
            self._pieces.append(piece)
            self._kept += len(piece)
            self._gateway.held_bytes += len(piece)

    def _room(self) -> int:
        gateway = self._gateway
        return gateway.plane.config.prompt_log.bytes_max - gateway.held_bytes

    def text(self, exchange: Exchange, asked: bytes) -> Text:
        """What was asked and answered; to be called once, at the end."""
        self._gateway.held_bytes -= self._kept
        most = exchange.plane.config.prompt_log.text_bytes_max
        answered = b"".join(self._pieces)
        self._pieces.clear()
        return Text(
            exchange.id,
            time.time(),
            exchange.admitted.tenant.name,
            exchange.endpoint.name,
            exchange.status,
            bytes(asked[:most]),
            len(asked),
            cut(self.kind.decode("latin-1")),
            answered,
            self.answered_bytes,
            self._whole,
        )


def may_be_kept(admitted: Admitted, request: Request) -> bool:
    """Whether what a request says may be kept beyond it."""
    config, terms = admitted.plane.config, admitted.tenant.terms
    return (
        config.prompt_log.enabled
        and not config.server.privacy
        and (terms is None or not terms.privacy)
        and bool(request.body)
        and not admitted.endpoint.upload
        and _NO_STORE.search(request.fields.get(b"cache-control", b"")) is None
    )
