"""A request's messages, of any dialect, sorted by who speaks: texts stay raw JSON, other parts are counted.

Chat completions and Messages (`messages`, `system`), Responses (`input`, `instructions`) and completions
(`prompt`). What has an unknown form is passed over: it is the provider that judges it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec
from msgspec import Raw
from msgspec.json import Decoder

from dandolo.api.texts import tokens

MESSAGES_READ_MAX = 2_000
"""Of more messages the middle ones are weighed and searched for pictures and tools, not read."""
PARTS_READ_MAX = 2_000
"""The same for the parts of all messages together."""
READ_AT_ONCE_BYTES = 64 * 1024
FRAME_BYTES = 36
"""What a message has around its text: keys, quotes, the role."""

_TEXTS = frozenset(("text", "input_text", "output_text"))
_SILENT = frozenset(
    """refusal thinking redacted_thinking reasoning tool_use tool_result server_tool_use
    web_search_tool_result mcp_tool_use mcp_tool_result search_result summary_text reasoning_text""".split()  # noqa: SIM905
)
"""Parts that are neither the caller's text nor something to look at or to listen to."""
_TOOL_PARTS = frozenset(("tool_use", "tool_result", "mcp_tool_use", "mcp_tool_result"))
_MODALITIES: Mapping[str, str] = {
    "image_url": "vision",
    "input_image": "vision",
    "image": "vision",
    "input_audio": "audio",
    "audio": "audio",
    "file": "files",
    "input_file": "files",
    "document": "files",
    "video_url": "video",
    "input_video": "video",
    "video": "video",
}
"""Types of parts, and the capability a model needs for them."""
_TOOL_ITEMS = ("function_call", "function_call_output", "custom_tool_call", "custom_tool_call_output")
_MARKS = ((b'"image_url"', "image_url"), (b'"input_image"', "input_image"), (b'"input_audio"', "input_audio"))
_T = TypeVar("_T")


class _Message(msgspec.Struct, gc=False):
    role: Any = None
    type: Any = None
    content: Raw = Raw()
    tool_calls: Raw = Raw()
    function_call: Raw = Raw()
    output: Raw = Raw()
    arguments: Raw = Raw()


class _Part(msgspec.Struct, gc=False):
    type: Any = None
    text: Raw = Raw()
    content: Raw = Raw()
    source: Raw = Raw()


class _Source(msgspec.Struct, gc=False):
    type: Any = None
    data: Raw = Raw()


_messages = msgspec.json.Decoder(list[_Message])
_message = msgspec.json.Decoder(_Message)
_parts = msgspec.json.Decoder(list[_Part])
_part = msgspec.json.Decoder(_Part)
_source = msgspec.json.Decoder(_Source)
_list = msgspec.json.Decoder(list[Raw])


class Conversation:
    """What was said, in `turns` of (role, texts): neighbouring messages of one role are one turn.

    Roles are "system", "user" and "assistant"; results of tools belong to nobody. `parts` counts parts that are
    not text by capability ("" for unknown ones), `tokens` is the estimate for all texts, `tools_used` whether
    any tool was called.
    """

    __slots__ = ("parts", "parts_left", "system", "tokens", "tools_used", "turns")

    def __init__(self) -> None:
        self.system: list[Raw] = []
        self.turns: list[tuple[str, list[Raw]]] = []
        self.parts: Counter[str] = Counter()
        self.tokens = 0
        self.tools_used = False
        self.parts_left = PARTS_READ_MAX

    def take(self, raw: Raw) -> None:
        """Everything in `messages`, `input` or `prompt`: one text, texts, tokens, or messages."""
        opening = _opening(raw)
        if opening == 0x22:
            self._text("user", raw)
            return
        if opening != 0x5B:
            return
        messages = self._some("user", raw, _messages, _message, MESSAGES_READ_MAX)
        for message in messages:
            self._message(message)

    def prompt(self, raw: Raw) -> None:
        """A system prompt that stands beside the messages: a text, or parts."""
        self._content("system", raw)

    def _some(self, role: str, raw: Raw, several: Decoder[list[_T]], single: Decoder[_T], most: int) -> list[_T]:
        """The objects of an array, or the first and the last `most` of very many: the others are weighed and searched.

        Texts among them are said by `role`; numbers are token ids.
        """
        if len(raw) < READ_AT_ONCE_BYTES:
            try:
                found = several.decode(raw)
            except msgspec.ValidationError:
                pass
            else:
                if len(found) <= most:
                    return found
        items = _list.decode(raw)
        if len(items) > most:
            kept = [*items[: most // 2], *items[len(items) - most // 2 :]]
            spare = max(len(raw) - sum(map(len, kept)) - (len(items) - len(kept)) * FRAME_BYTES, len(items) - len(kept))
            self.tokens += spare // 4
            self._search(bytes(raw))
            items = kept
        found = []
        for item in items:
            opening = _opening(item)
            if opening == 0x7B:
                found.append(single.decode(item))
            elif opening == 0x22:
                self._text(role, item)
            else:
                self.tokens += bytes(item).count(b",") + 1
        return found

    def _search(self, data: bytes) -> None:
        # Within a text the quotes of a mark would be escaped: only a text that is nothing else looks like one.
        for mark, kind in _MARKS:
            if mark in data:
                self.parts[_MODALITIES[kind]] += 1
        self.tools_used |= b'"tool_calls"' in data or b'"function_call"' in data or b'"tool_use"' in data

    def _message(self, message: _Message) -> None:
        role = message.role
        if role == "assistant":
            for calls in (message.tool_calls, message.function_call):
                if is_filled(calls):
                    self.tools_used = True
                    self.tokens += tokens(calls)
        elif role in ("system", "developer"):
            role = "system"
        elif role in ("tool", "function"):
            self.tools_used = True
            role = ""
        elif role != "user":
            role = ""
            if message.type in _TOOL_ITEMS:
                self.tools_used = True
                for value in (message.output, message.arguments):
                    if len(value):
                        self._content("", value)
        self._content(role, message.content)

    def _content(self, role: str, raw: Raw) -> None:
        opening = _opening(raw)
        if opening == 0x22:
            self._text(role, raw)
        elif opening == 0x5B:
            parts = self._some(role, raw, _parts, _part, self.parts_left)
            self.parts_left -= len(parts)
            for part in parts:
                self._part(role, part)
        elif opening == 0x7B:
            self._part(role, _part.decode(raw))

    def _part(self, role: str, part: _Part) -> None:
        kind = part.type if isinstance(part.type, str) else ""
        if kind in _TEXTS or (not kind and len(part.text)):
            self._text(role, part.text)
            return
        if kind in _TOOL_PARTS:
            self.tools_used = True
        if kind in _SILENT:
            if len(part.content):
                # A tool's result may be a picture.
                self._content("", part.content)
            return
        if kind == "document" and _opening(part.source) == 0x7B:
            source = _source.decode(part.source)
            if source.type == "text":
                self._text("", source.data)
                return
        self.parts[_MODALITIES.get(kind, "")] += 1

    def _text(self, role: str, raw: Raw) -> None:
        if len(raw) < 3:
            return
        self.tokens += tokens(raw)
        if role == "system":
            self.system.append(raw)
        elif role:
            if self.turns and self.turns[-1][0] == role:
                self.turns[-1][1].append(raw)
            else:
                self.turns.append((role, [raw]))


def _opening(raw: Raw) -> int:
    """The first byte of a value, 0 for one that is not there."""
    return memoryview(raw)[0] if len(raw) else 0


def is_filled(raw: Raw | None) -> bool:
    """Whether a value is an array or an object with something in it."""
    return raw is not None and _opening(raw) in b"[{" and bytes(memoryview(raw)[1:16]).lstrip()[:1] not in (b"]", b"}")
