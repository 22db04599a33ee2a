"""Addresses: where to listen, whom to believe, where providers and proxies are."""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Final, Literal
from urllib.parse import SplitResult, urlsplit

from dandolo.config import secret
from dandolo.config.problem import Unfit
from dandolo.config.spec import At, Kind
from dandolo.config.units import describe, show

Network = IPv4Network | IPv6Network

# sockaddr_un.sun_path on Linux: 108 bytes with the closing NUL.
UNIX_PATH_BYTES_MAX: Final = 107

_LISTEN_FORM: Final = 'expected "HOST:PORT", "[IPV6]:PORT" or "unix:/path"'
_LISTEN = re.compile(r"(?:\[(?P<six>[0-9A-Fa-f:.]+)\]|(?P<host>[A-Za-z0-9._-]*)):(?P<port>[0-9]{1,5})", re.ASCII)
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]{0,30}://[A-Za-z0-9._\[\]:-]{1,255}", re.ASCII)
_URL = re.compile(r"[A-Za-z0-9._~!$&'()*+,;=:@%/\[\]-]{1,2000}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Listen:
    """One listening address. For "tcp" `host` ("" is every address) and `port` (0: the kernel chooses) hold;
    for "unix" `path` does."""

    kind: Literal["tcp", "unix"]
    host: str = ""
    port: int = 0
    path: str = ""

    def is_local(self) -> bool:
        """Whether only this machine can reach it. A name other than localhost counts as public: what it
        resolves to can change."""
        return self.kind == "unix" or is_loopback(self.host)

    def __str__(self) -> str:
        if self.kind == "unix":
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def is_loopback(host: str) -> bool:
    """True for localhost, 127.0.0.0/8 and ::1."""
    if host.lower() == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def parse_listen(value: str) -> Listen:
    """ "127.0.0.1:8080", "[::1]:8080", ":8080" or "unix:/run/dandolo/http.sock". Raises Unfit."""
    if value.startswith("unix:"):
        path = value.removeprefix("unix:")
        if not path.startswith("/"):
            raise Unfit("expected an absolute path after unix:, as in unix:/run/dandolo/http.sock")
        if "\0" in path or len(path.encode()) > UNIX_PATH_BYTES_MAX:
            raise Unfit(f"a Unix socket's path has at most {UNIX_PATH_BYTES_MAX} bytes, observed {len(path.encode())}")
        return Listen("unix", path=path)
    match = _LISTEN.fullmatch(value)
    if match is None:
        hint = f' ("127.0.0.1:{value}" for a port on this machine)' if re.fullmatch(r"[0-9]{1,5}", value) else ""
        raise Unfit(f"observed {show(value)}, {_LISTEN_FORM}{hint}")
    port = int(match["port"])
    if port > 65535:
        raise Unfit(f"observed port {port}, expected 0 to 65535")
    host = match["six"] or match["host"] or ""
    # What looks like a number must be one: "127.0.0.1.1" would otherwise be looked up as a name.
    if match["six"] or re.fullmatch(r"[0-9.]+", host):
        try:
            ip_address(host)
        except ValueError:
            raise Unfit(f"observed {show(value)}, whose host is not an IP address; {_LISTEN_FORM}") from None
    return Listen("tcp", host=host, port=port)


def listen() -> Kind:
    def read(value: object, at: At) -> Listen:
        if not isinstance(value, str):
            raise Unfit(f"observed {describe(value)}, {_LISTEN_FORM}")
        return parse_listen(value)

    return Kind("address", '"HOST:PORT" or "unix:/path"', read, fallback=Listen("tcp", "127.0.0.1", 0))


def network() -> Kind:
    def read(value: object, at: At) -> Network:
        if not isinstance(value, str):
            raise Unfit(f'observed {describe(value)}, expected a network such as "10.0.0.0/8"')
        try:
            return ip_network(value)
        except ValueError:
            pass
        try:
            meant = ip_network(value, strict=False)
        except ValueError:
            raise Unfit(f'observed {show(value)}, expected a network such as "10.0.0.0/8" or an IP address') from None
        raise Unfit(f'observed {show(value)}, which has bits set beyond its prefix: write "{meant}"')

    return Kind("network", '"10.0.0.0/8", "fd00::/8" or one address', read)


def origin() -> Kind:
    def read(value: object, at: At) -> str:
        if value == "*":
            return "*"
        if not isinstance(value, str) or not _ORIGIN.fullmatch(value):
            raise Unfit('expected an origin without a path, such as "https://app.example:8443", or "*"')
        return value.lower()

    return Kind("origin", '"https://app.example", or "*" where keys are set', read)


def split_url(value: str, schemes: tuple[str, ...]) -> SplitResult:
    """The parts of an absolute URL; the reasons of Unfit never show it, since it may hold a password."""
    form = " or ".join(f"{scheme}://" for scheme in schemes)
    if not _URL.fullmatch(value):
        raise Unfit(f"expected an {form} URL of plain ASCII, without a query (?), fragment (#), spaces or braces")
    try:
        parts = urlsplit(value)
        port = parts.port
    except ValueError:
        raise Unfit(f"not a URL: expected {form}HOST[:PORT], with a port of 1 to 65535") from None
    if parts.scheme not in schemes:
        raise Unfit(f"expected a URL that starts with {form}")
    if not parts.hostname or port == 0:
        raise Unfit(f"expected a host (and a port of 1 to 65535, if any) after {form}")
    return parts


def base_url() -> Kind:
    def read(value: object, at: At) -> str:
        if not isinstance(value, str):
            raise Unfit(f"observed {describe(value)}, expected a URL such as https://api.example/v1")
        parts = split_url(value, ("http", "https"))
        if "@" in parts.netloc:
            raise Unfit("a URL must not hold credentials: use key = { … } (the value is not shown)")
        return value.rstrip("/")

    return Kind("URL", "http:// or https://; no credentials, query or fragment", read, fallback="")


def secret_url(*schemes: str, unset_is_none: bool = False) -> Kind:
    """A URL that may need a password: written in the file without one, or referred to as a secret."""

    def read(value: object, at: At) -> secret.Secret | None:
        if isinstance(value, str):
            if "@" in value:
                raise Unfit(
                    f"a URL with credentials is a secret: put it elsewhere and write {secret.REFERENCE_FORM} here"
                )
            split_url(value, schemes)
            return secret.Secret(value)
        found = secret.resolve(
            value, at.reading.environ, at.reading.base, at.reading.secrets, unset_is_none=unset_is_none
        )
        if found is not None:
            split_url(found.reveal(), schemes)
        return found

    listed = ", ".join(f"{scheme}://" for scheme in schemes)
    return Kind("URL or secret", f"{listed}; with a password only by reference", read)
