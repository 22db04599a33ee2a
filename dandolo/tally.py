"""Finished requests put together by what they have in common, so that whoever counts them does so once a group.

Under load almost all records of a batch agree in their labels. Sums and sorted values of a group are made once, when
the first sink asks for them, and shared by all; histograms are filled from sorted values, a step a bucket.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from operator import attrgetter
from typing import Final

from dandolo.record import Record

LABELS: Final = (
    "endpoint", "provider", "account", "model", "key", "status", "code", "cache", "stream", "attempts",
)  # fmt: skip
_labels = attrgetter(*LABELS)


class Group:
    """Records that agree in all LABELS, in the order of their ends. Values are sorted; nobody may change them."""

    def __init__(
        self,
        endpoint: str,
        provider: str,
        account: str,
        model: str,
        key: str,
        status: int,
        code: str,
        cache: str,
        stream: bool,
        attempts: int,
    ) -> None:
        self.records: list[Record] = []
        self.endpoint = endpoint
        self.provider = provider
        self.account = account
        self.model = model
        self.key = key
        self.status = status
        self.code = code
        self.cache = cache
        self.stream = stream
        self.attempts = attempts

    @cached_property
    def count(self) -> int:
        """How many there are."""
        return len(self.records)

    @cached_property
    def input_tokens(self) -> list[int]:
        """As counted; all of them."""
        return sorted([one.input_tokens for one in self.records])

    @cached_property
    def output_tokens(self) -> list[int]:
        """As counted; all of them."""
        return sorted([one.output_tokens for one in self.records])

    @cached_property
    def costs_usd(self) -> list[float]:
        """Of those whose cost is known, and not zero."""
        return [usd for one in self.records if (usd := one.cost_usd)]

    @cached_property
    def durations_ms(self) -> list[float]:
        """Of those that have one."""
        return sorted([ms for one in self.records if (ms := one.duration_ms) is not None])

    @cached_property
    def durations_s(self) -> list[float]:
        """The same in seconds."""
        return [ms / 1e3 for ms in self.durations_ms]

    @cached_property
    def firsts_ms(self) -> list[float]:
        """Times to the first token, of those that have one."""
        return sorted([ms for one in self.records if (ms := one.first_token_ms) is not None])

    @cached_property
    def firsts_s(self) -> list[float]:
        """The same in seconds."""
        return [ms / 1e3 for ms in self.firsts_ms]

    @cached_property
    def overheads_ms(self) -> list[float]:
        """Of those that have one."""
        return sorted([ms for one in self.records if (ms := one.overhead_ms) is not None])

    @cached_property
    def queues_ms(self) -> list[float]:
        """Of those that waited."""
        return sorted([ms for one in self.records if (ms := one.queue_ms)])


class Batch(list[Record]):
    """Records that know their groups, once somebody has asked for them."""

    @cached_property
    def groups(self) -> list[Group]:
        """In the order in which their first records ended."""
        found: dict[tuple[object, ...], Group] = {}
        last: tuple[object, ...] = ()
        for record, labels in zip(self, map(_labels, self), strict=True):
            if labels != last:
                last = labels
                group = found.get(labels)
                if group is None:
                    group = found[labels] = Group(*labels)
                put = group.records.append
            put(record)
        return list(found.values())


def groups_of(records: Sequence[Record]) -> list[Group]:
    """Their groups, made at need."""
    return records.groups if isinstance(records, Batch) else Batch(records).groups
