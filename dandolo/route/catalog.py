"""Names to candidates: which account of which provider can take a call, under which name, in which order.

Built once from the configuration; what providers say of their models is added as it becomes known (`facts`).
A name is an alias or an id that some provider's configuration lists; else `provider/id`; else it is passed on
to the providers for which no models are configured (their ids may contain slashes). Of these, those whose
fetched list has the name come first and those whose list lacks it are left out; a name that no list has is
passed on to all of them, since lists name neither traits nor suffixes nor what came yesterday.
The order is the configured one, primaries before secondaries before overflow; choosing among candidates by
what is measured is another module's business, which takes this order as its input.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from dandolo.api.profiles import Profile, profile
from dandolo.api.profiles.listing import ModelFacts
from dandolo.api.profiles.profile import Endpoint as Speech
from dandolo.config.schema import Config, Model
from dandolo.config.schema import Provider as ProviderConfig
from dandolo.route.facts import Facts
from dandolo.route.preference import Sort, split_suffix

REMEMBERED_MAX = 4096
_THEIR_SUFFIX: Mapping[Sort, str] = {"throughput": ":nitro", "price": ":floor"}
"""What OpenRouter calls the wishes that our suffixes express."""
_ROLES = {"primary": 0, "secondary": 1, "overflow": 2}
_Found = tuple["Provider", str, bool]
"""Who has it, under which id, and whether that is more than a guess (`Target.listed`)."""


@dataclass(frozen=True, slots=True, eq=False)
class Account:
    """One credential of one provider. `label` is safe to show; `secret` is None where no key is needed."""

    provider: Provider
    index: int
    owner: str
    secret: str | None

    @property
    def label(self) -> str:
        """For records and messages: the provider's name, and the owner where there are several accounts."""
        return self.provider.name if len(self.provider.accounts) < 2 else f"{self.provider.name}/{self.owner}"


class Provider:
    """A configured provider with its profile. Immutable after construction."""

    __slots__ = ("accounts", "answer_lines", "config", "defaults", "encoded_name", "name", "prices", "profile", "role")

    def __init__(self, config: ProviderConfig) -> None:
        self.config = config
        self.name = config.name
        self.encoded_name = config.name.encode()
        self.answer_lines = (
            b"x-dandolo-provider: %b\r\nx-dandolo-attempts: 1\r\nx-dandolo-queue-ms: 0.000\r\n" % self.encoded_name
        )
        """Header lines of an answer that came at the first attempt and without waiting."""
        self.profile: Profile = profile(config.profile)
        self.role = _ROLES[config.role]
        self.defaults: Mapping[str, Any] = config.defaults
        self.prices: dict[str, Model] = {model.id: model for model in config.models}
        self.accounts = tuple(
            Account(self, index, account.owner, account.key.reveal() if account.key is not None else None)
            for index, account in enumerate(config.accounts)
        )

    def speaks(self, speech: Speech) -> bool:
        """Whether it offers an endpoint."""
        return speech in self.profile.dialects


@dataclass(frozen=True, slots=True)
class Target:
    """A candidate: an account, asked for `model` (the provider's own id) because the caller said `name`.

    `facts` is what was known of the model when the candidate was found. `listed` False: others are known to have
    it, of this provider nothing is known yet; it stands behind them.
    """

    account: Account
    model: str
    name: str
    facts: ModelFacts | None = field(default=None, compare=False)
    listed: bool = field(default=True, compare=False)

    @property
    def provider(self) -> Provider:
        """The provider of the account."""
        return self.account.provider

    def cost_usd(self, input_tokens: int, output_tokens: int) -> float | None:
        """What the price list says, None when it does not know the model."""
        price = self.facts
        if price is None or price.input_usd_per_mtok is None or price.output_usd_per_mtok is None:
            return None
        return (input_tokens * price.input_usd_per_mtok + output_tokens * price.output_usd_per_mtok) / 1e6


class Catalog:
    """All providers of a configuration, and what their models are called."""

    def __init__(self, config: Config) -> None:
        self.providers = tuple(Provider(item) for item in config.providers)
        self._by_name = {provider.name: provider for provider in self.providers}
        self.aliases = config.models
        self.facts = Facts(self.providers)
        self._generation = 0
        self._remembered: dict[tuple[str, Speech], tuple[Target, ...]] = {}

    def candidates(self, name: str, speech: Speech) -> tuple[Target, ...]:
        """Who can take a call for `name` at an endpoint, in order; empty when nobody has it.

        An empty name (an endpoint with a default model) is everybody who offers the endpoint.
        """
        facts = self.facts
        if facts.generation != self._generation:
            self._generation = facts.generation
            self._remembered.clear()
        remembered = self._remembered.get((name, speech))
        if remembered is not None:
            return remembered
        found = tuple(
            Target(account, model, name, facts.of(provider.name, model), listed)
            for provider, model, listed in self._resolve(name, speech)
            if provider.speaks(speech)
            for account in provider.accounts
        )
        if len(self._remembered) >= REMEMBERED_MAX:
            self._remembered.clear()
        self._remembered[name, speech] = found
        return found

    def sorted_candidates(self, name: str, speech: Speech) -> tuple[tuple[Target, ...], Sort | None]:
        """`candidates`, and what a suffix of the name (`:fast`, `:cheap`) sorts them by.

        A name that somebody lists as it stands has no suffix. Who chooses among providers itself is told the wish.
        """
        base, sort = (name, None) if self.lists(name) else split_suffix(name)
        found = self.candidates(base, speech)
        suffix = _THEIR_SUFFIX.get(sort, "") if sort is not None else ""
        if suffix:
            found = tuple(
                replace(target, model=target.model + suffix)
                if target.provider.profile.routes and not target.provider.prices
                else target
                for target in found
            )
        return found, sort

    def knows(self, name: str) -> bool:
        """Whether any provider has the name at all, whatever the endpoint."""
        return bool(self._resolve(name))

    def lists(self, name: str) -> bool:
        """Whether the name is an alias or stands, exactly so, in some provider's configuration or fetched list.

        For names that may mean something of ours (`:cheap`) unless somebody has them as they are.
        """
        prefix, _, rest = name.partition("/")
        facts = self.facts
        return (
            name in self.aliases
            or any(facts.has(provider.name, name) for provider in self.providers)
            or bool(facts.has(prefix, rest))
        )

    def names(self) -> list[str]:
        """Every name that can be listed: aliases, then `provider/id` of all models known."""
        listed = [
            f"{provider.name}/{model}" for provider in self.providers for model in self.facts.models(provider.name)
        ]
        return [*self.aliases, *listed]

    def _resolve(self, name: str, speech: Speech | None = None) -> list[_Found]:
        if not name:
            return [(provider, "", True) for provider in self._ordered(self.providers)]
        alias = self.aliases.get(name)
        if alias is not None:
            # An alias keeps the order in which it was written.
            return [found for target in alias for found in self._one(target, speech)]
        return self._one(name, speech)

    def _one(self, name: str, speech: Speech | None) -> list[_Found]:
        listing = [provider for provider in self.providers if name in provider.prices]
        if listing:
            return [(provider, name, True) for provider in self._ordered(listing)]
        prefix, slash, rest = name.partition("/")
        named = self._by_name.get(prefix) if slash and rest else None
        if named is not None and (not named.prices or rest in named.prices):
            # Whoever names a provider means it, whatever ids others list; but "openrouter/auto" is an id there.
            whole = self.facts.has(prefix, name) and not self.facts.has(prefix, rest)
            return [(named, name if whole else rest, True)]
        return self._passed_on(name, speech)

    def _passed_on(self, name: str, speech: Speech | None) -> list[_Found]:
        """A name that no configuration has, at the providers that may yet have it.

        Only those that speak the endpoint count: one that has the model but cannot be asked must not shut out others.
        """
        facts = self.facts
        open_ended = [
            provider
            for provider in self._ordered(self.providers)
            if not provider.prices and (speech is None or provider.speaks(speech))
        ]
        having = [provider for provider in open_ended if facts.has(provider.name, name)]
        if not having:
            having = [provider for provider in open_ended if facts.has_stem(provider.name, name)]
        if not having:
            return [(provider, name, True) for provider in open_ended]
        unknown = [provider for provider in open_ended if facts.has(provider.name, name) is None]
        return [(provider, name, True) for provider in having] + [
            (provider, name, False) for provider in unknown if provider not in having
        ]

    @staticmethod
    def _ordered(providers: Iterable[Provider]) -> list[Provider]:
        return sorted(providers, key=lambda provider: provider.role)


def allowed(target: Target, patterns: tuple[str, ...]) -> bool:
    """Whether a key's `models` patterns admit a target, by the name asked for or as `provider/id`."""
    if admits(patterns, f"{target.provider.name}/{target.model}"):
        return True
    # The name asked for counts unless it only looks like another provider's: `venice/*` admits no other's model.
    return target.name in patterns or ("/" not in target.name and admits(patterns, target.name))


def admits(patterns: tuple[str, ...], name: str) -> bool:
    """Whether a name is one of the patterns, or begins with one that ends in '*'."""
    return any(name.startswith(pattern[:-1]) if pattern.endswith("*") else name == pattern for pattern in patterns)
