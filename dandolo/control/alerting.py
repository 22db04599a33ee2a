"""Alerts as the control process keeps them: records in, notices out to the sinks, the state on the admin listener.

What is an alert is decided elsewhere (`Judge`); here it is told, remembered and counted. A sink that is slow or away
delays neither the others nor the judging.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final, Generic, Protocol, TypeVar

from dandolo.config.alerts import Alerts as Settings
from dandolo.control.alerting_command import CommandSink
from dandolo.control.alerting_webhook import WebhookSink
from dandolo.control.courier import Courier
from dandolo.control.exposition import Gauge
from dandolo.net.dial import Dialer
from dandolo.notice import Notice, Standing
from dandolo.record import Record

RECENT_MAX: Final = 100
"""Notices that are shown after they were sent."""

F = TypeVar("F", contravariant=True)
G = TypeVar("G")
_log = logging.getLogger("dandolo")


class Judge(Protocol[F]):
    """What decides (`mind.alert.Alerts`)."""

    def take(self, records: Sequence[Record]) -> None:
        """Count finished requests."""

    def tick(self, facts: F, now: float) -> list[Notice]:
        """What is to be told at `now` (Unix seconds)."""

    def standings(self) -> list[Standing]:
        """Every alert's state."""

    def burn_rates(self) -> dict[str, float]:
        """By window."""


class Alerting(Generic[G]):
    """A sink of records: `take` them as they come, `tick` once a second, `close` at the end.

    `facts` gives what the judge wants to know beside records. `configure` says who is told; until then nobody is.
    """

    def __init__(self, judge: Judge[G], facts: Callable[[], G]) -> None:
        self._judge = judge
        self._facts = facts
        self._log = False
        self._couriers: list[Courier] = []
        self._recent: deque[Notice] = deque(maxlen=RECENT_MAX)
        self._told = 0
        self.on_notice: list[Callable[[Notice], None]] = []
        """Who hears of each notice at once, beside the sinks."""

    def configure(self, settings: Settings, instance: str, dialer: Dialer) -> list[Courier]:
        """Tell the sinks of `settings` from now on; `instance` is how this gateway calls itself.

        Returns the couriers of before: the caller closes them, or lets them end their work. Raises OSError or
        ssl.SSLError for what cannot be put to use, and changes nothing then.
        """
        couriers = [
            Courier(f"webhook {one.shown}", WebhookSink(one, instance, dialer).deliver) for one in settings.webhooks
        ]
        couriers += [
            Courier(f"command {one.argv[0]}", CommandSink(one, instance).deliver, attempts_max=2)
            for one in settings.commands
        ]
        before, self._couriers = self._couriers, couriers
        self._log = settings.log
        return before

    def take(self, records: Sequence[Record], now: float) -> None:
        """Count finished requests."""
        self._judge.take(records)

    def tick(self, now: float) -> None:
        """Judge, and send what is to be told."""
        for notice in self._judge.tick(self._facts(), now):
            self._told += 1
            self._recent.append(notice)
            if self._log:
                _log.log(
                    logging.WARNING if notice.state == "firing" else logging.INFO,
                    "alert %s %s%s: %s",
                    notice.state,
                    notice.alert,
                    f" ({notice.subject})" if notice.subject else "",
                    notice.message,
                )
            for courier in self._couriers:
                courier.send(notice)
            for hear in self.on_notice:
                hear(notice)

    async def close(self) -> None:
        """Let go of every sink."""
        for courier in self._couriers:
            await courier.close()

    # -- what operators see ----------------------------------------------------------------------------

    def state(self, wanted: str | None = None) -> Mapping[str, object]:
        """Everything that is known, newest notices first; of the alerts only those in the state `wanted`."""
        return {
            "alerts": [one for one in self._judge.standings() if wanted in (None, one.state)],
            "burn_rates": self._judge.burn_rates(),
            "recent": list(reversed(self._recent)),
            "sinks": [
                {
                    "name": one.name,
                    "delivered": one.delivered,
                    "failed": one.failed,
                    "dropped": one.dropped,
                    "waiting": one.waiting,
                }
                for one in self._couriers
            ],
        }

    def gauges(self) -> Iterator[Gauge]:
        """For /metrics."""
        firing: dict[str, int] = {}
        for one in self._judge.standings():
            firing[one.alert] = firing.get(one.alert, 0) + (one.state == "firing")
        for alert, count in firing.items():
            yield Gauge("dandolo_alert_firing", count, (("alert", alert),))
        yield Gauge("dandolo_alert_notices_total", self._told)
        for window, rate in self._judge.burn_rates().items():
            yield Gauge("dandolo_error_budget_burn_rate", rate, (("window", window),))
        for what, count in (
            ("delivered", sum(one.delivered for one in self._couriers)),
            ("failed", sum(one.failed for one in self._couriers)),
            ("dropped", sum(one.dropped for one in self._couriers)),
        ):
            yield Gauge("dandolo_alert_deliveries_total", count, (("outcome", what),))
