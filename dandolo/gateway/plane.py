"""All that follows from one configuration, and is swapped with it by one assignment."""

from __future__ import annotations

import random
from typing import Any

from dandolo.api.call import Call
from dandolo.board import Board
from dandolo.config.schema import Config
from dandolo.gateway.admission import Admission
from dandolo.gateway.auto import Known
from dandolo.gateway.caching import Caching
from dandolo.gateway.choice import Route, wish_for
from dandolo.gateway.fleet import Fleet
from dandolo.gateway.forwarding import Forwarding
from dandolo.gateway.models import Models
from dandolo.gateway.tracing import NAMES, Tracing
from dandolo.net.downstream import DownstreamLimits
from dandolo.policy import NO_POLICY, Policy
from dandolo.route.balance import Balancer
from dandolo.route.catalog import Catalog, Target
from dandolo.route.models import Table
from dandolo.wire.server import HeadLimits


class Plane:
    """One configuration at work. An exchange keeps the plane it began with.

    `board` is where limits of keys are counted (None: within this process), `policy` what the control process says.
    """

    __slots__ = (
        "admission", "balancer", "caching", "catalog", "config", "fleet", "forwarding", "generation", "models",
        "models_known", "provider_names", "routes", "routing_providers", "table", "tracing",
    )  # fmt: skip

    def __init__(self, config: Config, board: Board | None = None, policy: Policy = NO_POLICY) -> None:
        self.config = config
        self.catalog = Catalog(config)
        self.fleet = Fleet(config, self.catalog)
        self.admission = Admission(config, board, policy)
        widened = frozenset(name.lower().encode() for item in config.providers for name in item.forward_headers)
        self.tracing = Tracing(config.otel.sample) if config.otel.endpoint is not None else None
        self.forwarding = Forwarding(widened, NAMES if self.tracing is not None else frozenset())
        self.models = Models(self.catalog)
        self.balancer = Balancer(random.random, config.routing.weights)
        self.routes: dict[tuple[Any, ...], Route] = {}
        self.caching = Caching.of(config)
        self.table = Table(config.auto)
        self.models_known: dict[tuple[tuple[str, ...] | None, str], list[Known]] = {}
        self.generation = 0
        """Counts what makes routes that were worked out outdated."""
        self.routing_providers = frozenset(
            provider.name.lower() for provider in self.catalog.providers if provider.profile.routes
        )
        self.provider_names = frozenset(
            name.lower() for runtime in self.fleet for name in (runtime.account.provider.name, runtime.account.label)
        )

    def refresh(self) -> None:
        """Take over what has become known of models since routes were worked out (every beat: an integer compared)."""
        generation = self.catalog.facts.generation
        if generation != self.generation:
            self.generation = generation
            for runtime in self.fleet:
                runtime.describe()
            self.routes.clear()
            self.models_known.clear()

    def inherit(self, before: Plane) -> None:
        """Go on with what is known of accounts and models that were there before."""
        self.catalog.facts.inherit(before.catalog.facts)
        self.fleet.inherit(before.fleet)
        if self.caching is not None and before.caching is not None:
            self.caching.inherit(before.caching)
        self.refresh()

    def wish_for(self, target: Target, call: Call) -> bytes | None:
        """What of a call's `provider` object goes on to a provider."""
        wish = call.json.get("provider") if call.wishes and call.json is not None else None
        return None if wish is None else wish_for(target, wish, self.provider_names)


def limits_of(config: Config) -> DownstreamLimits:
    """A connection's limits from the configuration."""
    limits, timeouts = config.limits, config.timeouts
    return DownstreamLimits(
        head=HeadLimits(
            request_line_bytes_max=limits.request_line_bytes_max,
            header_bytes_max=limits.header_bytes_max,
            headers_max=limits.headers_max,
            header_line_bytes_max=min(16 * 1024, limits.header_bytes_max),
        ),
        header_read_s=timeouts.header_read,
        body_idle_s=timeouts.body_idle,
        body_total_s=timeouts.body_total,
        first_request_s=timeouts.first_request,
        keep_alive_idle_s=timeouts.keep_alive_idle,
        write_stall_s=timeouts.write_stall,
    )
