"""What a worker tells the control process: records, how it is, how its probes went."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import msgspec

from dandolo.control.exposition import Gauge
from dandolo.control.process import resident_bytes
from dandolo.frames import Kind
from dandolo.gateway.worker import Worker
from dandolo.net.pipe import HELD_BYTES_MAX, Pipe
from dandolo.provision import BEAT_S, Beat
from dandolo.record import Record
from dandolo.text import Text, pack

if TYPE_CHECKING:
    from dandolo.cli.probing import ProbedAccount
    from dandolo.mind.probe import Prober
    from dandolo.mind.verdict import Verdict

BATCH_MAX = 256
"""Records that wait for the next beat; beyond, they do not wait."""
KEPT_BYTES_MAX = HELD_BYTES_MAX
"""Of records kept for a successor of the control process, some ten thousand; what comes beyond them is dropped."""

TEXTS_BYTES_MAX = 4 * 1024 * 1024
"""Of the texts of one beat."""
TEXTS_HELD_MAX = 1024 * 1024
"""Bytes that the other end has not taken yet: beyond, texts give way to records."""

_encode = msgspec.msgpack.Encoder().encode


class Reporting:
    """Records on their way out, and the state that goes with them. Without a `pipe` they are kept for whoever comes
    (`go_on`), as far as there is room; what a pipe does not take is dropped. Both are counted."""

    __slots__ = (
        "_beat_at", "_kept", "_kept_bytes", "_lag_s", "_pending", "_prober", "_texts", "_texts_bytes", "_wells",
        "dropped", "pipe", "probes", "texts_dropped",
    )  # fmt: skip

    def __init__(self) -> None:
        self.pipe: Pipe | None = None
        self.dropped = 0
        self._pending: list[Record] = []
        self._texts: list[Text] = []
        self._texts_bytes = 0
        self.texts_dropped = 0
        self._kept: list[tuple[int, bytes]] = []
        """Batches for a successor: how many records, and they."""
        self._kept_bytes = 0
        self._prober: Prober[ProbedAccount] | None = None
        self._wells: dict[str, bool] = {}
        """How the last probe of each account went."""
        self.probes: dict[str, dict[str, Any]] = {}
        """The same for people: `well`, and the `reason` if it was not."""
        self._beat_at = time.monotonic()
        self._lag_s = 0.0

    def take(self, record: Record) -> None:
        """Take a record; a full batch is sent at once."""
        pending = self._pending
        pending.append(record)
        if len(pending) >= BATCH_MAX:
            self.settle()

    def settle(self) -> None:
        """Send what is waiting: every beat, before anybody looks, and at the end."""
        pending = self._pending
        if not pending:
            return
        self._pending = []
        batch, pipe = _encode(pending), self.pipe
        if pipe is not None and pipe.send(Kind.RECORDS, batch, may_be_lost=True):
            return
        if (pipe is None or pipe.closing) and self._kept_bytes + len(batch) <= KEPT_BYTES_MAX:
            self._kept.append((len(pending), batch))
            self._kept_bytes += len(batch)
        else:
            self.dropped += len(pending)

    def take_text(self, text: Text) -> None:
        """Take what was asked and answered in a request, where that is kept; what is too much for a beat is dropped."""
        if self._texts_bytes + text.size > TEXTS_BYTES_MAX:
            self.texts_dropped += 1
            return
        self._texts.append(text)
        self._texts_bytes += text.size

    def settle_texts(self) -> None:
        """Send the texts that are waiting: every beat, unless so much is held that records might be lost for them."""
        texts = self._texts
        if not texts:
            return
        self._texts, self._texts_bytes = [], 0
        pipe = self.pipe
        if pipe is None or pipe.held_bytes > TEXTS_HELD_MAX or not pipe.send(Kind.TEXTS, pack(texts), may_be_lost=True):
            self.texts_dropped += len(texts)

    def go_on(self, pipe: Pipe) -> None:
        """Another one listens: tell it what was kept, and what follows."""
        kept, self._kept, self._kept_bytes = self._kept, [], 0
        self.pipe = pipe
        for count, batch in kept:
            if not pipe.send(Kind.RECORDS, batch, may_be_lost=True):
                self.dropped += count
        self.settle()

    @property
    def untold(self) -> int:
        """Records that are kept for nobody yet."""
        return sum(count for count, _ in self._kept)

    def report(self, worker: Worker) -> None:
        """Every BEAT_S: that we live, and how. Its own lateness is the loop's."""
        now = time.monotonic()
        self._lag_s, self._beat_at = max(0.0, now - self._beat_at - BEAT_S), now
        if self.pipe is None:
            return
        ready, reason = worker.gateway.ready()
        in_flight = worker.gateway.admission.in_flight
        beat = Beat(ready, reason, in_flight, worker.census.count, self._lag_s, self.dropped)
        self.pipe.send(Kind.BEAT, _encode(beat), may_be_lost=True)

    def gauges(self, slot: int) -> Iterator[Gauge]:
        """The process's own, by its slot, and the probes'."""
        mine = (("worker", str(slot)),)
        yield Gauge("dandolo_records_dropped_total", self.dropped)
        if self.texts_dropped:
            yield Gauge("dandolo_prompt_log_dropped_total", self.texts_dropped)
        yield Gauge("dandolo_worker_cpu_seconds_total", time.process_time(), mine)
        yield Gauge("dandolo_worker_resident_memory_bytes", resident_bytes(), mine)
        yield Gauge("dandolo_worker_page_faults_total", resource.getrusage(resource.RUSAGE_SELF).ru_majflt, mine)
        yield Gauge("dandolo_worker_loop_lag_seconds", self._lag_s, mine)
        yield from (Gauge("dandolo_probe_well", well, (("account", label),)) for label, well in self._wells.items())

    async def probe(self, worker: Worker, workers: int) -> None:
        """Probe the accounts of the worker's plane from now on, and no others. `workers` share the asking."""
        # Not needed for the first answer, so not loaded before it.
        from dandolo.cli.probing import prober

        while (before := self._prober) is not None:
            self._prober = None
            await before.close()
        plane = worker.gateway.plane
        labels = {runtime.account.label for runtime in plane.fleet}
        self._wells = {label: well for label, well in self._wells.items() if label in labels}
        self.probes = {label: probe for label, probe in self.probes.items() if label in labels}
        self._prober = prober(plane, worker.gateway.dialer, self._probed, workers)
        await self._prober.run()

    def _probed(self, account: ProbedAccount, verdict: Verdict) -> None:
        self._wells[account.label] = verdict.well
        self.probes[account.label] = {"well": verdict.well, "reason": verdict.reason}
