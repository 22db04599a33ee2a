"""What the control process gives a worker to begin with, and what a worker tells of itself: the two ends' own words.

`Provision` is the first frame. Whatever a part of the control process prepares for a worker (a journal's path, a
board's descriptor, a policy as bytes) goes into `strings`, `descriptors` or `blobs` under a name of its own.
"""

from __future__ import annotations

import msgspec

BEAT_S = 0.5
"""Between two beats of a worker."""


class Document(msgspec.Struct, frozen=True):
    """A configuration as it was read once, for everybody: all workers make the same of it.

    `text` is the file's (None: the environment is the configuration), `source` names it, `secrets` are the contents
    of the secret files that it names, by path. `listen` and `admin` are the addresses that hold after flags and
    passed sockets, `workers` their number, `state_dir` the folder ("": what the text says). It holds secrets: it goes
    through the private socket pair and nowhere else.
    """

    source: str
    text: str | None
    secrets: dict[str, str]
    listen: tuple[str, ...] = ()
    admin: str = ""
    workers: int = 1
    state_dir: str = ""

    def __repr__(self) -> str:
        return f"Document({self.source})"


class Provision(msgspec.Struct, frozen=True):
    """What a worker begins with.

    `slot` counts workers from 0 to `workers` - 1, `generation` the processes that had the slot before. Of the
    descriptors that come beside the frame, `listeners` are listening sockets: `listeners[i]` says whose slot the i-th
    belongs to (-1: everybody's); those that follow are named by `descriptors`, in order.
    """

    slot: int
    workers: int
    generation: int
    document: Document
    log_format: str
    """Of the program's own lines."""
    identity: str = ""
    """Under which name a successor of this control process finds the worker ("": nobody can follow)."""
    listeners: tuple[int, ...] = ()
    descriptors: tuple[str, ...] = ()
    strings: dict[str, str] = {}
    blobs: dict[str, bytes] = {}
    stands_by: bool = False
    """It makes all it needs and then waits for the question `begin` before it accepts."""


class Beat(msgspec.Struct, array_like=True):
    """How a worker is, every BEAT_S. `lag_s` is how late its loop ran at most since the last one, `dropped` counts
    records that were lost because the pipe was full, since its start."""

    ready: bool
    reason: str
    in_flight: int
    connections: int
    lag_s: float
    dropped: int
