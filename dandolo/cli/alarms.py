"""Alerts put together: the rules, what they want to know of the gateway beside records, and who is told."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable

from dandolo.config import Config
from dandolo.config.alerts import Alerts as Settings
from dandolo.control.alerting import Alerting
from dandolo.control.courier import Courier
from dandolo.control.exposition import Gauge
from dandolo.mind.alert import Alerts, Facts, Thresholds
from dandolo.net.dial import Dialer

OPEN = 2
"""A breaker's state, as its gauge has it."""


def thresholds(settings: Settings) -> Thresholds:
    """The rules' numbers from the configuration."""
    return Thresholds(
        settings.p95,
        settings.p95_images,
        settings.error_rate,
        settings.success_target,
        settings.budget_share,
        settings.window,
        settings.samples_min,
        settings.hold,
        settings.recover,
    )


def facts(processes: Iterable[Iterable[Gauge]]) -> Facts:
    """What the state of the gateway tells: the gauges of each of its processes, apart.

    All providers are open when they are in every worker. An account that no call went to yet has no breaker, and can
    be asked. A tier is down when any worker cannot use it.
    """
    open_: list[bool] = []
    tiers: dict[str, bool] = {}
    budgets: dict[str, float] = {}
    trouble = ""
    for gauges in processes:
        states: dict[str, list[float]] = {}
        for name, value, labels in gauges:
            if name == "dandolo_slots_limit":
                states.setdefault(labels[0][1], [])
            elif name == "dandolo_breaker_state":
                states.setdefault(labels[0][1], []).append(value)
            elif name in ("dandolo_cache_tier_up", "dandolo_cache_tier_breaker_open"):
                tier = dict(labels).get("tier", "")
                tiers[tier] = tiers.get(tier, False) or bool(value) == name.endswith("open")
            elif name == "dandolo_budget_used_share":
                label = dict(labels)
                budget = f"{label.get('key', '')}/{label.get('period', '')}"
                budgets[budget] = max(value, budgets.get(budget, 0.0))
            elif name == "dandolo_ledger_up" and not value:
                trouble = "it cannot be written"
            elif name == "dandolo_journal_up" and not value:
                trouble = trouble or "a worker has no journal: keys with a budget are refused, other calls not counted"
        if states:
            open_.append(all(known and min(known) >= OPEN for known in states.values()))
    return Facts(
        bool(open_) and all(open_),
        tuple(tier for tier, down in tiers.items() if down),
        budgets,
        trouble,
    )


class Alarms:
    """The alerts of one process. Call `tick` of `alerting` once a second, `close` at the end."""

    def __init__(self, config: Config, processes: Callable[[], Iterable[Iterable[Gauge]]], dialer: Dialer) -> None:
        self._dialer = dialer
        self._judge = Alerts(thresholds(config.alerts))
        self._retired: list[Courier] = []
        self.alerting: Alerting[Facts] = Alerting(self._judge, lambda: facts(processes()))
        self.adopt(config)

    def adopt(self, config: Config) -> None:
        """Go on with another configuration: incidents go on, and what waits for old sinks is still tried.

        Raises OSError or ssl.SSLError for a `ca` that is none, and changes nothing then.
        """
        before = self.alerting.configure(config.alerts, instance(config), self._dialer)
        self._judge.adopt(thresholds(config.alerts))
        self._retired = [one for one in (*self._retired, *before) if one.waiting]

    async def close(self) -> None:
        """Let go of everything that waits."""
        for courier in self._retired:
            await courier.close()
        await self.alerting.close()


def instance(config: Config) -> str:
    """How this gateway calls itself in a notice: the host's name, and the region where one is set."""
    name = socket.gethostname()
    return f"{name} ({config.server.region})" if config.server.region else name
