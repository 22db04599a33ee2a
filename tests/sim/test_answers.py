"""Real SDKs against simulated providers of every dialect, and what the answers say."""

from __future__ import annotations

import asyncio
import base64
import json
import math
import struct
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import anthropic
import openai
import pytest
from wiretap import CHAT, Client, request, streamed

from dandolo.sim import Fault, Script, SimProvider, SimThread

MESSAGES: Any = [{"role": "user", "content": "hello there"}]
WEATHER: Any = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}, "unit": {"enum": ["C", "F"]}},
}
FITTING = {"city": "sim", "days": 1, "unit": "C"}


@pytest.fixture(scope="module")
def sims() -> Iterator[SimThread]:
    names: Any = ("openai", "venice", "openrouter", "anthropic")
    with SimThread(*(SimProvider(name, name, key="sk-right") for name in names)) as running:
        yield running


@pytest.fixture(autouse=True)
def fresh(sims: SimThread) -> None:
    for provider in sims.providers:
        provider.script = Script()
        provider.forget()


@pytest.fixture(params=["openai", "venice", "openrouter"])
def sim(sims: SimThread, request: pytest.FixtureRequest) -> SimProvider:
    return sims[request.param]


@pytest.fixture
def client(sim: SimProvider) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=sim.base_url, api_key="sk-right", max_retries=0) as made:
        yield made


@pytest.fixture
def claude(sims: SimThread) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=sims["anthropic"].url, api_key="sk-right", max_retries=0) as made:
        yield made


def fetch(provider: SimProvider, path: str, body: Any = None, key: str = "sk-right") -> tuple[int, Any, Any]:
    data = None if body is None else json.dumps(body).encode()
    call = urllib.request.Request(provider.base_url + path, data, {"Authorization": f"Bearer {key}"})
    try:
        with urllib.request.urlopen(call, timeout=5) as answer:
            return answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers, error.read()


def test_chat(sim: SimProvider, client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="any/model", messages=MESSAGES, n=2)
    record = sim.requests[-1]
    text = answer.choices[0].message.content
    assert text is not None
    assert text.startswith(f"{sim.name}: hello model=any/model seq={record.sequence} sha256=")
    assert answer.choices[1].message.content != text
    assert [choice.finish_reason for choice in answer.choices] == ["stop", "stop"]
    assert answer.usage
    assert answer.usage.prompt_tokens == math.ceil(len("hello there") / 4)


def test_chat_stream_says_the_same(sim: SimProvider, client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="m", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text.startswith(f"{sim.name}: hello model=m")
    assert len(chunks) == 1 + 16 + 1 + 1
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices == []
    assert chunks[-1].usage
    assert chunks[-1].usage.total_tokens > 0


def test_usage_chunk_is_sent_only_when_asked_except_by_openrouter(sims: SimThread) -> None:
    for provider in sims.providers[:3]:
        with openai.OpenAI(base_url=provider.base_url, api_key="sk-right") as client:
            chunks = list(client.chat.completions.create(model="m", messages=MESSAGES, stream=True))
            assert any(chunk.usage for chunk in chunks) == (provider.dialect == "openrouter")


def test_token_limit_cuts_the_answer(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="m", messages=MESSAGES, max_tokens=2)
    assert answer.choices[0].finish_reason == "length"
    assert (answer.choices[0].message.content or "").endswith("hello")


def test_tool_call_whole_and_streamed(client: openai.OpenAI) -> None:
    tools: Any = [{"type": "function", "function": {"name": "weather", "parameters": WEATHER}}]
    asking: Any = [{"role": "user", "content": "please use the tool"}]
    answer = client.chat.completions.create(model="m", messages=asking, tools=tools)
    assert answer.choices[0].finish_reason == "tool_calls"
    calls: Any = answer.choices[0].message.tool_calls
    assert (calls[0].function.name, json.loads(calls[0].function.arguments)) == ("weather", FITTING)
    name, arguments = "", []
    for chunk in client.chat.completions.create(
        model="m", messages=MESSAGES, tools=tools, tool_choice="required", stream=True
    ):
        for choice in chunk.choices:
            for call in choice.delta.tool_calls or []:
                assert call.function
                name += call.function.name or ""
                arguments.append(call.function.arguments or "")
    assert (name, json.loads("".join(arguments))) == ("weather", FITTING)
    assert len(arguments) > 3
    for more in ({}, {"tool_choice": "none"}, {"tool_choice": "auto"}):
        plain = client.chat.completions.create(model="m", messages=MESSAGES, tools=tools, **more)  # type: ignore[call-overload]
        assert plain.choices[0].finish_reason == "stop"


def test_answer_to_a_schema_fits_it(client: openai.OpenAI) -> None:
    wanted: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": WEATHER}}
    answer = client.chat.completions.create(model="m", messages=MESSAGES, response_format=wanted)
    assert json.loads(answer.choices[0].message.content or "") == FITTING


def test_reasoning_comes_before_content(sim: SimProvider, client: openai.OpenAI) -> None:
    sim.script = Script(reasoning_tokens=3)
    kinds = []
    for chunk in client.chat.completions.create(model="m", messages=MESSAGES, stream=True):
        for choice in chunk.choices:
            delta = choice.delta.model_dump()
            kinds.append("reasoning" if delta.get("reasoning_content") else "content" if delta.get("content") else "")
    assert kinds[1:6] == ["reasoning"] * 3 + ["content"] * 2


def test_legacy_completions(client: openai.OpenAI) -> None:
    whole = client.completions.create(model="m", prompt="x").choices[0].text
    pieces = [c.choices[0].text for c in client.completions.create(model="m", prompt="x", stream=True)]
    assert whole.split()[:3] == "".join(pieces).split()[:3]


def test_embeddings_are_deterministic_unit_vectors(sim: SimProvider, client: openai.OpenAI) -> None:
    answer = client.embeddings.create(model="e", input=["one", "two", "one"])  # the SDK asks for base64
    vectors = [item.embedding for item in answer.data]
    assert vectors[0] == vectors[2] != vectors[1]
    assert len(vectors[0]) == 8
    assert math.isclose(sum(x * x for x in vectors[0]), 1.0, rel_tol=1e-5)
    plain = client.embeddings.create(model="e", input="one", encoding_format="float", dimensions=1_536)
    assert len(plain.data[0].embedding) == 1_536
    _, _, raw = fetch(sim, "/embeddings", {"model": "e", "input": "one", "encoding_format": "base64"})
    packed = base64.b64decode(json.loads(raw)["data"][0]["embedding"])
    assert struct.unpack("<8f", packed) == pytest.approx(vectors[0])


def test_token_ids_are_embedded_except_by_venice(sim: SimProvider) -> None:
    status, _, raw = fetch(sim, "/embeddings", {"model": "e", "input": [[1, 2], [3]]})
    if sim.dialect == "venice":
        assert status == 400
    else:
        assert len(json.loads(raw)["data"]) == 2


def test_moderations_and_rerank(sim: SimProvider, client: openai.OpenAI) -> None:
    answer = client.moderations.create(input=["kind words", "kill"])
    assert [result.flagged for result in answer.results] == [False, True]
    body = {"model": "r", "query": "red boat", "documents": ["a blue car", "a red boat"], "top_n": 1}
    _, _, raw = fetch(sim, "/rerank", body)
    assert [result["index"] for result in json.loads(raw)["results"]] == [1]


def test_responses(sim: SimProvider, client: openai.OpenAI) -> None:
    answer = client.responses.create(model="m", input="hello")
    assert answer.output_text.startswith(f"{sim.name}: hello model=m")
    assert client.responses.retrieve(answer.id).output_text == answer.output_text
    followed = client.responses.create(model="m", input="x", previous_response_id=answer.id)
    assert followed.previous_response_id == answer.id
    client.responses.delete(answer.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(answer.id)
    with pytest.raises(openai.BadRequestError):
        client.responses.create(model="m", input="x", previous_response_id=answer.id)


def test_responses_stream(client: openai.OpenAI) -> None:
    tools: Any = [{"type": "function", "name": "weather", "parameters": WEATHER, "strict": False}]
    events = list(client.responses.create(model="m", input="hello", stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[0].type == "response.created"
    assert events[-1].type == "response.completed"
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == events[-1].response.output_text
    last = list(client.responses.create(model="m", input="use a tool", tools=tools, stream=True))[-1]
    assert last.type == "response.completed"
    call: Any = last.response.output[0]
    assert json.loads(call.arguments) == FITTING
    last = list(client.responses.create(model="m", input="x", max_output_tokens=2, stream=True))[-1]
    assert last.type == "response.incomplete"


def test_images(client: openai.OpenAI) -> None:
    made = client.images.generate(model="i", prompt="x", n=2)
    assert made.data
    assert len(made.data) == 2
    for answer in (made, client.images.edit(model="i", image=b"png", prompt="x")):
        assert answer.data
        assert base64.b64decode(answer.data[0].b64_json or "").startswith(b"\x89PNG\r\n")


def test_audio(sim: SimProvider, client: openai.OpenAI) -> None:
    sound = client.audio.speech.create(model="s", voice="alloy", input="x").content
    assert (sound[:4], sound[8:12], len(sound)) == (b"RIFF", b"WAVE", 844)
    text = client.audio.transcriptions.create(model="w", file=("a.wav", sound)).text
    assert text.startswith(f"{sim.name}: heard 844 bytes model=w")
    with pytest.warns(DeprecationWarning, match="deprecated"):  # the SDK's own, of this endpoint
        text = client.audio.translations.create(model="w", file=("a.wav", b"abc")).text
    assert "heard 3 bytes" in text


def test_models(sim: SimProvider, client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["sim-small", "sim-large"]
    assert client.models.retrieve("sim-small").id == "sim-small"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("a/b")
    prices = {
        "openai": None,
        "venice": {"usd": 0.5, "diem": 0.5},
        "openrouter": "0.000000500",
    }
    item = json.loads(fetch(sim, "/models")[2])["data"][0]
    found = item.get("model_spec", {}).get("pricing", {}).get("input") or item.get("pricing", {}).get("prompt")
    assert found == prices[sim.dialect]


def test_any_base_path(sim: SimProvider) -> None:
    for base in ("/api/v1", "", "/openai/deployments/d"):
        with openai.OpenAI(base_url=sim.url + base, api_key="sk-right") as client:
            assert client.chat.completions.create(model="m", messages=MESSAGES).choices


def test_venice_tells_cost_and_balance(sims: SimThread) -> None:
    _, headers, raw = fetch(sims["venice"], "/chat/completions", CHAT)
    answer = json.loads(raw)
    usage = answer["usage"]
    expected = (usage["prompt_tokens"] * 0.5 + usage["completion_tokens"] * 1.5) / 1e6
    assert answer["cost"]["usd"] == pytest.approx(expected)
    assert headers["x-venice-model-id"] == "m"
    assert float(headers["x-venice-balance-usd"]) > 0


def test_openrouter_tells_cost_and_sends_comments(sims: SimThread) -> None:
    sim = sims["openrouter"]
    sim.script = Script(first_token_s=0.6)
    with Client(sim.port) as client:
        body = {**CHAT, "stream": True}
        client.send(request(body=body, headers="Authorization: Bearer sk-right\r\n"))
        seen = client.read_until(b"[DONE]")
    assert seen.count(b": OPENROUTER PROCESSING\n\n") == 2
    assert b'"cost":' in seen
    assert b"x-generation-id" in seen


ENVELOPES = {
    "openai": {"error": {"message", "type", "param", "code"}},
    "venice": {"error": str},
    "openrouter": {"error": {"code", "message", "metadata"}},
}


def test_errors_are_in_the_dialects_form(sim: SimProvider, client: openai.OpenAI) -> None:
    with pytest.raises(openai.AuthenticationError) as refused:
        client.with_options(api_key="sk-wrong").models.list()
    expected = ENVELOPES[sim.dialect]["error"]
    body = json.loads(refused.value.response.content)["error"]
    assert "sk-wrong" in str(body), "as at a real provider, which is why it must be scrubbed"
    assert isinstance(body, str) if expected is str else set(body) == expected
    for path, sent, status in (
        ("/nowhere", {}, 404),
        ("/chat/completions", {"model": "m"}, 400),
        ("/chat/completions", {"messages": []}, 400),
        ("/chat/completions", [1], 400),
        ("/chat/completions", {**CHAT, "tools": ["x"], "tool_choice": "required"}, 400),
        ("/chat/completions", None, 405),
        ("/embeddings", {"model": "m"}, 400),
        ("/audio/transcriptions", {"model": "m"}, 400),
    ):
        got, _, raw = fetch(sim, path, sent)
        assert (got, "error" in json.loads(raw)) == (status, True), (path, raw)


def test_unknown_model_is_404_when_strict(sim: SimProvider, client: openai.OpenAI) -> None:
    sim.script = Script(strict_models=True)
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="other", messages=MESSAGES)
    assert client.chat.completions.create(model="sim-small", messages=MESSAGES).choices


def test_messages(claude: anthropic.Anthropic) -> None:
    answer = claude.messages.create(model="m", max_tokens=99, messages=MESSAGES, system="be brief")
    block: Any = answer.content[0]
    assert block.text.startswith("anthropic: hello model=m")
    assert (answer.stop_reason, answer.usage.input_tokens) == ("end_turn", 5)
    assert claude.messages.count_tokens(model="m", messages=MESSAGES).input_tokens == 3
    assert [model.id for model in claude.models.list()] == ["sim-small", "sim-large"]


def test_messages_stream(sims: SimThread, claude: anthropic.Anthropic) -> None:
    sims["anthropic"].script = Script(reasoning_tokens=2)
    with claude.messages.stream(model="m", max_tokens=99, messages=MESSAGES) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_message()
    assert (kinds[0], kinds[-1]) == ("message_start", "message_stop")
    assert [block.type for block in final.content] == ["thinking", "text"]
    tools: Any = [{"name": "weather", "input_schema": WEATHER}]
    with claude.messages.stream(
        model="m", max_tokens=99, messages=MESSAGES, tools=tools, tool_choice={"type": "any"}
    ) as stream:
        block: Any = stream.get_final_message().content[-1]
    assert (block.type, block.input) == ("tool_use", FITTING)


def test_messages_errors(sims: SimThread, claude: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.AuthenticationError):
        claude.with_options(api_key="wrong").messages.create(model="m", max_tokens=9, messages=MESSAGES)
    sims["anthropic"].script = Script(faults=[Fault("status", status=529)])
    with pytest.raises(anthropic.APIStatusError) as overloaded:
        claude.messages.create(model="m", max_tokens=9, messages=MESSAGES)
    assert overloaded.value.body == {
        "type": "error",
        "error": {"type": "overloaded_error", "message": "simulated failure"},
        "request_id": "req_sim",
    }


def test_rate_limit_then_served_again(sim: SimProvider) -> None:
    sim.script = Script(rate_limit=1, rate_window_s=0.3, retry_form="retry-after-ms")
    with openai.OpenAI(base_url=sim.base_url, api_key="sk-right", max_retries=1) as client:
        for _ in range(2):
            assert client.chat.completions.create(model="m", messages=MESSAGES).choices
    assert [record.status for record in sim.requests] == [200, 429, 200]


def test_error_rate_is_kept_and_reproducible(sims: SimThread) -> None:
    def run() -> list[int]:
        async def served() -> list[int]:
            script = Script(error_rate=0.3, error_status=502, error_form="html", seed=5)
            async with SimProvider("a", script=script) as sim:
                _, writer = await asyncio.open_connection("127.0.0.1", sim.port)
                writer.write(request("/v1/models", None, "GET") * 100)
                while sim.received < 100 or sim.in_flight:
                    await asyncio.sleep(0.001)
                writer.close()
                await writer.wait_closed()
                return [record.status for record in sim.requests]

        return asyncio.run(served())

    first = run()
    assert first == run()
    assert 15 <= first.count(502) <= 45
    assert set(first) == {200, 502}


def test_concurrency_limit(sims: SimThread) -> None:
    sim = sims["openai"]
    sim.script = Script(max_concurrency=1, first_token_s=60, overload_status=503)
    auth = "Authorization: Bearer sk-right\r\n"
    with Client(sim.port) as first, Client(sim.port) as second:
        first.send(request(headers=auth))
        while not sim.in_flight:
            time.sleep(0.001)
        second.send(request(headers=auth))
        assert b" 503 " in second.read_until(b"\r\n\r\n")


def test_pace_is_as_scripted(sims: SimThread) -> None:
    sim = sims["openai"]
    sim.script = Script(latency_s=0.1, first_token_s=0.1, tokens_per_s=100, tokens=21)
    for stream in (True, False):
        started = time.monotonic()
        status, _, _ = fetch(sim, "/chat/completions", {**CHAT, "stream": stream})
        took = time.monotonic() - started
        assert status == 200
        assert 0.39 < took < 2.0


def test_head_has_no_body(sims: SimThread) -> None:
    with Client(sims["openai"].port) as client:
        client.send(request("/", None, "HEAD"))
        seen = client.read(wanted=lambda seen: seen.data)
    assert (seen.head[:15], seen.body, seen.ending) == (b"HTTP/1.1 200 OK", b"", "open")


def test_unasked_stream_field_is_ignored() -> None:
    assert b'"stream": true' in streamed()


def test_words_of_its_own_tell_a_provider_by_every_piece(sims: SimThread) -> None:
    sim = sims["openai"]
    sim.script = Script(tokens=9, words=("own-0", "own-1", "own-2"))
    with openai.OpenAI(base_url=sim.base_url, api_key="sk-right", max_retries=0) as client:
        text = client.chat.completions.create(model="m", messages=MESSAGES).choices[0].message.content
    assert text is not None
    assert text.split(" ")[5:] == ["own-0", "own-1", "own-2", "own-0"]
