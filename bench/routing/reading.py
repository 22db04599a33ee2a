"""What a client sees of one answer: its head, its events, its words; and what is to be thought of them.

Sans-I/O: bytes and times in, an outcome out, so that handmade streams can show that nothing bad is overlooked.
Every provider has words of its own, numbered, and the client knows how many it asked for: a missing, repeated or
foreign word is seen wherever it stands. Refuses to know how anything was sent.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable

WORDS = 100
"""Words of a provider before they begin anew; no answer is to be longer."""
FACTS = 5
"""Pieces before them, which tell the provider, the model, the request."""
HEAD_BYTES_MAX = 64 * 1024

OK = "ok"
CUT = "cut"
"""An error event told of it, and no [DONE] came: the client knows."""
TRUNCATED = "truncated"
"""Something is missing, and nothing tells."""
SPLICED = "spliced"
"""Two providers in one stream, or one of them twice or with a gap."""
BROKEN = "broken"
"""The connection or its framing ended inside an answer without a word about it."""
REFUSED = "refused"
"""A whole answer with a status that is no success."""
TIMED_OUT = "timed out"

_OWNED = re.compile(r"([a-z]+)(?:-([0-9]+)|:)")


def own_words(provider: str) -> tuple[str, ...]:
    """Words that only this provider uses. Its name must consist of small letters."""
    return tuple(f"{provider}-{number}" for number in range(WORDS))


class Reading:
    """One answer while it arrives. `pieces` is how many the client has asked for, FACTS … FACTS + WORDS.

    `feed` until it returns True (whole), else `lost` or `give_up`; then read `outcome`.
    """

    def __init__(self, pieces: int) -> None:
        assert FACTS < pieces <= FACTS + WORDS
        self.pieces = pieces
        self.status = 0
        self.headers: dict[str, str] = {}
        self.text = ""
        self.ids: set[str] = set()
        self.first_at: float | None = None
        """When the first content came (the clock of `feed`)."""
        self.done = False
        self.error: str | None = None
        """The code of an error event, or of a refusal."""
        self.whole = False
        """The HTTP framing is complete."""
        self.given_up = False
        self.malformed = False
        self._bytes = bytearray()
        self._content = bytearray()
        self._chunk_left = -1
        self._length: int | None = None

    @property
    def reusable(self) -> bool:
        """Whether another request may follow on the connection."""
        return self.whole and not self.malformed and self.headers.get("connection", "").lower() != "close"

    def feed(self, data: bytes, now: float) -> bool:
        """Bytes from the connection at `now` (seconds). True when the answer is whole (or no answer at all)."""
        self._bytes += data
        try:
            if self.status or self._head():
                self._body(now)
        except (ValueError, KeyError, TypeError, IndexError, AttributeError):
            self.malformed = True
        return self.whole or self.malformed

    def give_up(self) -> None:
        """The client waits no longer."""
        self.given_up = True

    # -- HTTP --------------------------------------------------------------------------------------------------

    def _head(self) -> bool:
        end = self._bytes.find(b"\r\n\r\n")
        if end < 0:
            if len(self._bytes) > HEAD_BYTES_MAX:
                raise ValueError("a head without an end")
            return False
        lines = self._bytes[:end].decode("latin-1").split("\r\n")
        del self._bytes[: end + 4]
        for line in lines[1:]:
            name, colon, value = line.partition(":")
            if not colon:
                raise ValueError("no header")
            self.headers[name.lower()] = value.strip()
        version, _, rest = lines[0].partition(" ")
        if version != "HTTP/1.1":
            raise ValueError("no HTTP/1.1")
        self.status = int(rest[:3])
        if self.headers.get("transfer-encoding") != "chunked":
            self._length = int(self.headers["content-length"])
        return True

    def _body(self, now: float) -> None:
        if self._length is not None:
            self._content += self._bytes
            self._bytes.clear()
            if len(self._content) < self._length:
                return
            self.whole = True
        else:
            self._chunks()
        if self.status == 200:
            self._events(now)
        elif self.whole:
            self._refusal()

    def _chunks(self) -> None:
        while True:
            if self._chunk_left < 0:
                line, found, _ = self._bytes.partition(b"\r\n")
                if not found:
                    return
                self._chunk_left = int(line, 16)
                del self._bytes[: len(line) + 2]
            if len(self._bytes) < self._chunk_left + 2:
                return
            if self._bytes[self._chunk_left : self._chunk_left + 2] != b"\r\n":
                raise ValueError("no line end after a chunk")
            self._content += self._bytes[: self._chunk_left]
            del self._bytes[: self._chunk_left + 2]
            self.whole = not self._chunk_left
            self._chunk_left = -1
            if self.whole:
                return

    def _refusal(self) -> None:
        error = json.loads(bytes(self._content))["error"]
        self.error = str(error.get("code") or error.get("type"))

    # -- events ------------------------------------------------------------------------------------------------

    def _events(self, now: float) -> None:
        *events, rest = bytes(self._content).replace(b"\r\n", b"\n").split(b"\n\n")
        if not events:
            return
        self._content = bytearray(rest)
        for event in events:
            for line in event.split(b"\n"):
                if line.startswith(b"data:"):
                    self._data(line[5:].strip(), now)

    def _data(self, data: bytes, now: float) -> None:
        if data == b"[DONE]":
            self.done = True
            return
        chunk = json.loads(data)
        if chunk.get("error"):
            self.error = str(chunk["error"].get("code") or chunk["error"].get("type"))
            return
        self.ids.add(chunk["id"])
        for choice in chunk["choices"]:
            content = choice["delta"].get("content")
            if content:
                if self.first_at is None:
                    self.first_at = now
                self.text += content
                if self.done or self.error is not None:
                    raise ValueError("content after the end")

    # -- judgement ---------------------------------------------------------------------------------------------

    @property
    def provider(self) -> str:
        """Whose words came first, "" when none came."""
        found = _OWNED.search(self.text)
        return found[1] if found else ""

    @property
    def spliced(self) -> bool:
        """Whether the text is anything but one provider's words from the first on, each once and in order."""
        numbers: list[int] = []
        heads = 0
        for name, number in _OWNED.findall(self.text):
            if name != self.provider:
                return True
            if number:
                numbers.append(int(number))
            else:
                heads += 1
        return len(self.ids) > 1 or numbers != list(range(len(numbers))) or heads > 1 or (bool(numbers) and not heads)

    @property
    def outcome(self) -> str:
        """What became of it: one of the words above."""
        if self.spliced:
            return SPLICED
        if self.given_up:
            return TIMED_OUT
        if self.malformed or not self.status:
            return BROKEN
        if self.status != 200:
            return REFUSED if self.whole else BROKEN
        if self.error is not None:
            # After an error a [DONE] says that all is well.
            return TRUNCATED if self.done else CUT
        if not self.whole:
            return BROKEN
        return OK if self.done and len(self.text.split(" ")) == self.pieces else TRUNCATED


def count(outcomes: Iterable[str]) -> dict[str, int]:
    """How many of each outcome; every one is named."""
    counted = dict.fromkeys((OK, CUT, TRUNCATED, SPLICED, BROKEN, REFUSED, TIMED_OUT), 0)
    for outcome in outcomes:
        counted[outcome] += 1
    return counted
