"""The prober of a gateway's own accounts: what it sends is what a call would carry, what it learns is heeded."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from dandolo.cli.probing import ProbedAccount, prober
from dandolo.config import parse
from dandolo.gateway.gateway import Plane
from dandolo.mind import probe
from dandolo.mind.verdict import Verdict
from dandolo.net.dial import Dialer
from dandolo.route.breaker import FAILURES_MAX
from dandolo.sim import SimProvider

TIMEOUT_S = 10.0
KEYS = {"K1": "sk-first-0123456789abcdef", "K2": "sk-second-0123456789abcdef", "HOME": "/x"}


def plane(*tables: str) -> Plane:
    text = '[routing]\nprobe_interval = "1s"\n' + "".join(f"[[providers]]\n{table}\n" for table in tables)
    return Plane(parse(text, "d.toml", KEYS))


def accounts(made: Plane) -> list[ProbedAccount]:
    return [ProbedAccount(runtime) for runtime in made.fleet]


@pytest.mark.parametrize(
    ("table", "line", "fields"),
    [
        (
            'name = "v"\nprofile = "venice"\nkey = { env = "K1" }',
            b"GET /api/v1/models?type=all HTTP/1.1",
            [b"host: api.venice.ai", b"authorization: Bearer sk-first-0123456789abcdef"],
        ),
        (
            'name = "c"\nprofile = "anthropic"\nkey = { env = "K1" }\nheaders = { "X-Team" = "web" }',
            b"GET /v1/models?limit=1000 HTTP/1.1",
            [b"x-api-key: sk-first-0123456789abcdef", b"anthropic-version: 2023-06-01", b"x-team: web"],
        ),
        (
            'name = "z"\nprofile = "azure"\nbase_url = "https://r.openai.azure.com/openai"\n'
            'api_version = "2024-10-21"\nkey = { env = "K1" }',
            b"GET /openai/models?api-version=2024-10-21 HTTP/1.1",
            [b"api-key: sk-first-0123456789abcdef"],
        ),
        ('name = "l"\nbase_url = "http://127.0.0.1:9/v1"', b"GET /v1/models HTTP/1.1", [b"host: 127.0.0.1:9"]),
    ],
)
def test_a_list_is_asked_for_with_the_accounts_credential(table: str, line: bytes, fields: list[bytes]) -> None:
    (account,) = accounts(plane(table))
    head = account.listing().head.split(b"\r\n")
    assert head[0] == line
    assert set(fields) <= set(head)
    assert head[-1] == b""
    assert account.listing().body is None
    assert account.chat() is None


@pytest.mark.parametrize(
    ("table", "line", "body"),
    [
        (
            'name = "v"\nprofile = "venice"\nkey = { env = "K1" }\n'
            "defaults = { venice_parameters = { include_venice_system_prompt = false } }",
            b"POST /api/v1/chat/completions HTTP/1.1",
            {"venice_parameters": {"include_venice_system_prompt": False}, "max_tokens": 1},
        ),
        (
            'name = "o"\nprofile = "openai"\nkey = { env = "K1" }',
            b"POST /v1/chat/completions HTTP/1.1",
            {"max_completion_tokens": 1},
        ),
        (
            'name = "c"\nprofile = "anthropic"\nkey = { env = "K1" }',
            b"POST /v1/messages HTTP/1.1",
            {"max_tokens": 1},
        ),
        (
            'name = "z"\nprofile = "azure"\nbase_url = "https://r.openai.azure.com/openai"\n'
            'api_version = "2024-10-21"\nkey = { env = "K1" }',
            b"POST /openai/deployments/m1/chat/completions?api-version=2024-10-21 HTTP/1.1",
            {"max_tokens": 1},
        ),
    ],
)
def test_a_chat_asks_for_one_token_in_the_providers_dialect(table: str, line: bytes, body: dict[str, Any]) -> None:
    (account,) = accounts(plane(table + '\nprobe = { model = "m1" }'))
    request = account.chat()
    assert request is not None
    assert request.head.split(b"\r\n")[0] == line
    assert b"content-type: application/json\r\n" in request.head
    assert request.body is not None
    messages = [{"role": "user", "content": "1"}]
    assert json.loads(request.body) == {"model": "m1", "messages": messages, "stream": False, **body}


def test_every_account_is_probed_and_what_comes_back_is_heeded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "BEAT_S", 0.02)

    async def main() -> None:
        async with (
            SimProvider("sim", "venice", key=[KEYS["K1"], KEYS["K2"]], models=["llama"]) as sim,
            SimProvider("spare", key=KEYS["K1"], models=["qwen"]) as spare,
        ):
            made = plane(
                f'name = "venice"\nprofile = "venice"\nbase_url = "{sim.base_url}"\n'
                'accounts = [{ owner = "alice", key = { env = "K1" } }, { owner = "bob", key = { env = "K2" } }]',
                f'name = "spare"\nbase_url = "{spare.base_url}"\nkey = {{ env = "K1" }}',
            )
            runtime = next(iter(made.fleet))
            breaker = runtime.candidate("llama").breaker
            assert breaker is not None
            told: list[tuple[str, Verdict]] = []
            probing = prober(made, Dialer(), lambda account, verdict: told.append((account.label, verdict)))
            running = asyncio.ensure_future(probing.run())
            try:
                async with asyncio.timeout(TIMEOUT_S):
                    while {label for label, _ in told} != {"venice/alice", "venice/bob", "spare"}:
                        await asyncio.sleep(0.01)
                assert all(verdict.well and not verdict.failure for _, verdict in told)
                facts = made.catalog.facts.of("venice", "llama")
                assert facts is not None
                assert (facts.input_usd_per_mtok, facts.output_usd_per_mtok) == (0.5, 1.5)
                assert (facts.cached_usd_per_mtok, facts.output_tokens_max) == (0.05, 8_192)
                assert facts.capabilities == {"tools", "json_schema"}
                targets = made.catalog.candidates("llama", "chat")
                assert {target.provider.name for target in targets} == {"venice"}
                sent = [dict(one.headers)["authorization"] for one in sim.requests]
                assert set(sent) == {f"Bearer {KEYS['K1']}", f"Bearer {KEYS['K2']}"}
                # A breaker that opens is probed at its own pace, held open by what fails and let out by what recovers.
                loop = asyncio.get_running_loop()
                sim.kill()
                for _ in range(FAILURES_MAX):
                    breaker.failed(loop.time())
                told.clear()
                async with asyncio.timeout(TIMEOUT_S):
                    while not any(not verdict.well for label, verdict in told if label == "venice/alice"):
                        await asyncio.sleep(0.01)
                breaker._open_until = loop.time() + 60.0
                await sim.revive()
                async with asyncio.timeout(TIMEOUT_S):
                    while not breaker.admits(loop.time()):
                        await asyncio.sleep(0.01)
            finally:
                await probing.close()
            with pytest.raises(asyncio.CancelledError):
                await running

    asyncio.run(main())
