"""What was asked and answered in one request, where an operator keeps that (`[prompt_log]`): never part of a record.

It goes from a worker to the control process in frames of its own, and is held there in memory alone.
"""

from __future__ import annotations

import msgspec


class Text(msgspec.Struct, array_like=True, gc=False, frozen=True):
    """The bytes of one request's body and of what was sent as its answer, each cut to the operator's bound.

    `time` is when it ended (Unix seconds); `asked_bytes` and `answered_bytes` tell how long both were. `kind` is the
    answer's content type; of one that is no text nothing is kept. An answer that broke off is not `whole`.
    """

    id: str
    time: float
    key: str
    endpoint: str
    status: int
    asked: bytes
    asked_bytes: int
    kind: str
    answered: bytes
    answered_bytes: int
    whole: bool

    def __repr__(self) -> str:
        # Whatever logs one by mistake logs no text.
        return f"Text({self.id})"

    @property
    def size(self) -> int:
        """Bytes of memory it takes, about."""
        return len(self.asked) + len(self.answered) + OVERHEAD_BYTES


OVERHEAD_BYTES = 512
"""Of one text, beside its bytes."""
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[Text]).decode


def pack(texts: list[Text]) -> bytes:
    """Texts for their way to the control process."""
    return _encode(texts)


def unpack(data: bytes | memoryview) -> list[Text]:
    """Raises msgspec.ValidationError, msgspec.DecodeError for what are none."""
    return _decode(data)
