"""Waiting for what happens on sockets, with an end."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

WAIT_S = 15.0


async def until(condition: Callable[[], object]) -> None:
    """Return once `condition` holds; fail when that takes WAIT_S."""
    loop = asyncio.get_running_loop()
    end = loop.time() + WAIT_S
    while not condition():
        assert loop.time() < end, "it did not happen"
        await asyncio.sleep(0.005)


def descriptors() -> int:
    """Open files of this process."""
    return len(os.listdir("/proc/self/fd"))


async def settled(count: int) -> int:
    """Open files once there are no more than `count`, or after a second."""
    for _ in range(100):
        if descriptors() <= count and len(asyncio.all_tasks()) == 1:
            break
        await asyncio.sleep(0.01)
    return descriptors()
