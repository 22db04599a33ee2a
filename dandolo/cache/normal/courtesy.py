"""What people say around a question: greetings, please, thanks, "could you tell me".

Each phrase goes only where what is left still opens like a question or a request (`OPENER`), because the same
words are also content: Hello World, "Please Please Me", how to say thanks, do as you please. Requests in the form
of questions ("can you …") lose their frame only where they cannot be meant as questions about ability.
"""

from __future__ import annotations

from typing import NamedTuple

from dandolo.cache.normal import words as w

PHRASES_MAX = 8
"""Courtesies taken off at one end; a text with more keeps the rest, which is always safe."""

_GREETING = w.words_of("hi hello hey hiya howdy greetings")
_GREETED = w.words_of("there all everyone everybody folks guys team again assistant chatgpt bot")
_DAYTIME = w.words_of("morning afternoon evening day")
_PLEASE = w.words_of("please pls plz kindly")
_HESITATION = w.words_of("so ok okay well um uh uhm hmm hm alright anyway")
_AFTER_GREETING = w.WH | w.VERBS | _PLEASE | w.words_of("can could would i")
"""What a greeting goes before without a pause; "hello is what in Thai" is about the greeting."""
_POINTING = w.words_of("it that this")
_STOP = frozenset(",.!-–—…")
_END = frozenset(".!?")

_WONDER = tuple(
    tuple(phrase.split())
    for phrase in (
        "i would like to know", "i would love to know", "i want to know", "i need to know", "i was wondering",
        "i am wondering", "i wonder", "i am curious", "just wondering", "just curious", "out of curiosity",
        "do you know", "do you happen to know", "tell me", "let me know", "please tell me", "kindly tell me",
        "any idea", "does anyone know", "does anybody know", "can anyone tell me", "can someone tell me",
        "could someone tell me", "would you mind telling me", "could you kindly tell me",
    )
)  # fmt: skip
"""Before a WH word these carry nothing; what follows is an embedded question."""
_WONDERING = frozenset(phrase[0] for phrase in _WONDER)

_WISH = tuple(
    tuple(phrase.split())
    for phrase in ("i would like you to", "i want you to", "i need you to", "i was wondering if you could")
)  # fmt: skip
"""Before an imperative these carry nothing."""

_THANKS = tuple(
    tuple(phrase.split())
    for phrase in (
        "thank you very much in advance", "thank you so much in advance", "thanks a lot in advance",
        "thank you very much", "thank you so much", "thanks very much", "thanks so much", "thanks in advance",
        "thank you in advance", "thanks in advance for your help", "thank you for your help", "thanks for your help",
        "thanks for the help", "thanks a lot", "many thanks", "thank you", "thanks", "thx", "cheers",
    )
)  # fmt: skip

_TO_ME = w.words_of("tell give show send write")
_SPEECH = w.words_of("explain describe clarify define elaborate summarize summarise")
_WORK = w.words_of(
    """write create generate translate convert calculate compute solve proofread rewrite rephrase paraphrase
    summarize summarise sort draft compose fix simplify check give list suggest recommend make"""
)
_GIVEN = w.words_of("this these following")
_ARTEFACT = w.words_of(
    """poem story function script program essay haiku letter email song joke query regex paragraph summary list
    limerick sentence headline outline example examples explanation overview table recipe"""
)
_FOR_ME = w.words_of(
    """convert translate calculate compute explain summarize summarise solve sort check define rewrite list proofread
    write generate draft compose draw"""
)
_ONLY_FOR_ME = w.words_of("convert translate calculate compute explain summarize summarise solve sort proofread")
"""Work whose result is the same for everybody, so that "for me" says nothing even in a plain request."""
_GIVE = w.words_of("give write show tell list create generate suggest recommend")
_QUANTITY = w.words_of("a an the some two three four five six seven eight nine ten")

_PLEASE_IS_CONTENT = w.words_of(
    "to i you we they he she it who that as can't could and or the a word of with than never not aim say"
)
_THANKS_IS_CONTENT = w.words_of(
    """to of for give giving gives gave with and or my a the no many not his her their our your express send sending
    sincere big special owe return returning speak than in as about deserve deserves"""
)
_GREETING_QUESTIONS = (("how", "are", "you"), ("how", "is", "it", "going"), ("what", "is", "up"), ("nice", "to"))


class Asked(NamedTuple):
    """What is left of a text without its courtesies."""

    tokens: list[str]
    embedded: bool
    """The question stood inside another sentence, so that its words are in the order of a statement."""
    question_mark: bool
    """It ended in a question mark, other than that of "can you"."""


def strip(tokens: list[str], about_words: bool) -> Asked:
    """`tokens` without courtesies, at both ends, and without the punctuation at the end.

    `about_words` (the text is about words, which may be the courtesies themselves) is stricter at the end.
    """
    start, embedded, asked_ability = _strip_start(tokens, about_words)
    left = tokens[start:]
    # "Is there a word for …, please": only after a language or a literal is the last word surely not content.
    left, marked = _strip_end(left, about_words)
    if left[-2:] == ["for", "me"] and left[0] in (_FOR_ME if asked_ability else _ONLY_FOR_ME):
        left = left[:-2]
        left, _ = _strip_end(left, about_words)
    marked = marked and not asked_ability  # "can you explain it?" is a request with a question's mark
    if len(left) > 2 and left[1] == "me" and left[0] in _GIVE and (left[2] in _QUANTITY or left[2][0].isdigit()):
        del left[1]
    return Asked(left, embedded, marked)


def _strip_start(t: list[str], about_words: bool) -> tuple[int, bool, bool]:
    at, embedded, ability = 0, False, False
    size = len(t)
    for _ in range(PHRASES_MAX):
        if at + 1 >= size:
            break
        first = t[at]
        if first in _GREETING or (first == "good" and t[at + 1] in _DAYTIME):
            to = at + (2 if first == "good" else 1)
            if to < size and t[to] in _GREETED:
                to += 1
            pause = to
            to = _past(t, to)
            if to >= size or t[to] not in (w.OPENER if to > pause else _AFTER_GREETING) or _phrasebook(t, to):
                break
            if about_words and not _has_object(t, to):
                break
        elif first in _HESITATION:
            to = _past(t, at + 1)
            if to < size and t[to] in _HESITATION and t[to] != first:
                at = to
                continue
            if to < size and (_phrasebook(t, to) or (about_words and not _has_object(t, to))):
                break
            if to >= size - 1 or t[to] not in w.OPENER or (to == at + 1 and t[to] == "what"):
                break
        elif first in _PLEASE:
            to = _past(t, at + 1)
            if (
                to >= size
                or t[to] not in w.OPENER - _PLEASE
                or (t[to] in w.MODAL | {"do"} and t[to + 1 : to + 2] != ["you"])
            ):
                break
        elif first in ("can", "could", "would", "will") and t[at + 1] in ("you", "u"):
            to = _wonder(t, at)
            embedded = embedded or bool(to)
            to = to or _request(t, at)
            if not to:
                break
            ability = True
        else:
            to = 0
            if first in _WONDERING:
                to = _wonder(t, at)
                if to:
                    embedded = True
                else:
                    to = _wish(t, at)
            elif first == "explain" and t[at + 1 : at + 3] == ["to", "me"]:
                del t[at + 1 : at + 3]
                size -= 2
            if not to:
                break
        at = to
    return at, embedded, ability


def _has_object(t: list[str], at: int = 0) -> bool:
    """Whether a text about words surely names the words it is about, so that a courtesy is none of them.

    "Good evening, how do you say that in French?" and "Thanks, translate to Thai" are about the courtesy.
    """
    if ":" in t or any(word >= "\ue000" for word in t):
        return True
    return t[at : at + 2] == ["what", "does"] and t[at + 2] != "mean" and _POINTING.isdisjoint(t)


def _past(t: list[str], at: int) -> int:
    """The index after the pause at `at`, if there is one."""
    while at < len(t) and t[at] in _STOP:
        at += 1
    return at


def _phrasebook(t: list[str], at: int) -> bool:
    """Whether what follows is small talk, which may itself be asked about ("hello, how are you in Thai")."""
    return any(tuple(t[at : at + len(phrase)]) == phrase for phrase in _GREETING_QUESTIONS)


def _wonder(t: list[str], at: int) -> int:
    for phrase in _WONDER:
        if t[at] == phrase[0] and tuple(t[at : at + len(phrase)]) == phrase:
            to = at + len(phrase)
            if to < len(t) and t[to] in _PLEASE:
                to += 1
            to = _past(t, to)
            if to + 1 < len(t) and t[to] in w.WH and not (phrase[0] == "do" and t[to + 1] in ("to", "i", "you")):
                return to
    return 0


def _wish(t: list[str], at: int) -> int:
    for phrase in _WISH:
        if tuple(t[at : at + len(phrase)]) == phrase:
            to = at + len(phrase)
            if to < len(t) and t[to] in _PLEASE:
                to += 1
            if to + 1 < len(t) and t[to] in w.VERBS:
                return to
    return 0


def _request(t: list[str], at: int) -> int:
    """The index of the verb in "can you (please) <verb> …" where it is surely a request; else 0."""
    modal, to = t[at], at + 2
    polite = to < len(t) and t[to] in _PLEASE
    if polite:
        to += 1
    if to + 1 >= len(t) or t[to] not in w.VERBS:
        return 0
    verb, following = t[to], t[to + 1]
    if polite or any(token in _PLEASE for token in t[-3:]):
        return to
    if (verb in _TO_ME or verb in _GIVE) and following in ("me", "us"):
        return to
    if verb in _SPEECH and modal in ("can", "could"):
        return to
    if verb in _FOR_ME and any(t[end : end + 2] == ["for", "me"] for end in range(len(t) - 3, len(t) - 1)):
        return to
    if verb in _WORK and modal in ("can", "could"):
        if following in _GIVEN or following[0] >= "\ue000" or t[to + 1 : to + 3] == ["the", "following"]:
            return to
        if following in ("a", "an", "some") and not _ARTEFACT.isdisjoint(t[to + 2 : to + 5]):
            return to
    return 0


def _strip_end(t: list[str], about_words: bool) -> tuple[list[str], bool]:
    """Without end marks, thanks and please; and whether a question mark was among the marks."""
    marked = False
    for _ in range(PHRASES_MAX):
        end = len(t)
        if t[-1] in _END:
            while end > 1 and t[end - 1] in _END:
                end -= 1
            run = t[end:]
            if end == 0 or (len(run) > 1 and "?" not in run and "!" not in run) or not _sentence_may_end(t, end, run):
                break  # an ellipsis, or marks that are what is asked about
            marked = marked or "?" in run
            t = t[:end]
        end = _thanks(t, about_words)
        if not end:
            break
        t = t[:end]
    return t, marked


def _sentence_may_end(t: list[str], end: int, run: list[str]) -> bool:
    if t[end - 1] in (",", ";", ":", "("):
        return False
    if w.SYMBOL.isdisjoint(t) or run == ["."]:
        return True
    # "What is the Ruby method save!": one question mark ends a question, anything else may be part of a name.
    return run == ["?"] and t[0] in w.QUESTION and "ruby" not in t and "rails" not in t


def _thanks(t: list[str], about_words: bool) -> int:
    """How many tokens are left before the thanks or please that end `t`; 0 where there are none to take off."""
    size = len(t)
    if size < 4:
        return 0
    last = t[-1]
    if last in _PLEASE:
        end = size - 1
        if end < 4 and t[end - 1] not in _STOP:
            return 0
        if t[end - 1] in _STOP:
            end -= 1
            if t[:end].count(",") > 1:
                return 0
        before = t[end - 1]
        if about_words and not (before in w.LANGUAGES or before >= "\ue000"):
            return 0
        return 0 if before in _PLEASE_IS_CONTENT or before in w.AUXILIARY or before in w.VERBS else end
    for phrase in _THANKS:
        if last == phrase[-1] and tuple(t[-len(phrase) :]) == phrase:
            break
    else:
        return 0
    end = size - len(phrase)
    if end < 2:
        return 0
    separator = t[end - 1]
    if separator in _END:
        sentences = sum(token in _END for token in t[: end - 1])
        named = separator == "?" and not sentences and t[0] in w.QUESTION and _has_object(t)
        return end if not about_words or named else 0
    if about_words:
        return 0
    if separator in _STOP:
        return end - 1 if t[:end].count(",") < 2 else 0
    return 0 if end < 4 or phrase == ("cheers",) or separator in _THANKS_IS_CONTENT or separator in w.VERBS else end


def mark_stands_apart(t: list[str]) -> bool:
    """Whether a question mark after a blank ("how are you ?") only ends the question."""
    before = t[-2] if len(t) > 3 else ""
    if not (before.isalpha() or before.isdigit()) or not w.SYMBOL.isdisjoint(t) or t[0] not in w.OPENER:
        return False
    return before not in w.AUXILIARY | w.DETERMINER and before not in ("mean", "called", "and", "or", "between")
