"""`dandolo serve`: from flags, file and environment to a running gateway, or to one line that says why not.

What runs is `service`'s business. Here is what comes before it, in this order: the configuration and the
refusal of a public address without keys, before the gateway's own modules are even imported; the limit on
descriptors; the listening sockets.
"""

from __future__ import annotations

import argparse
import dataclasses
import errno
import gc
import os
import sys
from typing import TYPE_CHECKING

from dandolo.cli import configured
from dandolo.config import Config, ConfigError

if TYPE_CHECKING:
    import socket

    from dandolo.config.schema import Listen

EX_CANNOT_LISTEN = 1
DESCRIPTORS_SHARE = 0.8
"""Of the descriptors that connections may use; files, logs and listeners need some too."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config", metavar="FILE", help="left out: ./dandolo.toml, or the environment where there is none"
    )
    parser.add_argument("--host", metavar="H", type=configured.host, help="in place of every TCP listener's host")
    parser.add_argument("--port", metavar="N", type=configured.port, help="in place of every TCP listener's port")
    parser.add_argument(
        "--admin", metavar="H:N", type=configured.address, help="in place of server.admin; also unix:/path"
    )
    parser.add_argument("--workers", metavar="N", help="worker processes; this version runs one")
    parser.add_argument("--log-format", choices=("json", "logfmt", "text"), help="of requests and messages")


def run(args: argparse.Namespace) -> int:
    """Serve until a signal. Returns 0 after an orderly end, 1 when it cannot listen, 78 for a configuration
    that cannot be used, 128 + N when a second signal N cut the end short."""
    # Nothing that start-up makes is garbage worth looking for; `service` turns collection on again.
    gc.disable()
    from dandolo.net import listen

    try:
        passed = listen.from_systemd(os.environ, os.getpid())
    except OSError as error:
        return _say(f"the sockets in LISTEN_FDS cannot be used: {error.strerror}", EX_CANNOT_LISTEN)
    try:
        addresses = tuple(map(configured.listen_of, passed))
        choice = configured.Choice(args.config, args.host, args.port, args.admin, addresses)
        config = choice.find(os.environ)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    for warning in config.warnings:
        print(f"dandolo serve: warning: {warning}", file=sys.stderr)
    workers = args.workers if args.workers is not None else config.server.workers
    if str(workers) != "1":
        _say(f"this version runs one worker, not {workers}: further ones are not there yet")
    config = _within_descriptors(config)

    from dandolo.cli import service

    try:
        sockets = passed or [sock for one in config.server.listen for sock in _open(one)]
    except OSError as error:
        return _say(_cannot_listen(error, "choose another with --port, or stop what uses it"), EX_CANNOT_LISTEN)
    try:
        admin = _open(config.server.admin)
    except OSError as error:
        return _say(
            "admin listener: " + _cannot_listen(error, "choose another with --admin, or stop what uses it"),
            EX_CANNOT_LISTEN,
        )
    try:
        return service.run(config, sockets, admin, choice, args.log_format)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return error.exit_code


def _open(one: Listen) -> list[socket.socket]:
    from dandolo.net import listen

    return [listen.open_unix(one.path)] if one.kind == "unix" else listen.open_tcp(one.host, one.port)


def _cannot_listen(error: OSError, in_use: str) -> str:
    hint = {
        errno.EADDRINUSE: in_use,
        errno.EACCES: "ports below 1024 and other users' folders need a privilege: choose another address",
        errno.EADDRNOTAVAIL: "this machine has no such address",
        errno.ENOENT: "the folder is not there: make it first",
    }.get(error.errno or 0)
    return f"{error.strerror or error}" + (f" ({hint})" if hint else "")


def _within_descriptors(config: Config) -> Config:
    """Raise the limit on descriptors as far as we may, and take no more connections than it carries: each
    needs one descriptor for the client and one for the provider."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
        except (OSError, ValueError):
            pass
    most = max(1, int(soft * DESCRIPTORS_SHARE) // 2)
    if soft == resource.RLIM_INFINITY or config.limits.connections_max <= most:
        return config
    _say(
        f"limits.connections_max is lowered from {config.limits.connections_max} to {most}: this process may have"
        f" {soft} descriptors (raise it with ulimit -n, or LimitNOFILE= in the unit)"
    )
    return dataclasses.replace(config, limits=dataclasses.replace(config.limits, connections_max=most))


def _say(text: str, code: int = 0) -> int:
    print(f"dandolo serve: {text}", file=sys.stderr)
    return code
