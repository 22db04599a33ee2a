"""What every worker begins with, prepared by the control process for each of its slots.

Whoever has something for workers adds it here: `strings`, `blobs` and `descriptors` hold functions of (slot,
generation) that give a text, bytes, or a descriptor that stays open here (the worker gets a duplicate), under the name
by which the worker finds it. It knows no event loop: the first worker is given its part before there is one.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import msgspec

from dandolo.control.sockets import Held
from dandolo.frames import Kind, encode
from dandolo.provision import Document, Provision

_encode = msgspec.msgpack.Encoder().encode


class Provisions:
    """Makes the first frame of each worker. `document` is exchanged at a reload."""

    def __init__(self, document: Document, workers: int, held: Sequence[Held], log_format: str, name: str) -> None:
        self.document = document
        self.workers = workers
        self.held = tuple(held)
        self.log_format = log_format
        self.name = name
        """Under which a successor finds the workers ("": nobody can follow)."""
        self.strings: dict[str, Callable[[int, int], str]] = {}
        self.blobs: dict[str, Callable[[int, int], bytes]] = {}
        self.descriptors: dict[str, Callable[[int, int], int]] = {}

    def following(self, document: Document, held: Sequence[Held]) -> Provisions:
        """Those of workers to come, under another document and with other sockets: theirs stand by (`adopt`)."""
        found = copy.copy(self)
        found.document, found.workers, found.held = document, document.workers, tuple(held)
        return found

    def adopt(self, following: Provisions) -> None:
        """From now on every worker begins as they say."""
        self.document, self.workers, self.held = following.document, following.workers, following.held

    def standby(self, slot: int, generation: int) -> tuple[bytes, list[int]]:
        """The frame for a worker that waits for the word before it accepts, and the descriptors that go with it."""
        return self.frame(slot, generation, stands_by=True)

    def frame(self, slot: int, generation: int, *, stands_by: bool = False) -> tuple[bytes, list[int]]:
        """The frame for a worker that begins, and the descriptors that go with it."""
        provision = Provision(
            slot=slot,
            workers=self.workers,
            generation=generation,
            document=self.document,
            log_format=self.log_format,
            identity=self.name,
            listeners=tuple(one.slot for one in self.held),
            descriptors=tuple(self.descriptors),
            strings={name: text(slot, generation) for name, text in self.strings.items()},
            blobs={name: blob(slot, generation) for name, blob in self.blobs.items()},
            stands_by=stands_by,
        )
        named = [descriptor(slot, generation) for descriptor in self.descriptors.values()]
        return encode(Kind.PROVISION, _encode(provision)), [*(one.sock.fileno() for one in self.held), *named]
