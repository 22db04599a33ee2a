"""TLS in memory: whatever the cuts, the content comes whole, the end is told, and nothing is left lying about."""

from __future__ import annotations

import hashlib
import hmac
import itertools
import ssl
from pathlib import Path
from typing import Any

import pytest
import trustme
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given, settings
from hypothesis import strategies as st

from dandolo.wire import tls
from dandolo.wire.tls import RECORD_BYTES, SILENT_BYTES_MAX, Session, harden

AUTHORITY = trustme.CA()
KINDS = {
    "1.3": (ssl.TLSVersion.TLSv1_3, None),
    "1.2-gcm": (ssl.TLSVersion.TLSv1_2, "ECDHE+AESGCM"),
    "1.2-chacha20": (ssl.TLSVersion.TLSv1_2, "ECDHE+CHACHA20"),
    "1.2-cbc": (ssl.TLSVersion.TLSv1_2, "ECDHE-ECDSA-AES256-SHA384:ECDHE-RSA-AES256-SHA384"),
}
kinds = pytest.mark.parametrize("kind", KINDS)


def contexts(kind: str = "1.3") -> tuple[ssl.SSLContext, ssl.SSLContext]:
    version, ciphers = KINDS[kind]
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    AUTHORITY.issue_cert("p.example").configure_cert(server)
    AUTHORITY.configure_trust(client)
    client.minimum_version = client.maximum_version = version
    if ciphers is not None:
        client.set_ciphers(ciphers)
    return harden(server), harden(client)


CONTEXTS = {kind: contexts(kind) for kind in KINDS}


def shake(client: Session, server: Session, piece: int = 1 << 20) -> None:
    """A whole handshake, each flight in pieces; the server's tickets are left for the client to read."""
    done = {id(client): client.handshake(), id(server): False}
    for _ in range(6):
        for sender, receiver in ((client, server), (server, client)):
            flight = sender.drain()
            for start in range(0, len(flight), piece):
                part = flight[start : start + piece]
                if done[id(receiver)]:
                    assert receiver.receive(memoryview(part)) == b""
                else:
                    done[id(receiver)] = receiver.handshake(part)
    assert all(done.values())


def pair(kind: str = "1.3", piece: int = 1 << 20) -> tuple[Session, Session]:
    server_context, client_context = CONTEXTS[kind]
    client, server = Session(client_context, "p.example"), Session(server_context, None)
    shake(client, server, piece)
    return client, server


def warm(client: Session, server: Session) -> None:
    """One record each way: from then on a read of one whole record is known for what it is."""
    assert fed(server, sent(client, b"warm")) == b"warm"
    assert fed(client, sent(server, b"warm")) == b"warm"


def sent(session: Session, content: bytes) -> bytes:
    out = b""
    for start in range(0, len(content), RECORD_BYTES):
        session.encrypt(content[start : start + RECORD_BYTES])
        out += session.drain()
    return out


def fed(session: Session, *parts: bytes) -> bytes:
    return b"".join(session.receive(part) for part in parts)


@kinds
@pytest.mark.parametrize("piece", [1, 7, 1 << 20])
def test_a_handshake_in_any_pieces(kind: str, piece: int) -> None:
    client, server = pair(kind, piece)
    assert fed(server, sent(client, b"hello")) == b"hello"
    assert fed(client, sent(server, b"world")) == b"world"
    assert server.failure is None
    assert client.failure is None


@kinds
def test_every_cut_of_two_records_and_an_end(kind: str) -> None:
    def two_and_an_end() -> tuple[Session, bytes]:
        client, server = pair(kind)
        warm(client, server)
        # Small enough that an end could hide behind what a record adds to its content.
        return server, sent(client, b"first") + sent(client, b"second and last") + client.end()

    for cut in range(len(two_and_an_end()[1]) + 1):
        server, data = two_and_an_end()
        assert fed(server, data[:cut], data[cut:]) == b"firstsecond and last", cut
        assert server.ended, cut
        assert server.failure is None
        assert not server.calm
        assert not server.behind


@kinds
def test_byte_by_byte(kind: str) -> None:
    client, server = pair(kind)
    data = sent(client, b"x" * 500) + sent(client, b"y") + client.end()
    content = fed(server, *(data[i : i + 1] for i in range(len(data))))
    assert content == b"x" * 500 + b"y"
    assert server.ended


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(sorted(KINDS)),
    sizes=st.lists(st.one_of(st.integers(1, 60), st.integers(1, RECORD_BYTES)), min_size=1, max_size=12),
    cuts=st.lists(st.floats(0, 1), max_size=12),
    end=st.booleans(),
)
def test_any_records_in_any_cuts(kind: str, sizes: list[int], cuts: list[float], end: bool) -> None:
    client, server = pair(kind)
    warm(client, server)
    content = b"".join(bytes([i]) * size for i, size in enumerate(sizes))
    data, done = b"", 0
    for size in sizes:
        data += sent(client, content[done : done + size])
        done += size
    if end:
        data += client.end()
    places = [0, *sorted(int(cut * len(data)) for cut in cuts), len(data)]
    parts = [data[a:b] for a, b in itertools.pairwise(places) if a < b]
    assert fed(server, *parts) == content
    assert server.ended is end
    assert server.failure is None
    assert not server.behind


@kinds
def test_one_record_at_a_time_is_calm_and_anything_else_is_not(kind: str) -> None:
    client, server = pair(kind)
    fed(server, sent(client, b"the first read looks around"))
    server.calm = True
    for size in (1, 2, 30, 1000, 16000):
        assert fed(server, sent(client, b"x" * size)) == b"x" * size
        if kind != "1.2-cbc":
            assert server.calm
    server.calm = True
    assert fed(server, sent(client, b"a") + sent(client, b"b")) == b"ab"
    assert not server.calm


def test_a_read_of_many_records_comes_whole() -> None:
    client, server = pair()
    content = bytes(range(256)) * 4096
    data = sent(client, content)
    assert fed(server, data) == content
    assert not server.behind


@kinds
def test_content_before_a_broken_record_is_delivered_and_then_the_failure(kind: str) -> None:
    client, server = pair(kind)
    good, bad = sent(client, b"good"), bytearray(sent(client, b"bad"))
    bad[-1] ^= 1
    assert fed(server, good + bytes(bad)) == b"good"
    assert server.ended
    assert isinstance(server.failure, ssl.SSLError)
    assert server.drain(), "an alert should be there for the peer"


@pytest.mark.parametrize(
    "garbage",
    [b"\x17\x03\x03\xff\xff" + b"x" * 100, b"GET / HTTP/1.1\r\n\r\n", bytes(64), b"\x15\x03\x03\x00\x02\x02\x28"],
)
def test_garbage_is_a_failure(garbage: bytes) -> None:
    _, server = pair()
    assert fed(server, garbage) == b""
    assert server.ended
    assert server.failure is not None


@pytest.mark.parametrize(
    "garbage", [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x00\x05hello", b"\x15\x03\x01\x00\x02\x02\x28"]
)
def test_a_handshake_of_garbage_fails(garbage: bytes) -> None:
    server = Session(CONTEXTS["1.3"][0], None)
    with pytest.raises(ssl.SSLError):
        server.handshake(garbage)


def test_a_handshake_that_does_not_end_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tls, "HANDSHAKE_BYTES_MAX", 100)
    server, client = Session(CONTEXTS["1.3"][0], None), Session(CONTEXTS["1.3"][1], "p.example")
    client.handshake()
    hello = client.drain()
    assert len(hello) > 100
    assert not server.handshake(hello[:100])
    with pytest.raises(ConnectionAbortedError, match="does not end"):
        server.handshake(hello[100:])


def test_both_sides_can_end_and_the_other_half_goes_on() -> None:
    client, server = pair()
    ending = client.end()
    assert fed(server, ending) == b""
    assert server.ended
    assert fed(client, sent(server, b"still here")) == b"still here"
    assert fed(client, server.end()) == b""
    assert client.ended
    assert client.failure is None


def test_a_certificate_is_verified() -> None:
    server_context, _ = CONTEXTS["1.3"]
    for context, host in ((ssl.create_default_context(), "p.example"), (CONTEXTS["1.3"][1], "other.example")):
        client, server = Session(context, host), Session(server_context, None)
        client.handshake()
        server.handshake(client.drain())
        with pytest.raises(ssl.SSLCertVerificationError):
            client.handshake(server.drain())


def test_a_hardened_context_knows_no_old_versions_and_no_renegotiation() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    assert harden(context) is context
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert context.options & ssl.OP_NO_RENEGOTIATION
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    assert harden(context).minimum_version == ssl.TLSVersion.TLSv1_3


# -- what only a malicious peer sends: records made by hand from the secrets of a real handshake ---------------


class Forger:
    """Writes TLS 1.3 records as the client of a finished handshake (RFC 8446 §5.2, §7.1-7.3)."""

    def __init__(self, secret: bytes) -> None:
        self.secret = secret
        self._keys()

    def _expand(self, label: bytes, length: int) -> bytes:
        full = b"tls13 " + label
        info = length.to_bytes(2, "big") + bytes([len(full)]) + full + b"\0"
        return hmac.digest(self.secret, info + b"\x01", hashlib.sha384)[:length]

    def _keys(self) -> None:
        self.aead, self.iv, self.number = AESGCM(self._expand(b"key", 32)), self._expand(b"iv", 12), 0

    def record(self, kind: int, content: bytes) -> bytes:
        inner = content + bytes([kind])
        head = b"\x17\x03\x03" + (len(inner) + 16).to_bytes(2, "big")
        nonce = (int.from_bytes(self.iv, "big") ^ self.number).to_bytes(12, "big")
        self.number += 1
        return head + self.aead.encrypt(nonce, inner, head)

    def data(self, content: bytes) -> bytes:
        return self.record(23, content)

    def key_update(self, *, asks: bool) -> bytes:
        record = self.record(22, b"\x18\x00\x00\x01" + bytes([asks]))
        self.secret = self._expand(b"traffic upd", 48)
        self._keys()
        return record


@pytest.fixture
def forged(tmp_path: Path) -> Any:
    server_context, client_context = contexts()
    client_context.keylog_filename = str(tmp_path / "keys")
    client, server = Session(client_context, "p.example"), Session(server_context, None)
    shake(client, server)
    (secret,) = (
        line.split()[2]
        for line in (tmp_path / "keys").read_text().splitlines()
        if line.startswith("CLIENT_TRAFFIC_SECRET_0")
    )
    return Forger(bytes.fromhex(secret)), server, client


def test_a_key_update_is_answered_also_when_it_hides_before_content(forged: Any) -> None:
    forger, server, client = forged
    assert fed(server, forger.data(b"before")) == b"before"
    server.calm = True
    assert fed(server, forger.key_update(asks=True) + forger.data(b"after")) == b"after"
    assert not server.calm
    # OpenSSL keeps the answer to the last one until it is called again; those before must be taken away.
    for _ in range(100):
        server.calm = True
        assert fed(server, forger.key_update(asks=True)) == b""
        assert not server.calm
    assert server.outgoing.pending
    assert fed(client, server.drain(), sent(server, b"with new keys")) == b"with new keys"


@pytest.mark.parametrize("what", ["key-update", "empty"])
def test_records_without_content_end(forged: Any, what: str) -> None:
    forger, server, _ = forged
    received = 0
    while not server.ended:
        record = forger.key_update(asks=False) if what == "key-update" else forger.data(b"")
        received += len(record)
        assert fed(server, record) == b""
        assert received <= SILENT_BYTES_MAX + 64
    assert server.failure is not None


def test_padding_is_no_content(forged: Any) -> None:
    forger, server, _ = forged
    assert fed(server, forger.data(b"looks around")) == b"looks around"
    padded = forger.record(0, b"padded" + b"\x17" + bytes(300))
    assert fed(server, padded) == b"padded"
    assert fed(server, forger.data(b"plain"), forger.data(b"and plain")) == b"plainand plain"


def test_a_few_empty_records_harm_nothing(forged: Any) -> None:
    forger, server, _ = forged
    for _ in range(20):
        assert fed(server, forger.data(b"")) == b""
        assert fed(server, forger.data(b"x")) == b"x"
    assert not server.ended
