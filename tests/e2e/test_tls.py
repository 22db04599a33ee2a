"""Clients that speak TLS to the gateway: what they get, and how they learn that it is not all."""

from __future__ import annotations

import ssl
import time
from collections.abc import Iterator

import pytest
import trustme
from harness import Client, Gateway, chat, get, request, until

from dandolo.sim import Fault, Script, SimProvider, SimThread


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Gateway, SimProvider, ssl.SSLContext]]:
    directory = tmp_path_factory.mktemp("tls")
    authority, sim = trustme.CA(), SimProvider("sim")
    paper, cert, key = authority.issue_cert("localhost"), directory / "cert.pem", directory / "key.pem"
    paper.cert_chain_pems[0].write_to_path(str(cert))
    paper.private_key_pem.write_to_path(str(key))
    context = ssl.create_default_context()
    authority.configure_trust(context)
    context.set_alpn_protocols(["h2", "http/1.1"])
    with (
        SimThread(sim),
        Gateway(
            directory, [sim], server={"tls": {"cert": str(cert), "key": str(key)}}, routing={"breaker": False}
        ) as gateway,
    ):
        assert gateway.scheme == "https"
        yield gateway, sim, context


def speak(client: Client, context: ssl.SSLContext) -> Client:
    """The client after its handshake; an end that TLS did not announce raises."""
    client.socket = context.wrap_socket(client.socket, server_hostname="localhost", suppress_ragged_eofs=False)
    return client


def test_answers_and_streams_share_a_connection(secured: tuple[Gateway, SimProvider, ssl.SSLContext]) -> None:
    gateway, sim, context = secured
    sim.script = Script(tokens=20, tokens_per_s=2000)
    with gateway.client() as client:
        speak(client, context)
        assert isinstance(client.socket, ssl.SSLSocket)
        assert client.socket.selected_alpn_protocol() == "http/1.1"
        for body in (chat(), chat(stream=True), chat(user="x" * 300_000), chat(stream=True)):
            client.send(request(body=body))
            answer = client.answer()
            assert (answer.status, answer.complete, answer.closes) == (200, True, False)
            if body.get("stream"):
                assert answer.events[-1] == b"[DONE]"
        client.send(get("/healthz", headers={"Connection": "close"}))
        assert client.answer().closes
        assert client.socket.recv(1) == b"", "the end should be announced"


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_both_versions_are_spoken_and_older_ones_are_not(
    version: ssl.TLSVersion, secured: tuple[Gateway, SimProvider, ssl.SSLContext]
) -> None:
    gateway, _, context = secured
    context.minimum_version = context.maximum_version = version
    try:
        with gateway.client() as client:
            speak(client, context).send(get("/healthz"))
            assert client.answer().status == 200
    finally:
        context.minimum_version, context.maximum_version = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.MAXIMUM_SUPPORTED


@pytest.mark.promise("26")
@pytest.mark.parametrize("version", ["HTTP/1.0", "HTTP/1.1"])
def test_a_stream_that_broke_is_not_complete(
    version: str, secured: tuple[Gateway, SimProvider, ssl.SSLContext]
) -> None:
    gateway, sim, context = secured
    sim.script = Script(tokens=50, tokens_per_s=2000, faults=[Fault("cut_rst", after=5)])
    with gateway.client() as client:
        speak(client, context).send(request(body=chat(stream=True), version=version))
        received, announced = b"", False
        try:
            while piece := client.socket.recv(65536):
                received += piece
            announced = True
        except (ssl.SSLEOFError, ConnectionError):
            pass
    assert b"upstream_stream_error" in received
    assert b"[DONE]" not in received
    # In HTTP/1.0 only TLS can tell that this was not the end; in 1.1 the last chunk is missing.
    assert not received.endswith(b"0\r\n\r\n")
    if version == "HTTP/1.0":
        assert not announced


def test_a_refusal_before_the_body_can_be_read(secured: tuple[Gateway, SimProvider, ssl.SSLContext]) -> None:
    gateway, _, context = secured
    with gateway.client() as client:
        speak(client, context)
        client.send(request(body=b"{", headers={"Content-Length": str(1 << 30)}, length=False))
        client.send_what_goes(b"x" * 1_000_000)
        answer = client.answer()
        assert (answer.status, answer.complete, answer.closes) == (413, True, True)


@pytest.mark.promise("36")
def test_a_client_that_leaves_cancels_its_stream(secured: tuple[Gateway, SimProvider, ssl.SSLContext]) -> None:
    gateway, sim, context = secured
    sim.forget()
    sim.script = Script(tokens=1000, tokens_per_s=50)
    with gateway.client() as client:
        speak(client, context).send(request(body=chat(stream=True)))
        received = until(lambda: sim.requests and sim.requests[0])
        client.read_until(b"hello")
        client.socket.close()
        left = time.monotonic()
        at = until(lambda: received.aborted_at, 5.0, "the provider was never told")
        assert at - left <= 1.0
