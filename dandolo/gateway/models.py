"""The model list: our own names, what providers' configurations list, and what the others say they have.

What providers say is kept fresh off the request path (`route.facts`). Only a provider whose list has never been
fetched is asked when a client wants the list: all such at the same time, within `FETCH_S`; one that fails is left
out, said so in the log, and asked again after `FAILED_S` at the earliest, so that the list never fails for one
provider's sake.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import msgspec

from dandolo.api.endpoints import MODELS
from dandolo.api.openai import model_not_found
from dandolo.api.profiles.listing import LIST_BYTES_MAX, ModelFacts
from dandolo.errors import GatewayError, UpstreamError, UpstreamInvalid, UpstreamTimeout
from dandolo.net.strand import Waiter
from dandolo.net.upstream import Upstream
from dandolo.route.catalog import Catalog, Provider, admits

if TYPE_CHECKING:
    from dandolo.gateway.exchange import Exchange
    from dandolo.gateway.fleet import Runtime
    from dandolo.gateway.gateway import Gateway

FAILED_S = 30.0
FETCH_S = 5.0

_log = logging.getLogger("dandolo")
_encoder = msgspec.json.Encoder()
_Item = dict[str, Any]


class Models:
    """What `GET /v1/models` answers."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._items: dict[str, _Item] = {}
        self._generation = -1
        self._learning = False

    async def answer(self, exchange: Exchange) -> bytes:
        """The body for the list or, with a suffix, for one model. Raises RequestError (404)."""
        await self._fetch_missing(exchange)
        items = self._known()
        wanted = unquote(exchange.admitted.suffix)
        patterns = exchange.tenant.patterns
        if patterns is not None:
            items = {
                name: item
                for name, item in items.items()
                if admits(patterns, name) or admits(patterns, f"{item['owned_by']}/{name}")
            }
        if not wanted:
            return _encoder.encode({"object": "list", "data": list(items.values())})
        item = items.get(wanted)
        if item is None:
            raise model_not_found(wanted, items)
        return _encoder.encode(item)

    def _known(self) -> dict[str, _Item]:
        """Everything there is to list, by name; made anew when facts have changed."""
        catalog = self._catalog
        if self._generation != catalog.facts.generation:
            self._generation = catalog.facts.generation
            items = {alias: _item(alias, "dandolo", None) for alias in catalog.aliases}
            for provider in catalog.providers:
                for model, facts in catalog.facts.models(provider.name).items():
                    for name in (model, f"{provider.name}/{model}"):
                        if name not in items:
                            items[name] = _item(name, provider.name, facts)
            self._items = items
        return self._items

    async def learn(self, exchange: Exchange) -> None:
        """Fetch lists that are missing, for whoever needs their prices. One request at a time does; others do not wait
        for it, and find no prices."""
        if self._learning:
            return
        self._learning = True
        try:
            await self._fetch_missing(exchange)
        finally:
            self._learning = False
        exchange.plane.refresh()

    async def _fetch_missing(self, exchange: Exchange) -> None:
        """Ask the providers of which no list is known and none is configured."""
        facts, gateway = self._catalog.facts, exchange.gateway
        now = gateway.now()
        fetches = [
            _Fetch(gateway, exchange.plane.fleet[provider.accounts[0]], provider)
            for provider in self._catalog.providers
            if not provider.prices and not facts.fetched(provider.name) and facts.due(provider.name, now)
        ]
        try:
            for fetch in fetches:
                name = fetch.provider.name
                # Once it has passed for one it has for the others, but what has come by then still counts.
                exchange.await_until(now + FETCH_S, "a provider's list of models")
                try:
                    listing = facts.read(name, await fetch.done)
                except (UpstreamError, ValueError) as error:
                    # Without the measured wait, which would make every silence news.
                    problem = f"no answer within {FETCH_S:g} s" if isinstance(error, UpstreamTimeout) else str(error)
                    if facts.refused(name, problem, gateway.now(), FAILED_S):
                        _log.warning("the list of models of %s is missing: %s", name, problem)
                else:
                    facts.replace(name, listing, gateway.now())
        finally:
            for fetch in fetches:
                fetch.close()


def _item(name: str, owner: str, facts: ModelFacts | None) -> _Item:
    """OpenAI's four keys; what else is known under the keys that OpenRouter has for it."""
    item: _Item = {"id": name, "object": "model", "created": 0, "owned_by": owner}
    if facts is None:
        return item
    if facts.context_tokens is not None:
        item["context_length"] = facts.context_tokens
    if facts.output_tokens_max is not None:
        item["top_provider"] = {
            "context_length": facts.context_tokens,
            "max_completion_tokens": facts.output_tokens_max,
        }
    prices = {
        "prompt": facts.input_usd_per_mtok,
        "completion": facts.output_usd_per_mtok,
        "input_cache_read": facts.cached_usd_per_mtok,
    }
    pricing = {key: _per_token(price) for key, price in prices.items() if price is not None}
    if pricing:
        item["pricing"] = pricing
    return item


def _per_token(usd_per_mtok: float) -> str:
    """A price as OpenRouter writes it: USD per token, a string without an exponent."""
    return f"{usd_per_mtok / 1e6:.15f}".rstrip("0").rstrip(".") or "0"


class _Fetch:
    """One provider's list on its way. `done` gets the whole body, up to LIST_BYTES_MAX."""

    def __init__(self, gateway: Gateway, runtime: Runtime, provider: Provider) -> None:
        self.provider = provider
        self._gateway = gateway
        self._runtime = runtime
        self._gatherer = _Gatherer()
        self.done = self._gatherer.done
        # A task of its own: the list is wanted whole, and dialling needs one anyway.
        self._task: asyncio.Task[None] = gateway.tasks.spawn(self._fetch(), "models")

    async def _fetch(self) -> None:
        runtime, gateway = self._runtime, self._gateway
        try:
            connection = runtime.pool.take(gateway.now()) or await gateway.dialer.dial(runtime.destination, FETCH_S)
            head = runtime.head(b"GET", MODELS, self.provider.profile.list_query, "", b"application/json")
            extra = b"".join(runtime.overridable.values())
            self._gatherer.begin(connection, connection.send(head + extra + b"\r\n", b""))
        except GatewayError as error:
            self.done.fail(error)

    def close(self) -> None:
        """Want it no more; the connection is kept if the answer is complete."""
        self._task.cancel()
        if self._gatherer.connection is not None:
            self._gateway.keep(self._runtime, self._gatherer.connection, ended=False)


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
