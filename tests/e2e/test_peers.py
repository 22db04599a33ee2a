"""Three processes with one cache, over mutual TLS: one call for all, and nobody harmed when one of them goes."""

from __future__ import annotations

import contextlib
import json
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from harness import Answer, Client, Gateway, chat, request, until
from peering import PeerWorker, three

from dandolo.sim import Fault, Script, SimProvider, SimThread

Trio = tuple[list[PeerWorker], SimProvider]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trio]:
    sim = SimProvider("sim")
    with SimThread(sim), three(tmp_path_factory.mktemp("peers"), sim) as workers:
        yield workers, sim


@pytest.fixture
def trio(shared: Trio) -> Trio:
    """The three as earlier tests left them: every test asks questions of its own."""
    _, sim = shared
    sim.script = Script()
    sim.forget()
    return shared


def body(text: str, **more: Any) -> bytes:
    return request(body=chat(model="sim/m", messages=[{"role": "user", "content": text}], **more))


def ask(worker: PeerWorker, text: str, **more: Any) -> Answer:
    with worker.client() as client:
        client.send(body(text, **more))
        return client.answer()


def text_of(answer: Answer) -> str:
    assert answer.status == 200, answer.body
    assert answer.complete
    if answer.header("content-type") == "text/event-stream":
        assert answer.events[-1] == b"[DONE]"
        datas = [json.loads(data) for data in answer.events[:-1]]
        return "".join(c["delta"].get("content") or "" for d in datas for c in d.get("choices", []))
    content: str = answer.json["choices"][0]["message"]["content"]
    return content


@contextlib.contextmanager
def clients(*workers: PeerWorker) -> Iterator[list[Client]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(worker.client()) for worker in workers]


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
def test_identical_requests_on_three_processes_are_one_call(trio: Trio, stream: bool) -> None:
    workers, sim = trio
    sim.script = Script(first_token_s=0.3, tokens_per_s=200, tokens=20)
    with clients(*workers, *workers) as open_:
        for client in open_:
            client.send(body(f"one call {stream}", stream=stream))
        answers = [client.answer() for client in open_]
    assert len({text_of(answer) for answer in answers}) == 1
    assert len(sim.requests) == 1
    assert sorted(answer.header("x-cache") or "" for answer in answers) == ["COLLAPSED"] * 5 + ["MISS"]


def test_calls_made_the_short_way_are_shared_too(trio: Trio) -> None:
    workers, sim = trio
    with clients(*workers, *workers) as open_:

        def at_once(text: str) -> list[str | None]:
            for client in open_:
                client.send(body(text))
            answers = [client.answer() for client in open_]
            assert len({text_of(answer) for answer in answers}) == 1
            return [answer.header("x-cache") for answer in answers]

        # A connection that has asked before takes the short way, if a provider's is at hand.
        for number, client in enumerate(open_):
            client.send(body(f"warm  {number}"))
            assert client.answer().status == 200
        sim.script = Script(first_token_s=0.2)
        sim.forget()
        for number in range(4):
            assert sorted(map(str, at_once(f"short {number}"))) == ["COLLAPSED"] * 5 + ["MISS"]
        assert len(sim.requests) == 4
        # What one has, the others find, whoever owns the key.
        sim.script = Script()
        for number in range(8):
            first, *others = (open_[(number + step) % 3] for step in range(3))
            first.send(body(f"found {number}"))
            assert first.answer().header("x-cache") == "MISS"
            for client in others:
                client.send(body(f"found {number}"))
                assert client.answer().status == 200
        assert len(sim.requests) <= 4 + 8 + 1
    until(lambda: sim.in_flight == 0)


@pytest.mark.parametrize("held", ["by its client", "by others only"])
def test_short_call_whose_client_leaves_goes_on_for_other_processes(trio: Trio, held: str) -> None:
    workers, sim = trio
    with clients(*workers) as open_:
        for number, client in enumerate(open_):
            client.send(body(f"warm {held} {number}"))
            assert client.answer().status == 200
        sim.script = Script(first_token_s=0.6)
        sim.forget()
        first, second, third = open_
        first.send(body(f"left {held} ."))
        until(lambda: sim.in_flight == 1)
        second.send(body(f"left {held} ."))
        third.send(body(f"left {held} ."))
        time.sleep(0.2)
        if held == "by others only":
            first.reset()
        answers = [client.answer() for client in ((second, third) if first.socket.fileno() < 0 else open_)]
        assert len({text_of(answer) for answer in answers}) == 1
        assert len(sim.requests) == 1


def test_mixed_forms_are_one_call(trio: Trio) -> None:
    workers, sim = trio
    sim.script = Script(first_token_s=0.2, tokens_per_s=400, tokens=20)
    with clients(*workers) as open_:
        for client, stream in zip(open_, (True, False, True), strict=True):
            client.send(body("mixed", stream=stream))
        answers = [client.answer() for client in open_]
    assert len({text_of(answer) for answer in answers}) == 1
    assert len(sim.requests) == 1


def test_a_stream_that_waits_elsewhere_comes_piece_by_piece(trio: Trio) -> None:
    workers, sim = trio
    sim.script = Script(first_token_s=0.1, tokens_per_s=20, tokens=30)
    with clients(*workers) as open_:
        for client in open_:
            client.send(body("slowly", stream=True))
        for client in open_:
            client.await_bytes(b'"content"')
        assert sim.in_flight == 1, "the first piece came only with the last"
        late = [worker.client() for worker in workers]
        for client in late:
            client.send(body("slowly", stream=True))
            client.await_bytes(b'"content"')
        assert sim.in_flight == 1
        answers = [client.answer() for client in (*open_, *late)]
        for client in late:
            client.socket.close()
    assert len({text_of(answer) for answer in answers}) == 1
    assert len(sim.requests) == 1


def test_what_one_has_serves_the_others(trio: Trio) -> None:
    workers, sim = trio
    first = ask(workers[0], "kept")
    assert first.header("x-cache") == "MISS"
    others = [ask(worker, "kept") for worker in workers[1:]]
    assert [answer.header("x-cache") for answer in others] == ["HIT", "HIT"]
    assert {answer.body for answer in others} == {first.body}
    assert others[0].header("x-dandolo-provider") == "sim"
    assert text_of(ask(workers[2], "kept", stream=True)) == text_of(first)
    assert len(sim.requests) == 1


def test_purge_reaches_all_within_a_second(trio: Trio) -> None:
    workers, sim = trio
    for worker in workers:
        assert text_of(ask(worker, "purged"))
    assert len(sim.requests) == 1
    assert workers[1].tell("all", "", False) == "purged"
    began = time.monotonic()
    until(lambda: all(worker.peers()["memory"] == 0 for worker in workers), 1.0, "a purge did not arrive")
    assert time.monotonic() - began < 1.0
    assert ask(workers[0], "purged").header("x-cache") == "MISS"
    assert len(sim.requests) == 2


def test_a_client_that_leaves_cancels_the_call_only_when_nobody_waits_anywhere(trio: Trio) -> None:
    workers, sim = trio
    sim.script = Script(first_token_s=0.5, tokens_per_s=100, tokens=5)
    with clients(workers[0]) as (first,):
        first.send(body("left", stream=True))
        until(lambda: sim.in_flight == 1)
        with clients(workers[1]) as (second,):
            second.send(body("left", stream=True))
            until(lambda: any(holder for _, holder in workers[1].seeking().values()))
            first.reset()
            assert text_of(second.answer())
    assert len(sim.requests) == 1
    sim.script = Script(first_token_s=30.0)
    with clients(*workers[:2]) as open_:
        for client in open_:
            client.send(body("left altogether", stream=True))
        until(lambda: any(holder for worker in workers[:2] for _, holder in worker.seeking().values()))
    until(lambda: sim.in_flight == 0, 5.0, "nobody waits, and the call goes on")
    until(lambda: not any(worker.seeking() for worker in workers))


def test_an_answer_too_long_to_be_kept_is_relayed_all_the_same_and_waits_for_the_slow(trio: Trio) -> None:
    workers, sim = trio
    sim.script = Script(first_token_s=0.3, tokens=25_000)
    with clients(*workers) as open_:
        for client in open_:
            client.send(body("at length", stream=True))
        until(lambda: all(worker.seeking() for worker in workers))
        # One after the other: the last has not read a byte until the first has everything.
        answers = [client.answer() for client in open_]
    assert len({text_of(answer) for answer in answers}) == 1
    assert len(answers[0].body) > 5_000_000
    assert len(sim.requests) == 1


@pytest.mark.parametrize(("characters", "calls"), [(2_000_000, 1), (6_000_000, 3)])
def test_a_plain_answer_is_shared_up_to_the_length_that_is_kept(trio: Trio, characters: int, calls: int) -> None:
    workers, sim = trio
    message = {"role": "assistant", "content": "y" * characters}
    answer = {
        "id": "x",
        "object": "chat.completion",
        "model": "m",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
    }
    sim.script = Script(latency_s=0.3, default_fault=Fault("error_200", body=json.dumps(answer)))
    with clients(*workers) as open_:
        for client in open_:
            client.send(body(f"plain and long {characters}"))
        answers = [client.answer() for client in open_]
    assert [len(text_of(answer)) for answer in answers] == [characters] * 3
    assert len(sim.requests) == calls
    assert all(len(worker.up()) == 2 for worker in workers)


@pytest.mark.parametrize("fault", [Fault("status", status=500), Fault("cut_rst", after=5)], ids=lambda one: one.kind)
def test_a_provider_that_fails_is_told_to_all_and_never_as_an_error_of_ours(trio: Trio, fault: Fault) -> None:
    workers, sim = trio
    sim.script = Script(first_token_s=0.2, latency_s=0.1, tokens_per_s=100, default_fault=fault)
    with clients(*workers) as open_:
        for client in open_:
            client.send(body(f"a provider that fails {fault.kind}", stream=True))
        answers = [client.answer() for client in open_]
    for answer in answers:
        if fault.kind == "status":
            # Before anything was said each asks for itself.
            assert (answer.status, answer.error["code"]) == (502, "upstream_error")
        else:
            assert not answer.complete
            assert b"upstream_stream_error" in answer.body
    assert len(sim.requests) == (3 if fault.kind == "status" else 1)
    until(lambda: not any(worker.seeking() for worker in workers))


def roles(workers: list[PeerWorker]) -> tuple[str, PeerWorker, PeerWorker | None, PeerWorker]:
    """The one key that is flown: its key, who makes the call, who owns it, and one who only follows."""
    flown = {worker.name: worker.seeking() for worker in workers}
    (key,) = {key for keys in flown.values() for key in keys}
    holder = next(worker for worker in workers if flown[worker.name].get(key, (False, ""))[0])
    owner_name = workers[0].tell("owner", key)
    owner = next(worker for worker in workers if worker.name == owner_name)
    follower = next(worker for worker in workers if worker not in (holder, owner))
    return key, holder, None if owner is holder else owner, follower


def flown_by_other_than_owner(
    workers: list[PeerWorker], sim: SimProvider, stream: bool, what: str
) -> tuple[list[Client], PeerWorker, PeerWorker, PeerWorker, str]:
    """Requests under way on all three, of which the one who makes the call does not own the key."""
    for attempt in range(50):
        sim.forget()
        open_ = {worker.name: worker.client() for worker in workers}
        for worker in workers:
            open_[worker.name].send(body(f"{what} {attempt}", stream=stream))
        until(lambda: len(sim.requests) == 1)
        until(lambda: all(any(a or b for a, b in worker.seeking().values()) for worker in workers))
        _, holder, owner, follower = roles(workers)
        if owner is not None:
            return [open_[one.name] for one in (holder, owner, follower)], holder, owner, follower, f"{what} {attempt}"
        for client in open_.values():
            client.reset()
        until(lambda: sim.in_flight == 0, 5.0)
        until(lambda: not any(worker.seeking() for worker in workers))
    raise AssertionError("the first who asks always owns the key")


@pytest.mark.parametrize("how", ["killed", "partitioned"])
@pytest.mark.parametrize("who", ["owner", "holder"])
def test_one_that_goes_in_the_middle_of_a_lease_harms_nobody(tmp_path: Path, who: str, how: str) -> None:
    stream = how == "killed"
    sim = SimProvider("sim", script=Script(first_token_s=1.0, tokens_per_s=100, tokens=10))
    with SimThread(sim), three(tmp_path, sim) as workers:
        open_, holder, owner, follower, what = flown_by_other_than_owner(workers, sim, stream, f"{who} {how}")
        gone = owner if who == "owner" else holder
        others = [one for one in (holder, owner, follower) if one is not gone]
        if how == "killed":
            gone.kill()
        else:
            gone.signal(signal.SIGSTOP)
        late = [worker.client() for worker in others]
        for client in late:
            client.send(body(what, stream=not stream))
        waiting = [client for client, one in zip(open_, (holder, owner, follower), strict=True) if one is not gone]
        answers = [client.answer() for client in (*waiting, *late)]
        assert [answer.status for answer in answers] == [200] * 4
        assert all(text_of(answer) for answer in answers)
        assert 1 <= len(sim.requests) <= 2, [one.log.read_text() for one in workers]
        for client in (*open_, *late):
            client.socket.close()


@pytest.mark.parametrize("how", ["killed", "partitioned"])
@pytest.mark.parametrize("who", ["owner", "holder"])
def test_one_that_goes_in_the_middle_of_a_stream_harms_nobody(tmp_path: Path, who: str, how: str) -> None:
    sim = SimProvider("sim", script=Script(first_token_s=0.2, tokens_per_s=30, tokens=30, repeatable=True))
    with SimThread(sim), three(tmp_path, sim) as workers:
        open_, holder, owner, follower, _ = flown_by_other_than_owner(workers, sim, True, f"{who} {how}")
        for client in open_:
            client.await_bytes(b'"content"')
        gone = owner if who == "owner" else holder
        if how == "killed":
            gone.kill()
        else:
            gone.signal(signal.SIGSTOP)
        waiting = [client for client, one in zip(open_, (holder, owner, follower), strict=True) if one is not gone]
        answers = [client.answer() for client in waiting]
        assert [answer.status for answer in answers] == [200, 200]
        assert len({text_of(answer) for answer in answers}) == 1
        assert len(text_of(answers[0]).split()) >= 30
        assert len(sim.requests) == (1 if who == "owner" else 2)
        for client in open_:
            client.socket.close()


# -- as the command runs it ------------------------------------------------------------------------------------

KEYS = [
    {"name": "app", "key": "k-app"},
    {"name": "other", "key": "k-other"},
    {"name": "private", "key": "k-private", "privacy": True},
]


@contextlib.contextmanager
def served(directory: Path, sim: SimProvider, keys: Sequence[Mapping[str, object]] = ()) -> Iterator[list[Gateway]]:
    """Two gateways on Unix sockets; `keys` are the first one's, the second's are KEYS where there are any."""
    places = [f"unix:{directory}/{name}.sock" for name in "ab"]
    with contextlib.ExitStack() as stack:
        gateways = []
        for name, place, own in zip("ab", places, (keys, KEYS if keys else ()), strict=True):
            (directory / name).mkdir()
            toml = (
                '[cache]\nsampled = "reuse"\nsecret = { env = "SECRET" }\n[cache.peers]\n'
                f'name = "{name}"\nlisten = ["{place}"]\npeers = {json.dumps(places)}\n'
            )
            one = Gateway(directory / name, [sim], keys=own, toml=toml, environ={"SECRET": "between the two of them"})
            gateways.append(stack.enter_context(one))
        for gateway in gateways:
            until(lambda gateway=gateway: gateway.metrics()["dandolo_cache_peers_up"] == 1, 15.0)
            assert gateway.metrics()["dandolo_cache_peers"] == 1
        yield gateways


def put_to(gateway: Gateway, text: str, key: str | None = None) -> Answer:
    message = [{"role": "user", "content": text}]
    return gateway.ask(request(body=chat(model="sim/m", messages=message), key=key))


def test_serve_gives_what_the_other_has_until_it_is_purged_there(tmp_path: Path) -> None:
    sim = SimProvider("sim")
    with SimThread(sim), served(tmp_path, sim) as (a, b):

        def given() -> str | None:
            """A question to which a's answer came to b within the deadline, which a busy machine may miss."""
            text = f"question {len(sim.requests)}"
            assert put_to(a, text).header("x-cache") == "MISS"
            found = put_to(b, text)
            return text if "detail=peer" in (found.header("cache-status") or "") else None

        text = until(given)
        assert put_to(b, text).header("x-cache") == "HIT"
        with Client(a.admin_port) as client:
            client.send(request("/admin/cache/purge", {"all": True}, headers={"Connection": "close"}))
            assert client.answer().json["failed"] == []
        until(lambda: b.metrics()["dandolo_cache_entries"] == 0, 1.0, "the purge did not arrive within a second")
        assert put_to(b, text).header("x-cache") == "MISS"
        assert a.metrics()["dandolo_cache_peer_served_total"] + b.metrics()["dandolo_cache_peer_hits_total"] > 0


def test_neither_tenants_nor_private_answers_meet_on_the_way(tmp_path: Path) -> None:
    sim = SimProvider("sim")
    # What is private for the first is not for the second: the first's word counts for what it has.
    strict = [{**key, "privacy": key["name"] in ("private", "other")} for key in KEYS]
    with SimThread(sim), served(tmp_path, sim, strict) as (a, b):
        for number in range(5):
            text = f"question {number}"
            assert put_to(a, text, "k-app").header("x-cache") == "MISS"
            assert put_to(b, text, "k-other").header("x-cache") == "MISS"
            assert put_to(a, text, "k-private").header("x-cache") == "MISS"
            assert put_to(b, text, "k-private").header("x-cache") == "MISS"
            assert put_to(a, f"{text}?", "k-other").header("x-cache") == "MISS"
            assert put_to(b, f"{text}?", "k-other").header("x-cache") == "MISS"
            # It is kept all the same, where it was asked.
            assert put_to(a, f"{text}?", "k-other").header("x-cache") == "HIT"
            assert put_to(b, text, "k-private").header("x-cache") == "HIT"


def test_workers_of_one_host_share_by_a_name_alone(tmp_path: Path) -> None:
    sim = SimProvider("sim", script=Script(first_token_s=0.2, tokens_per_s=200, tokens=10))
    toml = '[cache]\nsampled = "reuse"\nsecret = { env = "SECRET" }\n[cache.peers]\nname = "host"\n'
    with (
        SimThread(sim),
        Gateway(
            tmp_path, [sim], server={"workers": 2}, toml=toml, environ={"SECRET": "between the two of them"}
        ) as gateway,
    ):
        until(lambda: gateway.metrics().get("dandolo_cache_peers_up") == 2, 15.0)
        questions = 0

        def shared() -> bool:
            """Whether identical requests on both workers were one call; a busy machine may miss a deadline."""
            nonlocal questions
            questions += 1
            sim.forget()
            with contextlib.ExitStack() as stack:
                open_ = [stack.enter_context(gateway.client()) for _ in range(8)]
                for client in open_:
                    client.send(body(f"question {questions}", stream=True))
                assert all(text_of(client.answer()) for client in open_)
            assert 1 <= len(sim.requests) <= 2
            return len(sim.requests) == 1 and gateway.metrics()["dandolo_cache_peer_follows_total"] > 0

        until(shared, 20.0)
        socket_ = tmp_path / "state" / "peers.sock"
        assert socket_.exists()
        assert socket_.stat().st_mode & 0o777 == 0o600
