"""What workers of a control process that has gone still tell: to the one that came after it.

With the word that it serves, a successor hands each of them one end of a new pipe. What they have kept since theirs
broke comes through it, then the records and texts of what they finish, and at the end their gauges. Bounded: one pipe
for each predecessor, and each keeps no more than `cli.reporting` says.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import msgspec

from dandolo.control.child import Sample, samples
from dandolo.control.gauges import Gauges
from dandolo.frames import FrameError, Kind
from dandolo.net.pair import pair
from dandolo.net.pipe import Pipe
from dandolo.net.succession import Predecessor
from dandolo.net.tasks import Tasks
from dandolo.record import Record
from dandolo.text import Text, unpack

_records = msgspec.msgpack.Decoder(list[Record])
_any = msgspec.msgpack.Decoder()
_log = logging.getLogger("dandolo")


class Afterwards:
    """Hears predecessors out. `take` is given their records, `take_texts` what was asked and answered, `gauges` what
    they counted."""

    def __init__(
        self,
        take: Callable[[list[Record]], None],
        take_texts: Callable[[list[Text]], None],
        gauges: Gauges,
        tasks: Tasks,
    ) -> None:
        self._take, self._take_texts, self._gauges, self._tasks = take, take_texts, gauges, tasks
        self._pipes: set[Pipe] = set()

    def hear(self, one: Predecessor) -> None:
        """Tell a predecessor that we serve, and take in what it says until it has ended."""
        ours, theirs = pair()
        pid = one.pid
        one.serving(theirs)
        theirs.close()

        async def attend() -> None:
            try:
                pipe = await Pipe.over(ours, lambda kind, payload: self._frame(pid, kind, payload), lambda: over(pipe))
            except OSError:
                ours.close()
                return
            if not pipe.lost:
                self._pipes.add(pipe)

        def over(pipe: Pipe) -> None:
            self._pipes.discard(pipe)
            self._gauges.gone(pid)

        self._tasks.spawn(attend(), "afterwards")

    def close(self) -> None:
        """Listen no more."""
        for pipe in list(self._pipes):
            pipe.abort()

    def _frame(self, pid: int, kind: Kind, payload: memoryview) -> None:
        try:
            if kind is Kind.RECORDS:
                self._take(_records.decode(payload))
            elif kind is Kind.TEXTS:
                self._take_texts(unpack(payload))
            elif kind is Kind.LAST:
                last: list[Sample] = samples(_any.decode(payload))
                self._gauges.report(pid, last)
        except (msgspec.MsgspecError, TypeError, ValueError) as error:
            raise FrameError(f"a frame of kind {kind.name} cannot be read: {error}") from None
