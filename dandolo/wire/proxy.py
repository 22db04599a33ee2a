"""The PROXY protocol, versions 1 and 2, without I/O (HAProxy, proxy-protocol.txt).

A balancer that speaks it puts one header before everything else on a connection. `needed` says how many
more bytes may be read without taking any that belong to the client; `parse` gives the client's address.
"""

from __future__ import annotations

import ipaddress
import re

V2_SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
V1_BYTES_MAX = 107
V2_BYTES_MAX = 16 + 4096

_V1 = re.compile(
    rb"PROXY (?:(TCP4|TCP6) ([0-9A-Fa-f.:]{2,45}) ([0-9A-Fa-f.:]{2,45}) ([0-9]{1,5}) ([0-9]{1,5})"
    rb"|UNKNOWN(?: [^\r\n]*)?)\r\n"
)


class ProxyHeaderError(ValueError):
    """What came first on the connection is not a PROXY header."""


def needed(received: bytes) -> int:
    """Bytes that must still be read, 0 when the header is whole. Raises ProxyHeaderError."""
    have = len(received)
    if have < 12:
        if not (V2_SIGNATURE.startswith(received) or b"PROXY ".startswith(received[:6])):
            raise ProxyHeaderError("the connection does not begin with a PROXY header")
        return 12 - have
    if received.startswith(V2_SIGNATURE):
        if have < 16:
            return 16 - have
        size = 16 + int.from_bytes(received[14:16], "big")
        if size > V2_BYTES_MAX:
            raise ProxyHeaderError("the PROXY header is too long")
        return max(0, size - have)
    if not received.startswith(b"PROXY "):
        raise ProxyHeaderError("the connection does not begin with a PROXY header")
    if received.endswith(b"\r\n"):
        return 0
    if have >= V1_BYTES_MAX or b"\n" in received:
        raise ProxyHeaderError("the PROXY header does not end in CRLF")
    return 1


def parse(header: bytes) -> str | None:
    """The client's address in a whole header; None for LOCAL, UNKNOWN and other families (the socket's counts).

    Raises ProxyHeaderError.
    """
    if header.startswith(V2_SIGNATURE):
        version, command = header[12] >> 4, header[12] & 0x0F
        if version != 2 or command > 1:
            raise ProxyHeaderError("the PROXY header has an unknown version or command")
        if command == 0:
            return None
        family = header[13] >> 4
        sizes = {1: (4, 12), 2: (16, 36)}
        if family not in sizes:
            return None
        address_bytes, needed_bytes = sizes[family]
        if len(header) - 16 < needed_bytes:
            raise ProxyHeaderError("the PROXY header is shorter than its addresses")
        return str(ipaddress.ip_address(header[16 : 16 + address_bytes]))
    match = _V1.fullmatch(header)
    if match is None:
        raise ProxyHeaderError("the PROXY header is malformed")
    if match[1] is None:
        return None
    try:
        address = ipaddress.ip_address(match[2].decode("ascii"))
        ipaddress.ip_address(match[3].decode("ascii"))
    except ValueError:
        raise ProxyHeaderError("the PROXY header holds no valid address") from None
    if (address.version == 4) != (match[1] == b"TCP4") or int(match[4]) > 65535 or int(match[5]) > 65535:
        raise ProxyHeaderError("the PROXY header contradicts itself")
    return str(address)
