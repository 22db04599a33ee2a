"""What other parts tell about keys, alerts and objectives, in the form that the snapshot has for it.

Each takes what that part's own admin route answers, so that the page and the route cannot disagree. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

_USED: Final = (
    # name here, what may be used, what is used
    ("rpm", "rpm", "requests_per_minute"),
    ("tpm", "tpm", "tokens_per_minute"),
    ("concurrent", "concurrent", "in_flight"),
    ("day_usd", "budget_usd_per_day", "spent_usd_day"),
    ("month_usd", "budget_usd_per_month", "spent_usd_month"),
)


def keys(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows of /admin/keys (`name`, `priority`, limits, `usage`) as name, priority, and used and limit of each limit.

    A key that was revoked is not shown, one whose name another has taken says so in its name.
    """
    shown = []
    for row in rows:
        status = row.get("status", "valid")
        if status == "revoked":
            continue
        one: dict[str, Any] = {
            "name": row["name"] if status == "valid" else f"{row['name']} ({status})",
            "priority": row.get("priority", "normal"),
        }
        usage = row.get("usage") or {}
        for name, limit, used in _USED:
            if row.get(limit) is not None or usage.get(used):
                one[name] = {"used": usage.get(used) or 0, "limit": row.get(limit)}
        shown.append(one)
    return shown


def alerts(standings: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Of all alerts as they stand (`alert`, `subject`, `state`, `severity`, `since`, `message`) those that fire."""
    return [
        {
            "name": f"{one['alert']} {one['subject']}".rstrip(),
            "text": one["message"],
            "severity": one["severity"],
            "since": one["since"],
        }
        for one in standings
        if one["state"] == "firing"
    ]


def objectives(state: Mapping[str, Any], window: str = "30d") -> list[dict[str, Any]]:
    """Rows of /admin/slo, flat: one for each target that was measured in the window."""
    rows = []
    for objective in state["objectives"]:
        for target in objective["targets"]:
            judged = target["windows"].get(window)
            if judged is not None and judged["requests"]:
                rows.append(
                    {
                        "objective": objective["name"],
                        "target": target["target"],
                        "wanted": target["wanted"],
                        "observed": judged["observed"],
                        "budget_left": judged["budget_remaining"],
                        "requests": judged["requests"],
                        "met": "yes" if judged["met"] else "no",
                    }
                )
    return rows
