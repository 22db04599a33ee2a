"""PROXY headers: the address they carry, never a byte of the client taken with them, garbage refused early."""

from __future__ import annotations

import ipaddress

import pytest

from dandolo.wire import proxy


def v2(command: int, family: int, payload: bytes, version: int = 2, protocol: int = 1) -> bytes:
    """A header of version 2."""
    head = bytes([version << 4 | command, family << 4 | protocol])
    return proxy.V2_SIGNATURE + head + len(payload).to_bytes(2, "big") + payload


IPV4 = ipaddress.ip_address("192.0.2.7").packed + ipaddress.ip_address("198.51.100.1").packed + b"\x12\x34\x01\xbb"
IPV6 = ipaddress.ip_address("2001:db8::7").packed + ipaddress.ip_address("2001:db8::1").packed + b"\x12\x34\x01\xbb"

HEADERS = [
    ("v1-ipv4", b"PROXY TCP4 192.0.2.7 198.51.100.1 4660 443\r\n", "192.0.2.7"),
    ("v1-ipv6", b"PROXY TCP6 2001:db8::7 2001:db8::1 4660 443\r\n", "2001:db8::7"),
    (
        "v1-ipv6-long",
        b"PROXY TCP6 " + b"ffff:" * 7 + b"ffff " + b"ffff:" * 7 + b"ffff 65535 65535\r\n",
        "ffff:" * 7 + "ffff",
    ),
    ("v1-unknown", b"PROXY UNKNOWN\r\n", None),
    ("v1-unknown-with-addresses", b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n", None),
    ("v2-ipv4", v2(1, 1, IPV4), "192.0.2.7"),
    ("v2-ipv6", v2(1, 2, IPV6), "2001:db8::7"),
    ("v2-with-tlvs", v2(1, 1, IPV4 + b"\x03\0\x04abcd"), "192.0.2.7"),
    ("v2-local", v2(0, 0, b""), None),
    ("v2-local-with-address", v2(0, 1, IPV4), None),
    ("v2-unspecified", v2(1, 0, b"xyz"), None),
    ("v2-unix", v2(1, 3, b"\0" * 216), None),
    ("v2-longest", v2(1, 1, IPV4 + b"\0" * (4096 - 12)), "192.0.2.7"),
]


@pytest.mark.parametrize(("id", "header", "address"), HEADERS, ids=[row[0] for row in HEADERS])
@pytest.mark.parametrize("size", [1, 3, 10_000])
def test_exactly_the_header_is_read_however_the_bytes_come(
    id: str, header: bytes, address: str | None, size: int
) -> None:
    stream = header + b"GET / HTTP/1.1\r\n"
    received = b""
    while missing := proxy.needed(received):
        assert missing > 0
        received += stream[len(received) : len(received) + min(missing, size)]
    assert received == header
    assert proxy.parse(received) == address


BAD = [
    ("http", b"GET / HTTP/1.1\r\n\r\n"),
    ("tls", b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03\0"),
    ("lower-case", b"proxy TCP4 1.2.3.4 1.2.3.4 1 2\r\n"),
    ("leading-space", b" PROXY TCP4 1.2.3.4 1.2.3.4 1 2\r\n"),
    ("lf-only", b"PROXY TCP4 1.2.3.4 1.2.3.4 1 2\nGET / HTTP/1.1\r\n"),
    ("unknown-word", b"PROXY UNKNOWNX\r\n"),
    ("udp", b"PROXY UDP4 1.2.3.4 1.2.3.4 1 2\r\n"),
    ("two-spaces", b"PROXY  TCP4 1.2.3.4 1.2.3.4 1 2\r\n"),
    ("trailing-space", b"PROXY TCP4 1.2.3.4 1.2.3.4 1 2 \r\n"),
    ("port-missing", b"PROXY TCP4 1.2.3.4 1.2.3.4 1\r\n"),
    ("port-too-large", b"PROXY TCP4 1.2.3.4 1.2.3.4 65536 2\r\n"),
    ("second-port-too-large", b"PROXY TCP4 1.2.3.4 1.2.3.4 1 65536\r\n"),
    ("port-plus", b"PROXY TCP4 1.2.3.4 1.2.3.4 +1 2\r\n"),
    ("address-too-short", b"PROXY TCP4 1.2.3 1.2.3.4 1 2\r\n"),
    ("address-with-leading-zero", b"PROXY TCP4 1.2.3.04 1.2.3.4 1 2\r\n"),
    ("second-address-broken", b"PROXY TCP4 1.2.3.4 1.2.3.256 1 2\r\n"),
    ("family-contradicts", b"PROXY TCP4 2001:db8::1 2001:db8::2 1 2\r\n"),
    ("family-contradicts-other-way", b"PROXY TCP6 1.2.3.4 1.2.3.4 1 2\r\n"),
    ("endless", b"PROXY UNKNOWN " + b"a" * 200 + b"\r\n"),
    ("v2-version-1", v2(1, 1, IPV4, version=1)),
    ("v2-version-3", v2(1, 1, IPV4, version=3)),
    ("v2-command-2", v2(2, 1, IPV4)),
    ("v2-ipv4-too-short", v2(1, 1, IPV4[:-1])),
    ("v2-ipv6-too-short", v2(1, 2, IPV4)),
    ("v2-too-long", v2(1, 1, b"\0" * 4097)),
    ("v2-broken-signature", b"\r\n\r\n\0\r\nQUIX\n" + b"\x21\x11\0\x0c" + IPV4),
]


def read(stream: bytes, size: int) -> str | None:
    """Read a header as the listener does and parse it."""
    received = b""
    while missing := proxy.needed(received):
        piece = stream[len(received) : len(received) + min(missing, size)]
        assert piece, "asked for more than the stream has"
        received += piece
        assert len(received) <= proxy.V2_BYTES_MAX
    return proxy.parse(received)


@pytest.mark.parametrize(("id", "stream"), BAD, ids=[row[0] for row in BAD])
@pytest.mark.parametrize("size", [1, 5, 10_000])
def test_what_is_no_header_is_refused_within_its_bounds(id: str, stream: bytes, size: int) -> None:
    with pytest.raises(proxy.ProxyHeaderError):
        read(stream, size)


def test_a_header_at_the_bound_of_version_1_is_taken_and_one_byte_more_is_not() -> None:
    head = b"PROXY UNKNOWN "
    for length, taken in ((proxy.V1_BYTES_MAX, True), (proxy.V1_BYTES_MAX + 1, False)):
        header = head + b"a" * (length - len(head) - 2) + b"\r\n"
        if taken:
            assert proxy.needed(header) == 0
            assert proxy.needed(header[:-1]) == 1
        else:
            with pytest.raises(proxy.ProxyHeaderError):
                proxy.needed(header[:-1])
