"""Wrong answers, leaks between tenants, streams without an end: `python -m bench.cache.oracle [--requests 100000]`.

Whole gateways (two, which share what `--levels` says) are asked at random by tenants on many connections: plain and as
streams, spelt in many ways, with headers that steer, by clients that leave, before a provider that fails now and then.
The provider's answer carries a digest of what it was asked and a number of its own. The oracle makes the same digest of
what a client asked, from the parsed JSON and by none of our keys, and knows by the request's id for whom every
numbered answer was made: an answer to another question, or one made for a tenant that does not share, is counted as
wrong. Exit 1 when there is any.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from bench.load.targets import free_port

IGNORED = {
    "user", "safety_identifier", "metadata", "store", "stream", "stream_options", "service_tier", "prompt_cache_key",
    "prompt_cache_retention",
}  # fmt: skip
TENANTS = {"one": False, "two": False, "three": True, "four": True}
"""Name to whether it shares."""
CONNECTIONS = 24
START_S = 20.0
Head = dict[str, str]


def digest(body: bytes) -> str:
    """What was asked, whatever its spelling: members in order of their names, `max_tokens` by its newer name."""

    def pairs(members: list[tuple[str, Any]]) -> Any:
        return sorted(members, key=lambda member: member[0])

    found = [(name, value) for name, value in json.loads(body, object_pairs_hook=pairs) if name not in IGNORED]
    names = [name for name, _ in found]
    if "max_tokens" in names and "max_completion_tokens" not in names:
        found = [("max_completion_tokens" if name == "max_tokens" else name, value) for name, value in found]
    return hashlib.sha256(repr(sorted(found)).encode()).hexdigest()[:24]


async def message(reader: asyncio.StreamReader) -> tuple[str, Head, bytes, bool]:
    """First line, head and body of a message, and whether it was complete."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = head.split("\r\n")
    fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)}
    if fields.get("transfer-encoding") == "chunked":
        body = b""
        try:
            while True:
                size = int(await reader.readuntil(b"\r\n"), 16)
                piece = await reader.readexactly(size + 2)
                if not size:
                    return first, fields, body, True
                body += piece[:-2]
        except asyncio.IncompleteReadError:
            return first, fields, body, False
    return first, fields, await reader.readexactly(int(fields.get("content-length", 0))), True


# -- the provider --------------------------------------------------------------------------------------------


class Provider:
    """Answers with the digest of what it was asked and a number; knows for which request each number was."""

    def __init__(self, chance: random.Random, faults: float) -> None:
        self.asked_by: dict[int, str] = {}
        self._chance = chance
        self._faults = faults

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        try:
            while True:
                first, head, body, _ = await message(reader)
                if "/chat/completions" not in first:
                    self._plain(writer, {"object": "list", "data": []})
                    continue
                if not await self._answer(writer, head, body):
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _answer(self, writer: asyncio.StreamWriter, head: Head, body: bytes) -> bool:
        chance = self._chance
        number = len(self.asked_by)
        self.asked_by[number] = head["x-request-id"]
        said = f"{digest(body)} {number}"
        broken = chance.random() < self._faults
        if chance.random() < 0.3:
            await asyncio.sleep(chance.random() * 0.02)
        if writer.is_closing():
            return False
        if broken and chance.random() < 0.5:
            self._plain(writer, {"error": {"message": "overloaded", "type": "server_error"}}, "503 Busy")
            return True
        usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
        if not json.loads(body).get("stream"):
            choice = {"index": 0, "message": {"role": "assistant", "content": said}, "finish_reason": "stop"}
            self._plain(writer, {"id": "x", "object": "chat.completion", "choices": [choice], "usage": usage})
            return True
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        for at in range(0, len(said), 7):
            delta = {"index": 0, "delta": {"content": said[at : at + 7]}, "finish_reason": None}
            self._event(writer, {"id": "x", "object": "chat.completion.chunk", "choices": [delta]})
            await asyncio.sleep(0)
            if writer.is_closing():
                return False
            if broken and at > 10:
                writer.transport.abort()
                return False
        end = {"index": 0, "delta": {}, "finish_reason": "stop"}
        self._event(writer, {"id": "x", "object": "chat.completion.chunk", "choices": [end]})
        self._event(writer, {"id": "x", "object": "chat.completion.chunk", "choices": [], "usage": usage})
        writer.write(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")
        return True

    @staticmethod
    def _plain(writer: asyncio.StreamWriter, body: Any, status: str = "200 OK") -> None:
        data = json.dumps(body).encode()
        writer.write(
            b"HTTP/1.1 %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
            % (status.encode(), len(data), data)
        )

    @staticmethod
    def _event(writer: asyncio.StreamWriter, body: Any) -> None:
        data = b"data: " + json.dumps(body).encode() + b"\n\n"
        writer.write(b"%x\r\n%b\r\n" % (len(data), data))


# -- the clients ---------------------------------------------------------------------------------------------


class Clients:
    """Asks, and judges what comes."""

    def __init__(self, chance: random.Random, ports: list[int], keys: dict[str, str], requests: int) -> None:
        self.outcomes: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.unjudged: list[tuple[str, int, str]] = []
        """Tenant, the number of the answer, the outcome: judged when all is known."""
        self.tenant_of: dict[str, str] = {}
        self._chance = chance
        self._ports = ports
        self._keys = keys
        self._left = requests

    def question(self) -> dict[str, Any]:
        """One of some thousand, the first ones oftener."""
        chance = self._chance
        number = min(int(chance.paretovariate(0.5)), 4000)
        text = chance.choice(("What is {}?", "what is {}?", "What is {}? ", "What  is {}?", 'Say "{}"', "é {}"))
        asked: dict[str, Any] = {
            "model": chance.choice(("m", "m", "m", "n")),
            "messages": [{"role": "user", "content": text.format(number)}],
            "temperature": 0,
        }
        if chance.random() < 0.1:
            asked["messages"].insert(0, {"role": "system", "content": chance.choice(("Be brief.", "Be brief"))})
        for name, values in (
            ("seed", (1, 2)),
            ("max_tokens", (5, 6)),
            ("max_completion_tokens", (5,)),
            ("top_p", (1, 1.0, 0.5)),
            ("brand_new", ([1], {"b": 1, "a": 2}, None)),
            ("user", ("u", "v")),
            ("metadata", ({"a": "b"},)),
        ):
            if chance.random() < 0.08:
                asked[name] = chance.choice(values)
        if chance.random() < 0.35:
            asked["stream"] = True
            if chance.random() < 0.5:
                asked["stream_options"] = {"include_usage": True}
        return asked

    def spelt(self, asked: dict[str, Any]) -> bytes:
        """The same in one of many spellings."""
        chance = self._chance
        members = list(asked.items())
        if chance.random() < 0.3:
            chance.shuffle(members)
        separators = chance.choice(((",", ":"), (",", ":"), (", ", ": ")))
        return json.dumps(dict(members), separators=separators, ensure_ascii=chance.random() < 0.5).encode()

    async def run(self) -> None:
        """One connection's worth, again and again."""
        chance = self._chance
        while self._left > 0:
            reader, writer = await asyncio.open_connection("127.0.0.1", chance.choice(self._ports))
            try:
                for _ in range(chance.randint(1, 60)):
                    if self._left <= 0 or not await self._once(reader, writer):
                        break
            except (asyncio.IncompleteReadError, ConnectionError):
                self.outcomes["cut"] += 1
            finally:
                writer.close()

    async def _once(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        chance = self._chance
        self._left -= 1
        tenant = chance.choice(list(self._keys))
        asked = self.question()
        body = self.spelt(asked)
        steer = ""
        if chance.random() < 0.08:
            steer = chance.choice((
                "Cache-Control: no-cache\r\n", "Cache-Control: no-store\r\n", "Cache-Control: max-age=1\r\n",
                "Dandolo-Cache: off\r\n", "Dandolo-Cache-TTL: 1s\r\n", "Cache-Control: only-if-cached\r\n",
            ))  # fmt: skip
        writer.write(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %b\r\n"
            b"Content-Type: application/json\r\n%bContent-Length: %d\r\n\r\n%b"
            % (self._keys[tenant].encode(), steer.encode(), len(body), body)
        )
        if chance.random() < 0.01:
            await asyncio.sleep(chance.random() * 0.005)
            self.outcomes["left"] += 1
            return False
        first, head, answer, complete = await message(reader)
        status, outcome = int(first.split()[1]), head.get("x-cache", "")
        self.tenant_of[head["x-request-id"]] = tenant
        if status != 200:
            self.outcomes[str(status)] += 1
            return head.get("connection") != "close"
        self.outcomes[outcome] += 1
        said = self._said(asked, answer, complete)
        if said is not None:
            found, _, number = said.partition(" ")
            if found != digest(body):
                self.wrong.append(f"{tenant} {outcome}: {body!r} was answered by {said}")
            else:
                self.unjudged.append((tenant, int(number), outcome))
        return complete and head.get("connection") != "close"

    def _said(self, asked: dict[str, Any], answer: bytes, complete: bool) -> str | None:
        if not asked.get("stream"):
            return str(json.loads(answer)["choices"][0]["message"]["content"])
        datas = [event[6:] for event in answer.decode().split("\n\n") if event.startswith("data: ")]
        if not complete:
            self.outcomes["broken stream"] += 1
            if "[DONE]" in datas:
                self.wrong.append("a stream that broke said [DONE]")
            return None
        if not datas or datas[-1] != "[DONE]":
            self.wrong.append(f"a whole stream did not end with [DONE]: {datas[-2:]}")
            return None
        chunks = [json.loads(data) for data in datas[:-1]]
        told = any(chunk.get("usage") for chunk in chunks)
        if told != bool(asked.get("stream_options")):
            self.wrong.append(f"usage {'came unasked' if told else 'was asked for and did not come'}")
        return "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])

    def judge(self, asked_by: dict[int, str]) -> None:
        """Whether anybody was given what was made for somebody else."""
        for tenant, number, outcome in self.unjudged:
            maker = self.tenant_of.get(asked_by[number])
            # Nobody is known for what was asked by a client that left before its answer.
            if maker is not None and maker != tenant and not (TENANTS[maker] and TENANTS[tenant]):
                self.wrong.append(f"{outcome}: {tenant} was given what was made for {maker}")


# -- the gateways --------------------------------------------------------------------------------------------


@asynccontextmanager
async def gateway(folder: Path, port: int, provider: int, keys: dict[str, str], cache: str) -> AsyncIterator[None]:
    """A gateway of its own process."""
    folder.mkdir()
    text = f'[server]\nlisten = ["127.0.0.1:{port}"]\nadmin = "127.0.0.1:0"\nstate_dir = "{folder}/state"\n'
    text += 'drain_delay = "0s"\n[routing]\nbreaker = false\n'
    for name, key in keys.items():
        scope = "shared" if TENANTS[name] else "key"
        sha256 = hashlib.sha256(key.encode()).hexdigest()
        text += f'[[keys]]\nname = "{name}"\nsha256 = "{sha256}"\ncache_scope = "{scope}"\n'
    text += f'[[providers]]\nname = "p"\nbase_url = "http://127.0.0.1:{provider}/v1"\n'
    text += f'[cache]\nsecret = {{ env = "CACHE_SECRET" }}\n{cache}'
    (folder / "dandolo.toml").write_text(text)
    with (folder / "log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "dandolo", "serve", "--config", str(folder / "dandolo.toml"),
            stdout=asyncio.subprocess.DEVNULL, stderr=log, env={**os.environ, "CACHE_SECRET": "s" * 32},
        )  # fmt: skip
    try:
        until = time.monotonic() + START_S
        while b" ready in " not in (folder / "log").read_bytes():
            if time.monotonic() > until or process.returncode is not None:
                raise RuntimeError((folder / "log").read_text())
            await asyncio.sleep(0.02)
        yield
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGINT)
        await asyncio.wait_for(process.wait(), 30)
        trouble = [line for line in (folder / "log").read_text().splitlines() if '"level":"error"' in line]
        if trouble:
            print("\n".join(trouble[:5]))


async def trial(requests: int, seed: int, levels: list[str], faults: float, gateways: int) -> Clients:
    """One run; what became of it."""
    chance = random.Random(seed)
    keys = {name: f"key-{name}-{'x' * 24}" for name in TENANTS}
    provider = Provider(chance, faults)
    cache = f"levels = {json.dumps(levels)}\n[cache.memory]\nentries = 300\n"
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if "redis" in levels:
            port = free_port()
            program = shutil.which("redis-server") or shutil.which("valkey-server")
            if program is None:
                raise RuntimeError("no redis-server")
            redis = await asyncio.create_subprocess_exec(
                program, "--port", str(port), "--save", "", stdout=asyncio.subprocess.DEVNULL
            )
            stack.push_async_callback(redis.wait)
            stack.callback(redis.kill)
            cache += f'[cache.redis]\nurl = "redis://127.0.0.1:{port}/0"\n'
        server = await asyncio.start_server(provider.serve, "127.0.0.1", 0)
        stack.callback(server.close)
        ports = [free_port() for _ in range(gateways)]
        for index, port in enumerate(ports):
            place = server.sockets[0].getsockname()[1]
            await stack.enter_async_context(gateway(folder / str(index), port, place, keys, cache))
        clients = Clients(chance, ports, keys, requests)
        await asyncio.gather(*(clients.run() for _ in range(CONNECTIONS)))
        clients.judge(provider.asked_by)
        clients.outcomes["calls to the provider"] = len(provider.asked_by)
    return clients


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.cache.oracle")
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--levels", default="memory,redis,sqlite")
    parser.add_argument("--faults", type=float, default=0.03, help="share of calls that fail at the provider")
    parser.add_argument("--gateways", type=int, default=2)
    options = parser.parse_args()
    began = time.monotonic()
    clients = asyncio.run(
        trial(options.requests, options.seed, options.levels.split(","), options.faults, options.gateways)
    )
    print(f"{options.requests} requests in {time.monotonic() - began:.0f} s, seed {options.seed}, {options.levels}:")
    print("  " + ", ".join(f"{name or 'no word'} {count}" for name, count in clients.outcomes.most_common()))
    print(f"  wrong: {len(clients.wrong)}")
    for line in clients.wrong[:10]:
        print("    " + line)
    return 1 if clients.wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
