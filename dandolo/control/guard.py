"""Who may come to the admin listener, and from where: judged from the head alone, before anything of a body is read.

Without keys the machine is the boundary: Host must be a loopback name, since a web page could otherwise reach this
listener by a name of its own that resolves to 127.0.0.1 (DNS rebinding). Browsers are refused but for our own page:
its requests have no Origin, or our own (Origin equals Host), and what they say in Sec-Fetch-Site. Whoever changes
something from a browser must say all of it, in JSON: neither a form nor an image of another page can do that.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeAlias

from dandolo.control.route import Route
from dandolo.errors import GatewayError, RequestError

_NEAR = (b"same-origin", b"none")
"""Sec-Fetch-Site of our own page, and of an address that somebody typed. A page of another port says same-site."""


class Caller(NamedTuple):
    """The name of the key that was presented ("" where none is wanted), and whether it may see and do everything."""

    name: str = ""
    admin: bool = True


Authenticate: TypeAlias = Callable[[Mapping[bytes, bytes]], Caller]


def check_place(head: Mapping[bytes, bytes], authority: bytes, *, keyed: bool, tcp: bool, method: bytes) -> None:
    """Raises RequestError (403) for a request that comes from a web page that is not ours, or by a foreign name."""
    if not keyed and tcp and not is_loopback(authority):
        raise _denied(
            "this listener has no keys and answers to loopback names only; call it as 127.0.0.1 or localhost",
            "host_not_allowed",
        )
    origin, site = head.get(b"origin"), head.get(b"sec-fetch-site")
    reads = method in (b"GET", b"HEAD")
    if origin is not None:
        if origin not in (b"http://" + authority, b"https://" + authority) or not authority:
            raise _denied("this listener does not answer web pages other than its own", "origin_not_allowed")
        if not reads and site != b"same-origin":
            raise _denied("changes from a browser want Sec-Fetch-Site: same-origin", "origin_not_allowed")
    if site is not None and site not in _NEAR:
        # A link to our page may stand anywhere: what it opens is shown to a person and to nobody else.
        opened = head.get(b"sec-fetch-mode") == b"navigate" and head.get(b"sec-fetch-dest") == b"document"
        if not (reads and opened):
            raise _denied("this listener does not answer web pages other than its own", "origin_not_allowed")


def check_caller(route: Route, caller: Caller) -> None:
    """Raises RequestError (403) for a key that must not use this route."""
    if not caller.admin and not route.any_key:
        raise _denied(
            f"the key '{caller.name}' is a client's: this path wants one with admin = true in the configuration",
            "admin_key_needed",
        )


def check_kind(head: Mapping[bytes, bytes], *, has_body: bool) -> None:
    """Raises RequestError (415) for a change that is not asked for in JSON: forms can send three other types, and
    only to those no browser asks first (CORS, simple requests)."""
    kind = head.get(b"content-type")
    if kind is None and not has_body and b"origin" not in head:
        return
    name, _, parameters = (kind or b"").partition(b";")
    charset = parameters.strip().lower().replace(b'"', b"")
    if name.strip().lower() != b"application/json" or charset not in (b"", b"charset=utf-8"):
        observed = "none" if kind is None else repr(kind[:64].decode("latin-1"))
        raise RequestError(
            f"observed Content-Type {observed}, expected application/json: send a JSON body with that header",
            status=415,
            code="unsupported_media_type",
        )


def is_loopback(authority: bytes) -> bool:
    """Whether a Host names this machine. An empty one (HTTP/1.0 without Host) is no browser's."""
    name = authority.decode("latin-1").lower()
    name = name[1:].partition("]")[0] if name.startswith("[") else name.partition(":")[0]
    if name in ("", "localhost") or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _denied(message: str, code: str) -> GatewayError:
    return RequestError(message, status=403, type="permission_error", code=code)
