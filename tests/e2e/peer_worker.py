"""A worker of its own process whose purges can be asked for on standard input: one JSON array a line.

It composes `gateway.worker` as the command does, and says `ready PORT` on standard output once it listens. After each
purge it says `purged`. `["peers"]` tells how its peers stand, as JSON.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import signal
import socket
import sys

import uvloop

from dandolo.cache.peers import link
from dandolo.config import load
from dandolo.config.schema import Config
from dandolo.gateway.membership import membership_of
from dandolo.gateway.worker import Worker
from dandolo.record import Record

# The tests count calls, on machines that may be busy with something else for longer than a peer may take.
link.NEAR_S = link.FAR_S = link.FOLLOW_S = 1.0  # type: ignore[misc]


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def ignore(record: Record) -> None:
    """Nobody reads records here."""


async def serve(config: Config) -> None:
    loop = asyncio.get_running_loop()
    sock = socket.create_server(("127.0.0.1", 0))
    sock.setblocking(False)
    port = sock.getsockname()[1]
    worker = Worker(config, ignore, membership=membership_of(config))
    worker.start([sock])
    sharing = worker.gateway.sharing
    assert sharing is not None
    ended = asyncio.Event()
    purging: list[asyncio.Task[object]] = []
    loop.add_signal_handler(signal.SIGINT, ended.set)

    def read() -> None:
        for line in os.read(0, 65536).decode().splitlines():
            command = json.loads(line)
            if command == ["peers"]:
                say(
                    json.dumps(
                        {
                            "peers": [dataclasses.asdict(one) for one in sharing.peers.health()],
                            "counts": dataclasses.asdict(sharing.peers.counts),
                            "memory": len(worker.gateway.plane.caching.memory),
                        }
                    )
                )
            elif command[0] == "owner":
                link = sharing.peers.owner(bytes.fromhex(command[1]))
                say(link.name if link is not None else sharing.peers.name)
            elif command == ["seeking"]:
                say(json.dumps({key.hex(): [one.leads, one.holder] for key, one in sharing._seeking.items()}))
            else:
                kind, name, soft = command
                purging.append(loop.create_task(worker.gateway.store.purge(kind, name, soft=soft)))
                purging[-1].add_done_callback(lambda _: say("purged"))

    loop.add_reader(0, read)
    say(f"ready {port}")
    await ended.wait()
    await worker.drain(0.0, 1.0)
    await worker.close()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(load(sys.argv[1], os.environ)))
