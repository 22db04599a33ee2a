"""The choice behind `model: "auto"` as a gateway makes it: what it looks at, and how much of it."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

from dandolo.api.call import read
from dandolo.api.endpoints import ENDPOINTS
from dandolo.api.profiles.listing import Listing, ModelFacts
from dandolo.config import parse
from dandolo.gateway.auto import select
from dandolo.gateway.plane import Plane
from dandolo.route.models import MODELS_MAX

CONFIG = '[[providers]]\nname = "one"\nbase_url = "http://127.0.0.1:9/v1"\n[models]\nmine = ["one/m-4999"]\n'
BODY = b'{"model":"auto","messages":[{"role":"user","content":"hello"}]}'


def test_thousands_of_listed_models_are_not_all_looked_at() -> None:
    """With two lists of 5,000 the first choice once took 0.6 s and every other 40 ms, on the loop of everybody."""
    plane = Plane(parse(CONFIG, "test", dict(os.environ)))
    models = {f"m-{number}": ModelFacts(f"m-{number}", 1.0, 2.0) for number in range(5000)}
    plane.catalog.facts.replace("one", Listing(models), 1.0)
    plane.refresh()
    exchange: Any = SimpleNamespace(
        plane=plane, tenant=SimpleNamespace(patterns=None), request=SimpleNamespace(fields={}), selection=None
    )
    call = read(ENDPOINTS[b"/v1/chat/completions"], BODY, b"")
    select(exchange, call)
    assert call.model == "mine", "the operator's own names come first"
    assert len(exchange.selection.rows) == MODELS_MAX
    (account,) = plane.fleet
    assert len(account.candidates) <= MODELS_MAX
