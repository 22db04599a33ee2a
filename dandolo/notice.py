"""What an operator is told: that something began to go wrong, and that it is over.

A notice is made by whoever judges (`mind.alert`) and carried by whoever delivers (`control.alerting`); neither knows
the other. It holds facts and one sentence, never a prompt, a key or an address with a password.
"""

from __future__ import annotations

from typing import Literal

import msgspec

State = Literal["firing", "recovered"]
Severity = Literal["page", "ticket"]
"""page: somebody should look now; ticket: within a day."""


class Notice(msgspec.Struct, frozen=True):
    """One incident's beginning or end.

    `id` is the incident's: both of its notices carry it. `subject` is what the alert is about where there may be
    several (a tier, a budget), else "". `at` is when it was noticed and `since` when the condition began (Unix
    seconds). `value` and `threshold` are in `unit`; None where there is nothing to measure.
    """

    id: str
    alert: str
    subject: str
    state: State
    severity: Severity
    at: float
    since: float
    value: float | None
    threshold: float | None
    unit: str
    message: str


class Standing(msgspec.Struct, frozen=True):
    """How one alert stands now: `state` is "ok", "pending" (not long enough yet), "firing" or "silenced" (true, but
    another alert says it already). `since` is when that state's condition began (Unix seconds), None when ok."""

    alert: str
    subject: str
    state: Literal["ok", "pending", "firing", "silenced"]
    severity: Severity
    since: float | None
    value: float | None
    threshold: float | None
    unit: str
    message: str
