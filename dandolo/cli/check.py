"""`dandolo check`: says what is wrong with a configuration, or what would run with it.

Secrets are redacted, and so is what may carry one: values of headers and of request defaults.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator

from dandolo.cli.configured import DEFAULT_FILE, closed_by, find
from dandolo.config import Config, ConfigError, operators_warnings, refuse_public_without_keys
from dandolo.config.schema import Key, Provider
from dandolo.config.unenforced import NOT_YET
from dandolo.config.units import show_duration, show_size


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "file",
        nargs="?",
        metavar="FILE",
        help=f"the configuration; left out: ./{DEFAULT_FILE}, or the environment where there is none",
    )


def run(args: argparse.Namespace) -> int:
    """Prints what would run and returns 0, or every problem on standard error and returns 78."""
    try:
        config = find(args.file, os.environ)
        closed = closed_by(config)
        refuse_public_without_keys(config, closed)
        lines = [*_summary(config, closed)]
    except ConfigError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print("\n".join(lines))
    return 0


def _summary(config: Config, closed: Callable[[], bool]) -> Iterator[str]:
    server, limits, timeouts, routing = config.server, config.limits, config.timeouts, config.routing
    yield f"{config.source}: valid"
    scheme = "https" if server.tls else "http"
    yield f"listen     {', '.join(map(str, server.listen))} ({scheme})"
    yield f"admin      {server.admin} ({'https' if server.admin_tls else 'http'})"
    yield f"state      {server.state_dir}"
    settings = [
        f"workers {server.workers}",
        f"log {server.log_format}",
        f"drain {show_duration(server.drain_delay)} + {show_duration(server.drain_timeout)}",
        *([f"heartbeat {show_duration(server.heartbeat)}"] if server.heartbeat else []),
        *(["forward proxy (set)"] if server.forward_proxy else []),
        *(["PROXY protocol"] if server.proxy_protocol else []),
        *(["privacy"] if server.privacy else []),
        *(["annotate"] if server.annotate else []),
    ]
    yield f"settings   {', '.join(settings)}"
    if server.trusted_proxies:
        yield f"trusted    {', '.join(map(str, server.trusted_proxies))}"
    if server.cors_origins:
        yield f"browsers   {', '.join(server.cors_origins)}"
    yield (
        f"limits     body {show_size(limits.body_bytes_max)}, upload {show_size(limits.upload_bytes_max)},"
        f" connections {limits.connections_max}, in flight {limits.in_flight_max}"
    )
    yield (
        f"timeouts   connect {show_duration(timeouts.connect)}, total {show_duration(timeouts.total)},"
        f" stream {show_duration(timeouts.stream_total)}"
    )
    yield f"routing    {routing.attempts_max} attempts, breaker {'on' if routing.breaker else 'off'}"
    if "cache.levels" not in NOT_YET:
        yield f"cache      {', '.join(config.cache.levels) or 'off'}"
    alerts = config.alerts
    told = ["the log"] * alerts.log
    for number, what in ((len(alerts.webhooks), "webhook"), (len(alerts.commands), "command")):
        told += [f"{number} {what}{'s' * (number != 1)}"] * (number > 0)
    yield f"alerts     {', '.join(told) or 'nobody is told'}"
    if config.otel.endpoint:
        yield f"traces     {config.otel.endpoint}"
    for provider in config.providers:
        yield f"provider   {_provider(provider)}"
    for alias, targets in config.models.items():
        yield f"model      {alias} = {', '.join(targets)}"
    for key in config.keys:
        yield f"key        {_key(key)}"
    if not config.keys:
        kept = "none in the file; those that `dandolo keys list` shows hold"
        yield f"key        {kept if closed() else 'none: open access from this machine'}"
    for warning in (*config.warnings, *operators_warnings(config)):
        yield f"warning    {warning}"


def _provider(provider: Provider) -> str:
    keyed = sum(account.key is not None for account in provider.accounts)
    facts = [
        provider.profile,
        provider.base_url,
        *([provider.region] if provider.region else []),
        provider.role,
        f"{keyed} account{'s' * (keyed != 1)}" if keyed else "no key",
        f"{count} model{'s' if count > 1 else ''} listed" if (count := len(provider.models)) else "any model",
        f"at most {provider.concurrency_max} at one time",
        *([f"headers {', '.join(provider.headers)}"] if provider.headers else []),
        *([f"defaults for {', '.join(provider.defaults)}"] if provider.defaults else []),
    ]
    return f"{provider.name}: {', '.join(facts)}"


def _key(key: Key) -> str:
    facts = [
        *(["operator (admin)"] if key.admin else []),
        f"{key.priority} priority",
        "any model" if key.models == ("*",) else f"models {', '.join(key.models)}",
        *([f"{key.concurrent} at one time"] if key.concurrent else []),
        *([f"{key.rpm} requests a minute"] if key.rpm else []),
        *([f"{key.tpm} tokens a minute"] if key.tpm else []),
        *([f"{key.budget_usd_per_day:g} USD a day"] if key.budget_usd_per_day else []),
        *([f"{key.budget_usd_per_month:g} USD a month"] if key.budget_usd_per_month else []),
    ]
    return f"{key.name}: {', '.join(facts)}"
