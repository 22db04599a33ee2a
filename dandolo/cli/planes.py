"""The plane of a worker and those before it: a reload is prepared in a thread, then swapped by one assignment.

In two steps, so that all workers change or none: `prepare` answers with what speaks against a configuration, `swap`
puts it to work. Requests under way end on the plane they began with.
"""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
import time
from collections.abc import Callable
from typing import Any

import msgspec

from dandolo.board import Board
from dandolo.cli.configured import config_of
from dandolo.cli.descriptors import within_descriptors
from dandolo.config import Config, ConfigError, Problem
from dandolo.errors import GatewayError
from dandolo.gateway.gateway import Gateway
from dandolo.gateway.plane import Plane, limits_of
from dandolo.gateway.worker import tls_of
from dandolo.policy import NO_POLICY, Policy, unpack
from dandolo.provision import Document

RETIRED_PERIOD_S = 5.0
_log = logging.getLogger("dandolo")


def configuration(document: Document) -> Config:
    """A worker's configuration. Raises ConfigError."""
    return within_descriptors(config_of(document, os.environ))[0]


def unfit(config: Config, error: Exception) -> ConfigError:
    """For what only shows when it is put to use: a CA bundle that is none, a header that would break framing."""
    return ConfigError([Problem(config.source, 0, "", f"cannot be put to use: {error}")])


def problems(error: ConfigError) -> list[list[Any]]:
    """As they go through the pipe."""
    return [[one.file, one.line, one.key, one.reason] for one in error.problems]


class Planes:
    """Exchanges a gateway's plane. `on_swapped` is called with the new one, and with what encrypts new connections;
    `board` and `policy` are the plane's."""

    def __init__(
        self,
        gateway: Gateway,
        on_swapped: Callable[[Plane, ssl.SSLContext | None], None],
        board: Board | None = None,
        policy: Policy = NO_POLICY,
    ) -> None:
        self._gateway = gateway
        self._board = board
        self._policy = policy
        self._on_swapped = on_swapped
        self._prepared: Plane | None = None
        self._tls: ssl.SSLContext | None = None
        self._retired: list[tuple[Plane, float]] = []

    async def prepare(self, argument: Any) -> list[list[Any]]:
        """Make a plane of a document; what speaks against it."""
        document = msgspec.convert(argument, Document)
        try:
            self._prepared, self._tls = await asyncio.get_running_loop().run_in_executor(
                None, _plane, document, self._board, self._policy
            )
        except ConfigError as error:
            return problems(error)
        return []

    def swap(self, argument: Any) -> bool:
        """Put the plane that was prepared to work; False when there is none."""
        plane, self._prepared = self._prepared, None
        if plane is None:
            return False
        gateway = self._gateway
        # Bodies that are held now are let go of in the new plane's count.
        plane.admission.body_bytes = gateway.admission.body_bytes
        plane.inherit(gateway.plane)
        if plane.admission.policy is not self._policy:
            # The keys have changed since it was prepared.
            plane.admission.adopt(self._policy)
        old, gateway.plane = gateway.plane, plane
        gateway.limits = limits_of(plane.config)
        self._retired.append((old, 0.0))
        self._on_swapped(plane, self._tls)
        return True

    def adopt(self, argument: Any) -> bool:
        """Take over the keys of a policy, from now on and in planes to come."""
        policy = unpack(argument)
        self._gateway.admission.adopt(policy)
        self._policy = policy
        return True

    def forget(self, argument: Any) -> bool:
        """Forget the plane that was prepared."""
        plane, self._prepared = self._prepared, None
        if plane is not None:
            plane.fleet.close()
        return plane is not None

    def tend(self) -> None:
        """Every RETIRED_PERIOD_S: close what replaced planes still hold, and forget them once their last request
        is over."""
        now, kept = time.monotonic(), []
        for plane, idle_since in self._retired:
            plane.fleet.close()
            for runtime in plane.fleet:
                # The gateway's own beat looks at the accounts that are still configured.
                runtime.slots.expire(now)
            if plane.admission.in_flight:
                kept.append((plane, 0.0))
            elif not idle_since or now - idle_since < RETIRED_PERIOD_S:
                # A provider's connection may come back shortly after its request.
                kept.append((plane, idle_since or now))
        self._retired = kept

    def close(self) -> None:
        """Close what is left of them."""
        for plane, _ in self._retired:
            plane.fleet.close()


def _plane(document: Document, board: Board | None, policy: Policy) -> tuple[Plane, ssl.SSLContext | None]:
    """In a thread: files are read and certificates loaded, which takes milliseconds each."""
    config = configuration(document)
    try:
        tls = tls_of(config)
        return Plane(config, board, policy), tls
    except (GatewayError, OSError, ValueError) as error:
        raise unfit(config, error) from error
