"""`python -m bench.fleet`: drains one of two hosts after the other under load; 0 requests may fail.

Also whether the hosts share what they should: an answer that one has kept, and what was purged on one.
"""

from __future__ import annotations

import argparse
import http.client
import json
import sys
import tempfile
import time
from pathlib import Path

from bench.fleet.callers import Callers
from bench.fleet.hosts import Fleet, Missing, until

MORE = 200
"""Answers between two steps, at least: a host that takes part has to be asked."""


def drains(fleet: Fleet, *, rounds: int, callers: int, more: int = MORE) -> tuple[Callers, list[str]]:
    """Each host drained and brought back, `rounds` times, under the load of `callers`. The callers, and a line for each
    step."""
    lines = []

    def wait(count: int) -> None:
        goal = load.total + count
        until(lambda: load.total >= goal, f"{count} more answers")

    with Callers(fleet.port, callers) as load:
        wait(more)
        for _ in range(rounds):
            for number, host in enumerate(fleet.hosts):
                before, began = load.total, time.monotonic()
                code = host.stop()
                ended_s = time.monotonic() - began
                wait(more)
                served = host.served()
                host.start()
                until(lambda: fleet.states() == ["UP", "UP"], "HAProxy sees both hosts")
                wait(more)
                if code:
                    load.failures.append(f"{host.name} ended with {code}")
                if host.served() == served:
                    load.failures.append(f"{host.name} was asked nothing after it had come back")
                lines.append(
                    f"{host.name} drained in {ended_s:.1f} s; {load.total - before} answers until it was back,"
                    f" {len(load.failures)} failed so far (host {number + 1} of 2)"
                )
    return load, lines


def shared(fleet: Fleet) -> list[str]:
    """What the hosts do not share although they should."""
    one, two = fleet.hosts
    body = {"model": "sim/m", "messages": [{"role": "user", "content": "shared?"}], "temperature": 0}
    wrong = []
    if _cache(fleet, 0, body) != "MISS":
        wrong.append("a first question was no miss")
    # Writing behind the answer takes a moment.
    try:
        until(lambda: _cache(fleet, 1, body) == "HIT", "the other host knows the answer", 5.0)
    except TimeoutError:
        wrong.append(f"what {one.name} was told, {two.name} did not know")
    status, _ = one.ask("/admin/cache/purge", "POST", {"all": True})
    if status != 200:
        wrong.append(f"{one.name} answered {status} to a purge")
    try:
        until(lambda: _cache(fleet, 1, body) == "MISS", "the purge reaches the other host", 10.0)
    except TimeoutError:
        wrong.append(f"what was purged at {one.name}, {two.name} went on telling")
    return wrong


def _cache(fleet: Fleet, number: int, body: object) -> str:
    """X-Cache of an answer of one host. It wants the PROXY protocol, so a line of it goes first."""
    host = fleet.hosts[number]
    connection = http.client.HTTPConnection(host.address, host.port, timeout=10)
    try:
        connection.connect()
        connection.sock.sendall(f"PROXY TCP4 192.0.2.{number + 1} 192.0.2.9 40000 80\r\n".encode())
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Host": "localhost"})
        answer = connection.getresponse()
        answer.read()
        return (answer.getheader("x-cache") or "").partition(" ")[0].upper()
    finally:
        connection.close()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.fleet", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="drains of each host (3)")
    parser.add_argument("--callers", type=int, default=16, help="connections with one request at a time (16)")
    parser.add_argument("--drain-delay", type=float, default=5.0, help="server.drain_delay, in seconds (5)")
    args = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory() as folder, Fleet(Path(folder), drain_delay_s=args.drain_delay) as fleet:
            wrong = shared(fleet)
            began = time.monotonic()
            load, lines = drains(fleet, rounds=args.rounds, callers=args.callers)
            seconds = time.monotonic() - began
    except Missing as error:
        print(error, file=sys.stderr)
        return 2
    for line in lines:
        print(line)
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(load.done.items()))
    print(f"{load.total} requests in {seconds:.0f} s ({kinds}), slowest {load.slowest_s:.2f} s")
    print(f"failed: {len(load.failures)}")
    for failure in load.failures[:20]:
        print(f"  {failure}")
    print("shared by the hosts: " + ("; ".join(wrong) if wrong else "kept answers, purges"))
    return 1 if load.failures or wrong else 0


if __name__ == "__main__":
    sys.exit(main())
