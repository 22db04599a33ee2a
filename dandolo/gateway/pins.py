"""Which account made a stored response: whoever asks for it again, or goes on from it, is sent there.

A provider keeps a response for the account that made it, and several callers of this gateway may share that account; so
it is remembered whose each one is, and to others it does not exist. Ids only, in memory, bounded; what is forgotten is
asked for like anything else, and its provider says whether it is there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dandolo.api.openai import printable
from dandolo.errors import RequestError

if TYPE_CHECKING:
    from dandolo.api.call import Call
    from dandolo.gateway.exchange import Exchange

PINS_MAX = 65_536
ID_CHARS_MAX = 128


class Pins:
    """Responses by id: the tenant and the label of the account that has it. The oldest are forgotten."""

    __slots__ = ("_made",)

    def __init__(self) -> None:
        self._made: dict[str, tuple[str, str]] = {}

    def __len__(self) -> int:
        return len(self._made)

    def remember(self, response: str, tenant: str, account: str) -> None:
        """An account has made a response for a tenant."""
        if not response or len(response) > ID_CHARS_MAX:
            return
        made = self._made
        made.pop(response, None)
        if len(made) >= PINS_MAX:
            del made[next(iter(made))]
        made[response] = (tenant, account)

    def account(self, response: str, tenant: str) -> str:
        """The account to ask about a response, "" when that is not known. Raises RequestError (404) for another's."""
        made = self._made.get(response)
        if made is None:
            return ""
        if made[0] != tenant:
            raise RequestError(
                f"there is no response {printable(response)}", status=404, code="response_not_found", param="id"
            )
        return made[1]


def pinned(exchange: Exchange, call: Call) -> str:
    """The account a call must go to, "" for any. Raises RequestError (404) for what belongs to another tenant."""
    if exchange.endpoint.dialect != "responses":
        return ""
    if call.json is not None:
        response = call.json.text("previous_response_id") if "previous_response_id" in call.json.fields else None
    else:
        response = exchange.admitted.suffix.partition("/")[0]
    return exchange.gateway.pins.account(response, exchange.tenant.name) if response else ""


def remember(exchange: Exchange) -> None:
    """An answer of the Responses dialect has ended well: note who made it."""
    response = exchange.tap.response_id if exchange.tap is not None else exchange.response_id
    if response and exchange.target is not None:
        exchange.gateway.pins.remember(response, exchange.tenant.name, exchange.target.account.label)
