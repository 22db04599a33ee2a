"""Who comes to the admin listener: keys by their digest, as the gateway knows them."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Mapping

from dandolo.config.schema import Key
from dandolo.control.guard import Caller
from dandolo.errors import RequestError


class Callers:
    """The keys of a configuration. `keys` is exchanged at a reload."""

    def __init__(self, keys: Iterable[Key]) -> None:
        self.keys = tuple(keys)

    def authenticate(self, head: Mapping[bytes, bytes]) -> Caller:
        """Whose key a head presents. Raises RequestError (401)."""
        token = head.get(b"authorization")
        if token is None:
            token = head.get(b"x-api-key", b"")
        elif token[:7].lower() == b"bearer ":
            token = token[7:].strip(b" ")
        digest = hashlib.sha256(token).digest()
        found: Key | None = None
        for key in self.keys:
            # All of them, each in constant time: an operator's listener is in no hurry.
            if hmac.compare_digest(key.digest, digest):
                found = key
        if found is None:
            raise RequestError(
                "the API key is missing or not one of the configuration's file, which this listener wants;"
                " send it as 'Authorization: Bearer KEY' or 'x-api-key: KEY'",
                status=401,
                type="authentication_error",
                code="invalid_api_key",
            )
        return Caller(found.name, found.admin)
