"""The prober of a running gateway: accounts as they live there, in the form in which probes want them."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable

import msgspec

from dandolo.api.endpoints import ENDPOINTS, MODELS
from dandolo.gateway.fleet import Runtime
from dandolo.gateway.plane import Plane
from dandolo.mind.probe import Prober
from dandolo.mind.question import Request
from dandolo.mind.verdict import Verdict
from dandolo.net.dial import Destination, Dialer
from dandolo.route.breaker import Breaker

_CHAT = ENDPOINTS[b"/v1/chat/completions"]
_MESSAGES = ENDPOINTS[b"/v1/messages"]
_JSON = b"application/json"


class ProbedAccount:
    """An account for `mind.probe`. What is sent carries its credential and configured headers, like any call."""

    def __init__(self, runtime: Runtime) -> None:
        account = runtime.account
        provider = account.provider
        self.runtime = runtime
        self.label = account.label
        self.provider = provider.name
        self.destination: Destination = runtime.destination
        extra = b"".join(runtime.overridable.values())
        self._listing = Request(runtime.head(b"GET", MODELS, provider.profile.list_query, "", _JSON) + extra)
        self._chat: Request | None = None
        probe = provider.config.probe
        if probe is not None:
            endpoint = _MESSAGES if provider.speaks("messages") and not provider.speaks("chat") else _CHAT
            call = {
                # What the operator wants in every call (no system prompt of the provider's) makes this one cheap too.
                **provider.defaults,
                "model": probe.model,
                "messages": [{"role": "user", "content": "1"}],
                provider.profile.answer_bound: 1,
                "stream": False,
            }
            head = runtime.head(b"POST", endpoint, "", probe.model, _JSON)
            self._chat = Request(head + extra + b"content-type: application/json\r\n", msgspec.json.encode(call))

    def listing(self) -> Request:
        """`GET` of the list of models."""
        return self._listing

    def chat(self) -> Request | None:
        """A call for one token, where one is configured."""
        return self._chat

    def breakers(self) -> Iterable[Breaker]:
        """Its breakers as they are now."""
        return [one.breaker for one in self.runtime.candidates.values() if one.breaker is not None]


def prober(
    plane: Plane, dialer: Dialer, on_verdict: Callable[[ProbedAccount, Verdict], None], workers: int = 1
) -> Prober[ProbedAccount]:
    """A prober of all accounts of a plane, which keeps the facts of its catalog fresh.

    Each of `workers` probes for itself, so that all know; together they ask no oftener than one would. What an
    open breaker wants is asked at once all the same.
    """
    return Prober(
        [ProbedAccount(runtime) for runtime in plane.fleet],
        plane.catalog.facts,
        on_verdict,
        interval_s=plane.config.routing.probe_interval * workers,
        dialer=dialer,
        now=time.monotonic,
        random=random.random,
    )
