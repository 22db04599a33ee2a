"""Takes anything that looks like a key out of a provider's text before a client or a log sees it.

It knows the shapes of keys, not their owners: prefixes in use, header spellings, and long random tokens.
It errs on the side of removing, but leaves model names, request ids of up to 31 characters and prose alone.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable

MARK = "[redacted]"

TEXT_CHARS_MAX = 8192
"""Longer text is cut before it is looked at, so that the work is bounded."""

SECRET_CHARS_MIN = 6
"""A shorter "secret" would blank out ordinary words."""

# Asterisks and dots stay in the class: OpenAI repeats a rejected key as "sk-proj-********abcd".
_PREFIXED = re.compile(
    r"(?<![A-Za-z0-9])(?:"
    r"(?:sk|pk|rk|gsk|csk|dsk|xai|nvapi|pplx|ghp|gho|ghs|glpat|github_pat|tgp|hf|r8|fw|vn|venice)"
    r"[-_][A-Za-z0-9_*.\-]{8,}"
    r"|VENICE[-_A-Za-z]{0,24}KEY[-_][A-Za-z0-9_*.\-]{6,}"
    r"|AIza[A-Za-z0-9_\-]{16,}|A[KS]IA[A-Z0-9]{12,}|ya29\.[A-Za-z0-9_.\-]{8,}"
    r"|eyJ[A-Za-z0-9_\-]{8,}(?:\.[A-Za-z0-9_\-]{2,}){1,2}"
    r")"
)
_SCHEME = re.compile(r"\b(Bearer|Basic)(\s{1,4})[^\s\"',;<>]{6,}", re.I)
_NAMED = re.compile(
    r"\b((?:x-)?api[-_ ]?key|authorization|access[-_ ]?token|client[-_ ]?secret|password)"
    r"([\"']{0,2}\s{0,4}[:=]\s{0,4}[\"']{0,2})(?!\[redacted\])(?!(?:Bearer|Basic)\b)[^\s\"',;}<>]{4,}",
    re.I,
)
_USERINFO = re.compile(r"(://)[^\s/@:\"']{1,128}:[^\s/@\"']{1,256}@")
_TOKEN = re.compile(r"[A-Za-z0-9+/_\-]{32,}={0,2}")
_PIECE = re.compile(r"[A-Za-z0-9]{24,}")


def scrub(text: str, secrets: Iterable[str] = ()) -> str:
    """`text`, cut to 8,192 characters, with every secret and everything shaped like one replaced.

    `secrets` are strings that must not appear whatever their shape (the account's key).
    """
    text = cut(text, TEXT_CHARS_MAX)
    for secret in secrets:
        if len(secret) >= SECRET_CHARS_MIN:
            text = text.replace(secret, MARK)
    text = _USERINFO.sub(rf"\1{MARK}@", text)
    text = _SCHEME.sub(rf"\1\2{MARK}", text)
    text = _NAMED.sub(rf"\1\2{MARK}", text)
    text = _PREFIXED.sub(MARK, text)
    return _TOKEN.sub(_token, text)


def cut(text: str, chars_max: int) -> str:
    """`text` of at most `chars_max` characters, ending at a word's end when it had to be cut.

    A plain cut through a key would leave a half that no pattern recognises.
    """
    if len(text) <= chars_max:
        return text
    words = text[:chars_max].rsplit(None, 1)
    return words[0] if len(words) == 2 else ""


def _token(found: re.Match[str]) -> str:
    return MARK if _is_random(found[0]) else found[0]


def _is_random(token: str) -> bool:
    """Whether a run of 32 or more key characters is a key and not a path, a model name or an identifier.

    A random base64 text changes between lower case, upper case and digits at about 60 % of its places and
    hexadecimal at 47 %; `Qwen2-5-Coder-32B-Instruct-GPTQ-Int4` at 20 %. An unbroken run of 24 or more letters
    and digits is not a name either.
    """
    piece = _PIECE.search(token)
    if piece is not None and not piece[0].isalpha() and not piece[0].isdigit():
        return True
    classes = [_class(character) for character in token]
    changes = sum(a != b and a > 0 and b > 0 for a, b in itertools.pairwise(classes))
    return changes * 3 >= len(token)


def _class(character: str) -> int:
    if character.isdigit():
        return 1
    if character.isupper():
        return 2
    return 3 if character.islower() else 0
