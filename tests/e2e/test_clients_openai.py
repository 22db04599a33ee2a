"""The official OpenAI client, unchanged, against a running gateway: every call, every error, an abort."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import io
import time
import warnings
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from harness import KEY, PROVIDER_KEY, Gateway, Provider, until

from dandolo.sim import Fault, Script, SimProvider, SimThread

HELLO: list[Any] = [{"role": "user", "content": "hello"}]
TOOL: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


class Rig:
    def __init__(self, gateway: Gateway, a: SimProvider, b: SimProvider) -> None:
        self.gateway, self.a, self.b = gateway, a, b
        self.client = openai.OpenAI(api_key=KEY, base_url=gateway.url + "/v1", max_retries=0, timeout=10)

    def patient(self, **more: Any) -> openai.OpenAI:
        """A client with the library's own retries."""
        return openai.OpenAI(api_key=KEY, base_url=self.gateway.url + "/v1", timeout=10, **more)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    models = ("sim-small", "vendor/sim-large")
    a = SimProvider("a", key=PROVIDER_KEY, models=models)
    b = SimProvider("b", key=PROVIDER_KEY)
    with (
        SimThread(a, b),
        Gateway(
            tmp_path_factory.mktemp("openai"),
            [a, Provider(b, models=[{"id": "only-b"}])],
            keys=[KEY],
            routing={"breaker": False},
            models={"fast": ["a/sim-small"]},
        ) as gateway,
    ):
        rig = Rig(gateway, a, b)
        yield rig
        rig.client.close()


@pytest.fixture
def rig(running: Rig) -> Iterator[Rig]:
    for sim in (running.a, running.b):
        sim.script = Script()
        sim.forget()
    yield running
    assert running.gateway.alive


def test_chat(rig: Rig) -> None:
    answer = rig.client.chat.completions.create(model="fast", messages=HELLO)
    assert (answer.choices[0].message.content or "").startswith("a: hello model=sim-small")
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.completion_tokens > 0
    assert (answer._request_id or "").startswith("req_")


def test_chat_streamed(rig: Rig) -> None:
    parts = []
    for chunk in rig.client.chat.completions.create(model="fast", messages=HELLO, stream=True):
        assert chunk.usage is None
        assert chunk.choices
        parts.append(chunk.choices[0].delta.content or "")
    assert len(parts) > 3
    assert "".join(parts).startswith("a: hello model=sim-small")


def test_chat_streamed_with_usage(rig: Rig) -> None:
    chunks = list(
        rig.client.chat.completions.create(
            model="fast", messages=HELLO, stream=True, stream_options={"include_usage": True}
        )
    )
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens > 0
    assert all(chunk.choices for chunk in chunks[:-1])


def test_tools(rig: Rig) -> None:
    asked: Any = {"model": "fast", "messages": HELLO, "tools": [TOOL], "tool_choice": "required"}
    answer = rig.client.chat.completions.create(**asked)
    assert answer.choices[0].finish_reason == "tool_calls"
    calls: Any = answer.choices[0].message.tool_calls
    assert calls[0].function.name == "weather"
    name, arguments = "", ""
    with rig.client.chat.completions.stream(**asked) as stream:
        for event in stream:
            if event.type == "tool_calls.function.arguments.done":
                name, arguments = event.name, event.arguments
    assert (name, arguments) == ("weather", calls[0].function.arguments)


def test_structured_output(rig: Rig) -> None:
    answer = rig.client.chat.completions.create(
        model="fast", messages=HELLO, response_format={"type": "json_object"}, n=2, max_completion_tokens=50
    )
    assert len(answer.choices) == 2
    assert (answer.choices[0].message.content or "").startswith("{")


def test_text_completions(rig: Rig) -> None:
    answer = rig.client.completions.create(model="fast", prompt="hello")
    assert answer.choices[0].text.startswith("a: hello")
    text = "".join(c.choices[0].text for c in rig.client.completions.create(model="fast", prompt="hello", stream=True))
    assert text.startswith("a: hello")


@pytest.mark.parametrize("given", ["one", ["one", "two", "three"], [1, 2, 3]])
def test_embeddings(rig: Rig, given: Any) -> None:
    # The library asks for base64 on its own and decodes it.
    answer = rig.client.embeddings.create(model="fast", input=given)
    assert len(answer.data) == (3 if given == ["one", "two", "three"] else 1)
    assert len(answer.data[0].embedding) == 8
    floats = rig.client.embeddings.create(model="fast", input=given, encoding_format="float", dimensions=4)
    assert len(floats.data[0].embedding) == 4


def test_moderations(rig: Rig) -> None:
    assert rig.client.moderations.create(input="I will kill you").results[0].flagged
    assert not rig.client.moderations.create(model="fast", input=["be nice", "please"]).results[1].flagged


def test_images(rig: Rig) -> None:
    made = rig.client.images.generate(model="fast", prompt="a boat", n=2)
    assert made.data is not None
    assert len(made.data) == 2
    assert made.data[0].b64_json
    picture = ("boat.png", io.BytesIO(b"\x89PNG\r\n\x1a\n" + bytes(2000)), "image/png")
    edited = rig.client.images.edit(model="fast", image=picture, prompt="more water")
    assert edited.data is not None
    assert edited.data[0].b64_json
    assert b'name="model"\r\n\r\nsim-small' in rig.a.requests[-1].body


def test_audio(rig: Rig) -> None:
    spoken = rig.client.audio.speech.create(model="fast", voice="alloy", input="hello")
    assert spoken.content.startswith(b"RIFF")
    with rig.client.audio.speech.with_streaming_response.create(model="fast", voice="alloy", input="hi") as streamed:
        assert b"".join(streamed.iter_bytes()).startswith(b"RIFF")
    sound = ("hello.wav", io.BytesIO(b"RIFF" + bytes(range(256)) * 40), "audio/wav")
    heard = rig.client.audio.transcriptions.create(model="fast", file=sound)
    assert "heard 10244 bytes model=sim-small" in heard.text
    sound[1].seek(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # newer libraries say so of this call
        assert "heard 10244 bytes" in rig.client.audio.translations.create(model="fast", file=sound).text


def test_responses(rig: Rig) -> None:
    answer = rig.client.responses.create(model="fast", input="hello")
    assert answer.output_text.startswith("a: hello")
    assert answer.status == "completed"
    assert answer.usage is not None
    assert rig.client.responses.retrieve(answer.id).output_text == answer.output_text
    assert list(rig.client.responses.input_items.list(answer.id)) == []
    following = rig.client.responses.create(model="fast", input="and then", previous_response_id=answer.id)
    assert following.previous_response_id == answer.id
    rig.client.responses.delete(answer.id)
    with pytest.raises(openai.NotFoundError):
        rig.client.responses.retrieve(answer.id)


def test_responses_streamed(rig: Rig) -> None:
    events = list(rig.client.responses.create(model="fast", input="hello", stream=True))
    assert events[0].type == "response.created"
    last = events[-1]
    assert last.type == "response.completed"
    assert last.response.output_text.startswith("a: hello")
    with rig.client.responses.stream(model="fast", input="hello") as stream:
        final = stream.get_final_response()
    assert final.output_text.startswith("a: hello")


def test_models(rig: Rig) -> None:
    names = [model.id for model in rig.client.models.list()]
    assert {"fast", "sim-small", "vendor/sim-large", "a/vendor/sim-large", "only-b", "b/only-b"} <= set(names)
    for name in ("fast", "vendor/sim-large", "a/vendor/sim-large"):
        assert rig.client.models.retrieve(name).id == name
    with pytest.raises(openai.NotFoundError):
        rig.client.models.retrieve("vendor/none-of-them")


def test_async_client(rig: Rig) -> None:
    async def talk() -> None:
        async with openai.AsyncOpenAI(api_key=KEY, base_url=rig.gateway.url + "/v1", max_retries=0) as client:

            async def streamed() -> str:
                stream = await client.chat.completions.create(model="fast", messages=HELLO, stream=True)
                return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

            async def plain() -> str:
                answer = await client.chat.completions.create(model="fast", messages=HELLO)
                return answer.choices[0].message.content or ""

            texts = await asyncio.gather(*(one() for _ in range(20) for one in (streamed, plain)))
            assert all(text.startswith("a: hello") for text in texts)
            assert len({text.partition("seq=")[2].split()[0] for text in texts}) == 40
            assert [model.id async for model in client.models.list()]
            answer = await client.responses.create(model="fast", input="hello")
            assert answer.output_text.startswith("a: hello")

    asyncio.run(talk())


# -- leaving in the middle -----------------------------------------------------------------------------------


@pytest.mark.promise("36")
@pytest.mark.parametrize("how", ["sync", "async"])
def test_abort_in_the_middle_of_a_stream_reaches_the_provider(rig: Rig, how: str) -> None:
    rig.a.script = Script(tokens_per_s=50, tokens=1000)

    def aborted() -> float:
        stream = rig.client.chat.completions.create(model="fast", messages=HELLO, stream=True)
        for number, _ in enumerate(stream):
            if number == 5:
                break
        left = time.monotonic()
        stream.close()
        return left

    async def aborted_too() -> float:
        async with openai.AsyncOpenAI(api_key=KEY, base_url=rig.gateway.url + "/v1") as client:
            stream = await client.chat.completions.create(model="fast", messages=HELLO, stream=True)
            number = 0
            async for _ in stream:
                number += 1
                if number == 5:
                    break
            left = time.monotonic()
            await stream.close()
            return left

    left = aborted() if how == "sync" else asyncio.run(aborted_too())
    received = rig.a.requests[0]
    at = until(lambda: received.aborted_at, 5.0, "the provider was never told")
    assert at - left <= 1.0
    sent_id = until(lambda: [line for line in rig.gateway.log_lines() if line["status"] == 499])[-1]
    assert sent_id["estimated"] is True
    assert sent_id["output_tokens"] >= 4
    assert sent_id["input_tokens"] > 0


@pytest.mark.promise("36")
def test_timeout_of_the_client_reaches_the_provider(rig: Rig) -> None:
    rig.a.script = Script(default_fault=Fault("hang_before_answer"))
    with pytest.raises(openai.APITimeoutError):
        rig.client.with_options(timeout=0.3).chat.completions.create(model="fast", messages=HELLO)
    left = time.monotonic()
    assert until(lambda: rig.a.requests[0].aborted_at, 5.0) - left <= 1.0


@pytest.mark.promise("26")
@pytest.mark.parametrize("kind", ["cut_fin", "cut_rst", "stream_error"])
def test_broken_stream_is_an_exception_and_never_an_end(rig: Rig, kind: Any) -> None:
    rig.a.script = Script(faults=[Fault(kind, after=6)], tokens_per_s=200)
    seen: list[Any] = []
    with pytest.raises(openai.APIError) as raised:
        seen.extend(rig.client.chat.completions.create(model="fast", messages=HELLO, stream=True))
    assert raised.value.code == "upstream_stream_error"
    assert len(seen) == 6
    assert len(rig.a.requests) == 1


@pytest.mark.promise("26")
def test_broken_responses_stream_is_told(rig: Rig) -> None:
    rig.a.script = Script(faults=[Fault("cut_fin", after=8)], tokens_per_s=200)
    seen: list[Any] = []
    # Some libraries raise at the event, others hand it over and raise at the end that is none.
    with pytest.raises((openai.APIError, *_broken_connections())):
        seen.extend(rig.client.responses.create(model="fast", input="hello", stream=True))
    assert "response.completed" not in [event.type for event in seen]
    errors = [event for event in seen if event.type == "error"]
    assert all(event.code == "upstream_stream_error" for event in errors)


def _broken_connections() -> tuple[type[Exception], ...]:
    """What the library's HTTP client raises for a body that is cut; the library lets it through."""
    for name in ("httpx2", "httpx"):
        with contextlib.suppress(ImportError):
            return (importlib.import_module(name).TransportError,)
    return ()


# -- errors --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, openai.BadRequestError),
        (403, openai.PermissionDeniedError),
        (404, openai.NotFoundError),
        (409, openai.ConflictError),
        (422, openai.UnprocessableEntityError),
        (429, openai.RateLimitError),
        (500, openai.InternalServerError),
        (503, openai.InternalServerError),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_providers_errors_are_the_librarys_exceptions(
    rig: Rig, status: int, kind: type[openai.APIStatusError], stream: bool
) -> None:
    rig.a.script = Script(default_fault=Fault("status", status=status, headers=(("retry-after", "20"),)))
    with pytest.raises(kind) as raised:
        rig.client.chat.completions.create(model="fast", messages=HELLO, stream=stream)
    assert raised.value.request_id
    assert raised.value.request_id.startswith("req_")
    assert raised.value.code
    assert isinstance(raised.value.body, dict)
    assert set(raised.value.body) == {"message", "type", "param", "code"}


def test_own_errors_are_the_librarys_exceptions(rig: Rig) -> None:
    with pytest.raises(openai.AuthenticationError) as unknown:
        rig.client.with_options(api_key="sk-wrong").chat.completions.create(model="fast", messages=HELLO)
    assert unknown.value.code == "invalid_api_key"
    wrong: Any = "hello"
    with pytest.raises(openai.BadRequestError) as bad:
        rig.client.chat.completions.create(model="fast", messages=wrong)
    assert bad.value.param == "messages"
    with pytest.raises(openai.APIStatusError) as large:
        rig.client.chat.completions.create(model="fast", messages=[{"role": "user", "content": "x" * (33 << 20)}])
    assert large.value.status_code == 413
    assert not rig.a.requests
    assert not rig.b.requests


@pytest.mark.parametrize("status", [500, 502, 504])
def test_librarys_retries_do_not_multiply_ours(rig: Rig, status: int) -> None:
    rig.a.script = Script(default_fault=Fault("status", status=status))
    with rig.patient(max_retries=2) as client, pytest.raises(openai.InternalServerError):
        client.chat.completions.create(model="fast", messages=HELLO)
    assert len(rig.a.requests) == 1


def test_library_waits_as_long_as_a_429_says(rig: Rig) -> None:
    # Above what the gateway waits out by itself, below what the library accepts.
    headers = (("retry-after", "6"), ("retry-after-ms", "5500"))
    rig.a.script = Script(faults=[Fault("status", status=429, headers=headers)])
    with rig.patient(max_retries=0) as client, pytest.raises(openai.RateLimitError) as raised:
        client.chat.completions.create(model="fast", messages=HELLO)
    assert raised.value.response.headers["retry-after-ms"] == "5500"
    assert "x-should-retry" not in raised.value.response.headers
