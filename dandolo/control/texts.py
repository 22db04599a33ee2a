"""The texts of requests that an operator keeps, in memory: the oldest goes first, by bytes and by age.

They are nowhere else: no file, no log, no metric, no trace and no backup holds any, and they are gone with the
process. Each reading of one is written into the audit log.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from dandolo.clock import timestamp
from dandolo.config.operators import PromptLog
from dandolo.control.exposition import Gauge
from dandolo.control.route import Answer, Asked, Route, answer
from dandolo.errors import RequestError
from dandolo.text import Text

PATH: Final = "/admin/texts/"
_ID = re.compile(r"req_[0-9a-f]{22}")


class Texts:
    """The texts of one control process."""

    def __init__(self, settings: PromptLog) -> None:
        self._settings = settings
        self._kept: dict[str, Text] = {}
        self._bytes = 0
        self.forgotten = 0
        """How many had to make room for others."""

    def adopt(self, settings: PromptLog) -> None:
        """Keep by other bounds from now on; off: forget everything at once."""
        self._settings = settings
        if not settings.enabled:
            self._kept.clear()
            self._bytes = 0
        self._shrink()

    def take(self, texts: Iterable[Text]) -> None:
        """Keep texts, as far as there is room."""
        if not self._settings.enabled:
            return  # what was on its way when it ended
        for text in texts:
            self._drop(text.id)
            self._kept[text.id] = text
            self._bytes += text.size
        self._shrink()

    def tick(self, now: float) -> None:
        """Forget what is too old (Unix seconds)."""
        until = now - self._settings.retention
        # In the order they came, which is that of their age but for a beat.
        while self._kept and (oldest := next(iter(self._kept.values()))).time <= until:
            self._drop(oldest.id)

    def path_of(self, name: str) -> str | None:
        """Where the text of a request is to be read, None when there is none."""
        return PATH + name if name in self._kept else None

    def state(self) -> dict[str, int] | None:
        """For people: how many are kept and in how many bytes; None where none are."""
        if not self._settings.enabled:
            return None
        return {"texts": len(self._kept), "bytes": self._bytes, "bytes_max": self._settings.bytes_max}

    def gauges(self) -> Iterator[Gauge]:
        """Samples for /metrics, where it is on."""
        if self._settings.enabled:
            yield Gauge("dandolo_prompt_log_texts", len(self._kept))
            yield Gauge("dandolo_prompt_log_bytes", self._bytes)
            yield Gauge("dandolo_prompt_log_forgotten_total", self.forgotten)

    def routes(self) -> list[Route]:
        """Reading one."""
        return [
            Route(
                "GET",
                PATH.encode(),
                self._show,
                "what was asked and answered, where prompt_log.enabled keeps it; written into the audit log",
                audited=True,
            )
        ]

    def _show(self, asked: Asked) -> Answer:
        name = asked.rest.decode("ascii", "replace")
        if _ID.fullmatch(name) is None:
            raise RequestError("expected the id of a request, as its x-request-id header says: req_ and 22 digits")
        if not self._settings.enabled:
            raise RequestError(
                "no texts are kept here: prompt_log.enabled is off in the configuration", status=404, code="not_kept"
            )
        text = self._kept.get(name)
        if text is None:
            raise RequestError(
                "no text of such a request is kept (any more): privacy mode, Cache-Control: no-store and uploads are"
                " left out, and the oldest make room for others",
                status=404,
                code="not_found",
            )
        return answer(_shown(text))

    def _shrink(self) -> None:
        while self._bytes > self._settings.bytes_max:
            self._drop(next(iter(self._kept)))
            self.forgotten += 1

    def _drop(self, name: str) -> None:
        text = self._kept.pop(name, None)
        if text is not None:
            self._bytes -= text.size


def _shown(text: Text) -> Mapping[str, Any]:
    return {
        "id": text.id,
        "time": timestamp(text.time),
        "key": text.key,
        "endpoint": text.endpoint,
        "status": text.status,
        "asked": text.asked.decode("utf-8", "replace"),
        "asked_bytes": text.asked_bytes,
        "asked_cut": text.asked_bytes > len(text.asked),
        "content_type": text.kind,
        "answered": text.answered.decode("utf-8", "replace"),
        "answered_bytes": text.answered_bytes,
        "answered_cut": text.answered_bytes > len(text.answered),
        "complete": text.whole,
    }
