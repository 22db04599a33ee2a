"""What is known of every provider's models: what the configuration says, above what the provider's list says.

One sheet a provider, replaced whole by one assignment, so that whoever reads sees the old or the new. A list
that was once fetched stays until the next one is there, however old it gets: a provider that cannot be asked
today has not lost its models. Fetching is another's business, who asks `due`, hands bodies to `read` and
results to `replace` or `refused`. Time is monotonic seconds and always an argument.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from dandolo.api.profiles.listing import Listing, ModelFacts
from dandolo.api.profiles.listing import read as read_listing
from dandolo.config.schema import Model

if TYPE_CHECKING:
    from dandolo.route.catalog import Provider

REFRESH_S = 600.0
RETRY_S = 60.0
"""After a list that could not be read; one that could not even be fetched is asked for again at once."""
SUFFIXES_MAX = 3


@dataclass(frozen=True, slots=True)
class Sheet:
    """One provider's models. `listing` is what was fetched (None: nothing yet), `models` what holds.

    `fetched_at` and `due_at` are monotonic seconds; `problem` is why the last attempt gave no list, "" when it did.
    """

    models: Mapping[str, ModelFacts]
    listing: Listing | None = None
    fetched_at: float | None = None
    due_at: float = float("-inf")
    problem: str = ""


class Facts:
    """The sheets of all providers of a configuration.

    `generation` grows whenever what holds has changed: who keeps something made from facts compares it.
    """

    __slots__ = ("_providers", "_sheets", "generation")

    def __init__(self, providers: Iterable[Provider]) -> None:
        self._providers = {provider.name: provider for provider in providers}
        self._sheets = {name: Sheet(_held(provider, None)) for name, provider in self._providers.items()}
        self.generation = 0

    # -- what is known ---------------------------------------------------------------------------------

    def of(self, provider: str, model: str) -> ModelFacts | None:
        """The facts of a model under exactly this id; None when nothing is known of it, or of the provider."""
        sheet = self._sheets.get(provider)
        return None if sheet is None else sheet.models.get(model)

    def models(self, provider: str) -> Mapping[str, ModelFacts]:
        """Every model that a provider is known to have: those of its configuration, else those of its list."""
        sheet = self._sheets.get(provider)
        return {} if sheet is None else sheet.models

    def has(self, provider: str, model: str) -> bool | None:
        """Whether a provider has a model under exactly this id; None when no whole list of it has been seen."""
        sheet = self._sheets.get(provider)
        if sheet is None:
            return None
        if model in sheet.models:
            return True
        if self._providers[provider].prices:
            return False
        return False if sheet.listing is not None and sheet.listing.complete else None

    def has_stem(self, provider: str, model: str) -> bool:
        """Whether a provider that knows suffixes has `model` but for its last ones (`id:nitro`, `id:opt=on`)."""
        known = self._providers.get(provider)
        if known is None or not known.profile.suffixes:
            return False
        for _ in range(SUFFIXES_MAX):
            model, colon, _ = model.rpartition(":")
            if not colon:
                return False
            if self.has(provider, model):
                return True
        return False

    # -- keeping it fresh ------------------------------------------------------------------------------

    def due(self, provider: str, now: float) -> bool:
        """Whether a provider's list is to be fetched again; never for one whose list does not name what it serves."""
        known = self._providers.get(provider)
        return known is not None and known.speaks("models") and now >= self._sheets[provider].due_at

    def fetched(self, provider: str) -> bool:
        """Whether a list was ever fetched."""
        sheet = self._sheets.get(provider)
        return sheet is not None and sheet.listing is not None

    def age_s(self, provider: str, now: float) -> float | None:
        """Seconds since the list was fetched; None when it never was."""
        sheet = self._sheets.get(provider)
        return None if sheet is None or sheet.fetched_at is None else now - sheet.fetched_at

    def problem(self, provider: str) -> str:
        """Why the last attempt gave no list, in words that may be shown; "" when there was none or it did."""
        sheet = self._sheets.get(provider)
        return "" if sheet is None else sheet.problem

    def read(self, provider: str, body: bytes) -> Listing:
        """A provider's answer as a list, by its profile. Raises ValueError. Changes nothing: any thread may."""
        return read_listing(self._providers[provider].profile, body)

    def replace(self, provider: str, listing: Listing, now: float) -> None:
        """Put a new list in the place of the old one."""
        known, old = self._providers.get(provider), self._sheets.get(provider)
        if known is None or old is None:
            return
        changed = old.listing is None or old.listing != listing
        models = _held(known, listing) if changed else old.models
        self._put(provider, Sheet(models, listing, now, now + REFRESH_S), changed)

    def refused(self, provider: str, problem: str, now: float, retry_s: float = RETRY_S) -> bool:
        """No list came, for a reason without secrets; the old one stays. True when the reason is a new one."""
        old = self._sheets.get(provider)
        if old is None:
            return False
        self._put(provider, replace(old, problem=problem, due_at=now + retry_s), changed=False)
        return old.problem != problem

    def inherit(self, older: Facts) -> None:
        """Take over the lists of an earlier configuration, from providers that are still the same (a reload)."""
        for name, known in self._providers.items():
            before, sheet = older._providers.get(name), older._sheets.get(name)
            if before is None or sheet is None or sheet.listing is None:
                continue
            if (before.config.base_url, before.profile) == (known.config.base_url, known.profile):
                self._put(name, replace(sheet, models=_held(known, sheet.listing)), changed=True)

    def _put(self, provider: str, sheet: Sheet, changed: bool) -> None:
        self._sheets = {**self._sheets, provider: sheet}
        self.generation += changed


def _held(provider: Provider, listing: Listing | None) -> Mapping[str, ModelFacts]:
    """What holds: a configured list with the gaps filled from the fetched one, or the fetched one."""
    listed: Mapping[str, ModelFacts] = listing.models if listing is not None else {}
    if not provider.prices:
        return listed
    return {name: _above(model, listed.get(name)) for name, model in provider.prices.items()}


def _above(model: Model, listed: ModelFacts | None) -> ModelFacts:
    """What the configuration says of a model, above what the list says."""
    facts = listed if listed is not None else ModelFacts(model.id)
    if model.input_usd_per_mtok is not None or model.output_usd_per_mtok is not None:
        # One price of ours and one of theirs would make a bill that nobody wrote.
        facts = replace(
            facts,
            input_usd_per_mtok=model.input_usd_per_mtok,
            output_usd_per_mtok=model.output_usd_per_mtok,
            cached_usd_per_mtok=None,
        )
    if model.context_tokens is not None:
        facts = replace(facts, context_tokens=model.context_tokens)
    if model.output_tokens_max is not None:
        facts = replace(facts, output_tokens_max=model.output_tokens_max)
    if model.capabilities is not None:
        facts = replace(facts, capabilities=frozenset(model.capabilities))
    return facts
