"""Token by token: capitals, contractions, spelling variants and number words of an English text.

Each fold has its own licence. Capitals go unless the word is another word with one (`Polish`, `MB`, `IT`);
contractions open unless `'s` may be "has"; British spellings become American unless both stand in the text;
number words become digits only as plain counts. In a text about words (`MENTION`) none of this happens:
there only the languages' names and the opener lose their capitals.
"""

from __future__ import annotations

from typing import NamedTuple

from dandolo.cache.normal import capitals as c
from dandolo.cache.normal import words as w

_SENTENCE_END = frozenset(".!?")
_PAUSE = frozenset(",-")
_UNIT_NAMES = {
    "kilometers": "km", "kilometer": "km", "kilograms": "kg", "kilogram": "kg", "centimeters": "cm",
    "centimeter": "cm", "millimeters": "mm", "millimeter": "mm", "feet": "ft", "percent": "percent",
}  # fmt: skip
_RISKY_CAPITALS = w.words_of("it us who no he or and so as in at am be me id ok la ma pa")
_LANGUAGE_NAMES = w.LANGUAGES - c.AMBIGUOUS
_CLEARLY_ENGLISH = w.words_of(
    """the of and how what why which to from with this that does should would could you your have has my it's there
    their they when where who about using between for"""
)
_OPENS_ELSEWHERE = w.words_of("was will has plan test format note plot")
"""Openers that are everyday words of other languages too."""
_BEFORE_A_VARIABLE = w.words_of("is are was were of in for the with between by to letter variable current matrix")
_AFTER_A_VARIABLE = w.words_of("is are was were and or does has equals plus minus times")
_COUNTED_AFTER = w.VERBS | w.words_of("me in for with within after every first last next top about takes take")
_AFTER_A_NOUN = w.AUXILIARY | w.words_of(
    """in on of at and or to from with for by as than vs versus about after before over under near who which that not
    made make come came get got go went say said start started end ended first ever still really use used work"""
)
_OPENS_SMALL = w.OPENER | w.words_of("thanks thank many cheers thx")
_THEM_AND_US = frozenset(("vs", "versus", "and"))
_GREETINGS = w.words_of("hi hello hey hiya")


def is_english(lows: list[str]) -> bool:
    """Whether the text is surely English: an English opener, or English words and no foreign ones."""
    first = lows[0]
    if first in w.WH or first in w.CONTRACTIONS:
        return True
    present = set(lows)
    if first in _GREETINGS and len(lows) > 2 and not w.WH.isdisjoint(lows[1:5]):
        return True
    if not w.FOREIGN.isdisjoint(present):
        return len(_CLEARLY_ENGLISH & present) > 1
    if first in w.OPENER and first not in _OPENS_ELSEWHERE:
        return True
    present.discard(first)
    return not w.ENGLISH.isdisjoint(present)


class Manner(NamedTuple):
    """What the whole text says about its capitals."""

    shouted: bool
    """All letters are capitals."""
    titled: bool
    """All words are capitalised."""
    programming: bool
    """It is about programs, so that Python is no snake in either case."""


def fold(tokens: list[str], lows: list[str]) -> tuple[list[str], bool]:
    """`tokens` (and the same in small letters) with the licensed folds applied, and whether it is about words."""
    present = set(lows)
    letters = [token for token in tokens if token.isalpha()]
    shouted = len(letters) > 2 and all(token.isupper() for token in letters)
    titled = len(letters) > 2 and not shouted and all(token[0].isupper() for token in letters)
    about_words = not w.MENTION.isdisjoint(present)
    if about_words:
        return _about_words(tokens, lows, shouted), True
    programming = not w.PROGRAMMING.isdisjoint(present) or len(c.PROGRAMMING_NAMES & present) > 1
    manner = Manner(shouted, titled, programming)
    spelling = w.AMERICAN.isdisjoint(present)
    folded: list[str] = []
    opening, opened = True, False
    last = len(tokens) - 1
    for at, token in enumerate(tokens):
        low = lows[at]
        if token != low:
            name_before = at > 0 and not opened and _capitalised(tokens[at - 1])
            word = _cased(tokens, lows, at, opening, name_before, manner)
        elif low == "us" and at and lows[at - 1] == "the" and (at == last or lows[at + 1] not in _THEM_AND_US):
            word = "US"
        else:
            word = low
        opened = opening
        opening = token in _SENTENCE_END or (token in _PAUSE and at > 0 and lows[at - 1] in _GREETINGS)
        if word in w.CONTRACTIONS:
            following = lows[at + 1] if at < last else ""
            unsure = following in w.IS_OR_HAS or following.endswith("ed") or not following
            folded += (word,) if unsure and word.endswith("'s") else w.CONTRACTIONS[word]
            continue
        if word == "i'd" and at < last and lows[at + 1] in ("like", "love"):
            folded += ("i", "would")
            continue
        if word in w.BRITISH and spelling and token == low:
            word = w.BRITISH[word]
        elif word in w.NUMBERS and token == low:
            word = _count(lows, at, last)
        if word in _UNIT_NAMES and folded and folded[-1][-1].isdigit():
            word = _UNIT_NAMES[word]
        elif word == "cent" and at > 1 and folded[-1] == "per" and folded[-2][-1].isdigit():
            folded[-1] = "percent"
            continue
        elif word in ("fahrenheit", "celsius") and at > 1 and folded[-1] in ("degrees", "degree"):
            if folded[-2][-1].isdigit():
                folded[-1] = "°F" if word == "fahrenheit" else "°C"
                continue
        elif word.endswith(",000") and _grouped(word):
            word = word.replace(",", "")
        folded.append(word)
    return folded, False


def _about_words(tokens: list[str], lows: list[str], shouted: bool) -> list[str]:
    if shouted:
        return tokens
    folded = list(tokens)
    for at, low in enumerate(lows):
        opens = not at or (tokens[at - 1] in _SENTENCE_END | _PAUSE and lows[0] in w.OPENER | _GREETINGS)
        if low in _LANGUAGE_NAMES or (opens and low in _OPENS_SMALL) or low in ("i", "i'm", "i'd"):
            folded[at] = low
    if lows[0] in _GREETINGS:
        folded[0] = lows[0]
    if folded[0] == "what's" and len(lows) > 1 and lows[1] not in w.IS_OR_HAS and not lows[1].endswith("ed"):
        folded[:1] = ("what", "is")
    return folded


def _cased(tokens: list[str], lows: list[str], at: int, opening: bool, name_before: bool, manner: Manner) -> str:
    """The token at `at`, which has a capital, as it stands in the form.

    `opening`: it opens a sentence. `name_before`: the token before it is capitalised and does not.
    """
    written, low = tokens[at], lows[at]
    if not written.isalpha() and not (written[0].isalpha() and written.replace("-", "").replace("'", "").isalpha()):
        return low if low in c.NUMBERED and written in (low.upper(), low.title(), c.NUMBERED[low]) else written
    before = lows[at - 1] if at else ""
    following = tokens[at + 1] if at + 1 < len(tokens) else ""
    if written == "I":
        return written if before in _BEFORE_A_VARIABLE else low
    if len(written) == 1:
        article = written == "A" and opening and not manner.shouted and following not in _AFTER_A_VARIABLE
        return low if article and len(following) > 1 else written
    base = low[:-2] if low.endswith("'s") else low
    if base == "us" and before == "the":
        return "US"
    if base in c.AMBIGUOUS:
        named = name_before or _capitalised(following)
        return low if _surely_small(written, base, before, opening, named, manner) else written
    if base in c.UNIT_CASE:
        return written
    if before == "the" and not manner.shouted and not manner.titled:
        ends = not following.isalpha() or following in _AFTER_A_NOUN
        if ends and base not in c.AFTER_THE and not written.isupper():
            return written  # the Doors: a name of one common word, or one that we cannot tell from such
    rest = written[1:]
    if rest.islower() or written.isupper() or low in c.MIXED_CASE:
        return low
    if "-" in written or "'" in written:
        pieces = written.replace("'", "-").split("-")
        known = all(piece[1:].islower() or piece.isupper() or len(piece) == 1 for piece in pieces)
        return low if known and max(map(len, pieces)) > 2 and c.UNIT_CASE.isdisjoint(pieces) else written
    if written[-1] == "s" and written[:-1].isupper() and len(written) > 3:
        return low
    return written


def _surely_small(written: str, base: str, before: str, opening: bool, named: bool, manner: Manner) -> bool:
    """Whether an ambiguous word with a capital is the same as without, where it stands."""
    whole = manner.shouted or manner.titled
    titlecase = written[1:].islower()
    if not manner.shouted:
        if opening and written[1:] == written[1:].lower() and (base in c.ALWAYS_SMALL or base in w.OPENER):
            return True
        if manner.programming and base in c.PROGRAMMING_NAMES:
            return True
    if named and titlecase and not whole:
        return True
    if (before == "in" and base in c.NO_MASS) or (before == "on" and base == "windows"):
        return True
    if base == "who" and opening:
        return manner.shouted or not written.isupper()
    if base in c.EMPHASIS or (whole and base in w.ENGLISH and base not in _RISKY_CAPITALS):
        return True
    return base in ("am", "pm") and before[-1:].isdigit()


def _capitalised(word: str) -> bool:
    return word[1:].islower() and word[0].isupper()


def _count(lows: list[str], at: int, last: int) -> str:
    """A number word as digits where it counts the plain word after it and stands alone; else as it is."""
    word = lows[at]
    if at == last:
        return word
    following, before = lows[at + 1], lows[at - 1] if at else ""
    if not following.isalpha() or following in w.NUMBER_PARTS or before in w.NUMBER_PARTS:
        return word
    if before not in _COUNTED_AFTER or not following.isascii() or not w.NUMERAL_SUBJECT.isdisjoint(lows):
        return word
    return w.NUMBERS[word]


def _grouped(number: str) -> bool:
    """1,000 and 250,000, whose commas can be nothing but thousands; not 1,000,5 and not 0,000."""
    head, *groups = number.lstrip("$€£¥").split(",")
    return head.isdigit() and head[0] != "0" and len(head) < 4 and all(len(g) == 3 and g.isdigit() for g in groups)
