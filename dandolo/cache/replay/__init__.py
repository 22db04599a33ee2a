"""A kept answer as a stream, and a recorded stream as a plain answer.

`prepare` gives the events a provider might have sent for a plain body. They are made once; each further stream of
them costs one join. At most `EVENTS_MAX`, except where a Messages or Responses answer has so many blocks that its
own sequence needs more. Pieces end where those of a recorded stream did, as far as that fits; otherwise they are of
equal length. `assemble` gives the plain body of a complete stream.

What is not what its dialect says is None, not an error: it is then neither kept nor served.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from dandolo.api.endpoints import Dialect
from dandolo.cache.replay import chat, messages, responses
from dandolo.cache.replay.assembly import assemble
from dandolo.cache.replay.chunks import Assembled
from dandolo.cache.replay.events import EVENTS_MAX, Replay

__all__ = ["EVENTS_MAX", "Assembled", "Replay", "assemble", "prepare"]

_any = msgspec.json.Decoder()


def prepare(dialect: Dialect, body: bytes, offsets: Sequence[int] = ()) -> Replay | None:
    """Events for a plain answer; None when it is not one of this dialect.

    `offsets` are where the pieces of a recorded stream's text ended, in characters, rising.
    """
    try:
        value = _any.decode(body)
        if not isinstance(value, dict):
            return None
        if dialect == "chat":
            return chat.chat(value, offsets)
        if dialect == "completions":
            return chat.completions(value, offsets)
        if dialect == "messages":
            return messages.messages(value, offsets)
        if dialect == "responses":
            return responses.responses(value, offsets)
    except (ValueError, TypeError, LookupError, AttributeError, StopIteration, RecursionError):
        # Something has another type than its dialect says. All of it was made before anything is sent.
        pass
    return None
