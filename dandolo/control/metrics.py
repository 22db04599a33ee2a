"""What Prometheus is told: counts and histograms over records, and gauges that others bring.

Records are counted by groups that agree in their names (`dandolo.tally`): what depends on names is looked up by one
key, and what it finds are the very cells to be counted in. Cardinality is bounded here and nowhere
else: model names are learnt only from answers, so that no caller can mint labels, and beyond `series_max`
model names, or label sets of one metric, further ones are counted under `other`. Names follow OpenTelemetry's
conventions for generative AI where they have one. One thread at a time.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from http import HTTPStatus
from typing import Generic, NamedTuple, TypeVar

from dandolo import __version__
from dandolo.control import process
from dandolo.control.exposition import (
    OPENMETRICS_END,
    Exemplar,
    Gauge,
    Kind,
    Labels,
    head,
    histogram,
    label_pairs,
    label_value,
    sample,
)
from dandolo.control.families import BREAKER, BREAKER_STATES, GAUGES
from dandolo.record import Record
from dandolo.stats import Histogram
from dandolo.tally import Group, groups_of

SERIES_MAX = 200
OTHER = "other"
_REMEMBERED_MAX = 4096
_STATUSES = frozenset(map(int, HTTPStatus)) | {0, 499, 529}

# OpenTelemetry's advice for gen_ai.client.operation.duration (also used for the first chunk) and token.usage.
DURATION_BOUNDS_S = tuple(0.01 * 2**n for n in range(14))
TOKEN_BOUNDS = tuple(4**n for n in range(14))
# The gateway's own time is microseconds to milliseconds; what is slower is a fault to be seen.
OVERHEAD_BOUNDS_S = (
    0.00005, 0.0001, 0.00015, 0.0002, 0.0003, 0.0005, 0.00075, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5,
)  # fmt: skip
QUEUE_BOUNDS_S = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)

OPERATIONS = {
    "chat": "chat",
    "responses": "chat",
    "messages": "chat",
    "completions": "text_completion",
    "embeddings": "embeddings",
}
"""gen_ai.operation.name by endpoint; the rest go by the endpoint's own name."""


def breaker_gauge(account: str, model: str, state: str) -> Gauge:
    """A breaker's sample; `state` is "closed", "half-open" or "open"."""
    return Gauge(BREAKER, BREAKER_STATES[state], (("account", account), ("model", model)))


class _Count:
    """A counter's cell."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: float = 0


class _Names:
    """The names one label may have: the first `most` that come, `other` for the rest."""

    __slots__ = ("_most", "known")

    def __init__(self, most: int) -> None:
        self._most = most
        self.known: set[str] = set()

    def admit(self, name: str) -> str:
        if name not in self.known:
            if len(self.known) >= self._most:
                return OTHER
            self.known.add(name)
        return name


Cell = TypeVar("Cell", _Count, Histogram)


class _Family(Generic[Cell]):
    """One metric: its cells by the values of its labels, at most `most` of them and one for the rest.

    `kept` labels keep their values in the cells for the rest; those must be few by nature.
    """

    __slots__ = ("_cells", "_kept", "_labels", "_make", "_name", "help", "kind", "most")

    def __init__(
        self,
        name: str,
        kind: Kind,
        help_text: str,
        labels: tuple[str, ...],
        make: Callable[[], Cell],
        most: int,
        kept: tuple[str, ...] = (),
    ) -> None:
        self._name = name
        self.kind: Kind = kind
        self.help = help_text
        self._labels = labels
        self._make: Callable[[], Cell] = make
        self.most = most
        self._kept = kept
        self._cells: dict[tuple[str, ...], Cell] = {} if labels else {(): make()}

    def cell(self, *values: str) -> Cell:
        """The cell of these label values, in the order of the labels."""
        values = tuple(map(label_value, values))
        cell = self._cells.get(values)
        if cell is None:
            if len(self._cells) >= self.most:
                values = tuple(
                    value if label in self._kept or not value else OTHER
                    for label, value in zip(self._labels, values, strict=True)
                )
            cell = self._cells.setdefault(values, self._make())
        return cell

    def snapshot(self) -> Snapshot:
        """The family as data, copied."""
        cells: list[tuple[Labels, float | Histogram]] = []
        for values, cell in self._cells.items():
            labels = tuple(zip(self._labels, values, strict=True))
            cells.append((labels, cell.copy() if isinstance(cell, Histogram) else cell.value))
        return Snapshot(self._name, self.kind, self.help, cells)

    def lines(
        self, openmetrics: bool = False, exemplars: Mapping[Histogram, Mapping[int, Exemplar]] | None = None
    ) -> Iterable[str]:
        """The family as text, with `exemplars` by cell and bucket."""
        yield head(self._name, self.kind, self.help, openmetrics=openmetrics)
        for values, cell in self._cells.items():
            pairs = ",".join(
                f'{label}="{value}"'
                for label, value in zip(self._labels, values, strict=True)
                # No error is no label, as OpenTelemetry has it.
                if value or label != "error_type"
            )
            if isinstance(cell, Histogram):
                known = exemplars.get(cell) if exemplars is not None else None
                yield from histogram(self._name, pairs, cell, openmetrics=openmetrics, exemplars=known)
            else:
                yield sample(self._name, pairs, cell.value)


class Snapshot(NamedTuple):
    """One metric at one moment, for whoever exports it in another form. `cells` are label pairs and values, which
    nobody changes any more."""

    name: str
    kind: Kind
    help: str
    cells: Sequence[tuple[Labels, float | Histogram]]


class _Series(NamedTuple):
    """The cells of all records that share names, status and code. None: not counted for them."""

    requests: _Count
    errors: _Count | None
    duration: Histogram | None
    first_chunk: Histogram | None
    tokens_in: Histogram | None
    tokens_out: Histogram | None
    cost: _Count


class Metrics:
    """Everything counted over records, in one process.

    `series_max` bounds the model names in all, and the label sets of each metric. `dandolo_requests_total`
    keeps its `status` beyond that, which has registered values only.
    """

    def __init__(self, *, series_max: int = SERIES_MAX) -> None:
        most = series_max
        self._models = _Names(most)
        self._codes = _Names(most)
        self._series: dict[tuple[str, str, str, str, int, str], _Series] = {}
        self._exemplars: dict[Histogram, dict[int, Exemplar]] = {}
        names = ("gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model")

        def counter(name: str, text: str, *labels: str, kept: tuple[str, ...] = ()) -> _Family[_Count]:
            return _Family(name, "counter", text, labels, _Count, most, kept)

        def histograms(
            name: str, text: str, bounds: tuple[float, ...], *labels: str, kept: tuple[str, ...] = ()
        ) -> _Family[Histogram]:
            return _Family(name, "histogram", text, labels, lambda: Histogram(bounds), most, kept)

        self._requests = counter(
            "dandolo_requests_total", "Requests answered; 499: the client left first.",
            "endpoint", "status", "provider", "key", kept=("status",),
        )  # fmt: skip
        self._errors = counter("dandolo_request_errors_total", "Requests that ended in an error, by its code.", "code")
        self._cost = counter("dandolo_cost_usd_total", "What answers cost, in USD.", "provider", "key")
        bytes_total = counter("dandolo_bytes_total", "Bytes of requests' and answers' bodies.", "direction")
        attempts = counter("dandolo_attempts_total", "Calls to providers, repeated ones included.")
        estimated = counter("dandolo_estimated_requests_total", "Requests whose token counts are our own estimate.")
        interrupted = counter("dandolo_streams_interrupted_total", "Streams that broke after they had begun.")
        overhead = histograms(
            "dandolo_overhead_seconds", "What the gateway itself took of a request.", OVERHEAD_BOUNDS_S
        )
        queue = histograms("dandolo_queue_seconds", "Waiting for a slot, of requests that got one.", QUEUE_BOUNDS_S)
        self._duration = histograms(
            "gen_ai_client_operation_duration_seconds", "Requests that a provider was asked for, whole.",
            DURATION_BOUNDS_S, *names, "error_type",
        )  # fmt: skip
        self._first_chunk = histograms(
            "gen_ai_client_operation_time_to_first_chunk_seconds", "From a streamed request to its first content.",
            DURATION_BOUNDS_S, *names,
        )  # fmt: skip
        self._tokens = histograms(
            "gen_ai_client_token_usage", "Tokens of a request, by type.",
            TOKEN_BOUNDS, *names, "gen_ai_token_type", kept=("gen_ai_token_type",),
        )  # fmt: skip
        self._bytes_in, self._bytes_out = bytes_total.cell("in"), bytes_total.cell("out")
        self._attempts, self._estimated, self._interrupted = attempts.cell(), estimated.cell(), interrupted.cell()
        self._overhead, self._queue = overhead.cell(), queue.cell()
        self._families: tuple[_Family[_Count] | _Family[Histogram], ...] = (
            self._requests, self._errors, attempts, estimated, interrupted, bytes_total, self._cost, overhead, queue,
            self._duration, self._first_chunk, self._tokens,
        )  # fmt: skip

    def take(self, records: Sequence[Record]) -> None:
        """Count finished requests."""
        for group in groups_of(records):
            self._count(group)

    def _count(self, group: Group) -> None:
        status, count, attempts = group.status, group.count, group.attempts
        names = (group.endpoint, group.provider, group.model, group.key, status, group.code)
        requests, errors, duration, first_chunk, tokens_in, tokens_out, cost = self._series.get(names) or self._resolve(
            names
        )
        records = group.records
        requests.value += count
        self._bytes_in.value += sum([one.bytes_in for one in records])
        self._bytes_out.value += sum([one.bytes_out for one in records])
        _observe_ms(self._overhead, group.overheads_ms, count)
        if errors is not None:
            errors.value += count
            if status < 400 and group.stream:
                self._interrupted.value += count
        self._estimated.value += sum([one.estimated for one in records])
        if not attempts:
            return
        self._attempts.value += attempts * count
        _observe_ms(self._queue, group.queues_ms, count)
        if duration is None or first_chunk is None or tokens_in is None or tokens_out is None:
            return
        missing = count - len(group.durations_s)
        duration.observe_all(group.durations_s if not missing else [0.0] * missing + group.durations_s)
        for record in records:
            if record.trace:
                self._keep_exemplars(record, duration, first_chunk)
        if group.stream:
            first_chunk.observe_all(group.firsts_s)
        # Numbers that a provider claims: what is out of all reason would spoil a sum for good.
        for cell, tokens in ((tokens_in, group.input_tokens), (tokens_out, group.output_tokens)):
            if tokens[0] <= 0 or tokens[-1] >= 1e12:
                tokens = [one for one in tokens if 0 < one < 1e12]
            cell.observe_all(tokens)
        cost.value += sum([usd for usd in group.costs_usd if 0 < usd < 1e9])

    def _resolve(self, names: tuple[str, str, str, str, int, str]) -> _Series:
        endpoint, provider, model, key, status, code = names
        # A name is learnt when a provider knew it or broke down over it. Refusals (4xx, 499) teach nothing: most
        # providers pass any name on to somebody who then says 404.
        if model and model not in self._models.known:
            learn = status < 400 or (provider and status >= 500)
            model = self._models.admit(model) if learn else OTHER
            if model != OTHER:
                # Earlier failures of this name were remembered as `other`.
                self._series.clear()
        shown = str(status) if status in _STATUSES else OTHER
        errors = self._errors.cell(self._codes.admit(code)) if code else None
        requests = self._requests.cell(endpoint, shown, provider, key)
        cost = self._cost.cell(provider, key)
        if provider:
            whom = (OPERATIONS.get(endpoint, endpoint), provider, model)
            error_type = self._codes.admit(code) if code else shown if status >= 400 else ""
            series = _Series(
                requests,
                errors,
                self._duration.cell(*whom, error_type),
                self._first_chunk.cell(*whom),
                self._tokens.cell(*whom, "input"),
                self._tokens.cell(*whom, "output"),
                cost,
            )
        else:
            series = _Series(requests, errors, None, None, None, None, cost)
        if len(self._series) >= _REMEMBERED_MAX:
            self._series.clear()
        self._series[names] = series
        return series

    def _keep_exemplars(self, record: Record, duration: Histogram, first_chunk: Histogram) -> None:
        """Remember a recorded trace as the newest of the buckets it fell into."""
        if not record.trace.endswith("1"):
            return
        _, trace_id, span_id, _ = record.trace.split("-")
        at = datetime.fromisoformat(record.time).timestamp()
        first_ms = record.first_token_ms if record.stream else None
        for cell, ms in ((duration, record.duration_ms), (first_chunk, first_ms)):
            if ms is not None:
                known = self._exemplars.setdefault(cell, {})
                known[bisect_left(cell.bounds, ms * 1e-3)] = Exemplar(trace_id, span_id, ms / 1e3, at)

    def text(self, gauges: Iterable[Gauge] = (), *, openmetrics: bool = False) -> bytes:
        """Everything as exposition text: what was counted, `gauges`, the build, and this process."""
        parts: list[str] = []
        for family in self._families:
            parts.extend(family.lines(openmetrics, self._exemplars if openmetrics else None))
        by_name: dict[str, list[Gauge]] = {}
        for gauge in (*gauges, *process.gauges()):
            by_name.setdefault(gauge.name, []).append(gauge)
        for name, samples in by_name.items():
            kind, help_text = GAUGES.get(name, ("untyped", "No description."))
            parts.append(head(name, kind, help_text, openmetrics=openmetrics))
            parts.extend(sample(name, label_pairs(one.labels), one.value) for one in self._bounded(samples))
        parts.append(head("dandolo_build_info", "gauge", "The version that runs; always 1.", openmetrics=openmetrics))
        parts.append(sample("dandolo_build_info", label_pairs((("version", __version__),)), 1))
        if openmetrics:
            parts.append(OPENMETRICS_END)
        return "".join(parts).encode()

    def snapshots(self, gauges: Iterable[Gauge] = ()) -> list[Snapshot]:
        """Everything that `text` says, but this process's own, as data."""
        found = [family.snapshot() for family in self._families]
        by_name: dict[str, list[Gauge]] = {}
        for gauge in gauges:
            by_name.setdefault(gauge.name, []).append(gauge)
        for name, samples in by_name.items():
            kind, help_text = GAUGES.get(name, ("untyped", ""))
            found.append(Snapshot(name, kind, help_text, [(one.labels, one.value) for one in self._bounded(samples)]))
        return found

    def _bounded(self, samples: list[Gauge]) -> list[Gauge]:
        """At most as many samples as there may be series: the largest, and one for the rest (their sum, or for
        breakers the worst of them)."""
        most = self._requests.most
        # The same name twice would make the whole page invalid: the last one counts.
        samples = list({label_pairs(one.labels): one for one in samples}.values())
        if len(samples) <= most:
            return samples
        samples.sort(key=lambda one: -one.value)
        rest = samples[most - 1 :]
        values = [one.value for one in rest]
        value = max(values) if rest[0].name == BREAKER else sum(values)
        labels = tuple((name, OTHER) for name, _ in rest[0].labels)
        return [*samples[: most - 1], Gauge(rest[0].name, value, labels)]


def _observe_ms(cell: Histogram, ordered: list[float], count: int) -> None:
    """Count sorted milliseconds into a histogram of seconds, and zero for those of `count` that have none."""
    values = [ms / 1e3 for ms in ordered]
    cell.observe_all(values if len(values) == count else [0.0] * (count - len(values)) + values)
