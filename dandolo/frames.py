"""Frames between the control process and a worker: a length, a kind, and a payload that the kind says how to read.

Sans-I/O: bytes in, frames out. Both ends are processes of one program, so a frame that cannot be one is a fault and
no matter of taste: the reader raises, and whoever owns the pipe ends it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from enum import IntEnum

PAYLOAD_BYTES_MAX = 32 * 1024 * 1024
"""A configuration of the largest size and the files that it names; everything else is far smaller."""

_HEAD = struct.Struct("<IB")


class Kind(IntEnum):
    """What a frame is. Payloads are MessagePack."""

    PROVISION = 1
    """To a new worker, once: a `provision.Provision`, with descriptors beside it."""
    READY = 2
    """From a worker that accepts: nothing."""
    REFUSED = 3
    """From a worker that cannot use its configuration: problems, each [source, line, key, reason]. It then ends."""
    RECORDS = 4
    """From a worker: records."""
    BEAT = 5
    """From a worker, every `provision.BEAT_S`: a `provision.Beat`."""
    ASK = 6
    """To a worker: [id, question, argument]."""
    ANSWER = 7
    """From a worker: [id, whether it went well, the answer or the reason]."""
    LEAVING = 8
    """From a worker that was sent SIGTERM: it wants to be replaced."""
    LAST = 9
    """From a worker, as its last word: its gauges, each [name, value, labels]."""
    STANDS_BY = 10
    """From a worker that could accept and waits to be told so (`provision.Provision.stands_by`): nothing."""
    TEXTS = 11
    """From a worker whose operator keeps them: `text.Text`s. Lost before records are."""


_KINDS = {int(kind): kind for kind in Kind}


class FrameError(ValueError):
    """What came is no frame."""


def encode(kind: Kind, payload: bytes) -> bytes:
    """One frame. A payload beyond PAYLOAD_BYTES_MAX is a mistake of the caller's."""
    assert len(payload) <= PAYLOAD_BYTES_MAX, f"a frame of {len(payload)} bytes"
    return _HEAD.pack(len(payload), kind) + payload


class Frames:
    """Takes bytes as they come and gives whole frames. Holds at most one unfinished frame."""

    __slots__ = ("_held", "_wanted")

    def __init__(self) -> None:
        self._held = bytearray()
        self._wanted = 0
        """How many bytes must be held before another look is worth it."""

    def feed(self, data: bytes) -> Iterator[tuple[Kind, memoryview]]:
        """The frames that are complete with `data`, in order. Raises FrameError; nothing may be fed after that.

        Payloads are views: what is kept of one must be copied.
        """
        held = self._held
        if held:
            held += data
            if len(held) < self._wanted:
                return
            data = bytes(held)
            held.clear()
        view, at, size = memoryview(data), 0, len(data)
        try:
            while size - at >= _HEAD.size:
                length, number = _HEAD.unpack_from(data, at)
                if length > PAYLOAD_BYTES_MAX:
                    raise FrameError(f"a frame of {length} bytes, expected at most {PAYLOAD_BYTES_MAX}")
                end = at + _HEAD.size + length
                if size < end:
                    self._wanted = end - at
                    return
                kind = _KINDS.get(number)
                if kind is None:
                    raise FrameError(f"a frame of kind {number}, expected one of {[*_KINDS]}")
                payload = view[at + _HEAD.size : end]
                at = end
                yield kind, payload
            self._wanted = _HEAD.size
        finally:
            held += view[at:]
