"""Frames of a question that ask the same: "how do I" and "how to", "tell me the capital of" and "what is".

A frame is rewritten only where the whole question has the shape of the rule; what the rule does not mention
(order, tense, number, who, where) is kept token by token.
"""

from __future__ import annotations

from itertools import pairwise

from dandolo.cache.normal import words as w

_PARTICIPLE = w.words_of("located called used made born based pronounced spelled written invented founded")
_MEASURE = w.words_of("old tall big large long far deep high wide heavy fast hot cold small many much")
_ENDING_VERB = {"works": "work", "means": "mean", "costs": "cost"}

_HOW_IS_IT = w.words_of("look sound feel seem compare do rank smell come fare differ work appear not to")
"""Verbs after "how do I" with which it asks for a judgement, not for a way."""

_ATTRIBUTE = w.words_of(
    """capital population currency area diameter radius mass height length circumference boiling_point melting_point
    freezing_point atomic_number atomic_mass atomic_weight chemical_formula chemical_symbol official_language
    national_anthem time_zone population_density life_expectancy square_root cube_root speed age gdp""",
)
"""Nouns with one answer per thing, for which "the capital of X", "X's capital" and a bare "capital of X" all ask it."""

_WHICH = w.words_of(
    """year country city planet language continent state company animal element ocean river mountain month century
    decade president"""
)
_ASKING = w.words_of("what how why which where")
_SUBORDINATE = w.words_of("before after when if in on while during without using with for once")
_WHEN = w.words_of("year month century decade")
_INTO = frozenset(("to", "into", "in"))
_IN = frozenset(("in",))
_DEGREES = {"celsius": "°C", "fahrenheit": "°F"}
_UNITS = w.words_of(
    """°C °F kelvin km miles ft inches meters cm mm yards kg grams mg stone liters gallons pints cups hours minutes
    seconds days weeks acres hectares knots mph"""
)
_SYMMETRIC = w.words_of("difference similarities")


def straighten(t: list[str]) -> list[str]:
    """An embedded question ("what the capital is") in the order of a direct one, where that is certain."""
    if len(t) < 3 or t[0] not in w.WH:
        return t
    opener, last = t[0], t[-1]
    if len(t) > 3 and t[1] in w.PRONOUN and t[2] in w.MODAL and opener != "which":
        return [opener, t[2], t[1], *t[3:]]
    copulas = [at for at, token in enumerate(t) if token in w.COPULA]
    if len(copulas) == 1 and (opener != "how" or t[1] in _MEASURE):
        at = copulas[0]
        if opener == "how":
            head, thing = t[:2], t[2:at]
        else:
            head, thing = t[:1], t[1:at]
        rest = t[at + 1 :]
        plain = bool(thing) and (
            len(thing) == 1
            or (thing[0] in w.DETERMINER and len(thing) <= 6)
            or (opener in ("where", "who") and len(thing) <= 3)
        )
        closed = not rest or (opener in ("why", "where", "when") and len(rest) <= 3) or rest[0] in _PARTICIPLE
        if opener in ("which", "whose", "whom") or (opener in ("what", "who") and rest and rest[0] not in _PARTICIPLE):
            closed = False
        if opener == "how" and rest:
            closed = False
        if plain and closed and w.WH.isdisjoint(thing) and "that" not in thing[1:]:
            return [*head, t[at], *thing, *rest]
        return t
    if not copulas and last in _ENDING_VERB and 3 <= len(t) <= 7 and w.AUXILIARY.isdisjoint(t):
        start = 2 if opener == "how" and t[1] == "much" else 1
        fits = (opener == "how" and last != "means") or (opener == "what" and last == "means")
        if fits and start < len(t) - 1 and w.WH.isdisjoint(t[1:]) and "to" not in t:
            return [*t[:start], "does", *t[start:-1], _ENDING_VERB[last]]
    return t


def without_pause(t: list[str]) -> list[str]:
    """`t` without its one comma where what is around it leaves no other reading: before the main clause of a
    question ("before lunch, should I"), and between a comparison and its alternatives ("which is bigger, A or B")."""
    if t.count(",") != 1:
        return t
    at = t.index(",")
    if not 0 < at < len(t) - 1:
        return t
    clause = t[0] in _SUBORDINATE and t[at + 1] in w.AUXILIARY | w.WH - {"who", "which", "that"}
    choice = t[0] in ("which", "who") and t[1] in w.COPULA and 3 <= at <= 5 and "or" in t[at:] and "or" not in t[:at]
    return [*t[:at], *t[at + 1 :]] if clause or choice else t


def asks_without_mark(t: list[str]) -> bool:
    """Whether the order of words alone makes `t` a question: an opener, or a clause and then an inversion."""
    if t[0] in w.QUESTION:
        return True
    subordinate = t[0] in _SUBORDINATE
    if subordinate and not _ASKING.isdisjoint(t[2:]):
        return True
    if not subordinate and "," not in t:
        return False
    for at, (one, two) in enumerate(pairwise(t)):
        if at > 1 and one in w.AUXILIARY and two in w.PRONOUN and (subordinate or t[at - 1] == ","):
            return True
    return False


def rewrite(t: list[str]) -> list[str]:
    """`t`, a direct question or request without courtesies, in the canonical frame."""
    first = t[0]
    size = len(t)
    if size > 3 and first == "how" and t[2] == "i" and t[1] in ("do", "can") and t[3] not in _HOW_IS_IT:
        return ["how", "to", *t[3:]]
    if size > 3 and (first in ("which", "what") or (first == "in" and t[1] in ("which", "what"))):
        start = 1 if first == "in" else 0
        noun = t[start + 1]
        if first == "in" and not (noun in _WHEN and t[3] in w.AUXILIARY):
            return t
        if noun in _WHICH:
            return ["what", *t[start + 1 :]]
    attribute = _attribute(t)
    if attribute:
        return attribute
    return _conversion(t) or _difference(t)


def _attribute(t: list[str]) -> list[str] | None:
    """The whole text as "what is the <attribute> of <thing>", or None."""
    size = len(t)
    at = 0
    if size > 3 and t[0] in ("what", "tell", "give"):
        at = 2 if (t[0], t[1]) in (("what", "is"), ("tell", "me"), ("give", "me")) else 0
        at = 1 if t[0] != "what" and t[1] == "the" else at
    if at + 2 < size and t[at] == "the" and (two := _noun(t, at + 1)) and t[at + 1 + two : at + 2 + two] == ["of"]:
        at += 1
    if (two := _noun(t, at)) and at + two + 1 < size and t[at + two] == "of":
        if t[0] != "what" and not w.AUXILIARY.isdisjoint(t):
            return None  # "the capital of France is Lyon" states
        return ["what", "is", "the", *t[at : at + two], "of", *t[at + two + 1 :]]
    for two in (1, 2):
        owner = size - two - 1
        if owner >= at and " ".join(t[owner + 1 :]) in _ATTRIBUTE and t[owner].endswith("'s"):
            thing = [*t[at:owner], t[owner][:-2]]
            named = len(thing) <= 4 and all(token.isalpha() for token in thing)
            if named and w.WH.isdisjoint(thing) and w.AUXILIARY.isdisjoint(thing):
                return ["what", "is", "the", *t[owner + 1 :], "of", *thing]
    return None


def _noun(t: list[str], at: int) -> int:
    """The length of the attribute that stands at `at`: 1 or 2 tokens, or 0."""
    if t[at] in _ATTRIBUTE:
        return 1
    return 2 if " ".join(t[at : at + 2]) in _ATTRIBUTE else 0


def _difference(t: list[str]) -> list[str]:
    """A question for the difference between two words, with the two in alphabetical order; else `t`."""
    if "between" not in t[:5]:
        return t
    at = t.index("between")
    if t[at - 1 : at] == [] or t[at - 1] not in _SYMMETRIC or len(t) != at + 4 or t[at + 2] != "and":
        return t
    if at > 1 and t[: at - 1] not in (["what", "is", "the"], ["what", "are", "the"], ["what", "is"], ["the"]):
        return t
    first, second = t[at + 1], t[at + 3]
    if not (first.isalpha() and second.isalpha()) or len(first) < 2 or len(second) < 2:
        return t
    if first in w.NUMBER_PARTS or second in w.NUMBER_PARTS:
        return t
    if first > second:
        first, second = second, first
    verb = "is" if t[at - 1] == "difference" else "are"
    return ["what", verb, "the", t[at - 1], "between", first, "and", second]


def _conversion(t: list[str]) -> list[str] | None:
    """What is 5 miles in kilometers, as: convert 5 miles to kilometers; both units from one list, one number."""
    if t[0] == "convert" and len(t) in (5, 6):
        start, links = 1, _INTO
    elif t[:2] == ["what", "is"] and len(t) in (6, 7):
        start, links = 2, _IN
    else:
        return None
    number, unit, link, *target = t[start:]
    if target[0] == "degrees":
        del target[0]
    if len(target) != 1 or link not in links or not number[-1].isdigit():
        return None
    goal = _DEGREES.get(target[0], target[0])
    if unit not in _UNITS or goal not in _UNITS:
        return None
    return ["convert", number, unit, "to", goal]
