"""Heads that repeat: recognising one that differs from an earlier one only in lines that nobody judges.

A client on a kept-alive connection sends nearly the same head again and again, and so does a provider. A
`Repetition` is what was learned from two heads of one shape: the lines that stayed the same, and for those
that changed their place and name. A later head matches when every other line is byte for byte the same and
each changed one still has its name and a legal value; then whatever was concluded from the constant lines
holds, and only the varying values are new. No check is skipped whose outcome for these bytes is not known.

Names whose values decide something ("watched") never vary within a repetition, except Content-Length, which
its reader judges anew. The memory of shapes is shared by all connections and bounded.
"""

from __future__ import annotations

from dandolo.wire.fields import Field

SHAPES_MAX = 512
SHAPE_LINES_MAX = 64
VARYING_MAX = 8
HEAD_BYTES_MAX = 4096

_VALUE_BYTES = bytes(sorted({0x09, *range(0x20, 0x7F), *range(0x80, 0x100)}))


class Repetition:
    """One learned head. `fields` are those of the head it was learned from; `note` is its reader's to use."""

    __slots__ = ("_count", "_static", "_varying", "fields", "names", "note", "varies_length")

    def __init__(self, lines: list[bytes], pairs: list[Field], varying: list[int], first: int) -> None:
        self._count = len(lines)
        self._static = [line for index, line in enumerate(lines) if index not in varying]
        self._varying: list[tuple[int, bytes, int, bytes]] = []
        names: list[bytes] = []
        # From the last to the first, so that taking one out does not move the others.
        for index in sorted(varying, reverse=True):
            prefix = lines[index].partition(b":")[0] + b":"
            self._varying.append((index, prefix, len(prefix), pairs[index - first][0]))
            names.append(pairs[index - first][0])
        self.names = tuple(names)
        self.varies_length = b"content-length" in names
        self.fields = dict(pairs)
        self.note: object = None

    def match(self, lines: list[bytes]) -> dict[bytes, bytes] | None:
        """The fields of a head that repeats this one, or None. `lines` is used up either way."""
        if len(lines) != self._count:
            return None
        head = self.fields.copy()
        for index, prefix, size, name in self._varying:
            line = lines.pop(index)
            value = line[size:]
            # What translate leaves over are control characters: bare CR and LF among them.
            if line[:size] != prefix or not (value.isalnum() or not value.translate(None, _VALUE_BYTES)):
                return None
            head[name] = value.strip(b" \t")
        return head if lines == self._static else None


class Repetitions:
    """Shapes of heads seen by one kind of reader. `watched` names decide something; their lines never vary."""

    def __init__(self, watched: frozenset[bytes]) -> None:
        self._watched = watched
        self._shapes: dict[tuple[bytes, ...], tuple[list[bytes], Repetition | None]] = {}

    def learn(self, lines: list[bytes], pairs: list[Field]) -> Repetition | None:
        """Take note of a judged head (`lines` with its first line); a repetition if its shape is known well enough.

        Called for heads that matched nothing, so it may take a few microseconds.
        """
        if len(lines) > SHAPE_LINES_MAX or len(lines) - 1 != len(pairs):
            return None
        watched = self._watched
        shape = (
            lines[0],
            *[line if name in watched else name for line, (name, _) in zip(lines[1:], pairs, strict=True)],
        )
        if len(dict(pairs)) != len(pairs) or sum(map(len, lines)) > HEAD_BYTES_MAX:
            return None
        known = self._shapes.get(shape)
        if known is None:
            if len(self._shapes) >= SHAPES_MAX:
                self._shapes.clear()
            self._shapes[shape] = (lines, None)
            return None
        previous, repetition = known
        if repetition is not None and repetition.match(list(lines)) is not None:
            return repetition
        varying = [index for index, line in enumerate(lines) if line != previous[index]]
        if len(varying) > VARYING_MAX:
            self._shapes[shape] = (lines, None)
            return None
        if repetition is not None:
            # Something varies that did not before: what varied already keeps varying.
            varying = sorted({*varying, *(index for index, *_ in repetition._varying)})
            if len(varying) > VARYING_MAX:
                return None
        learned = Repetition(lines, pairs, varying, 1)
        self._shapes[shape] = (lines, learned)
        return learned

    def forget(self) -> None:
        """Drop everything learned (tests, memory pressure)."""
        self._shapes.clear()
