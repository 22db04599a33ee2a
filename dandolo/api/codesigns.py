"""How much a text speaks for code: by the shape of its lines, and by its words.

Two readings of one text, in points of one scale (3 speaks for itself). The shape knows no language: traces,
statements, calls, flags, formulas, markup. The words are `lexicon`'s, of some twenty human languages; a verb of
making counts with its object, so that a letter about a function is a letter. What speaks for plain prose
(translate, explain to a child, a career) counts below zero. The text is expected to be cut to a few KiB.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from dandolo.api.asking import (
    ABOUT,
    ASKING_HOW,
    BUILDING,
    CONNECTING,
    MACHINE_TONGUES,
    OBJECTS,
    SUMMARIES,
    TONGUES,
    TOOLS,
    TRANSLATIONS,
    VERBS,
)
from dandolo.api.lexicon import PHRASES, SCRIPTS, WORDS
from dandolo.api.shapes import SHAPES

SHAPE_MAX = 6.0
MIDDLING_MAX = 4.5
SHADES_MAX = 1.8
WORDS_MAX = 420
SCRIPT_CHARS = 400
"""Of texts without spaces: so much of the beginning and of the end."""
WEAK_OBJECT = -1.5
"""A text, a report: what is to be made says little."""
MATERIAL_SHAPE = 5.0
PURPOSE_POINTS = 1.5
COMPOUND_WORDS = 2
"""In an email validation function, so far behind the email."""
OBJECT_WORDS = 6
"""How far behind its verb an object is looked for."""

_WEIGHED = frozenset(WORDS)
_HEADS = frozenset(PHRASES)
_MAKING = VERBS | {word for word, points in OBJECTS.items() if points > 2}
_SPACED = {code: " " for code in range(128) if not chr(code).isalnum() and chr(code) not in "+#"}
_WORD = re.compile(r"[^\W_]+(?:\+\+|#(?!\w))?")
_CONCEPT = re.compile(
    r"\W*(?:(?:hi|hello|hey|please|can you|could you|kannst du|bitte|hola|bonjour|ciao)\W+){0,3}"
    r"(?:what(?:'s|’s| is| are)|explain|was (?:ist|sind)|erklär\w*|qu'est-ce|explique\w*|qué (?:es|son)|explícame|cos'è"
    r"|spiega\w*|o que é|wat (?:is|zijn)|leg uit|co to jest|nedir|что такое|объясни|who|when did"
    r"|which (?:is|are|of)|is it true|should|label|classify|rate this"
    r"|categori[sz]e|correct my|name (?:three|five|ten|\d+)|come up with"
    r"|would you|do you think|sollte\w*|devrais|devrait|debería\w*|dovrei"
    r"|is \w+ (?:better|worth|dead|a good)|warum gibt)\b"
    r"(?! wrong| going on| this| these| that| my| happening| diese| ce | cette| est[ea] | questo| line"
    r"|(?: the| der| die| das| la| le| el| il)? (?:\w+ ){0,3}(?:command|regex|formula|query|syntax|code|function|flag"
    r"|option|equivalent|way|right|problem|error|issue|output|befehl|formel|commande|comando|complexity|bug)\b)"
)
"""A text that begins so asks for a concept, unless for a piece of code."""
CONCEPT_CHARS_MAX = 500
CONCEPT_SHAPE_MAX = 2.0


@dataclass(frozen=True, slots=True)
class Signs:
    """What a text says, in points: `shape` of code (0 or more), `words` (either side of 0), and what was seen.

    `seen` names at most three of the shapes, never what the text says. `words` holds `making`: points of the
    objects of verbs of making (below 0: prose).
    """

    shape: float
    words: float
    making: float
    seen: tuple[str, ...]

    @property
    def total(self) -> float:
        """Both together.

        Prose that is to be made (a title, a letter) stays prose whatever it is about; but a mere text or summary
        of so much code is about the code.
        """
        if self.making < 0 and (self.making < WEAK_OBJECT or self.shape < MATERIAL_SHAPE):
            points = min(self.shape, 1.5) + min(self.words - self.making, 1.4) + self.making
        else:
            points = self.shape + max(self.words, -3.0)
        # Sums over a set come in any order: nothing may hang on the last bit.
        return round(points, 3)


def read_signs(text: str) -> Signs:
    """The signs of `text`, to be cut to a few KiB by the caller (about 70 µs for 1 KB)."""
    shape, seen = _shape(text)
    low = text.lower()
    words = _split(low)
    if len(words) > WORDS_MAX:
        words = words[: WORDS_MAX * 2 // 3] + words[-WORDS_MAX // 3 :]
    known = set(words)
    points = _weigh(low, words, known)
    making = 0.0 if known.isdisjoint(_MAKING) else _making(words)
    if making > 0:
        points += making
    if shape < CONCEPT_SHAPE_MAX:
        if words and words[0] in TOOLS:
            points += 1.0
        if len(low) <= CONCEPT_CHARS_MAX and _CONCEPT.match(low) is not None:
            points -= 1.2
        if not making and not SUMMARIES.isdisjoint(words[:6]):
            making = -1.5
    return Signs(shape, points if making >= 0 else points + making, making, seen)


def prose_points(low: str) -> float:
    """What speaks for prose alone in a lower-case text that sets a task, 0 or less."""
    words = _split(low)
    known = set(words)
    points = sum([weight for word in known if (weight := WORDS.get(word, 0.0)) <= -2.5])
    _, against = _phrases(words, known)
    return max(points + against + min(_making(words), 0.0), -6.0)


def _split(low: str) -> list[str]:
    """The words of a lower-case text: letters and digits, and `+` and `#` behind them (c++, c#)."""
    # Twice as fast as the pattern, which knows the punctuation of all scripts.
    return low.translate(_SPACED).split() if low.isascii() else _WORD.findall(low)


def _shape(text: str) -> tuple[float, tuple[str, ...]]:
    total = 0.0
    seen: list[tuple[float, str]] = []
    characters = set(text)
    for shape in SHAPES:
        if shape.needs and characters.isdisjoint(shape.needs):
            continue
        for guard in shape.guards:
            if guard in text:
                break
        else:
            if shape.guards:
                continue
        points = shape.points
        if shape.pattern is not None:
            first = shape.pattern.search(text)
            if first is None:
                continue
            # The same twice is more certain than once: a typo or a smiley does not come back.
            if points < 4 and shape.pattern.search(text, first.end() + 1) is not None:
                points *= 1.4
        total += points
        seen.append((-points, shape.name))
        if total >= SHAPE_MAX:
            break
    seen.sort()
    return min(total, SHAPE_MAX), tuple(dict.fromkeys([name for _, name in seen[:3]]))


def _weigh(low: str, words: list[str], known: set[str]) -> float:
    """Points of all words but the objects of verbs."""
    strong, against = _phrases(words, known)
    middling = shades = 0.0
    for word in known & _WEIGHED:
        weight = WORDS[word]
        if weight >= 2:
            strong += weight
        elif weight >= 1:
            middling += weight
        elif weight > 0:
            shades += weight
        else:
            against += weight
    if not low.isascii():
        low = f"{low[:SCRIPT_CHARS]} {low[-SCRIPT_CHARS:]}" if len(low) > 2 * SCRIPT_CHARS else low
        for probe, terms in SCRIPTS:
            if probe.search(low) is None:
                continue
            for term, weight in terms.items():
                if term in low:
                    if weight > 0:
                        strong += weight
                    else:
                        against += weight
    if middling and not ASKING_HOW.isdisjoint(words[:4]):
        middling += 0.8
    return min(strong, 6.0) + min(middling, MIDDLING_MAX) + min(shades, SHADES_MAX) + max(against, -6.0)


def _phrases(words: list[str], known: set[str]) -> tuple[float, float]:
    """Points for code and against it of words that go together."""
    strong = against = 0.0
    heads = known & _HEADS
    if heads:
        joined = f" {' '.join(words)} "
        counted = set()
        for head in heads:
            for phrase, weight, group in PHRASES[head]:
                if group not in counted and phrase in joined:
                    counted.add(group)
                    if weight > 0:
                        strong += weight
                    else:
                        against += weight
    if not known.isdisjoint(SUMMARIES):
        against -= 1.5
    if not known.isdisjoint(TRANSLATIONS) and not (known.isdisjoint(TONGUES) and known & MACHINE_TONGUES):
        against -= 4.0
    return strong, against


def _making(words: list[str]) -> float:
    """Points of what is to be made: the most telling object of a verb of making, or a thing of code and its purpose.

    Of two objects the thing of code counts, unless the other is about it: an email regex, an email about a regex.
    """
    found = 0.0
    last = len(words)
    for index, word in enumerate(words):
        if word in VERBS:
            points = 0.0
            prose_at = last
            for at in range(index + 1, min(index + 1 + OBJECT_WORDS, last)):
                other = words[at]
                if at > prose_at + COMPOUND_WORDS or (at > prose_at and other in ABOUT):
                    break
                weight = OBJECTS.get(other, 0.0)
                if weight > 0 and not (other == "code" and words[at + 1 : at + 2] == ["of"]):
                    # Half the world calls a play a script.
                    if points == 0 or points == WEAK_OBJECT or other != "script":
                        points = weight
                        break
                elif weight < 0 and points == 0 and word not in BUILDING:
                    points = weight
                    prose_at = at if weight < WEAK_OBJECT else last
            if abs(points) > abs(found):
                found = points
        elif OBJECTS.get(word, 0.0) > 2 and index + 1 < last and words[index + 1] in CONNECTING and found >= 0:
            found = max(found, PURPOSE_POINTS)
    return found
