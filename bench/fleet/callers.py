"""Callers that keep their connections and judge every answer: status, framing, completeness.

Nothing is tried again: what an SDK would hide is a failure here.
"""

from __future__ import annotations

import http.client
import itertools
import json
import threading
import time
from collections import Counter
from types import TracebackType
from typing import Any, Self

TIMEOUT_S = 60.0


class Callers:
    """`count` threads that ask one address, one request after another, until `stop`."""

    def __init__(self, port: int, count: int) -> None:
        self.done: Counter[str] = Counter()
        """Answers by kind."""
        self.failures: list[str] = []
        self.slowest_s = 0.0
        self._port = port
        self._numbers = itertools.count()
        self._end = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(count)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join()

    @property
    def total(self) -> int:
        """Answers so far, the failed ones included."""
        return sum(self.done.values()) + len(self.failures)

    def _run(self, caller: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=TIMEOUT_S)
        while not self._end.is_set():
            number = next(self._numbers)
            kind = ("plain", "stream", "embedding")[number % 3]
            began = time.monotonic()
            try:
                wrong = _ask(connection, kind, number)
            except (OSError, http.client.HTTPException, ValueError) as error:
                wrong = f"{type(error).__name__}: {error}"
                connection.close()
            with self._lock:
                self.slowest_s = max(self.slowest_s, time.monotonic() - began)
                if wrong:
                    self.failures.append(f"{kind} {number}: {wrong}")
                else:
                    self.done[kind] += 1
        connection.close()


def _ask(connection: http.client.HTTPConnection, kind: str, number: int) -> str:
    """One request; what was wrong with its answer, "" for nothing."""
    body: dict[str, Any]
    if kind == "embedding":
        path, body = "/v1/embeddings", {"model": "sim/e", "input": f"text {number}"}
    else:
        messages = [{"role": "user", "content": f"question {number}"}]
        path, body = "/v1/chat/completions", {"model": "sim/m", "messages": messages, "temperature": 0.7}
        if kind == "stream":
            body["stream"] = True
    connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    content = answer.read()
    if answer.status != 200:
        return f"{answer.status} {content[:200].decode(errors='replace')}"
    if kind == "stream":
        whole = content.rstrip().endswith(b"data: [DONE]") and b'"finish_reason":"stop"' in content
        return "" if whole else f"the stream is not whole: …{content[-200:].decode(errors='replace')}"
    found = json.loads(content)
    return "" if found.get("choices") or found.get("data") else "no choices and no data"
