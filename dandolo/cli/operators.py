"""What the control process tells operators: metrics of all workers, whether they are ready, what they measured."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs

from dandolo.control.basic import basic_routes
from dandolo.control.child import samples
from dandolo.control.exposition import Gauge
from dandolo.control.gauges import Gauges
from dandolo.control.metrics import Metrics
from dandolo.control.purging import PURGE_S, purge_routes
from dandolo.control.route import Answer, Asked, Route, answer
from dandolo.control.workers import Workers
from dandolo.errors import Refusal, RequestError

ANSWER_S = 1.0
"""How long workers may take to tell their gauges: a page of metrics without one of them is better than none."""


class Operators:
    """The routes of the control process itself. `own` gives its gauges; `reload` begins one, which tells what speaks
    against the configuration, `changed` which keys the last one changed, `restart` begins to replace the workers,
    `upgrade` this process (and says why it cannot)."""

    def __init__(
        self,
        workers: Workers,
        metrics: Metrics,
        gauges: Gauges,
        own: Callable[[], list[Gauge]],
        reload: Callable[[], asyncio.Task[list[str]]],
        changed: Callable[[], list[str]],
        restart: Callable[[], None],
        upgrade: Callable[[], str],
    ) -> None:
        self.draining = False
        self._workers = workers
        self._metrics = metrics
        self._gauges = gauges
        self._own = own
        self._reload = reload
        self._changed = changed
        self._restart = restart
        self._upgrade = upgrade

    def routes(self) -> list[Route]:
        """What is offered."""
        return [
            *basic_routes(
                metrics_text=self._metrics_text,
                openmetrics_text=lambda: self._metrics_text(openmetrics=True),
                ready=self._ready,
                routes=self._routes,
            ),
            Route(
                "POST", b"/admin/reload", self._reload_asked, "read the configuration again, as SIGHUP does",
                deadline_s=60.0,
            ),
            *purge_routes(self._purge),
            Route("POST", b"/admin/restart", self._restart_asked, "replace all workers, one after the other"),
            Route(
                "POST", b"/admin/upgrade", self._upgrade_asked,
                "have the program that stands there now take over from this process",
            ),
        ]  # fmt: skip

    def _ready(self) -> tuple[bool, str]:
        if self.draining:
            return False, "draining"
        reason = "no worker is ready"
        for child in self._workers.serving:
            if child.beat is None or child.beat.ready:
                return True, ""
            reason = child.beat.reason
        return False, reason

    async def refresh(self) -> None:
        """Have the workers tell their gauges now; who does not keeps what it told last."""
        children = {(child.slot, child.generation): child for child in self._workers.serving}
        for reply in await self._workers.ask_all("gauges", None, ANSWER_S):
            child = children.get((reply.slot, reply.generation))
            if reply.well and child is not None and not child.over.done():
                self._gauges.report(child.pid, samples(reply.value))

    async def _metrics_text(self, *, openmetrics: bool = False) -> bytes:
        await self.refresh()
        return self._metrics.text((*self._gauges.together(), *self._own()), openmetrics=openmetrics)

    async def _routes(self, query: bytes) -> Any:
        """Each worker measures for itself: one of them is asked, the first or the one that `worker` names."""
        given = parse_qs(query.decode("latin-1")).get("worker", [""])[0]
        children = self._workers.serving
        if given:
            known = ", ".join(str(child.slot) for child in children)
            children = [child for child in children if str(child.slot) == given]
            if not children:
                raise RequestError(f"there is no worker of this number: expected one of {known}", param="worker")
        if not children:
            raise Refusal("no worker serves at this moment", retry_after_s=1.0)
        return await children[0].ask("routes", query, ANSWER_S)

    async def _purge(self, kind: str, name: str, soft: bool) -> dict[str, Any]:
        """In every worker, those too that only finish what they have begun."""
        found, failed = False, dict[str, None]()
        for reply in await self._workers.ask_everyone("purge", [kind, name, soft], PURGE_S):
            if reply.well:
                found = found or reply.value["found"]
                failed.update(dict.fromkeys(reply.value["failed"]))
            else:
                failed[f"worker {reply.slot} was not reached: it may still give what was purged"] = None
        return {"found": found, "failed": list(failed)}

    async def _reload_asked(self, asked: Asked) -> Answer:
        # Whoever asked may leave: half a reload would leave workers and this process with different keys.
        reasons = await asyncio.shield(self._reload())
        if reasons:
            raise RequestError("reload refused: " + "; ".join(reasons[:8]), status=422, code="configuration_refused")
        serving = len(self._workers.serving)
        return answer({"status": "reloaded", "changed": self._changed(), "workers": serving})

    def _restart_asked(self, asked: Asked) -> Answer:
        self._restart()
        return answer({"status": "workers are being replaced", "workers": len(self._workers.slots)}, 202)

    def _upgrade_asked(self, asked: Asked) -> Answer:
        if reason := self._upgrade():
            raise RequestError(f"no upgrade: {reason}", status=409, code="no_upgrade")
        return answer({"status": "a new process comes up to take over"}, 202)
