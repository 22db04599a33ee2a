"""`dandolo serve`: from flags, file and environment to a running gateway, or to one line that says why not.

What runs is `service`'s business. Here is what comes before it, in this order: the first worker's process, which
loads while the rest goes on here; the configuration and the refusal of a public address without keys; the limit on
descriptors; the listening sockets.
"""

from __future__ import annotations

import argparse
import errno
import gc
import os
import select
import sys
import threading
from typing import TYPE_CHECKING, Literal

from dandolo.cli import configured
from dandolo.config import ConfigError
from dandolo.control.spawn import Spawned, provide, spawn

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterable

    from dandolo.config.schema import Config, Listen
    from dandolo.control.provisions import Provisions
    from dandolo.net.succession import Predecessor

EX_CANNOT_BEGIN = 1
WORKERS_MAX = 256
AT_ONCE_BYTES = 64 * 1024
FIRST_S = 1.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config", metavar="FILE", help="left out: ./dandolo.toml, or the environment where there is none"
    )
    parser.add_argument("--host", metavar="H", type=configured.host, help="in place of every TCP listener's host")
    parser.add_argument("--port", metavar="N", type=configured.port, help="in place of every TCP listener's port")
    parser.add_argument(
        "--admin", metavar="H:N", type=configured.address, help="in place of server.admin; also unix:/path"
    )
    parser.add_argument(
        "--workers", metavar="N", type=_workers, help='in place of server.workers; "auto" is one per core'
    )
    parser.add_argument(
        "--upgrade", action="store_true", help="take over from the one that serves there now; it then ends"
    )
    parser.add_argument("--log-format", choices=("json", "logfmt", "text"), help="of requests and messages")


def run(args: argparse.Namespace) -> int:
    """Serve until a signal. Returns 0 after an orderly end, 1 when it cannot listen or read its keys, 78 for a
    configuration that cannot be used, 128 + N when a second signal N cut the end short."""
    # Nothing that start-up makes is garbage worth looking for; `service` turns collection on again.
    gc.disable()
    try:
        early = spawn()
    except OSError as error:
        return _say(f"no worker can be started: {error.strerror}", EX_CANNOT_BEGIN)
    needed = False
    opened: list[socket.socket | Predecessor] = []
    try:
        from dandolo.control import sockets, upgrade
        from dandolo.net import listen

        try:
            passed = listen.from_systemd(os.environ, os.getpid())
            control = upgrade.predecessor(os.environ)
            given = [] if control is None else control.sockets()
            if given and all(one.slot in (sockets.SHARED, sockets.ADMIN) for one in given):
                # Such as systemd had passed to it.
                passed = [one.sock for one in given if one.slot == sockets.SHARED]
        except OSError as error:
            return _say(f"the sockets in LISTEN_FDS cannot be used: {error.strerror}", EX_CANNOT_BEGIN)
        opened += [*passed, *(one.sock for one in given), *([] if control is None else [control])]
        addresses = tuple(map(configured.listen_of, passed))
        choice = configured.Choice(
            args.config, args.host, args.port, args.admin, addresses, args.workers, args.log_format
        )
        config, document = choice.find(os.environ)
        for warning in config.warnings:
            print(f"dandolo serve: warning: {warning}", file=sys.stderr)

        from dandolo.cli.descriptors import within_descriptors
        from dandolo.control.provisions import Provisions
        from dandolo.control.tenancy import Occupied, Tenancy
        from dandolo.errors import GatewayError
        from dandolo.net import succession

        config, said = within_descriptors(config)
        if said:
            _say(said)
        name = succession.identity(map(str, config.server.listen))
        if args.upgrade and not name:
            return _say("--upgrade needs to know the ports: none of them may be 0", EX_CANNOT_BEGIN)
        try:
            held, admin, before = sockets.take(
                config.server.listen,
                document.workers,
                name,
                passed=passed,
                upgrade=args.upgrade,
                control=control,
                given=given,
            )
        except OSError as error:
            in_use = "choose another with --port, or stop what uses it; --upgrade takes over from another Dandolo"
            return _say(_cannot_listen(error, in_use), EX_CANNOT_BEGIN)
        opened += [*(one.sock for one in held), *before]
        try:
            for sock in admin:
                if listen.describe(sock) != str(config.server.admin):
                    sock.close()
            admin = [sock for sock in admin if sock.fileno() >= 0] or _open(config.server.admin)
        except OSError as error:
            return _say(
                "admin listener: " + _cannot_listen(error, "choose another with --admin, or stop what uses it"),
                EX_CANNOT_BEGIN,
            )
        opened += admin
        tenancy = Tenancy(config.server.state_dir)
        try:
            tenancy.take({one.pid for one in before})
        except Occupied as error:
            _close(opened)
            return _say(_occupied(error.pid, config), EX_CANNOT_BEGIN)
        provisions = Provisions(document, document.workers, held, choice.form(config, 2), name)
        from dandolo.cli.limits import Limits

        try:
            limits = Limits(config, provisions)
        except GatewayError as error:
            # Not the configuration's fault, and it may be usable in a moment: whoever starts us may try again.
            _close(opened)
            return _say(error.message, EX_CANNOT_BEGIN)
        _begin(early, provisions)

        from dandolo.cli import service
        from dandolo.cli.start import Start

        needed = True
        return service.run(Start(config, choice, provisions, limits, admin, early, before, tenancy))
    except ConfigError as error:
        _close(opened)
        print(error, file=sys.stderr)
        return error.exit_code
    finally:
        if not needed:
            early.abandon()


def _begin(early: Spawned, provisions: Provisions) -> None:
    """Give the first worker what it begins with. On a machine of one core it is let load first: it is the one that
    answers, and everything else here can wait until it does."""
    frame, descriptors = provisions.frame(0, 0)
    if len(frame) > AT_ONCE_BYTES:
        # More than the socket holds while the worker is still loading.
        threading.Thread(target=_provide, args=(early, frame, descriptors), daemon=True).start()
    else:
        _provide(early, frame, descriptors)
    if len(os.sched_getaffinity(0)) == 1:
        select.select([early.channel], [], [], FIRST_S)


def _provide(early: Spawned, frame: bytes, descriptors: list[int]) -> None:
    try:
        provide(early.channel, frame, descriptors)
    except OSError:
        pass  # it has ended: that is noticed, and told, soon enough


def _close(opened: Iterable[socket.socket | Predecessor]) -> None:
    """Let go of sockets, and leave predecessors alone: they go on."""
    for one in opened:
        one.close()


def _workers(text: str) -> int | Literal["auto"]:
    if text == "auto":
        return "auto"
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= WORKERS_MAX:
        raise argparse.ArgumentTypeError(f'expected 1 to {WORKERS_MAX}, or "auto"')
    return int(text)


def _open(one: Listen) -> list[socket.socket]:
    from dandolo.net import listen

    return [listen.open_unix(one.path)] if one.kind == "unix" else listen.open_tcp(one.host, one.port)


def _occupied(pid: int, config: Config) -> str:
    who = f"process {pid}" if pid else "another process"
    return (
        f"{who} uses {config.server.state_dir} already, and two would spoil each other's budgets and ledger"
        f" (stop it, take over from it with --upgrade, or choose another server.state_dir)"
    )


def _cannot_listen(error: OSError, in_use: str) -> str:
    hint = {
        errno.EADDRINUSE: in_use,
        errno.EACCES: "ports below 1024 and other users' folders need a privilege: choose another address",
        errno.EADDRNOTAVAIL: "this machine has no such address",
        errno.ENOENT: "the folder is not there: make it first",
    }.get(error.errno or 0)
    return f"{error.strerror or error}" + (f" ({hint})" if hint else "")


def _say(text: str, code: int = 0) -> int:
    print(f"dandolo serve: {text}", file=sys.stderr)
    return code
