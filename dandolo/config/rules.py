"""Rules between keys: what each may hold alone but not together.

They run over a configuration whose parts may be stand-ins for values that could not be read; those are
empty, and are passed over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from importlib.util import find_spec
from ipaddress import ip_address
from pathlib import Path as FilePath
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit

from dandolo.config.address import is_loopback
from dandolo.config.alerts import SINKS_MAX
from dandolo.config.kinds import nearest
from dandolo.config.known import KNOWN
from dandolo.config.lines import line_of
from dandolo.config.problem import ConfigError, Path, Problem, quote, show_path
from dandolo.config.schema import Config, Listen, Provider, Server
from dandolo.config.spec import At
from dandolo.config.units import show, show_duration, show_size

Targets = Mapping[str, tuple[str, ...]]


def check(config: Config, document: Mapping[str, Any], at: At) -> Targets:
    """Reports what does not go together. Returns `models` without targets whose provider is not set up."""
    _server(config, at.child("server"))
    _limits(config, document, at)
    _keys(config, at.child("keys"))
    if config.prompt_log.enabled and not any(key.admin for key in config.keys):
        at.child("prompt_log").child("enabled").report(
            "needs a key with admin = true: without one anybody on this machine could read what others ask"
        )
    _providers(config, at.child("providers"))
    weights = config.routing.weights
    if not weights.latency and not weights.errors and not weights.load and not weights.cost:
        at.child("routing").child("weights").report("are all 0: expected at least one above it")
    models = _models(config, at)
    _auto(config, at)
    _peers(config, at.child("cache").child("peers"))
    _slo(config, at.child("slo"))
    _alerts(config, at.child("alerts"))
    _otel(config, at.child("otel"))
    return models


def refuse_public_without_keys(config: Config, closed: Callable[[], bool] = lambda: False) -> None:
    """Raises ConfigError when a listener can be reached from other machines and no key is configured.

    `closed` tells whether there are keys elsewhere, which clients must present; the admin listener wants one of the
    configuration. Call it after flags have replaced hosts and ports, before anything is loaded or bound.
    """
    if config.keys:
        return
    problems = []
    places: list[tuple[Path, Listen]] = [
        (("server", "listen", index), one) for index, one in enumerate(config.server.listen)
    ]
    if not all(one.is_local() for _, one in places) and closed():
        places = []
    for path, one in [*places, (("server", "admin"), config.server.admin)]:
        if not one.is_local():
            line = line_of(config.lines, path) if config.lines else 0
            reason = (
                f"{one} can be reached from other machines and no key is configured: make one with"
                " `dandolo keys create`, or listen on 127.0.0.1"
            )
            problems.append(Problem(config.source or "configuration", line, show_path(path), reason))
    if problems:
        raise ConfigError(problems)


def operators_warnings(config: Config) -> list[str]:
    """What an operator should know of listeners as they hold at last, and of what is kept. Call it as above."""
    server, found = config.server, []
    if not server.admin.is_local() and server.admin_tls is None:
        found.append(
            f"server.admin {server.admin} is reached over a network unencrypted: whoever listens in has your admin key;"
            " set server.admin_tls, or listen on 127.0.0.1"
        )
    if config.prompt_log.enabled:
        found.append(
            "prompt_log.enabled keeps what clients ask and are answered, where admin keys can read it; keys in privacy"
            " mode are left out" + (", and all are by server.privacy" if server.privacy else "")
        )
    return found


def _server(config: Config, at: At) -> None:
    server = config.server
    for index, one in enumerate(server.listen):
        if one == server.admin and one.port:
            at.child("admin").report(f"{one} is also listen[{index}]: choose another port")
    if server.proxy_protocol and not server.trusted_proxies:
        at.child("proxy_protocol").report("needs trusted_proxies: list the networks that may send it")
    if "*" in server.cors_origins and not config.keys:
        at.child("cors_origins").report('"*" without keys would let any web page spend your money: list origins')
    if server.tls is not None and server.tls.cert.name and server.tls.key.name:
        _certificate(server.tls.cert, server.tls.key, at.child("tls"))
    if (tls := server.admin_tls) is not None and tls.cert.name and tls.key.name:
        _certificate(tls.cert, tls.key, at.child("admin_tls"))
        if tls.client_ca is not None and tls.client_ca.name:
            _authority(str(tls.client_ca), at.child("admin_tls").child("client_ca"))


def _certificate(cert: FilePath, key: FilePath, at: At) -> None:
    # Most configurations have no certificate of their own, and importing this takes milliseconds.
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)

    # Without this, a key with a passphrase would be asked for on the terminal.
    def refuse() -> str:
        raise ValueError

    try:
        context.load_cert_chain(cert, key, refuse)
    except ssl.SSLError as error:
        at.report(f"cannot be used: {error.reason or 'not PEM'}: expected a PEM chain and its own private key")
    except ValueError:
        at.child("key").report("has a passphrase: expected an unencrypted PEM key")
    except OSError as error:
        at.report(f"cannot be read: {error.strerror}")


def _alerts(config: Config, at: At) -> None:
    alerts = config.alerts
    for name in ("webhooks", "commands"):
        if (count := len(getattr(alerts, name))) > SINKS_MAX:
            at.child(name).report(f"observed {count}, expected at most {SINKS_MAX}")
    for index, webhook in enumerate(alerts.webhooks):
        if webhook.ca is not None and webhook.ca.name:
            _bundle(str(webhook.ca), at.child("webhooks").child(index).child("ca"))


def _otel(config: Config, at: At) -> None:
    otel = config.otel
    if otel.endpoint is None:
        return
    if not all(map(_installed, ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http"))):
        at.child("endpoint").report("needs the extra otel: pip install 'dandolo[otel]'")
    if otel.ca is not None and otel.ca.name:
        _bundle(str(otel.ca), at.child("ca"))


def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # a package above it
        return False


def _bundle(path: str, at: At) -> None:
    import ssl

    try:
        ssl.create_default_context(cafile=path)
    except ssl.SSLError:
        at.report("holds no certificate: expected a PEM bundle")
    except OSError as error:
        at.report(f"cannot be read: {error.strerror}")


def _limits(config: Config, document: Mapping[str, Any], at: At) -> None:
    limits, here = config.limits, at.child("limits")
    if limits.request_line_bytes_max > limits.header_bytes_max:
        here.child("request_line_bytes_max").report(
            f"observed {show_size(limits.request_line_bytes_max)}, expected at most header_bytes_max"
            f" ({show_size(limits.header_bytes_max)}), which counts the request line too"
        )
    for name in ("body_bytes_max", "upload_bytes_max"):
        if (most := getattr(limits, name)) > limits.body_memory_max:
            here.child(name).report(
                f"observed {show_size(most)}, expected at most body_memory_max ({show_size(limits.body_memory_max)}):"
                " such a body could never be taken in"
            )
    # Defaults may exceed what the file sets (the lower one holds); only what was written is worth a word.
    for section, lower, upper, say in (
        ("limits", "in_flight_per_key_max", "in_flight_max", show),
        ("limits", "connections_per_ip_max", "connections_max", show),
        ("timeouts", "body_idle", "body_total", show_duration),
        ("timeouts", "first_byte", "total", show_duration),
        ("timeouts", "first_byte_stream", "stream_total", show_duration),
        ("timeouts", "stream_idle", "stream_total", show_duration),
    ):
        given, values = document.get(section), getattr(config, section)
        if isinstance(given, dict) and lower in given and upper in given:
            _below(at.child(section), values, lower, upper, say)
    for index, provider in enumerate(config.providers):
        if provider.http_idle > provider.http_max_age:
            at.child("providers").child(index).child("http_idle").report(
                f"observed {show_duration(provider.http_idle)}, expected at most http_max_age"
                f" ({show_duration(provider.http_max_age)})"
            )


def _below(at: At, values: Any, lower: str, upper: str, say: Callable[[Any], str]) -> None:
    low, high = getattr(values, lower), getattr(values, upper)
    if low > high:
        at.child(lower).report(f"observed {say(low)}, expected at most {upper} ({say(high)})")


def _twice(items: Iterable[tuple[At, Any]], what: str) -> None:
    """Reports every item that an earlier one equals; empty ones are stand-ins."""
    seen: dict[Any, At] = {}
    for at, item in items:
        if item and item in seen:
            at.report(f"{what} {seen[item].name}")
        seen.setdefault(item, at)


def _keys(config: Config, at: At) -> None:
    places = [(at.child(index), one) for index, one in enumerate(config.keys)]
    _twice(((place.child("name"), key.name.casefold()) for place, key in places), "is the same name as")
    _twice(((place, key.digest) for place, key in places), "is the same key as")
    if (total := sum(key.slots_reserved for key in config.keys)) > 1:
        at.report(f"slots_reserved adds up to {total:g}, expected at most 1 over all keys")


def _slo(config: Config, at: At) -> None:
    places = [(at.child(index), one) for index, one in enumerate(config.slo)]
    _twice(((place.child("name"), one.name) for place, one in places), "is the same name as")
    for place, one in places:
        if all(value is None for value in (one.p95, one.p99, one.first_token_p95, one.success, one.cache_hit_rate)):
            place.report("promises nothing: expected p95, p99, first_token_p95, success or cache_hit_rate")
        if one.key is not None and config.keys and all(one.key != key.name for key in config.keys):
            place.child("key").warn("is no key of this file: nothing counts until there is one")


def _providers(config: Config, at: At) -> None:
    if not config.providers and at.is_sound():
        at.report('is missing: expected at least one [[providers]], with name and key = { env = "…" }')
    places = [(at.child(index), one) for index, one in enumerate(config.providers)]
    _twice(((place.child("name"), one.name.casefold()) for place, one in places), "is the same name as")
    for place, provider in places:
        accounts, models = place.child("accounts"), place.child("models")
        owners = [(accounts.child(i).child("owner"), one.owner) for i, one in enumerate(provider.accounts)]
        _twice(owners, "is the same owner as")
        _twice(((models.child(i), one.id) for i, one in enumerate(provider.models)), "is the same id as")
        asked = provider.probe.model if provider.probe is not None else ""
        if asked and provider.models and all(one.id != asked for one in provider.models):
            reason = f"observed {quote(asked)}, expected one of the provider's models"
            place.child("probe").child("model").report(reason)
        if provider.base_url:
            _address(provider, config.server, place.child("base_url"))
        if provider.ca is not None and provider.ca.name:
            _authority(str(provider.ca), place.child("ca"))


def _authority(path: str, at: At) -> None:
    import ssl

    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
    except ssl.SSLError as error:
        at.report(f"cannot be used: {error.reason or 'not PEM'}: expected a PEM file of certificates")
    except OSError as error:
        at.report(f"cannot be read: {error.strerror}")


def _address(provider: Provider, server: Server, at: At) -> None:
    parts = urlsplit(provider.base_url)
    host = parts.hostname or ""
    port = parts.port or (443 if parts.scheme == "https" else 80)
    for one in (*server.listen, server.admin):
        # A client's variables (OPENAI_BASE_URL) on this machine may point at us: we would call ourselves.
        if one.kind == "tcp" and one.port == port and is_loopback(host) and (one.is_local() or not one.host):
            at.report(f"points at Dandolo's own listener {one}: expected a provider")
    try:
        address = ip_address(host)
    except ValueError:
        private = "." not in host
    else:
        private = address.is_private
        if address.is_link_local and not provider.connect_private:
            at.report("is a link-local (cloud metadata) address: set connect_private = true if it is meant")
    keyed = any(account.key is not None for account in provider.accounts)
    if parts.scheme == "http" and keyed and not private and not is_loopback(host):
        at.warn("is http://: the provider's key and all prompts travel unencrypted")


def _models(config: Config, at: At) -> Targets:
    providers = {one.name: one for one in config.providers}
    # A provider whose own name is in doubt must not make its aliases look wrong too.
    doubtful = not at.child("providers").is_sound()
    kept: dict[str, tuple[str, ...]] = {}
    for alias, targets in config.models.items():
        good, absent = [], []
        for index, target in enumerate(targets):
            name, _, model = target.partition("/")
            here = at.child("models").child(alias).child(index)
            provider = providers.get(name)
            if provider is not None:
                good.append(target)
                if provider.models and all(one.id != model for one in provider.models):
                    near = nearest(model, (one.id for one in provider.models))
                    hint = f": did you mean {quote(near)}?" if near else ": add it to the provider's models"
                    here.report(f"provider {name} lists its models and {quote(model)} is not among them{hint}")
            elif name in KNOWN:
                absent.append((here, name))
            elif not doubtful:
                near = nearest(name, providers)
                hint = f"did you mean {quote(near)}?" if near else f"expected one of {', '.join(providers)}"
                here.report(f"unknown provider {quote(name)}: {hint}")
        # One file may serve several hosts, each with other providers: a well-known one that is not set
        # up here is passed over as long as the alias still leads somewhere.
        for here, name in absent:
            if good:
                here.warn(f"is passed over: provider {name} is not configured")
            elif not doubtful:
                here.report(f"provider {name} is not configured: add [[providers]] with name = {quote(name)}")
        kept[alias] = tuple(good)
    return MappingProxyType(kept)


def _auto(config: Config, at: At) -> None:
    here = at.child("auto").child("models")
    rows = [(here.child(index).child("name"), one.name) for index, one in enumerate(config.auto.models)]
    _twice(rows, "is the same name as")
    if not at.child("providers").is_sound() or not at.child("models").is_sound():
        return
    listed = {model.id for provider in config.providers for model in provider.models}
    listed |= {f"{provider.name}/{model.id}" for provider in config.providers for model in provider.models}
    open_ended = [provider.name for provider in config.providers if not provider.models]
    for place, name in rows:
        if name == "auto":
            place.report("cannot be auto itself")
        elif name and name not in config.models and name not in listed and not open_ended:
            near = nearest(name, (*config.models, *listed))
            place.report("is no alias and no listed model" + (f": did you mean {quote(near)}?" if near else ""))


def _peers(config: Config, at: At) -> None:
    peers = config.cache.peers
    places = [("listen", index, one) for index, one in enumerate(peers.listen)]
    places += [("peers", index, one) for index, one in enumerate(peers.peers)]
    if peers.tls is not None and peers.tls.cert.name and peers.tls.key.name and peers.tls.ca.name:
        _certificate(peers.tls.cert, peers.tls.key, at.child("tls"))
        _authority(str(peers.tls.ca), at.child("tls").child("ca"))
    if not places and peers.name is None:
        return
    if peers.name is None:
        at.child("name").report("is missing: every process that shares a cache needs a name of its own")
    if config.cache.secret is None:
        at.report('needs cache.secret, the same for all: secret = { env = "DANDOLO_CACHE_SECRET" }')
    if "memory" not in config.cache.levels:
        at.report('needs "memory" in cache.levels: what peers share is what each keeps in memory')
    if config.server.privacy:
        at.warn("is passed over: with server.privacy nothing leaves a process")
    for key, index, one in places:
        here = at.child(key).child(index)
        if one.kind != "tcp":
            continue
        if peers.tls is None:
            here.report(f"{one} is reached over a network: set tls, or use unix:/path on one host")
        if not one.port or (key == "peers" and not one.host):
            here.report(f"observed {one}, expected a host and a port that others can know")
