"""GET /v1/models over sockets: what providers say is shown in OpenAI's shape, and none of them can spoil it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from harness import PROVIDER_KEY, Gateway, Provider, chat, get, request, until

from dandolo.sim import Fault, Script, SimProvider, SimThread
from dandolo.sim.server import free_port


@pytest.fixture
def sims() -> Iterator[Callable[..., SimThread]]:
    """Start providers that live as long as the test."""
    running: list[SimThread] = []

    def start(*providers: SimProvider) -> SimThread:
        running.append(SimThread(*providers))
        return running[-1].__enter__()

    yield start
    for one in running:
        one.__exit__(None, None, None)


def items(gateway: Gateway) -> dict[str, dict[str, Any]]:
    answer = gateway.ask(get("/v1/models"))
    assert answer.status == 200
    assert answer.json["object"] == "list"
    return {item["id"]: item for item in answer.json["data"]}


def test_facts_of_every_form_are_shown_in_one(launch: Callable[..., Gateway], sims: Callable[..., SimThread]) -> None:
    venice = SimProvider("v", "venice", key=PROVIDER_KEY, models=["llama"])
    router = SimProvider("o", "openrouter", key=PROVIDER_KEY, models=["meta/llama"])
    claude = SimProvider("c", "anthropic", key=PROVIDER_KEY, models=["opus"])
    plain = SimProvider("p", key=PROVIDER_KEY, models=["mine"])
    sims(venice, router, claude, plain)
    listed = {"id": "only", "input_usd_per_mtok": 0.5, "context_tokens": 1000}
    gateway = launch(
        [
            Provider(venice, "venice"),
            Provider(router, "openrouter"),
            Provider(claude, "anthropic"),
            plain,
            Provider(plain, options={"name": "listed"}, models=[listed]),
        ],
        models={"fast": ["v/llama"]},
    )
    found = items(gateway)
    prices = {"prompt": "0.0000005", "completion": "0.0000015"}
    for name, owner in (("llama", "v"), ("v/llama", "v"), ("meta/llama", "o"), ("o/meta/llama", "o")):
        item = found[name]
        assert {key: item[key] for key in ("id", "object", "owned_by")} == {
            "id": name,
            "object": "model",
            "owned_by": owner,
        }
        assert item["context_length"] == 131_072
        assert prices.items() <= item["pricing"].items()
    for name, owner in (("opus", "c"), ("mine", "p"), ("fast", "dandolo")):
        assert found[name] == {"id": name, "object": "model", "created": 0, "owned_by": owner}
    assert found["listed/only"]["pricing"] == {"prompt": "0.0000005"}
    assert found["only"]["context_length"] == 1000
    one = gateway.ask(get("/v1/models/meta%2Fllama"))
    assert one.json == found["meta/llama"]
    # Once they are known nobody is asked again, and each was asked for all it has.
    items(gateway)
    assert [[seen.target for seen in sim.requests] for sim in (venice, router, claude, plain)] == [
        ["/v1/models?type=all"],
        ["/v1/models"],
        ["/v1/models?limit=1000"],
        ["/v1/models"],
    ]
    # What is known narrows the choice: o and c lack this one, so nobody else can be asked for it.
    for _ in range(3):
        answer = gateway.ask(request(body=chat(model="mine")))
        assert answer.header("x-dandolo-provider") == "p"


LOST: list[tuple[str, Fault, str]] = [
    ("status", Fault("status", status=503, times=0), "answered 503"),
    ("garbage", Fault("raw", data=b"garbage\r\n\r\n", times=0), "status line"),
    ("web page", Fault("html_200", times=0), "expected"),
    ("cut", Fault("truncated_body", times=0), "before its answer was complete"),
    ("redirect", Fault("redirect", times=0), "answered 302"),
    (
        "huge",
        Fault(
            "raw",
            data=b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 9999999\r\n\r\n"
            + b" " * 9_000_000,
            times=0,
        ),
        "more than 8388608 bytes",
    ),
]


@pytest.mark.parametrize(("fault", "words"), [one[1:] for one in LOST], ids=[one[0] for one in LOST])
def test_a_list_that_is_missing_is_said_once_in_the_log(
    launch: Callable[..., Gateway], sims: Callable[..., SimThread], fault: Fault, words: str
) -> None:
    good = SimProvider("good", key=PROVIDER_KEY)
    bad = SimProvider("bad", key=PROVIDER_KEY, script=Script(faults=(fault,)))
    sims(good, bad)
    gateway = launch([bad, good])
    for _ in range(3):
        found = items(gateway)
        assert "good/sim-small" in found
        assert not any(name.startswith("bad/") for name in found)
    assert bad.received == 1
    lines = until(lambda: [line for line in gateway.stderr.read_text().splitlines() if "is missing" in line])
    assert len(lines) == 1
    assert "the list of models of bad is missing" in lines[0]
    assert words in lines[0]
    assert PROVIDER_KEY not in gateway.stderr.read_text()


def test_providers_that_do_not_answer_are_waited_for_together(
    launch: Callable[..., Gateway], sims: Callable[..., SimThread]
) -> None:
    silent = [
        SimProvider(f"silent{i}", key=PROVIDER_KEY, script=Script(default_fault=Fault("hang_before_answer")))
        for i in range(4)
    ]
    down = SimProvider("down", key=PROVIDER_KEY, port=free_port())
    good = SimProvider("good", key=PROVIDER_KEY)
    sims(good, *silent)
    gateway = launch([*silent, down, good])
    # One after another they would take longer than the client waits (four times FETCH_S, harness.ANSWER_S).
    found = items(gateway)
    assert {name.partition("/")[0] for name in found if "/" in name} == {"good"}
    assert "sim-small" in found

    def lines() -> list[str]:
        return [line for line in gateway.stderr.read_text().splitlines() if "is missing" in line]

    until(lambda: len(lines()) == 5)
    assert sum("no answer within 5 s" in line for line in lines()) == 4
