"""Clients that ask for priced answers until a number of requests is made, plain and streamed, with several keys.

Each keeps its connection as long as that lasts; one that breaks is a request cut, and the next one goes over a new
connection. A request whose answer came whole is noted by its id: from then on its cost must be in the ledger.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from bench.soak.callers import Broken, read_answer, request

PATIENCE_S = 30.0
"""How long a client tries to reach a gateway that is being started again, and waits for an answer."""
RETRY_S = 0.02
STREAMED = 0.5
WORDS_MAX = 120


@dataclass
class Clients:
    """`keys` are names and secrets, `models` what is asked for; both are taken in turn. `run` makes `total` requests
    from `many` connections."""

    port: int
    keys: Sequence[tuple[str, str]]
    models: Sequence[str]
    total: int
    many: int = 16
    made: int = 0
    cut: int = 0
    """Requests without a whole answer."""
    answered: set[str] = field(default_factory=set)
    refused: Counter[str] = field(default_factory=Counter)
    """Answers that are errors, by status and body."""

    async def run(self) -> None:
        """Raises TimeoutError when no gateway can be reached."""
        async with asyncio.TaskGroup() as group:
            for number in range(self.many):
                group.create_task(self._client(random.Random(number)))

    async def _client(self, chance: random.Random) -> None:
        streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        while self.made < self.total:
            if streams is None:
                streams = await self._connect()
                if self.made >= self.total:
                    break
            number, self.made = self.made, self.made + 1
            try:
                async with asyncio.timeout(PATIENCE_S):
                    kept = await self._ask(streams, number, chance)
            except (Broken, OSError, TimeoutError):
                self.cut += 1
                kept = False
            if not kept:
                streams[1].close()
                streams = None
        if streams is not None:
            streams[1].close()

    async def _ask(
        self, streams: tuple[asyncio.StreamReader, asyncio.StreamWriter], number: int, chance: random.Random
    ) -> bool:
        """One request; whether the connection can be used again."""
        name, secret = self.keys[number % len(self.keys)]
        body = {
            "model": self.models[number // len(self.keys) % len(self.models)],
            "messages": [{"role": "user", "content": "word " * chance.randint(1, WORDS_MAX)}],
            "temperature": 0.7,
            "user": name,
            "stream": chance.random() < STREAMED,
        }
        reader, writer = streams
        writer.write(request("/v1/chat/completions", body, secret))
        answer = await read_answer(reader)
        if answer.status != 200:
            self.refused[f"{answer.status} {answer.body[:200].decode(errors='replace')}"] += 1
        elif answer.whole and (not body["stream"] or answer.body.rstrip().endswith(b"data: [DONE]")):
            self.answered.add(answer.fields["x-request-id"])
        else:
            self.cut += 1
        return answer.whole and answer.fields.get("connection") != "close"

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        until = time.monotonic() + PATIENCE_S
        while True:
            try:
                return await asyncio.open_connection("127.0.0.1", self.port)
            except OSError:
                if time.monotonic() > until:
                    raise TimeoutError("no gateway can be reached") from None
                await asyncio.sleep(RETRY_S)
