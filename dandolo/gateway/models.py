"""The model list: our own names, what providers' configurations list, and what the others say they have.

Providers that list no models in the configuration are asked for theirs when a client wants the list, at
most every `FRESH_S`; one that fails is left out and asked again after `FAILED_S`, so that the list never
fails for one provider's sake.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING
from urllib.parse import unquote

import msgspec

from dandolo.api.endpoints import MODELS
from dandolo.api.openai import model_not_found
from dandolo.errors import GatewayError, UpstreamInvalid
from dandolo.net.strand import Waiter
from dandolo.net.upstream import Upstream
from dandolo.route.catalog import Catalog, Provider, admits

if TYPE_CHECKING:
    from dandolo.gateway.exchange import Exchange

FRESH_S = 300.0
FAILED_S = 30.0
FETCH_S = 5.0
LIST_BYTES_MAX = 8 * 1024 * 1024
MODELS_MAX = 5000

_encoder = msgspec.json.Encoder()


class _Item(msgspec.Struct):
    id: str


class _List(msgspec.Struct):
    data: list[_Item]


_list = msgspec.json.Decoder(_List)


class Models:
    """What `GET /v1/models` answers."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._fetched: dict[str, tuple[float, tuple[str, ...]]] = {}

    async def answer(self, exchange: Exchange) -> bytes:
        """The body for the list or, with a suffix, for one model. Raises RequestError (404)."""
        wanted = unquote(exchange.admitted.suffix)
        patterns = exchange.tenant.patterns
        names: dict[str, str] = {}
        for alias in self._catalog.aliases:
            names[alias] = "dandolo"
        for provider in self._catalog.providers:
            listed = tuple(provider.prices) or await self._fetch(exchange, provider)
            for model in listed:
                names.setdefault(model, provider.name)
                names.setdefault(f"{provider.name}/{model}", provider.name)
        if patterns is not None:
            names = {
                name: owner
                for name, owner in names.items()
                if admits(patterns, name) or admits(patterns, f"{owner}/{name}")
            }
        if not wanted:
            return _encoder.encode({"object": "list", "data": [_object(name, owner) for name, owner in names.items()]})
        owner = names.get(wanted)
        if owner is None:
            raise model_not_found(wanted, names)
        return _encoder.encode(_object(wanted, owner))

    async def _fetch(self, exchange: Exchange, provider: Provider) -> tuple[str, ...]:
        """A provider's own list, fresh or remembered; empty when it gives none."""
        now = time.monotonic()
        known = self._fetched.get(provider.name)
        if known is not None and now < known[0]:
            return known[1]
        try:
            found = await self._ask(exchange, provider)
            fresh_s = FRESH_S
        except (GatewayError, ValueError):
            found, fresh_s = known[1] if known is not None else (), FAILED_S
        self._fetched[provider.name] = (time.monotonic() + fresh_s, found)
        return found

    async def _ask(self, exchange: Exchange, provider: Provider) -> tuple[str, ...]:
        if not provider.speaks("models"):
            return ()
        gateway = exchange.gateway
        runtime = exchange.plane.fleet[provider.accounts[0]]
        gatherer = _Gatherer()

        async def fetch() -> None:
            # A task of its own: the list is wanted whole, and dialling needs one anyway.
            connection: Upstream | None = None
            try:
                connection = runtime.pool.take(gateway.now()) or await gateway.dialer.dial(runtime.destination, FETCH_S)
                head = runtime.head(b"GET", MODELS, "", "", b"application/json")
                extra = b"".join(runtime.overridable.values())
                sent = connection.send(head + extra + b"\r\n", b"")
                gatherer.begin(connection, sent)
            except GatewayError as error:
                gatherer.done.fail(error)

        exchange.await_until(gateway.now() + FETCH_S, "a provider's list of models")
        task = gateway.tasks.spawn(fetch(), "models")
        try:
            body = await gatherer.done
        finally:
            task.cancel()
            if gatherer.connection is not None:
                gateway.keep(runtime, gatherer.connection, ended=False)
        return tuple(dict.fromkeys(item.id for item in _list.decode(body).data[:MODELS_MAX]))


class _Gatherer:
    """Collects a whole answer, up to LIST_BYTES_MAX."""

    def __init__(self) -> None:
        self.done: Waiter[bytes] = Waiter()
        self.connection: Upstream | None = None
        self._pieces: list[bytes] = []
        self._size = 0

    def begin(self, connection: Upstream, sent: Waiter[bytes | None]) -> None:
        """Wait for the answer to a request that is on its way."""
        self.connection = connection
        sent.then(self._answered, self.broken)

    def _answered(self, content: bytes | None) -> None:
        connection = self.connection
        assert connection is not None
        assert connection.response is not None
        if connection.response.status != 200:
            self.broken(UpstreamInvalid(f"the provider answered {connection.response.status} for its list of models"))
        elif content is not None:
            self.done.set(content)
        else:
            connection.relay_to(self)

    def data(self, content: bytes) -> None:
        """More of the list."""
        self._size += len(content)
        if self._size > LIST_BYTES_MAX:
            self.broken(UpstreamInvalid(f"the provider's list of models has more than {LIST_BYTES_MAX} bytes"))
        else:
            self._pieces.append(content)

    def end(self) -> None:
        """The list is complete."""
        self.done.set(b"".join(self._pieces))

    def broken(self, error: BaseException) -> None:
        """The list will not come."""
        self.done.fail(error)


def _object(name: str, owner: str) -> dict[str, object]:
    return {"id": name, "object": "model", "created": 0, "owned_by": owner}
