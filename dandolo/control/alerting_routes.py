"""What the admin listener tells of alerts. Apart from them, so that a listener that opens early need not load them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, Protocol
from urllib.parse import parse_qsl

from dandolo.control.route import Answer, Asked, Route, answer
from dandolo.errors import Refusal, RequestError
from dandolo.values import fit

STATES: Final = ("ok", "pending", "firing", "silenced")


class Alerting(Protocol):
    """What is needed of `alerting.Alerting`."""

    def state(self, wanted: str | None = None) -> Mapping[str, object]:
        """Everything that is known."""


def alerting_routes(find: Callable[[], Alerting | None]) -> list[Route]:
    """`find` gives the alerts, None as long as they have not begun."""

    def show(asked: Asked) -> Answer:
        wanted = _wanted(asked.query)
        alerting = find()
        if alerting is None:
            raise Refusal("alerts begin a second after the start: ask again", retry_after_s=1.0)
        return answer(alerting.state(wanted))

    return [
        Route(
            "GET",
            b"/admin/alerts",
            show,
            "alerts: how each stands, what was told lately, and whom",
            parameters={"state": f"only alerts in this state: {', '.join(STATES)}"},
        )
    ]


def _wanted(query: bytes) -> str | None:
    """The state that is asked for, None for all. Raises RequestError."""
    try:
        pairs = parse_qsl(query.decode("ascii"), keep_blank_values=True, max_num_fields=1)
    except ValueError:
        raise RequestError("observed a query that cannot be read, expected state=… or nothing") from None
    for name, value in pairs:
        if name != "state" or value not in STATES:
            raise RequestError(
                f"observed {fit(name)}={fit(value)}, expected state={' | '.join(STATES)}", param=fit(name)
            )
        return value
    return None
