"""`python -m bench.ledger [--requests N]`: priced requests while workers and control processes are killed.

Two providers bill every call: one tells the cost itself, for the other a price list holds. A gateway with two workers
is run as a service manager does, and processes of it get SIGKILL at moments spread over the run. At the end each call
that was billed must be in the ledger at that cost, once, or be listed as unsettled. Exit code 0 when it is so, else 1.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import json
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.ledger.clients import Clients
from bench.ledger.managed import KILLS, Managed, free_port, until
from bench.ledger.verdict import Found, Price, judge
from bench.soak.callers import read_answer, request
from dandolo.control import ledger_reading as reading
from dandolo.journal import CALL
from dandolo.sim import Script, SimProvider, SimThread

WORKERS = 2
KILLED = 12
"""Kills in a run, of each of KILLS in turn."""
QUIET_S = 60.0
CHARGED_S = 15.0
MODEL = "m"
PRICE = Price(700, 2800)
KEYS = [(name, hashlib.sha256(name.encode()).hexdigest()) for name in ("ops", "bounded", "free")]
"""Names and secrets. The first is an operator's, the second has a budget."""
SCRIPT = Script(latency_s=0.01, first_token_s=0.005, tokens_per_s=2000.0, tokens=12, jitter=0.9)
"""Slow enough that something is under way at every kill."""


async def drill(
    folder: Path, requests: int, *, kills: Sequence[str], many: int = 16, seed: int = 1
) -> tuple[list[str], list[str]]:
    """Run it; the lines of the report, and what is wrong."""
    billing, listed = SimProvider("billing", "openrouter", SCRIPT), SimProvider("listed", script=SCRIPT)
    port, admin = free_port(), free_port()
    errors, config = folder / "errors", folder / "dandolo.toml"
    errors.touch()
    with SimThread(billing, listed):
        config.write_text(_configuration(folder, port, admin, billing, listed))
        gateway = Managed(config, port, errors, random.Random(seed))
        watch = asyncio.create_task(gateway.watch())
        try:
            await gateway.serving(WORKERS)
            began = time.monotonic()
            clients = Clients(port, KEYS, [f"{one.name}/{MODEL}" for one in (billing, listed)], requests, many)
            running = asyncio.create_task(clients.run())
            for number, what in enumerate(kills, 1):
                due = requests * number // (len(kills) + 1)
                while clients.made < due and not running.done():
                    await asyncio.sleep(0.002)
                await gateway.serving(WORKERS)
                gateway.kill(what)
            await running
            seconds = time.monotonic() - began
            await gateway.serving(WORKERS)
            state = folder / "state"
            # Workers without a control process finish, and what the dead have written is read to its end.
            await until(lambda: len(list((state / "journal").glob("*.ring"))) <= WORKERS, QUIET_S, "journals are left")
            found = await _found(admin, state, clients, {one.name: one for one in (billing, listed)}, many * len(kills))
            missing = await _charged(admin, state)
        finally:
            watch.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watch
            try:
                code = await asyncio.to_thread(gateway.stop)
            finally:
                gateway.clear()
    lines, wrong = judge(found)
    wrong += [f"refused: {said} ({count} times)" for said, count in clients.refused.items()]
    if code:
        wrong.append(f"the end was not orderly: exit {code}")
    if "Traceback" in errors.read_text(errors="replace"):
        wrong.append("a traceback in the log")
    for what in KILLS:
        if (kills.count(what)) and what != "worker" and gateway.starts < 2:
            wrong.append("the control process was never started again")
    wrong += missing
    killed = ", ".join(f"{what} {kills.count(what)} times" for what in KILLS if kills.count(what))
    lines += [
        "",
        f"{clients.made} requests in {seconds:.1f} s over {many} connections: {len(clients.answered)} answered in full,"
        f" {clients.cut} cut. Killed: {killed}; started {gateway.starts} times.",
        f"Unsettled: {len(found.unsettled)}, each listed by its id; counted twice: none; dropped: {found.dropped}."
        if not wrong
        else "**Not well:** " + "; ".join(wrong),
    ]
    return lines, wrong


def _configuration(folder: Path, port: int, admin: int, billing: SimProvider, listed: SimProvider) -> str:
    keys = "".join(
        f'[[keys]]\nname = "{name}"\nsha256 = "{hashlib.sha256(secret.encode()).hexdigest()}"\n'
        f"{'admin = true' if name == 'ops' else ''}\n"
        f"{'budget_usd_per_day = 1000.0' if name == 'bounded' else ''}\n"
        for name, secret in KEYS
    )
    providers = "".join(
        f'[[providers]]\nname = "{one.name}"\nprofile = "{profile}"\nbase_url = "{one.base_url}"\n'
        f'[[providers.models]]\nid = "{MODEL}"\n'
        f"input_usd_per_mtok = {PRICE.input / 1e3}\noutput_usd_per_mtok = {PRICE.output / 1e3}\n"
        for one, profile in ((billing, "openrouter"), (listed, "generic"))
    )
    return (
        f'[server]\nlisten = ["127.0.0.1:{port}"]\nadmin = "127.0.0.1:{admin}"\nworkers = {WORKERS}\n'
        f'drain_delay = "0s"\ndrain_timeout = "10s"\nstate_dir = "{folder}/state"\n'
        f'[cache]\nlevels = []\n[routing]\nprobe_interval = "1h"\n{keys}{providers}'
    )


async def _found(
    admin: int, state: Path, clients: Clients, providers: dict[str, SimProvider], unsettled_max: int
) -> Found:
    told = await _asked(admin, "/admin/usage?by=provider,key")
    bills = {name: one.bill for name, one in providers.items()}
    parts = reading.settlements(state / "ledger.db")
    settled = [(f"{part.prefix}{part.number:010x}", part.paid) for part in parts if part.fields[3] & CALL]
    # As an operator sees them: listed together, and each by its id.
    unsettled = {one["id"] for one in told["unsettled"]["newest"]}
    for name in {charge.request_id for bill in bills.values() for charge in bill} - dict(settled).keys():
        one = await _asked(admin, f"/admin/requests/{name}")
        if [call["state"] for call in one.get("unsettled", ())] != ["lost"]:
            unsettled.discard(name)
    return Found(
        bills=bills,
        prices={"listed": PRICE},
        answered=clients.answered,
        settled=settled,
        sums={
            (row["provider"], row["key"]): (row["calls"], round(row["paid_usd"] * 1e9))
            for row in told["rows"]
            if row["calls"]
        },
        unsettled=unsettled,
        unsettled_told=told["unsettled"]["count"],
        dropped=told["dropped"],
        unsettled_max=unsettled_max,
    )


async def _charged(admin: int, state: Path) -> list[str]:
    """What speaks against the board: soon a key must be charged with all that the ledger has of it, and with what was
    set aside for lost calls."""
    owed, until_s = reading.spent(state / "ledger.db", 0.0)["bounded"] / 1e6, time.monotonic() + CHARGED_S
    while True:
        keys = (await _asked(admin, "/admin/keys"))["keys"]
        spent = next(one["usage"]["spent_usd_day"] for one in keys if one["name"] == "bounded")
        if spent >= owed:
            return []
        if time.monotonic() > until_s:
            return [f"the key 'bounded' is charged {spent:.6f} $, the ledger has {owed:.6f} $"]
        await asyncio.sleep(0.1)


async def _asked(admin: int, path: str) -> Any:
    reader, writer = await asyncio.open_connection("127.0.0.1", admin)
    try:
        writer.write(request(path, None, KEYS[0][1]))
        return json.loads((await read_answer(reader)).body)
    finally:
        writer.close()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.ledger", description=__doc__)
    parser.add_argument("--requests", type=int, default=10_000, help="how many (10000)")
    parser.add_argument("--kills", type=int, default=KILLED, help=f"how many processes or groups are killed ({KILLED})")
    parser.add_argument("--connections", type=int, default=16, help="clients at a time (16)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, help="a file for the table, in Markdown")
    args = parser.parse_args()
    kills = [KILLS[number % len(KILLS)] for number in range(args.kills)]
    with tempfile.TemporaryDirectory() as folder:
        lines, wrong = asyncio.run(
            drill(Path(folder), args.requests, kills=kills, many=args.connections, seed=args.seed)
        )
    print("\n".join(lines))
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text("\n".join([f"`python -m bench.ledger --requests {args.requests}`", "", *lines, ""]))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
