"""A snapshot as lines of text: the dashboard for a terminal. Names from outside are shown, never obeyed."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any

from dandolo.values import fit

ROWS_MAX = 24
LATEST_MAX = 5
_BLOCKS = " ▁▂▃▄▅▆▇█"
_RED, _GREEN, _YELLOW, _BOLD, _DIM = 31, 32, 33, 1, 2
_STATES = {"closed": _GREEN, "half-open": _YELLOW, "open": _RED, "probe fails": _YELLOW}


def screen(snapshot: dict[str, Any], columns: int, coloured: bool) -> list[str]:
    """The lines of one screen, none wider than `columns` (escape sequences not counted)."""
    paint = Paint(coloured)
    lines = [
        *_head(snapshot, columns, paint),
        *_table("PROVIDERS", _PROVIDERS, _providers(snapshot, paint), columns, paint),
        *_table("KEYS", _KEYS, _keys(snapshot), columns, paint),
        *_table("CACHE", _CACHE, _cache(snapshot), columns, paint),
        *_table("WORKERS", _WORKERS, _workers(snapshot), columns, paint),
        *_table("LAST ERRORS", _ERRORS, _errors(snapshot), columns, paint),
    ]
    if kept := snapshot.get("prompt_log"):
        text = f"PROMPTS ARE KEPT: {kept['texts']}, {kept['bytes'] / 1048576:.1f} MiB (prompt_log.enabled)"
        lines.insert(1, paint(_cut(text, columns), _YELLOW))
    for alert in snapshot.get("alerts") or ():
        lines.insert(
            1, paint(_cut(f"ALERT {fit(str(alert.get('name')))}: {fit(str(alert.get('text')))}", columns), _RED)
        )
    events = (snapshot.get("events") or [])[:LATEST_MAX]
    if events:
        lines += ["", paint("EVENTS", _BOLD)]
        lines += [_cut(f"{clock(one['time'])}  {fit(one['kind']):<8} {fit(one['text'])}", columns) for one in events]
    return lines


class Painted(str):
    """A text of ours with a colour around it: what came from outside never is one, whatever it holds."""

    __slots__ = ()


class Paint:
    """Colours, where there are any."""

    def __init__(self, coloured: bool) -> None:
        self._coloured = coloured

    def __call__(self, text: str, colour: int) -> str:
        return Painted(f"\x1b[{colour}m{fit(text)}\x1b[0m") if self._coloured and text else text


# -- the figures -------------------------------------------------------------------------------------------------


def _head(snapshot: dict[str, Any], columns: int, paint: Paint) -> Iterable[str]:
    traffic, latency, saved, load = snapshot["traffic"], snapshot["latency"], snapshot["saved"], snapshot["load"]
    up = span(snapshot["now"] - snapshot["started"])
    yield paint(_cut(f"dandolo {snapshot['version']}   up {up}   {clock(snapshot['now'])}", columns), _BOLD)
    yield from _flowed(
        [
            f"requests {number(traffic['per_s'])}/s",
            f"tokens {number(traffic['tokens_per_s'])}/s",
            *([f"under way {load['in_flight']} ({load['streams']} streams)"] if load else []),
            f"errors {share(traffic['error_rate'])}",
            f"cache hits {share(saved['hit_rate'])}",
            f"${traffic['usd_per_h']:.4g}/h, saves ${saved['usd_per_h']:.4g}/h",
        ],
        columns,
    )
    parts = [
        f"{name} {millis(values['p50'])} / {millis(values['p95'])} / {millis(values['p99'])}"
        for name, values in (
            ("latency", latency["duration_ms"]),
            ("first token", latency["first_token_ms"]),
            ("gateway itself", latency["overhead_ms"]),
        )
    ]
    yield from _flowed(["p50 / p95 / p99", *parts], columns)
    if load and load.get("queue"):
        yield _cut("waiting  " + "   ".join(f"{name} {count}" for name, count in load["queue"].items()), columns)
    yield ""
    requests = traffic["seconds"]["requests"]
    wide = min(len(requests), columns - 14)
    yield f"requests/s  {sparkline(requests[-wide:])}"


def _flowed(parts: Iterable[str], columns: int) -> Iterable[str]:
    """Parts side by side, on as many lines as it takes to cut none that fits one."""
    line = ""
    for part in parts:
        if line and len(line) + 3 + len(part) > columns:
            yield _cut(line, columns)
            line = f"  {part}"
        else:
            line = f"{line}   {part}" if line else part
    yield _cut(line, columns)


_PROVIDERS = ("account", "model", "state", "slots", "waiting", "a minute", "errors", "first token", "tokens/s", "why")


def _providers(snapshot: dict[str, Any], paint: Paint) -> Iterable[Sequence[str]]:
    for account in snapshot["providers"] or ():
        minute = snapshot["by_account"].get(account["account"], {}).get("requests", 0)
        slots, probe = account["slots"], account.get("probe") or {"well": True}
        for model in account["models"] or [{}]:
            state = model.get("breaker", "idle")
            if not probe["well"] and state != "open":
                state = "probe fails"
            reason = model.get("reason") or account.get("reason") or probe.get("reason") or ""
            yield (
                account["account"], model.get("model", ""), paint(state, _STATES.get(state, _DIM)),
                f"{slots['in_use']}/{slots['limit']}", str(slots["waiting"]), number(minute),
                share(model.get("error_rate")), millis(model.get("first_token_ms")), number(model.get("tokens_per_s")),
                reason,
            )  # fmt: skip


_KEYS = ("key", "priority", "under way", "a minute", "tokens", "spent", "budget, day", "budget, month")


def _keys(snapshot: dict[str, Any]) -> Iterable[Sequence[str]]:
    for key in snapshot["keys"] or ():
        sums = snapshot["by_key"].get(key["name"], {})
        yield (
            key["name"] or "(open)", key.get("priority", ""), _used(key.get("concurrent")),
            number(sums.get("requests", 0)), number(sums.get("input_tokens", 0) + sums.get("output_tokens", 0)),
            f"${sums.get('usd', 0):.4g}", _used(key.get("day_usd")), _used(key.get("month_usd")),
        )  # fmt: skip


def _used(one: dict[str, Any] | None) -> str:
    if not one:
        return "–"
    return f"{number(one['used'])}/{number(one['limit'])}" if one.get("limit") is not None else number(one["used"])


_CACHE = ("tier", "hits", "misses", "entries", "MiB")


def _cache(snapshot: dict[str, Any]) -> Iterable[Sequence[str]]:
    for tier in snapshot["cache"] or ():
        counts = (number(tier.get(name)) for name in ("hits", "misses", "entries"))
        yield (tier["tier"], *counts, f"{(tier.get('bytes') or 0) / 2**20:.1f}")


_WORKERS = ("worker", "pid", "cpu", "MiB", "lag", "connections")


def _workers(snapshot: dict[str, Any]) -> Iterable[Sequence[str]]:
    for worker in snapshot["workers"] or ():
        yield (
            str(worker.get("name")), str(worker.get("pid")), share(worker.get("cpu")),
            f"{(worker.get('rss_bytes') or 0) / 2**20:.1f}", millis(worker.get("lag_ms")),
            number(worker.get("connections")),
        )  # fmt: skip


_ERRORS = ("time", "status", "code", "model", "account", "request")


def _errors(snapshot: dict[str, Any]) -> Iterable[Sequence[str]]:
    for one in (snapshot["errors"] or ())[:LATEST_MAX]:
        yield one["time"][11:19], str(one["status"]), one["code"], one["model"], one["account"] or "–", one["id"]


# -- text --------------------------------------------------------------------------------------------------------


def _table(
    title: str, names: Sequence[str], rows: Iterable[Sequence[str]], columns: int, paint: Paint
) -> Iterable[str]:
    shown = [[cell if isinstance(cell, Painted) else fit(cell) for cell in row] for row in rows]
    if not shown:
        return
    more = len(shown) - ROWS_MAX
    shown = shown[:ROWS_MAX]
    widths = [max(len(name), *(_length(row[i]) for row in shown)) for i, name in enumerate(names)]
    yield ""
    yield paint(title, _BOLD)
    yield paint(_cut(_joined(names, widths), columns), _DIM)
    for row in shown:
        yield _cut(_joined(row, widths), columns)
    if more > 0:
        yield f"… and {more} more"


def _joined(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(cell + " " * (width - _length(cell)) for cell, width in zip(cells, widths, strict=True)).rstrip()


def _length(cell: str) -> int:
    return len(cell) if not isinstance(cell, Painted) else len(cell[cell.index("m") + 1 : -4])


def _cut(line: str, columns: int) -> str:
    """At most so many characters, of which those of escape sequences are not counted."""
    if len(line) <= columns:
        return line
    kept, count, index = [], 0, 0
    while index < len(line) and count < columns:
        if line[index] == "\x1b":
            end = line.index("m", index) + 1
            kept.append(line[index:end])
            index = end
            continue
        kept.append(line[index])
        count += 1
        index += 1
    reset = "\x1b[0m" if "\x1b" in line else ""
    return "".join(kept) + reset


def sparkline(values: Sequence[float]) -> str:
    """One character a value, as high as it is against the highest."""
    most = max(values, default=0)
    return "".join(_BLOCKS[0 if value <= 0 else max(1, round(value / most * 8))] for value in values)


def number(value: float | None) -> str:
    if value is None:
        return "–"
    for bound, suffix in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= bound:
            return f"{value / (1e3 if suffix == 'k' else bound):.1f}{suffix}"
    return f"{value:.4g}"


def millis(value: float | None) -> str:
    if value is None:
        return "–"
    if value >= 1000:
        return f"{value / 1000:.2f} s"
    return f"{value:.0f} ms" if value >= 10 else f"{value:.2f} ms"


def share(value: float | None) -> str:
    return "–" if value is None else f"{value * 100:.3g} %"


def span(seconds: float) -> str:
    for unit, name in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * unit:
            return f"{int(seconds // unit)} {name}"
    return f"{max(0, int(seconds))} s"


def clock(unix: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(unix))
