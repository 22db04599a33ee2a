"""The official Anthropic client, unchanged, against a gateway before a provider of that dialect."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import anthropic
import pytest
from harness import KEY, PROVIDER_KEY, Gateway, Provider, request, until

from dandolo.sim import Fault, Script, SimProvider, SimThread

HELLO: list[Any] = [{"role": "user", "content": "hello"}]
ASKED: dict[str, Any] = {"model": "sim-large", "max_tokens": 64, "messages": HELLO}
TOOL: Any = {
    "name": "weather",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}


class Rig:
    def __init__(self, gateway: Gateway, sim: SimProvider) -> None:
        self.gateway, self.sim = gateway, sim
        self.client = anthropic.Anthropic(api_key=KEY, base_url=gateway.url, max_retries=0, timeout=10)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    sim = SimProvider("claude", "anthropic", key=PROVIDER_KEY)
    with (
        SimThread(sim),
        Gateway(
            tmp_path_factory.mktemp("anthropic"),
            [Provider(sim, "anthropic", options={"base_url": sim.base_url})],
            keys=[KEY],
            routing={"breaker": False},
        ) as gateway,
    ):
        rig = Rig(gateway, sim)
        yield rig
        rig.client.close()


@pytest.fixture
def rig(running: Rig) -> Iterator[Rig]:
    running.sim.script = Script()
    running.sim.forget()
    yield running
    assert running.gateway.alive


def test_messages(rig: Rig) -> None:
    answer = rig.client.messages.create(**ASKED)
    assert answer.content[0].type == "text"
    assert answer.content[0].text.startswith("claude: hello model=sim-large")
    assert answer.stop_reason == "end_turn"
    assert answer.usage.output_tokens > 0
    assert (answer._request_id or "").startswith("req_")
    sent = rig.sim.requests[0]
    assert sent.target == "/v1/messages"
    assert sent.header("x-api-key") == PROVIDER_KEY
    assert sent.header("authorization") is None
    assert sent.header("anthropic-version")
    assert KEY not in str(sent.headers)


def test_messages_streamed(rig: Rig) -> None:
    with rig.client.messages.stream(**ASKED) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text.startswith("claude: hello model=sim-large")
    assert final.stop_reason == "end_turn"
    assert final.usage.output_tokens > 0
    types = [event.type for event in rig.client.messages.create(**ASKED, stream=True)]
    assert types[0] == "message_start"
    assert types[-1] == "message_stop"


def test_tools(rig: Rig) -> None:
    asked = {**ASKED, "tools": [TOOL], "tool_choice": {"type": "tool", "name": "weather"}}
    answer = rig.client.messages.create(**asked)
    assert answer.stop_reason == "tool_use"
    with rig.client.messages.stream(**asked) as stream:
        block: Any = stream.get_final_message().content[0]
    assert block.type == "tool_use"
    assert block.input == {"city": "sim"}


def test_count_tokens(rig: Rig) -> None:
    counted = rig.client.messages.count_tokens(model="sim-large", messages=[{"role": "user", "content": "x" * 400}])
    assert counted.input_tokens == 100
    assert rig.sim.requests[0].target == "/v1/messages/count_tokens"


def test_beta_query_and_headers_go_where_they_belong(rig: Rig) -> None:
    answer = rig.client.beta.messages.create(**ASKED, betas=["some-beta-2025-01-01"])
    assert answer.stop_reason == "end_turn"
    sent = rig.sim.requests[0]
    assert sent.header("anthropic-beta") == "some-beta-2025-01-01"
    assert sent.target.partition("?")[0] == "/v1/messages"


def test_bearer_key_is_as_good(rig: Rig) -> None:
    with anthropic.Anthropic(auth_token=KEY, base_url=rig.gateway.url, max_retries=0) as client:
        assert client.messages.create(**ASKED).stop_reason == "end_turn"


def test_models(rig: Rig) -> None:
    assert {"sim-small", "sim-large"} <= {model.id for model in rig.client.models.list()}


def test_async_client(rig: Rig) -> None:
    async def talk() -> None:
        async with anthropic.AsyncAnthropic(api_key=KEY, base_url=rig.gateway.url, max_retries=0) as client:

            async def streamed() -> str:
                async with client.messages.stream(**ASKED) as stream:
                    return "".join([text async for text in stream.text_stream])

            texts = await asyncio.gather(*(streamed() for _ in range(20)))
            assert all(text.startswith("claude: hello") for text in texts)

    asyncio.run(talk())


@pytest.mark.promise("36")
def test_abort_reaches_the_provider(rig: Rig) -> None:
    rig.sim.script = Script(tokens_per_s=50, tokens=1000)
    asked = {**ASKED, "max_tokens": 4096}
    with rig.client.messages.stream(**asked) as stream:
        for number, _ in enumerate(stream.text_stream):
            if number == 5:
                break
        left = time.monotonic()
    assert until(lambda: rig.sim.requests[0].aborted_at, 5.0) - left <= 1.0
    record = until(lambda: [line for line in rig.gateway.log_lines() if line["status"] == 499])[-1]
    assert record["endpoint"] == "messages"
    assert record["estimated"] is True
    assert record["output_tokens"] >= 4


@pytest.mark.promise("26")
@pytest.mark.parametrize("kind", ["cut_fin", "cut_rst", "stream_error", "bad_chunk"])
def test_broken_stream_is_an_exception_and_never_an_end(rig: Rig, kind: Any) -> None:
    rig.sim.script = Script(faults=[Fault(kind, after=8)], tokens_per_s=200)
    with pytest.raises(anthropic.APIError), rig.client.messages.stream(**ASKED) as stream:
        stream.get_final_message()
    assert len(rig.sim.requests) == 1


@pytest.mark.parametrize(
    ("status", "kind", "word"),
    [
        (400, anthropic.BadRequestError, "invalid_request_error"),
        (403, anthropic.PermissionDeniedError, "permission_error"),
        (404, anthropic.NotFoundError, "not_found_error"),
        (413, anthropic.APIStatusError, "request_too_large"),
        (429, anthropic.RateLimitError, "rate_limit_error"),
        (500, anthropic.InternalServerError, "api_error"),
        (529, anthropic.InternalServerError, "overloaded_error"),
        (504, anthropic.InternalServerError, "timeout_error"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_providers_errors_are_the_librarys_exceptions(
    rig: Rig, status: int, kind: type[anthropic.APIStatusError], word: str, stream: bool
) -> None:
    rig.sim.script = Script(default_fault=Fault("status", status=status, headers=(("retry-after", "20"),)))
    with pytest.raises(kind) as raised:
        rig.client.messages.create(**ASKED, stream=stream)
    body: Any = raised.value.body
    assert body["type"] == "error"
    assert body["error"]["type"] == word
    assert raised.value.request_id
    assert raised.value.request_id.startswith("req_")


def test_own_errors_have_anthropics_envelope(rig: Rig) -> None:
    with pytest.raises(anthropic.AuthenticationError) as unknown:
        rig.client.with_options(api_key="sk-wrong").messages.create(**ASKED)
    body: Any = unknown.value.body
    assert body["error"]["type"] == "authentication_error"
    wrong: Any = "hello"
    with pytest.raises(anthropic.BadRequestError):
        rig.client.messages.create(model="sim-large", max_tokens=10, messages=wrong)
    answer = rig.gateway.ask(request("/v1/messages?beta=true", b"{", headers={"x-api-key": KEY}))
    assert answer.status == 400
    assert answer.json["type"] == "error"
    assert answer.header("request-id") == answer.header("x-request-id")
    assert not rig.sim.requests


def test_librarys_retries_do_not_multiply_ours(rig: Rig) -> None:
    rig.sim.script = Script(default_fault=Fault("status", status=500))
    with (
        anthropic.Anthropic(api_key=KEY, base_url=rig.gateway.url, max_retries=2) as client,
        pytest.raises(anthropic.InternalServerError),
    ):
        client.messages.create(**ASKED)
    assert len(rig.sim.requests) == 1


def test_agent_that_looks_first_is_answered(rig: Rig) -> None:
    answer = rig.gateway.ask(request("/", None, method="HEAD"), head_only=True)
    assert answer.status == 200
    big = [{"role": "user", "content": "context " * 9500}]
    sent = request("/v1/messages?beta=true", {**ASKED, "messages": big}, headers={"x-api-key": KEY})
    answer = rig.gateway.ask(sent)
    assert answer.status == 200
