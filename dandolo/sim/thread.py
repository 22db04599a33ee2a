"""Simulated providers in a thread with a loop of its own, for tests whose client blocks."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Self, TypeVar

from dandolo.sim.server import SimProvider

T = TypeVar("T")

ANSWER_S = 10.0
"""How long the thread may take for one call before that counts as a hang of the simulation."""


class SimThread:
    """`with SimThread(SimProvider(...), ...) as sims:` runs providers until the block ends.

    `sims["a"]` is the provider of that name. `loop_factory` (e.g. `uvloop.new_event_loop`) makes the loop.
    """

    def __init__(
        self, *providers: SimProvider, loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None
    ) -> None:
        self.providers = providers
        self._loop_factory = loop_factory
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Event
        self._ready = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="dandolo-sim", daemon=True)

    def __getitem__(self, name: str) -> SimProvider:
        for provider in self.providers:
            if provider.name == name:
                return provider
        raise KeyError(name)

    def __enter__(self) -> Self:
        self._thread.start()
        self._ready.wait()
        if self._error is not None:
            self._thread.join()
            raise self._error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join()
        if self._error is not None and error is None:
            raise self._error

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the providers' loop and wait for its result."""
        assert self._loop is not None, "not started"
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(ANSWER_S)

    def call(self, function: Callable[..., T], *args: Any) -> T:
        """Call a function on the providers' loop and wait for its result."""

        async def called() -> T:
            return function(*args)

        return self.run(called())

    def kill(self, name: str) -> None:
        """`SimProvider.kill` from this thread."""
        self.call(self[name].kill)

    def revive(self, name: str) -> None:
        """`SimProvider.revive` from this thread."""
        self.run(self[name].revive())

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=self._loop_factory) as runner:
                runner.run(self._serve())
        except BaseException as error:
            self._error = error
        finally:
            self._ready.set()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        try:
            for provider in self.providers:
                await provider.start()
            self._ready.set()
            await self._stopping.wait()
        finally:
            for provider in self.providers:
                await provider.stop()
