"""What peers say to each other, as bytes: a length (u32, big-endian), then one msgpack array `[version, kind, id, …]`.

Sans-I/O. A kind has one shape, and whatever is not exactly of that shape is refused before anything is made of it:
another version, an unknown kind, a field too many, a key of 19 bytes, a frame longer than its limit. There is no
resynchronising: a connection on which such a thing came is closed.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Final

import msgspec
from msgspec import Meta

from dandolo.cache.key import KEY_BYTES

VERSION: Final = 1
FRAME_BYTES_MAX: Final = 8 * 1024 * 1024
GREETING_BYTES_MAX: Final = 512
"""Of a frame from somebody who has not proved anything yet."""
RECORD_BYTES_MAX: Final = 7 * 1024 * 1024
PIECE_BYTES_MAX: Final = 1024 * 1024
KEYS_MAX: Final = 1024
"""Keys renewed by one frame."""
LENGTH_BYTES: Final = 4
NONCE_BYTES: Final = 32
INSTANCE_BYTES: Final = 16
PROOF_BYTES: Final = 32

Id = Annotated[int, Meta(ge=0, lt=1 << 32)]
Count = Annotated[int, Meta(ge=0, lt=1 << 62)]
Key = Annotated[bytes, Meta(min_length=KEY_BYTES, max_length=KEY_BYTES)]
NAME: Final = r"[A-Za-z0-9][A-Za-z0-9._:-]{0,63}"
Name = Annotated[str, Meta(pattern=rf"\A{NAME}\Z")]
NameOrNone = Annotated[str, Meta(pattern=rf"\A(?:{NAME})?\Z")]
"""A peer's name, or that of a provider, which goes into a header: nothing else may stand there. "" is none."""


class FrameError(Exception):
    """What came is no frame of ours. `frames` are the whole ones before it."""

    def __init__(self, reason: str, frames: list[Frame]) -> None:
        super().__init__(reason)
        self.frames = frames


class Frame(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True, gc=False):
    """Anything that is said. `id` joins what belongs together: a question and all that answers it."""

    kind: ClassVar[int] = 0
    id: Id


class Value(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True, gc=False):
    """A kept answer: a record of `cache.entry`, which whoever takes it must `decode`, and who may see it
    (`Permission.scope`)."""

    record: Annotated[bytes, Meta(max_length=RECORD_BYTES_MAX)]
    scope: Annotated[str, Meta(max_length=128)]


class Hello(Frame, frozen=True):
    """Who speaks; `instance` tells one life of a process from the next."""

    kind: ClassVar[int] = 1
    name: Name
    instance: Annotated[bytes, Meta(min_length=INSTANCE_BYTES, max_length=INSTANCE_BYTES)]
    nonce: Annotated[bytes, Meta(min_length=NONCE_BYTES, max_length=NONCE_BYTES)]


class Auth(Frame, frozen=True):
    """Proof that the speaker has the secret."""

    kind: ClassVar[int] = 2
    proof: Annotated[bytes, Meta(min_length=PROOF_BYTES, max_length=PROOF_BYTES)]


class Ping(Frame, frozen=True):
    """Are you there?"""

    kind: ClassVar[int] = 3


class Pong(Frame, frozen=True):
    """Yes."""

    kind: ClassVar[int] = 4


class Get(Frame, frozen=True):
    """Is there an answer under this key? → Val, Nothing."""

    kind: ClassVar[int] = 5
    key: Key


class Val(Frame, frozen=True):
    """There is."""

    kind: ClassVar[int] = 6
    value: Value


class Nothing(Frame, frozen=True):
    """No: do as you would without me."""

    kind: ClassVar[int] = 7


class Lease(Frame, frozen=True):
    """May I make the call of this key? → Val, Grant, Wait, Nothing.

    `without` is a holder who is of no use to the asker: it cannot be reached, or its call failed. `claim`: the asker
    is making the call already, by leave of an owner that is gone.
    """

    kind: ClassVar[int] = 8
    key: Key
    without: NameOrNone
    claim: bool


class Grant(Frame, frozen=True):
    """You may, for that long if you do not renew it."""

    kind: ClassVar[int] = 9
    limit_ms: Annotated[int, Meta(ge=0, le=3_600_000)]


class Wait(Frame, frozen=True):
    """Somebody makes it already: follow him. To Follow: you are heard."""

    kind: ClassVar[int] = 10
    holder: Name


class Follow(Frame, frozen=True):
    """Let me have the call's answer as it comes. → Wait, then Begin, Piece …, Done or Abort; or Done; or Nothing."""

    kind: ClassVar[int] = 11
    key: Key


class Begin(Frame, frozen=True):
    """The answer has begun, in events or not."""

    kind: ClassVar[int] = 12
    status: Annotated[int, Meta(ge=200, le=599)]
    events: bool
    provider: NameOrNone


class Piece(Frame, frozen=True):
    """The next piece of it."""

    kind: ClassVar[int] = 13
    content: Annotated[bytes, Meta(max_length=PIECE_BYTES_MAX)]


class Done(Frame, frozen=True):
    """The call is over: to a follower, and from the holder to the owner. `value` where the answer is kept."""

    kind: ClassVar[int] = 14
    key: Key
    value: Value | None


class Abort(Frame, frozen=True):
    """The call failed."""

    kind: ClassVar[int] = 15


class Put(Frame, frozen=True):
    """An answer that many ask for."""

    kind: ClassVar[int] = 16
    key: Key
    value: Value


class Renew(Frame, frozen=True):
    """I am still making these calls."""

    kind: ClassVar[int] = 17
    keys: Annotated[tuple[Key, ...], Meta(max_length=KEYS_MAX)]


class Flow(Frame, frozen=True):
    """To the holder: no more for now, or go on."""

    kind: ClassVar[int] = 18
    go: bool


class Leave(Frame, frozen=True):
    """To the holder: nobody here waits any more."""

    kind: ClassVar[int] = 19


class Sync(Frame, frozen=True):
    """My purges so far: the last, and the first that follows here."""

    kind: ClassVar[int] = 20
    first: Count
    last: Count


class Inv(Frame, frozen=True):
    """A purge. `what` and `name` as in `cache.generations`; a key in hexadecimal."""

    kind: ClassVar[int] = 21
    sequence: Count
    what: Annotated[str, Meta(max_length=8)]
    name: Annotated[str, Meta(max_length=512)]
    soft: bool


KINDS: Final[tuple[type[Frame], ...]] = (
    Hello, Auth, Ping, Pong, Get, Val, Nothing, Lease, Grant, Wait, Follow, Begin, Piece, Done, Abort, Put, Renew,
    Flow, Leave, Sync, Inv,
)  # fmt: skip
_LONG: Final = frozenset((Val.kind, Piece.kind, Done.kind, Put.kind))
_SHORT_BYTES_MAX: Final = 64 * 1024
_ARRAY: Final = 0x90
"""msgpack's array of at most 15: no frame has more."""

_decoders: dict[int, msgspec.msgpack.Decoder[Frame]] = {one.kind: msgspec.msgpack.Decoder(one) for one in KINDS}
_encoder = msgspec.msgpack.Encoder()


def encode(frame: Frame) -> bytes:
    """The bytes of a frame, with its length. Raises ValueError for one that nobody would take."""
    rest = _encoder.encode(frame)
    size = len(rest) + 2
    if size > FRAME_BYTES_MAX:
        raise ValueError(f"a frame of {size} bytes where {FRAME_BYTES_MAX} is the most")
    # The encoder wrote [id, …]; version and kind are two more elements before it.
    return b"%b%c%c%c%b" % (size.to_bytes(LENGTH_BYTES, "big"), rest[0] + 2, VERSION, frame.kind, rest[1:])


class FrameReader:
    """Bytes in, frames out. Holds at most one unfinished frame."""

    __slots__ = ("_buffer", "bytes_max")

    def __init__(self) -> None:
        self._buffer = bytearray()
        self.bytes_max = GREETING_BYTES_MAX
        """Of a frame; raised once the other side has proved who it is."""

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that `data` completes. Raises FrameError, after which nothing must be fed any more."""
        buffer = self._buffer
        buffer += data
        frames: list[Frame] = []
        start, held = 0, len(buffer)
        while held - start >= LENGTH_BYTES:
            size = int.from_bytes(buffer[start : start + LENGTH_BYTES], "big")
            if size > self.bytes_max:
                raise FrameError(f"a frame of {size} bytes where {self.bytes_max} is the most", frames)
            if held - start < LENGTH_BYTES + size:
                break
            start += LENGTH_BYTES
            frames.append(_decoded(buffer, start, start + size, frames))
            start += size
        if start:
            del buffer[:start]
        return frames

    def next(self) -> list[Frame]:
        """What has come already, under another limit."""
        return self.feed(b"")


def _decoded(buffer: bytearray, start: int, end: int, before: list[Frame]) -> Frame:
    if end - start < 3:
        raise FrameError("a frame of less than three bytes", before)
    count = buffer[start] - _ARRAY
    if not 3 <= count <= 15:
        raise FrameError("a frame that is no array", before)
    if buffer[start + 1] != VERSION:
        raise FrameError(f"version {buffer[start + 1]} where {VERSION} is spoken", before)
    kind = buffer[start + 2]
    decoder = _decoders.get(kind)
    if decoder is None:
        raise FrameError(f"a frame of an unknown kind ({kind})", before)
    if kind not in _LONG and end - start > _SHORT_BYTES_MAX:
        raise FrameError(f"{end - start} bytes of kind {kind}, of which {_SHORT_BYTES_MAX} is the most", before)
    # In place of version and kind stands the head of an array that is two shorter.
    buffer[start + 2] = _ARRAY + count - 2
    try:
        with memoryview(buffer) as view, view[start + 2 : end] as part:
            return decoder.decode(part)
    except (ValueError, OverflowError, RecursionError):
        raise FrameError(f"a frame of kind {kind} that is not of its shape", before) from None
