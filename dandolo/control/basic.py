"""The routes that every admin listener has: what is here, whether the process lives and is ready, its metrics."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from dandolo.control.exposition import CONTENT_TYPE, OPENMETRICS_TYPE, wants_openmetrics
from dandolo.control.openapi import description
from dandolo.control.route import TEXT, Answer, Asked, Route, answer


def basic_routes(
    *,
    metrics_text: Callable[[], bytes | Awaitable[bytes]],
    openmetrics_text: Callable[[], bytes | Awaitable[bytes]] | None = None,
    ready: Callable[[], tuple[bool, str]],
    routes: Callable[[bytes], Any],
) -> list[Route]:
    """`metrics_text` gives the page of /metrics, `openmetrics_text` the same in OpenMetrics' form, `ready` whether
    requests are taken and if not why, `routes` what /admin/routes answers to a query string (anything that JSON can
    hold; it may raise GatewayError). All but `ready` may have to be waited for."""

    def readiness(_: Asked) -> Answer:
        well, reason = ready()
        if well:
            return answer({"status": "ready"})
        return answer({"status": "not ready", "reason": reason}, 503)

    async def metrics(asked: Asked) -> Answer:
        kind, source = CONTENT_TYPE, metrics_text
        if openmetrics_text is not None and wants_openmetrics(asked.accept):
            kind, source = OPENMETRICS_TYPE, openmetrics_text
        text = source()
        return Answer(200, kind, await text if isinstance(text, Awaitable) else text)

    async def table(asked: Asked) -> Answer:
        found = routes(asked.query)
        return answer(await found if isinstance(found, Awaitable) else found)

    asked_for = {
        "model": "a model: whom a call for it could go to, and by what score",
        "tokens_in": "tokens of such a call's prompt, 1000 if left out",
        "tokens_out": "tokens of its answer",
        "endpoint": "its endpoint, chat if left out",
    }
    return [
        Route(
            "GET", b"/metrics", metrics,
            "counters and histograms, for Prometheus", any_key=True,
        ),
        Route("GET", b"/healthz", lambda _: answer({"status": "ok"}), "whether the process lives", open=True),
        Route("GET", b"/readyz", readiness, "whether it takes requests", open=True),
        Route(
            "GET", b"/admin/routes", table,
            "accounts and models: limits, breakers, what was measured", parameters=asked_for,
        ),
    ]  # fmt: skip


def with_index(routes: Iterable[Route], page: Callable[[], Answer] | None = None) -> list[Route]:
    """`routes` with the two that tell of all of them: `GET /` and `GET /admin/openapi.json`. A browser that opens `/`
    gets `page`."""
    whole = list(routes)
    index = Route(
        "GET", b"/", lambda asked: page() if page is not None and b"text/html" in asked.accept else text,
        "what is here: a page for browsers, this list for others", open=True,
    )  # fmt: skip
    whole += [index, Route("GET", b"/admin/openapi.json", lambda _: told, "this interface, as OpenAPI 3.1")]
    told = answer(description(whole))
    text = Answer(200, TEXT, _listing(whole))
    return whole


def _listing(routes: Iterable[Route]) -> bytes:
    lines = []
    for route in sorted(routes, key=lambda one: (one.path.startswith(b"/admin/"), one.path, one.method)):
        many = route.path.endswith(b"/") and len(route.path) > 1
        path = route.path.decode("ascii") + ("{%s}" % route.rest if many else "")  # noqa: UP031
        lines.append(f"{route.method:<7}{path:<28} {route.summary}\n")
    return ("Dandolo, for operators:\n\n" + "".join(lines)).encode()
