"""Peers over real sockets: asking, answering, following, purging, and strangers at the door."""

from __future__ import annotations

import asyncio
import os
import ssl
import stat
from math import inf
from pathlib import Path

import pytest
import trustme
from peer_homes import SECRET, Feed, Home, MutePeer, Run, all_of, peer, told, unix, until, up

from dandolo.cache.peers import connection, door, link, mesh
from dandolo.cache.peers.frames import Begin, Done, FrameReader, Get, Hello, Lease, Piece, Put, Value, encode
from dandolo.cache.peers.greeting import Greeting, key_of
from dandolo.cache.peers.mesh import Peers
from dandolo.cache.peers.place import Membership, Papers
from dandolo.config.address import Listen

KEYS = [bytes([number]) * 20 for number in range(200)]
VALUE = Value(b"record", "key:app")


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Deadlines that a busy machine keeps, too; tests of deadlines set their own."""
    monkeypatch.setattr(link, "NEAR_S", 5.0)
    monkeypatch.setattr(link, "FAR_S", 5.0)
    monkeypatch.setattr(link, "FOLLOW_S", 5.0)
    monkeypatch.setattr(link, "SILENT_S", 30.0)
    monkeypatch.setattr(link, "LATE_S", inf)
    monkeypatch.setattr(connection, "GREETING_S", 20.0)
    monkeypatch.setattr(door, "GREETING_S", 20.0)
    monkeypatch.setattr(mesh, "TAKEN_S", 0.05)


def owned_by(peers: Peers, name: str) -> bytes:
    """A key that is that peer's."""
    return next(key for key in KEYS[1:] if (other.name if (other := peers.owner(key)) else peers.name) == name)


# -- asking --------------------------------------------------------------------------------------------------


def test_one_gets_the_lease_the_others_learn_who_and_then_the_answer(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        (a, _), (b, at_b), (c, _) = (
            peer(tmp_path, "a", "b", "c"),
            peer(tmp_path, "b", "a", "c"),
            peer(tmp_path, "c", "a", "b"),
        )
        async with all_of(a, b, c):
            key = owned_by(a, "b")
            assert await told(lambda heard: a.lease(key, heard)) == "a"
            assert await told(lambda heard: c.lease(key, heard)) == "a"
            assert await told(lambda heard: b.lease(key, heard)) == "a"
            assert await told(lambda heard: c.get(key, heard)) is None
            a.release(key, lambda: VALUE)
            await until(lambda: key in at_b.values)
            assert await told(lambda heard: c.lease(key, heard)) == VALUE
            assert await told(lambda heard: c.get(key, heard)) == VALUE
            assert (a.counts.grants, c.counts.waits, c.counts.hits) == (1, 1, 2)

    run(main())


def test_owner_is_asked_without_a_connection_when_it_is_ourselves(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        alone, _ = peer(tmp_path, "a")
        async with all_of(alone):
            assert await told(lambda heard: alone.lease(KEYS[0], heard)) == "a"
            alone.release(KEYS[0], lambda: pytest.fail("nobody is to have it"))
            assert await told(lambda heard: alone.get(KEYS[0], heard)) is None

    run(main())


def test_a_call_is_followed_from_its_holder(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        (a, at_a), (b, _) = peer(tmp_path, "a", "b"), peer(tmp_path, "b", "a")
        async with all_of(a, b):
            at_a.made.add(KEYS[0])
            feed, other = Feed(), Feed()
            assert b.follow("nobody", KEYS[0], feed) is None
            following = b.follow("a", KEYS[0], feed)
            assert following is not None
            assert b.follow("a", KEYS[1], other) is not None
            await until(lambda: at_a.outlets and other.events == ["lost"])
            (outlet,) = at_a.outlets
            moved: list[str] = []

            class Source:
                def resumed(self) -> None:
                    moved.append("resumed")

                def left(self) -> None:
                    moved.append("left")

            outlet.source = Source()
            outlet.begin(200, True, "venice")
            long = b"x" * 3_000_000
            outlet.piece(b"data: 1\n\n")
            outlet.piece(long)
            following.hold(False)
            await until(lambda: outlet.paused)
            following.hold(True)
            await until(lambda: moved[-1:] == ["resumed"])
            outlet.done(KEYS[0], VALUE)
            await until(lambda: any(isinstance(one, Done) for one in feed.events))
            begin, *pieces, done = feed.events
            assert isinstance(begin, Begin)
            assert (begin.status, begin.events, begin.provider) == (200, True, "venice")
            assert b"".join(piece for piece in pieces if isinstance(piece, bytes)) == b"data: 1\n\n" + long
            assert isinstance(done, Done)
            assert done.value == VALUE
            # Whoever comes when it is over has the answer at once.
            at_a.values[KEYS[0]] = VALUE
            late = Feed()
            assert b.follow("a", KEYS[0], late) is not None
            await until(lambda: late.events)
            assert isinstance(late.events[0], Done)
            # Whoever leaves is not told anything more, and the source hears of it.
            at_a.values.clear()
            gone = Feed()
            leaving = b.follow("a", KEYS[0], gone)
            assert leaving is not None
            await until(lambda: len(at_a.outlets) == 2)
            at_a.outlets[1].source = Source()
            leaving.leave()
            await until(lambda: moved[-1:] == ["left"])
            assert gone.events == []

    run(main())


def test_who_follows_or_asks_is_told_when_the_other_goes(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        (a, at_a), (b, _) = peer(tmp_path, "a", "b"), peer(tmp_path, "b", "a")
        async with all_of(b, a):
            at_a.made.add(KEYS[0])
            feed = Feed()
            assert b.follow("a", KEYS[0], feed) is not None
            await until(lambda: at_a.outlets)
            key = owned_by(b, "a")
            assert await told(lambda heard: b.lease(key, heard)) == "b"
            await a.close()
            await until(lambda: feed.events == ["lost"])
            await until(lambda: not up(b))
            # The call that is under way has its new owner, who is ourselves: nobody begins another.
            assert b.owner(key) is None
            assert b._leases.ask(key, "c", "", asyncio.get_running_loop().time()) == "b"

    run(main())


def test_leases_of_a_holder_that_goes_are_free(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        (a, _), (b, _) = peer(tmp_path, "a", "b"), peer(tmp_path, "b", "a")
        async with all_of(b, a):
            key = owned_by(a, "b")
            assert await told(lambda heard: a.lease(key, heard)) == "a"
            assert await told(lambda heard: b.lease(key, heard)) == "a"
            await a.close()
            await until(lambda: len(b._leases) == 0)
            assert await told(lambda heard: b.lease(key, heard)) == "b"

    run(main())


# -- deadlines -----------------------------------------------------------------------------------------------


def test_one_that_does_not_answer_costs_a_deadline_then_nothing_and_is_asked_again_later(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "NEAR_S", 0.015)
    monkeypatch.setattr(link, "BEAT_S", 0.02)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with MutePeer(tmp_path, "mute") as mute:
            a, _ = peer(tmp_path, "a", "mute")
            async with all_of(a):
                (way,) = a._links
                # The ping that probes must find the peer slow; whether it is on a busy machine is no matter here.
                monkeypatch.setattr(way, "deadline_s", 0.015)
                mute.alive = False
                for number in range(5):
                    key = owned_by(a, "mute")
                    assert up(a) == {"mute"}, number
                    assert await told(lambda heard, key=key: a.get(key, heard)) is None
                assert up(a) == set()
                assert way.breaker.trips == 1
                asked = len(mute.heard)
                # Its keys are ours meanwhile, and nobody waits.
                assert await told(lambda heard: a.lease(KEYS[0], heard)) == "a"
                assert len(mute.heard) == asked
                assert isinstance(mute.heard[0], Get)
                # Once it answers pings in time, it is asked again.
                monkeypatch.setattr(way, "deadline_s", 5.0)
                monkeypatch.setattr(way.breaker, "_open_until", loop.time())
                way._pinged_at = 0.0
                mute.alive = True
                await until(lambda: up(a) == {"mute"})

    run(main())


def test_the_next_owner_is_asked_when_the_first_is_silent(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with MutePeer(tmp_path, "mute") as mute:
            (a, _), (b, at_b) = peer(tmp_path, "a", "b", "mute"), peer(tmp_path, "b", "a", "mute")
            async with all_of(a, b):
                silent = next(one for one in a._links if one.name == "mute")
                monkeypatch.setattr(silent, "deadline_s", 0.01)
                key = next(
                    key
                    for key in KEYS
                    if a.owner(key) is silent and (second := a.owner(key, silent)) is not None and second.name == "b"
                )
                assert await told(lambda heard: a.lease(key, heard)) == "a"
                assert isinstance(mute.heard[0], Lease)
                assert not at_b.made
                assert b._leases.ask(key, "c", "", asyncio.get_running_loop().time()) == "a"

    run(main())


def test_silence_ends_a_connection(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "BEAT_S", 0.02)
    monkeypatch.setattr(link, "SILENT_S", 0.1)

    async def main() -> None:
        async with MutePeer(tmp_path, "mute") as mute:
            a, _ = peer(tmp_path, "a", "mute")
            async with all_of(a):
                mute.alive = False
                feed = Feed()
                await until(lambda: not up(a))
                (one,) = a.health()
                assert "no sign of it" in one.reason or one.connects > 1
                assert a.follow("mute", KEYS[0], feed) is None or True

    run(main())


# -- purges --------------------------------------------------------------------------------------------------


def test_purges_reach_everybody_also_who_was_away(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        (a, _), (b, at_b) = peer(tmp_path, "a", "b"), peer(tmp_path, "b", "a")
        async with all_of(a, b):
            a.purge(("tag", "x", True))
            a.purge(("key", KEYS[0].hex(), False))
            await until(lambda: len(at_b.purges) == 2)
            assert at_b.purges == [("tag", "x", True), ("key", KEYS[0].hex(), False)]
            (way,) = a._links
            assert way.connection is not None
            way.connection.close("for a moment")
            a.purge(("all", "", False))
            assert len(at_b.purges) == 2
            await until(lambda: len(at_b.purges) == 3)
            assert (at_b.purges[2], at_b.flushes) == (("all", "", False), 0)
            way.connection.close("for longer")
            for number in range(300):
                a.purge(("tag", f"t{number}", False))
            await until(lambda: at_b.flushes)
            await until(lambda: at_b.purges[-1] == ("tag", "t299", False))

    run(main())


def test_answers_that_many_ask_for_are_given_to_all(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        (a, at_a), (b, _) = peer(tmp_path, "a", "b", "c"), peer(tmp_path, "b", "a", "c")
        c, at_c = peer(tmp_path, "c", "a", "b")
        async with all_of(a, b, c):
            key = owned_by(b, "a")
            at_a.values[key] = VALUE
            for _ in range(8):
                assert await told(lambda heard: b.get(key, heard)) == VALUE
            assert not at_c.values
            assert await told(lambda heard: b.get(key, heard)) == VALUE
            await until(lambda: at_c.values == {key: VALUE})
            assert a.counts.pushed == 1

    run(main())


# -- the door ------------------------------------------------------------------------------------------------


async def speak(path: str, *said: bytes) -> bytes:
    """Say something to a listener, and read until it closes."""
    reader, writer = await asyncio.open_unix_connection(path)
    try:
        writer.write(b"".join(said))
        async with asyncio.timeout(15):
            return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.close()


def hello(name: str = "stranger") -> bytes:
    return encode(Hello(0, name, os.urandom(16), os.urandom(32)))


@pytest.mark.parametrize(
    "said",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\xff\xff\xff\xff",
        (8 << 20).to_bytes(4, "big") + b"x" * 1000,
        b"\0\0\0\3\x93\x02\x01",
        encode(Get(1, KEYS[0])),
        encode(Put(0, KEYS[0], VALUE))[:400],
        hello() + encode(Get(1, KEYS[0])),
        hello() + hello(),
        hello("a"),
    ],
    ids=["http", "length", "oversize", "version", "get", "put", "get behind hello", "hello twice", "our own name"],
)
def test_strangers_get_nothing_but_a_greeting(run: Run, tmp_path: Path, said: bytes) -> None:
    async def main() -> None:
        a, at_a = peer(tmp_path, "a")
        at_a.values[KEYS[0]] = VALUE
        async with all_of(a):
            back = FrameReader().feed(await speak(str(tmp_path / "a"), said))
            assert [type(frame) for frame in back] in ([], [Hello])
            await until(lambda: a.counts.refused == 1)
            assert a.counts.served == 0
            assert list(at_a.values) == [KEYS[0]]

    run(main())


def test_a_stranger_that_says_nothing_is_shown_out(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "GREETING_S", 0.1)

    async def main() -> None:
        a, _ = peer(tmp_path, "a")
        async with all_of(a):
            assert await speak(str(tmp_path / "a")) == b""
            assert a.counts.refused == 1

    run(main())


def test_a_recorded_greeting_opens_nothing(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        a, _ = peer(tmp_path, "a")
        async with all_of(a):
            dialler = Greeting(key_of(SECRET), "b", b"i" * 16, os.urandom(32), dials=True)
            recorded: list[bytes] = [encode(dialler.begin()[0])]
            reader, writer = await asyncio.open_unix_connection(str(tmp_path / "a"))
            writer.write(recorded[0])
            frames = FrameReader()
            while not dialler.believes():
                for frame in frames.feed(await reader.read(4096)):
                    recorded += map(encode, dialler.hear(frame))
                    writer.write(b"".join(recorded[1:]))
            writer.close()
            await until(lambda: not a._sessions)
            assert a.counts.refused == 0
            back = FrameReader().feed(await speak(str(tmp_path / "a"), *recorded, encode(Get(1, KEYS[0]))))
            assert [type(frame) for frame in back] == [Hello]
            await until(lambda: a.counts.refused == 1)

    run(main())


def test_a_peer_that_talks_nonsense_later_is_shown_out_too(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        (a, _), (b, _) = peer(tmp_path, "a"), peer(tmp_path, "b", "a")
        async with all_of(a, b):
            (way,) = b._links
            assert way.connection is not None
            for nonsense in (Piece(3, b"x"), Hello(0, "b", b"i" * 16, b"n" * 32)):
                connects = way.connects
                way.tell(nonsense)
                await until(lambda connects=connects: way.connects > connects)
            assert up(b) == {"a"}

    run(main())


def test_another_secret_is_told_in_words_and_not_let_in(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        (a, _), (b, _) = peer(tmp_path, "a"), peer(tmp_path, "b", "a", secret=b"another")
        a.start()
        b.start()
        await until(lambda: a.counts.refused)
        await until(lambda: "no greeting" in b.health()[0].reason)
        assert not up(b)
        await b.close()
        await a.close()

    run(main())


def test_too_many_are_closed_at_once(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mesh, "SESSIONS_MAX", 3)

    async def main() -> None:
        a, _ = peer(tmp_path, "a")
        async with all_of(a):
            open_ = [await asyncio.open_unix_connection(str(tmp_path / "a")) for _ in range(3)]
            await until(lambda: len(a._sessions) == 3)
            assert await speak(str(tmp_path / "a"), hello()) == b""
            for _, writer in open_:
                writer.close()
            await until(lambda: not a._sessions)

    run(main())


def test_its_own_address_is_passed_over_and_a_name_is_taken_once(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        os.mkdir(tmp_path / "d")
        (tmp_path / "alias").symlink_to(tmp_path / "a")
        a, _ = peer(tmp_path, "a", "a", "alias")
        twin, _ = peer(tmp_path / "d", "a")
        other = Peers(Membership("b", (), (unix(tmp_path, "a"), unix(tmp_path / "d", "a"))), SECRET, Home())
        a.start()
        twin.start()
        other.start()
        await until(lambda: a.health() == ())
        await until(
            lambda: len(up(other)) == 1 and any("another peer has the name" in one.reason for one in other.health())
        )
        for peers in (a, twin, other):
            await peers.close()

    run(main())


def test_a_unix_socket_is_its_owners_alone_and_a_stale_one_is_replaced(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        a, _ = peer(tmp_path, "a")
        assert stat.S_IMODE(os.stat(tmp_path / "a").st_mode) == 0o600
        # One that replaces it waits until it has gone, and then replaces what it left.
        a.start()
        again, _ = peer(tmp_path, "a")
        again.start()
        assert again.addresses == []
        await a.close()
        assert (tmp_path / "a").exists()
        await until(lambda: again.addresses)
        b, _ = peer(tmp_path, "b", "a")
        b.start()
        await until(lambda: up(b) == {"a"})
        await b.close()
        await again.close()
        (tmp_path / "file").write_text("precious")
        with pytest.raises(OSError, match="no socket"):
            peer(tmp_path, "file")
        assert (tmp_path / "file").read_text() == "precious"

    run(main())


# -- mutual TLS ----------------------------------------------------------------------------------------------


def papers(
    directory: Path, authority: trustme.CA, name: str, host: str = "127.0.0.1", by: trustme.CA | None = None
) -> Papers:
    """Files for one process; `by` signs its certificate, `authority` is whom it believes."""
    directory.mkdir(exist_ok=True)
    paper = (by or authority).issue_cert(host, common_name=name)
    files = [directory / f"{name}-{part}" for part in ("cert", "key", "ca")]
    paper.cert_chain_pems[0].write_to_path(str(files[0]))
    paper.private_key_pem.write_to_path(str(files[1]))
    authority.cert_pem.write_to_path(str(files[2]))
    return Papers(*files)


def test_hosts_meet_over_mutual_tls_and_nobody_else(run: Run, tmp_path: Path) -> None:
    authority, another = trustme.CA(), trustme.CA()

    async def main() -> None:
        a = Peers(
            Membership("a", (Listen("tcp", "127.0.0.1", 0),), (), papers(tmp_path, authority, "a")), SECRET, Home()
        )
        place = Listen("tcp", "127.0.0.1", a.addresses[0][1])
        a.start()

        def dialler(name: str, given: Papers) -> Peers:
            made = Peers(Membership(name, (), (place,), given), SECRET, Home())
            made.start()
            return made

        b = dialler("b", papers(tmp_path, authority, "b"))
        await until(lambda: up(b) == {"a"})
        # A certificate of another authority; an authority that did not sign a's.
        wrong = dialler("c", papers(tmp_path, authority, "c", by=another))
        unsure = dialler("d", papers(tmp_path, another, "d", by=authority))
        await until(lambda: "certificate" in unsure.health()[0].reason)
        await until(lambda: wrong.health()[0].reason not in ("", "not connected yet"))
        assert not up(wrong)
        assert not up(unsure)
        # No certificate, and no TLS at all.
        context = ssl.create_default_context(cafile=tmp_path / "a-ca")
        for tls in (context, None):
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", place.port, ssl=tls)
                writer.write(hello())
                async with asyncio.timeout(15):
                    assert await reader.read() == b""
            except (OSError, ssl.SSLError):
                pass
            finally:
                writer.close()
        assert len(a._sessions) == 1
        for peers in (b, wrong, unsure, a):
            await peers.close()

    run(main())


def test_a_certificate_is_for_the_host_that_is_dialled(run: Run, tmp_path: Path) -> None:
    authority = trustme.CA()

    async def main() -> None:
        a = Peers(
            Membership("a", (Listen("tcp", "127.0.0.1", 0),), (), papers(tmp_path, authority, "a", "10.9.9.9")),
            SECRET,
            Home(),
        )
        a.start()
        place = Listen("tcp", "127.0.0.1", a.addresses[0][1])
        b = Peers(Membership("b", (), (place,), papers(tmp_path, authority, "b")), SECRET, Home())
        b.start()
        await until(lambda: "certificate was not accepted" in b.health()[0].reason)
        assert not up(b)
        await b.close()
        await a.close()

    run(main())


def test_tcp_without_papers_is_refused() -> None:
    with pytest.raises(OSError, match="certificates"):
        Peers(Membership("a", (Listen("tcp", "127.0.0.1", 0),)), SECRET, Home())
