"""What a request for `model: "auto"` is about: a question, code, a long context, pictures or sound, tools.

Form decides first, in this order: a part that is not text; tools offered or used; a prompt of 8,000 tokens or
more. What is left is told apart by `codesigns` on the last turn of the user, read in its conversation: a short
turn carries on with what was there, and a system prompt may demand code by itself (text to SQL) or make prose of
whatever comes (release notes).

Pure and bounded: contents stay raw JSON, only the head and the tail of a text are decoded, and of a conversation
of very many messages the middle is weighed, not read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from msgspec import Raw

from dandolo.api import asking
from dandolo.api.codesigns import Signs, prose_points, read_signs
from dandolo.api.conversation import Conversation, is_filled
from dandolo.api.lexicon import WORDS
from dandolo.api.texts import glimpse_all, tokens
from dandolo.config.schema import UseCase

USE_CASES: Final[tuple[UseCase, ...]] = ("question", "code", "long_context", "multimodal", "tools")

LONG_TOKENS = 8_000
"""A prompt (all messages, without the definitions of tools) from which the window is what matters."""
CODE_POINTS = 2.0
"""From so many points on a turn asks for code."""
SOME_SHAPE = 0.9
"""An answer of one command in backticks has no more of the shape of code."""
SYSTEM_POINTS = 2.5
CARRYING_WORDS_MAX = 32
"""A longer turn says itself what it is about."""
CARRYING_ALONE_WORDS_MAX = 7
CARRYING_CHARS_MAX = 48
"""The same for scripts without spaces."""
EARLIER_BYTES = 768
SYSTEM_BYTES = 1536
PART_TOKENS = 1_000
"""What a picture, a sound or a file is taken for; a picture in full detail is 700 to 1,600 tokens with most models."""
OUTPUT_DIGITS_MAX = 9

_OUTPUT_LIMITS = ("max_completion_tokens", "max_output_tokens", "max_tokens")
_WORD = re.compile(r"[^\W\d_]+")
_SENTENCES = re.compile(r"[.!?]\s+|\n\s*")
_DEMANDED = re.compile(
    r"\b(?:answer|reply|respond|return|output|write|translate|convert|generate|produce|emit|turn|give|complete"
    r"|antworte|gib|übersetze|réponds|traduis|responde|devuelve|traduce|rispondi|restituisci)\w*\b.{0,80}?"
    r"\b(?:sql|quer(?:y|ies)|statements?|regex\w*|regular expressions?|shell|bash|commands?|code|scripts?"
    r"|formulas?|cypher|expressions?|promql|jq|yaml|terraform|html|svg|css|latex|graphql|python|javascript|typescript"
    r"|powershell|abfrage|befehl|requête|commande|consulta|comando|patch|diff)\b"
)
_ONLY = re.compile(
    r"\bonly\b|nothing else|\bjust\b|\bone\b|\bsingle\b|\binto\b|\bexactly\b|no (?:explanation|prose|comment)"
    r"|without (?:expl|comm)"
    r"|\bnur\b|\bnichts\b|\beine\b|\bseulement\b|uniquement|\brien\b|\bsolo\b|únicamente|soltanto|apenas"
)
_TABLES = re.compile(r"\bCREATE TABLE\b|\b[Ss]chema:|\b\w+\((?:\w+(?: \w+)?, ){2,}\w+(?: \w+)?\)")


@dataclass(frozen=True, slots=True)
class Features:
    """What the choice of a model rests on.

    `input_tokens` is the estimate of everything sent (definitions of tools and parts that are not text
    included), `output_tokens_max` the caller's own bound for the answer, None without one. `turns` counts the
    user's turns; `images`, `audio`, `files` (video and unknown parts among them) the parts that are not text.
    `tools`: offered or already used. `capabilities` is what the model must have: "tools", "vision", "audio",
    "video", "files". `code` is what speaks for code in the last turn, in points.
    """

    input_tokens: int = 0
    output_tokens_max: int | None = None
    turns: int = 0
    images: int = 0
    audio: int = 0
    files: int = 0
    tools: bool = False
    capabilities: frozenset[str] = frozenset()
    code: float = 0.0


@dataclass(frozen=True, slots=True)
class Intent:
    """The use case, what it rests on, and why in words (ours: nothing of what the caller wrote)."""

    use: UseCase
    features: Features
    reason: str


def read_intent(fields: Mapping[str, Raw]) -> Intent:
    """The intent of a request, from the top-level fields of its judged body (`JsonBody.fields`).

    Raises nothing for a judged body: what has an unknown form is passed over.
    """
    talk = Conversation()
    for name in ("system", "instructions"):
        if name in fields:
            talk.prompt(fields[name])
    for name in ("messages", "input", "prompt"):
        if name in fields:
            talk.take(fields[name])
    definitions = [fields[name] for name in ("tools", "functions") if is_filled(fields.get(name))]
    refused = _is_none(fields.get("tool_choice")) or _is_none(fields.get("function_call"))
    offered = bool(definitions) and not refused
    tools = offered or talk.tools_used
    parts = talk.parts
    count = sum(parts.values())
    points = 0.0
    use: UseCase
    if count:
        use, reason = "multimodal", "1 part is not text" if count == 1 else f"{count} parts are not text"
    elif tools:
        use, reason = "tools", "tools are offered" if offered else "tools were used before"
    elif talk.tokens >= LONG_TOKENS:
        use, reason = "long_context", f"about {talk.tokens} tokens of prompt"
    else:
        points, reason = _judge(talk)
        use = "code" if points >= CODE_POINTS else "question"
    capabilities = {name for name in parts if name}
    if tools:
        capabilities.add("tools")
    features = Features(
        input_tokens=talk.tokens + sum(map(tokens, definitions)) + count * PART_TOKENS,
        output_tokens_max=_output_tokens(fields),
        turns=sum([role == "user" for role, _ in talk.turns]),
        images=parts["vision"],
        audio=parts["audio"],
        files=count - parts["vision"] - parts["audio"],
        tools=tools,
        capabilities=frozenset(capabilities),
        code=round(points, 2),
    )
    return Intent(use, features, reason)


def _judge(talk: Conversation) -> tuple[float, str]:
    """The points for code of the last turn of the user, and why."""
    turns = talk.turns
    at = len(turns) - 1
    while at >= 0 and turns[at][0] != "user":
        at -= 1
    if at < 0:
        return 0.0, "no text of a user"
    text = glimpse_all(turns[at][1])
    signs = read_signs(text)
    points = signs.total
    if points >= CODE_POINTS:
        if signs.making <= 0 and talk.system:
            # "You turn changelogs into release notes": the code is only the material.
            against = prose_points(glimpse_all(talk.system, 700, 0).lower())
            if against and points + against < CODE_POINTS:
                return points + against, "the system prompt asks for prose"
        return points, _why(signs)
    if signs.words <= -2.0 or signs.making < 0:
        return points, "prose is asked for"
    if talk.system and _demands_code(glimpse_all(talk.system, SYSTEM_BYTES, 512)):
        return max(points, 0.0) + SYSTEM_POINTS, "the system prompt demands code"
    if at and _carries_on(text, points) and _was_about_code(turns[:at]):
        return max(points, 0.0) + CODE_POINTS, "carries on with code"
    return points, "little or nothing speaks for code"


def _why(signs: Signs) -> str:
    if signs.seen and signs.shape >= signs.words:
        return ", ".join(signs.seen)
    return "words of programming" + "".join(f", {name}" for name in signs.seen)


def _demands_code(system: str) -> bool:
    """Whether a system prompt wants code for every answer: "answer with one query and nothing else"."""
    for sentence in _SENTENCES.split(system):
        low = sentence.lower()
        if _DEMANDED.search(low) is not None and _ONLY.search(low) is not None:
            return True
    return "CREATE TABLE" in system or (_TABLES.search(system) is not None and "quer" in system.lower())


def _carries_on(text: str, points: float) -> bool:
    """Whether a turn goes on with what was there, rather than beginning something else."""
    low = text.lower()
    if asking.TURNING.search(low) is not None:
        return False
    words = _WORD.findall(low)
    if not words or asking.THANKS.issuperset(words):
        return False
    if points >= 0.6:
        return len(words) <= 2 * CARRYING_WORDS_MAX
    if points <= -1.2:
        return False
    if len(words) <= CARRYING_WORDS_MAX // 2 and any(WORDS.get(word, 0.0) >= 0.6 for word in words):
        return True
    if not low.isascii() and len(words) * 12 < len(low):
        return len(low) <= CARRYING_CHARS_MAX
    if len(words) > CARRYING_WORDS_MAX:
        return False
    if words[0] in asking.OPENING or not asking.FOLLOWING.isdisjoint(words):
        return True
    # Nothing points back, but so few words hardly stand alone, unless they are a whole question.
    if words[0] == "how" and words[1:2] in (["many"], ["much"], ["old"], ["far"], ["tall"]):
        return False
    return len(words) <= CARRYING_ALONE_WORDS_MAX and (
        words[0] not in asking.ASKING or words[1:2] in (["about"], ["if"])
    )


def _was_about_code(turns: Sequence[tuple[str, list[Raw]]]) -> bool:
    """Whether the turns before were: code in the last answer, or asked for in one of the two last questions."""
    asked = 0
    for index in range(len(turns) - 1, -1, -1):
        role, texts = turns[index]
        signs = read_signs(glimpse_all(texts, EARLIER_BYTES, EARLIER_BYTES // 2))
        if role == "assistant":
            if not asked and (signs.shape >= 3.0 or (signs.shape >= SOME_SHAPE and signs.total >= CODE_POINTS)):
                return True
            continue
        if signs.total >= CODE_POINTS:
            return True
        asked += 1
        if asked == 2:
            break
    return False


def _is_none(raw: Raw | None) -> bool:
    """Whether a choice of tools is "none", or Anthropic's {"type": "none"}."""
    if raw is None or len(raw) > 64:
        return False
    return bytes(raw) == b'"none"' or bytes(raw).replace(b" ", b"") == b'{"type":"none"}'


def _output_tokens(fields: Mapping[str, Raw]) -> int | None:
    for name in _OUTPUT_LIMITS:
        raw = fields.get(name)
        if raw is not None and len(raw) <= OUTPUT_DIGITS_MAX and bytes(raw).isdigit():
            return int(bytes(raw))
    return None
