"""May this call be looked up, may its answer be kept, and by whom may it be seen.

Pure rules over a judged call, the operator's and the key's settings, and the request's headers. Whoever asks gets
a `Permission` with its reason in words. How long is `lifetime`'s to say, whether an answer is fit to be kept
`answer`'s.

Two identical requests at a positive temperature ask for two samples, so only what is meant to be repeatable is
kept: temperature 0, or a seed, or an endpoint that does not sample. `sampled = "reuse"` extends that to calls that say
nothing about temperature, `Dandolo-Cache: force` to any. Nothing permits what has effects or a state elsewhere: stored
or continued answers, tools that run at the provider, audio.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import msgspec

from dandolo.api.body import JsonBody
from dandolo.api.call import Call
from dandolo.cache.lifetime import DAY_S, IMAGE_ENDPOINTS, TTL_S, Lifetime, TtlClass, lifetime
from dandolo.errors import RequestError

TTL_S_MAX = 30 * DAY_S
MODES = ("off", "force", "exact", "semantic")

_SAMPLING = frozenset(("chat", "completions", "responses", "messages"))
_STEADY = frozenset(("embeddings", "moderations"))
_CACHED = _SAMPLING | _STEADY | IMAGE_ENDPOINTS

# Fields that may mean a state or an effect at the provider.
_WATCHED = frozenset((
    "store", "previous_response_id", "conversation", "background", "tools", "audio", "modalities",
    "web_search_options", "plugins", "search_parameters", "mcp_servers", "container", "venice_parameters",
))  # fmt: skip
_SEARCHES = ("web_search_options", "plugins", "search_parameters", "mcp_servers", "container")
# Tools that run where the caller is. Anthropic's carry a date: bash_20250124.
_OWN_TOOLS = frozenset((None, "function", "custom", "local_shell", "apply_patch"))
_OWN_TOOL_BEGINNINGS = ("bash_", "text_editor_", "computer_", "memory_")
_OFF = (b"false", b"null", b'"off"', b'"false"', b"0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """The operator's settings.

    `sampled`     calls that do not say a temperature: "bypass" the cache, or "reuse" one answer
    `shared`      whether answers may be shared between keys that agree to it
    `privacy`     answers in memory only, bodies nowhere
    `ttl_s`       a lifetime for everything but images and embeddings, None for each class's own
    `ttl_max_s`   what a request may ask for at most
    """

    on: bool = True
    sampled: Literal["bypass", "reuse"] = "bypass"
    shared: bool = False
    privacy: bool = False
    ttl_s: float | None = None
    ttl_max_s: float = TTL_S_MAX


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """What a key says: its name, whose answers it may see, privacy, a lifetime of its own."""

    name: str = ""
    scope: Literal["key", "shared"] = "key"
    privacy: bool = False
    ttl_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What a request's headers ask of the cache. Times in seconds."""

    lookup: bool = True
    store: bool = True
    only_if_cached: bool = False
    max_age_s: float | None = None
    mode: Literal["", "off", "force", "exact", "semantic"] = ""
    ttl_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Permission:
    """What the cache may do for one call.

    `lookup`, `store`     whether a kept answer may be given, and this one's be kept
    `reason`              why not, or why, in words
    `scope`               who shares the key: "shared", or "key:" and the key's name
    `memory_only`         privacy: this process's memory only, no body remembered, nothing semantic or predicted
    `semantic`            whether an equal meaning may do
    `forced`              whether the caller overruled the bypass rules
    `only_if_cached`      504 rather than a provider
    `max_age_s`           how old a kept answer may be; None: as old as it lives
    `ttl_s`               a lifetime that somebody set, None for the class's own
    """

    lookup: bool
    store: bool
    reason: str
    scope: str = ""
    memory_only: bool = False
    semantic: bool = False
    forced: bool = False
    only_if_cached: bool = False
    max_age_s: float | None = None
    ttl_s: float | None = None

    @property
    def bypass(self) -> bool:
        """Whether the cache has nothing to do with this call."""
        return not (self.lookup or self.store)

    def coalesces(self) -> bool:
        """Whether the call may share another's flight: both ask for any one answer, as fresh as it comes."""
        return self.lookup and self.store

    def lifetime(self, kind: TtlClass, now: float, jitter: float) -> Lifetime:
        """The lifetime of an answer of class `kind` kept for this call at `now`; `jitter` is random in 0 … 1.

        What somebody set is the life of class SET, and an upper bound for images, embeddings and refusals.
        """
        ttl_s = self.ttl_s
        if ttl_s is not None and kind is not TtlClass.SET:
            ttl_s = min(ttl_s, TTL_S[kind])
        return lifetime(kind, now, jitter, ttl_s)

    def admits(self, kind: TtlClass, created: float, now: float) -> bool:
        """Whether a kept answer of class `kind`, made at `created`, may be given to this call."""
        if self.max_age_s is not None and now - created > self.max_age_s:
            return False
        # Somebody forced it to be kept; that binds nobody else.
        return kind is not TtlClass.VOLATILE or self.forced or self.ttl_s is not None


NO_WISHES = Wishes()


def harmless(body: JsonBody | None) -> bool:
    """Whether no field of a body may mean a state or an effect at the provider."""
    return body is not None and _WATCHED.isdisjoint(body.fields)


class Policy:
    """The rules for one key. Made when the configuration is read; `permission` is called for every request."""

    __slots__ = ("_default", "_holder", "_rules")

    def __init__(self, rules: Rules, holder: Holder) -> None:
        self._rules = rules
        self._holder = holder
        private = rules.privacy or holder.privacy
        shared = rules.shared and holder.scope == "shared" and not private
        ttl_s = holder.ttl_s if holder.ttl_s is not None else rules.ttl_s
        self._default = Permission(
            lookup=True,
            store=ttl_s is None or ttl_s > 0.0,
            reason="repeatable",
            scope="shared" if shared else f"key:{holder.name}",
            memory_only=private,
            semantic=not private,
            ttl_s=None if ttl_s is None else min(ttl_s, rules.ttl_max_s),
        )

    def permission(self, call: Call, wishes: Wishes = NO_WISHES, *, own_key: bool = False) -> Permission:
        """What the cache may do for `call`.

        `own_key`: the caller brought a provider's key of its own, whose answers are shared with nobody.
        """
        if not self._rules.on:
            return _never("the cache is off")
        if wishes is not NO_WISHES:
            if wishes.mode == "off":
                return _refused("the request says Dandolo-Cache: off", wishes)
            if not (wishes.lookup or wishes.store):
                return _refused("the request says Cache-Control: no-store", wishes)
        body = call.json
        endpoint = call.endpoint.name
        if body is None or endpoint not in _CACHED:
            return _refused("answers of this endpoint are not kept", wishes)
        forced = wishes.mode == "force"
        if not forced:
            # First what keeps out most calls, in the fewest steps.
            reason = self.sampled(endpoint, body)
            if reason:
                return _refused(reason, wishes)
        obstacle = "" if _WATCHED.isdisjoint(body.fields) and endpoint != "responses" else _obstacle(endpoint, body)
        if not obstacle and any(model.endswith(":online") for model in call.models):
            obstacle = "the model searches the web"
        if obstacle:
            return _refused(obstacle, wishes)
        granted = self._default
        if wishes is not NO_WISHES:
            granted = self._adapted(wishes)
        if own_key and granted.scope == "shared":
            granted = replace(granted, scope=f"key:{self._holder.name}")
        return granted

    def _adapted(self, wishes: Wishes) -> Permission:
        default = self._default
        ttl_s = default.ttl_s if wishes.ttl_s is None else min(wishes.ttl_s, self._rules.ttl_max_s)
        return replace(
            default,
            lookup=wishes.lookup,
            store=wishes.store and (ttl_s is None or ttl_s > 0.0),
            reason="forced by the request" if wishes.mode == "force" else default.reason,
            semantic=default.semantic and wishes.mode != "exact" and wishes.lookup,
            forced=wishes.mode == "force",
            only_if_cached=wishes.only_if_cached,
            max_age_s=wishes.max_age_s,
            ttl_s=ttl_s,
        )

    def sampled(self, endpoint: str, body: JsonBody) -> str:
        """Why two such calls ask for two answers; "" when one will do."""
        if endpoint in _STEADY:
            return ""
        fields = body.fields
        seed = body.get("seed") if "seed" in fields else None
        if seed is not None and seed[0] in b"-0123456789":
            return ""
        reuse = self._rules.sampled == "reuse"
        if endpoint in IMAGE_ENDPOINTS:
            return "" if reuse else "an image without a seed is a new one each time"
        temperature = body.get("temperature") if "temperature" in fields else None
        if temperature is None:
            return "" if reuse else "no temperature is given, so each call asks for a sample of its own"
        try:
            zero = float(temperature) == 0.0
        except ValueError:
            return "the temperature is no number"
        return "" if zero else "the temperature is above 0, so each call asks for a sample of its own"


@lru_cache(64)
def _never(reason: str) -> Permission:
    return Permission(lookup=False, store=False, reason=reason)


def _refused(reason: str, wishes: Wishes) -> Permission:
    never = _never(reason)
    return replace(never, only_if_cached=True) if wishes.only_if_cached else never


# -- what is never kept ----------------------------------------------------------------------------------------


class _Tool(msgspec.Struct, gc=False):
    type: str | None = None


_tools = msgspec.json.Decoder(list[_Tool])
_strings = msgspec.json.Decoder(list[str])
_members = msgspec.json.Decoder(dict[str, msgspec.Raw])


def _obstacle(endpoint: str, body: JsonBody) -> str:
    """What forbids keeping the answer whoever asks for it; "" for nothing."""
    store = body.get("store")
    if store not in (None, b"false"):
        return "the provider is asked to store the answer"
    if endpoint == "responses" and store is None:
        # OpenAI's default; the caller may then continue from an id that a copy would not have.
        return "the provider stores responses unless store is false"
    for name in ("previous_response_id", "conversation"):
        if body.get(name) is not None:
            return "the call continues a conversation that the provider keeps"
    if body.get("background") not in (None, b"false"):
        return "the answer is made in the background"
    if body.get("audio") is not None or _lists(body, "modalities", "audio"):
        return "the answer is audio"
    for name in _SEARCHES:
        if body.get(name) not in (None, b"[]"):
            return f"'{name}' makes the provider act"
    raw = body.get("tools")
    if raw is not None:
        try:
            kinds = {tool.type for tool in _tools.decode(raw)} - _OWN_TOOLS
        except msgspec.DecodeError:
            return "the tools cannot be understood"
        if any(not str(kind).startswith(_OWN_TOOL_BEGINNINGS) for kind in kinds):
            return "a tool runs at the provider"
    raw = body.get("venice_parameters")
    if raw is not None:
        try:
            searching = [
                name
                for name, value in _members.decode(raw).items()
                if name.startswith("enable_") and ("search" in name or "scrap" in name) and bytes(value) not in _OFF
            ]
        except msgspec.DecodeError:
            return "'venice_parameters' cannot be understood"
        if searching:
            return f"'{searching[0][:40]}' makes the provider act"
    return ""


def _lists(body: JsonBody, name: str, wanted: str) -> bool:
    raw = body.get(name)
    if raw is None:
        return False
    try:
        return wanted in _strings.decode(raw)
    except msgspec.DecodeError:
        return True


# -- the request's headers -------------------------------------------------------------------------------------

_SPAN = re.compile(rb"([0-9]{1,9})(s|m|h|d)?")
_UNIT_S = {None: 1.0, b"s": 1.0, b"m": 60.0, b"h": 3_600.0, b"d": DAY_S}


def wishes(headers: Mapping[bytes, bytes]) -> Wishes:
    """What a request asks of the cache (header names in lower case).

    Raises RequestError for a `Dandolo-Cache` or `Dandolo-Cache-TTL` that says nothing we know: "off" misspelt must
    not mean "on". Of Cache-Control unknown directives are ignored, as RFC 9111 §5.2 says.
    """
    control = headers.get(b"cache-control")
    mode = headers.get(b"dandolo-cache")
    ttl = headers.get(b"dandolo-cache-ttl")
    if control is None and mode is None and ttl is None:
        return NO_WISHES
    lookup = store = True
    only_if_cached = False
    max_age_s: float | None = None
    for directive in (control or b"").lower().split(b","):
        name, _, value = directive.strip().partition(b"=")
        if name == b"no-store":
            lookup = store = False
        elif name == b"no-cache":
            lookup = False
        elif name == b"only-if-cached":
            only_if_cached = True
        elif name == b"max-age":
            # RFC 9111 §4.2.1: what cannot be read is best taken as stale. The lowest of several counts.
            digits = value.strip(b'"')
            age = float(digits) if digits.isdigit() and len(digits) <= 12 else 0.0
            max_age_s = age if max_age_s is None else min(age, max_age_s)
    if max_age_s == 0.0:
        lookup = False
    word = (mode or b"").strip().lower().decode("latin-1")
    if word not in ("", *MODES):
        raise RequestError(f"the header Dandolo-Cache must be one of {', '.join(MODES)}", param="Dandolo-Cache")
    ttl_s: float | None = None
    if ttl is not None:
        span = _SPAN.fullmatch(ttl.strip())
        if span is None:
            raise RequestError(
                "the header Dandolo-Cache-TTL must be seconds or a number with s, m, h or d", param="Dandolo-Cache-TTL"
            )
        ttl_s = float(span[1]) * _UNIT_S[span[2]]
    return Wishes(
        lookup=lookup,
        store=store,
        only_if_cached=only_if_cached,
        max_age_s=max_age_s,
        mode=word,  # type: ignore[arg-type]
        ttl_s=ttl_s,
    )
