"""Who is believed: only whoever has the secret, on this connection, in this role."""

from __future__ import annotations

import pytest

from dandolo.cache.peers.frames import Auth, Frame, Hello, Ping
from dandolo.cache.peers.greeting import Greeting, Refused, key_of

KEY = key_of(b"the secret")


def side(name: str, *, dials: bool, key: bytes = KEY, number: int = 0, instance: bytes = b"") -> Greeting:
    nonce = f"{name}{number}".encode().ljust(32, b".")
    return Greeting(key, name, instance or name.encode().ljust(16, b"."), nonce, dials=dials)


def converse(dialler: Greeting, acceptor: Greeting) -> list[Frame]:
    """Let both speak until they are done; everything that the dialler said."""
    said: list[Frame] = []
    out = dialler.begin()
    assert acceptor.begin() == []
    while out:
        said += out
        back = [answer for frame in out for answer in acceptor.hear(frame)]
        out = [answer for frame in back for answer in dialler.hear(frame)]
    return said


def test_both_believe_each_other() -> None:
    dialler, acceptor = side("a", dials=True), side("b", dials=False)
    converse(dialler, acceptor)
    assert dialler.believes()
    assert acceptor.believes()
    assert (dialler.name, acceptor.name) == ("b", "a")
    assert not dialler.ourselves


def test_another_secret_is_refused_before_anything_is_proved_to_it() -> None:
    stranger, acceptor = side("a", dials=True, key=key_of(b"another")), side("b", dials=False)
    (hello,) = acceptor.hear(stranger.begin()[0])
    (proof,) = stranger.hear(hello)
    with pytest.raises(Refused, match="proof is wrong"):
        acceptor.hear(proof)
    assert not acceptor.believes()


def test_an_acceptor_without_the_secret_is_refused() -> None:
    dialler, impostor = side("a", dials=True), side("b", dials=False, key=key_of(b"another"))
    (hello,) = impostor.hear(dialler.begin()[0])
    dialler.hear(hello)
    with pytest.raises(Refused, match="proof is wrong"):
        dialler.hear(Auth(0, b"\0" * 32))
    assert not dialler.believes()


def test_what_was_said_once_is_worth_nothing_again() -> None:
    said = converse(side("a", dials=True), side("b", dials=False))
    again = side("b", dials=False, number=1)
    again.hear(said[0])
    with pytest.raises(Refused, match="proof is wrong"):
        again.hear(said[1])


def test_our_own_proof_is_not_taken_back() -> None:
    """Whoever has no secret may send us what we say: to the role of the other side it proves nothing."""
    dialler = side("a", dials=True)
    (hello,) = dialler.begin()
    assert isinstance(hello, Hello)
    (proof,) = dialler.hear(Hello(0, "b", b"x" * 16, b"y" * 32))
    with pytest.raises(Refused, match="proof is wrong"):
        dialler.hear(proof)
    mirrored = side("a", dials=True)
    with pytest.raises(Refused, match="our own words"):
        mirrored.hear(mirrored.begin()[0])


@pytest.mark.parametrize("first", [Ping(0), Auth(0, b"p" * 32)])
def test_nothing_comes_before_hello(first: Frame) -> None:
    with pytest.raises(Refused, match="who it is"):
        side("b", dials=False).hear(first)


@pytest.mark.parametrize("second", [Ping(0), Hello(0, "a", b"i" * 16, b"n" * 32)])
def test_nothing_but_a_proof_comes_after_it(second: Frame) -> None:
    acceptor = side("b", dials=False)
    acceptor.hear(side("a", dials=True).begin()[0])
    with pytest.raises(Refused, match="before it had proved"):
        acceptor.hear(second)


def test_a_second_process_of_our_name_is_refused_and_we_know_ourselves() -> None:
    dialler, acceptor = side("a", dials=True), side("a", dials=False, number=1, instance=b"other".ljust(16))
    with pytest.raises(Refused, match="our own name"):
        acceptor.hear(dialler.begin()[0])
    dialler, acceptor = side("a", dials=True), side("a", dials=False, number=1)
    (hello,) = acceptor.hear(dialler.begin()[0])
    with pytest.raises(Refused, match="our own name"):
        dialler.hear(hello)
    assert dialler.ourselves
