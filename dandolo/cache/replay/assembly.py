"""The plain body of a recorded stream, put together from the data of its events.

Nothing that is not understood is guessed at: an error, an end that is missing, a name that comes twice and
differs, a block out of order, and the stream has no plain body. It was served as it came, and is not kept.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from dandolo.api.endpoints import Dialect
from dandolo.cache.replay.chunks import Assembled, Json, Unclear, chunks, decoded, ends, line

BLOCKS_MAX = 4096


def assemble(dialect: Dialect, datas: Iterable[bytes]) -> Assembled | None:
    """The plain body of a complete stream; None for one that is not complete, or not clear.

    `datas` are what its events carried, without those that carried nothing (`wire.sse.parse`).
    """
    try:
        if dialect in ("chat", "completions"):
            return chunks(datas, "message" if dialect == "chat" else "text")
        if dialect == "messages":
            return _messages(datas)
        if dialect == "responses":
            return _response(datas)
    except (Unclear, ValueError, TypeError, LookupError, AttributeError, RecursionError):
        pass
    return None


# -- messages --------------------------------------------------------------------------------------------------

_DELTAS = {"text_delta": "text", "thinking_delta": "thinking"}


def _messages(datas: Iterable[bytes]) -> Assembled | None:
    message: Json | None = None
    blocks: list[Json] = []
    parts: list[str] = []
    offsets: list[str] = []
    open_ = False
    for data in datas:
        event = decoded(data)
        kind = event["type"]
        if kind == "ping":
            continue
        if kind == "message_start":
            if message is not None:
                raise Unclear
            message = event["message"]
            continue
        if message is None:
            raise Unclear
        if kind == "content_block_start":
            if open_ or event["index"] != len(blocks) or len(blocks) >= BLOCKS_MAX:
                raise Unclear
            blocks.append(event["content_block"])
            parts, open_ = [], True
        elif kind == "content_block_delta":
            if not open_ or event["index"] != len(blocks) - 1:
                raise Unclear
            _grow_block(blocks[-1], event["delta"], parts)
        elif kind == "content_block_stop":
            if not open_ or event["index"] != len(blocks) - 1:
                raise Unclear
            open_ = False
            if not offsets and blocks[-1]["type"] == "text":
                offsets = parts
            _close_block(blocks[-1], parts)
        elif kind == "message_delta":
            message |= {
                name: value for name, value in event["delta"].items() if value is not None or name not in message
            }
            usage = message.get("usage") or {}
            for name, value in (event.get("usage") or {}).items():
                if value is not None or name not in usage:
                    usage[name] = value
            message["usage"] = usage
        elif kind == "message_stop":
            if open_ or not message.get("stop_reason"):
                return None
            return Assembled(line({**message, "content": blocks}), ends(offsets))
        else:
            raise Unclear
    return None


def _grow_block(block: Json, delta: Json, parts: list[str]) -> None:
    kind = delta["type"]
    if kind in _DELTAS:
        parts.append(delta[_DELTAS[kind]])
        # Where the text goes is said by the delta; it must be what the block is.
        if block["type"] != _DELTAS[kind]:
            raise Unclear
    elif kind == "input_json_delta":
        parts.append(delta["partial_json"])
        if "input" not in block:
            raise Unclear
    elif kind == "signature_delta":
        block["signature"] = (block.get("signature") or "") + delta["signature"]
    elif kind == "citations_delta":
        block["citations"] = [*(block.get("citations") or ()), delta["citation"]]
    else:
        raise Unclear


def _close_block(block: Json, parts: list[str]) -> None:
    text = "".join(parts)
    if block["type"] in _DELTAS.values():
        block[block["type"]] = block[block["type"]] + text
    elif text:
        value = msgspec.json.decode(text)
        if not isinstance(value, dict):
            raise Unclear
        block["input"] = value


# -- responses -------------------------------------------------------------------------------------------------


class _Event(msgspec.Struct, gc=False):
    type: str
    response: msgspec.Raw = msgspec.Raw(b"")
    item: msgspec.Raw = msgspec.Raw(b"")


class _Output(msgspec.Struct, gc=False):
    status: str
    output: list[msgspec.Raw]
    error: Any = None


_event = msgspec.json.Decoder(_Event)
_output = msgspec.json.Decoder(_Output)


def _response(datas: Iterable[bytes]) -> Assembled | None:
    items = 0
    for data in datas:
        event = _event.decode(data)
        if event.type == "response.output_item.done":
            items += 1
        elif event.type == "response.completed":
            said = _output.decode(event.response)
            # Some servers leave the output out of the last event; then it is not the whole answer.
            if said.error is not None or said.status != "completed" or len(said.output) < max(1, items):
                return None
            # A copy: the event's bytes may be let go of.
            return Assembled(bytes(event.response))
        elif event.type in ("error", "response.failed", "response.incomplete"):
            return None
    return None
