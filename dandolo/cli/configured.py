"""The configuration that a command runs with: the file or the environment, then flags, then passed sockets."""

from __future__ import annotations

import argparse
import dataclasses
import os
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal
from urllib.parse import urlsplit

from dandolo.config import (
    Config,
    ConfigError,
    Problem,
    from_environment,
    load,
    operators_warnings,
    parse,
    refuse_public_without_keys,
)
from dandolo.config.address import Listen, is_loopback, parse_listen
from dandolo.config.load import read
from dandolo.config.schema import LogFormat
from dandolo.errors import GatewayError
from dandolo.provision import Document

DEFAULT_FILE = "dandolo.toml"


def find(path: str | None, environ: Mapping[str, str]) -> Config:
    """The file at `path`, else ./dandolo.toml where there is one, else the environment. Raises ConfigError."""
    if path is not None or Path(DEFAULT_FILE).exists():
        return load(path or DEFAULT_FILE, environ)
    return from_environment(environ)


@dataclass(frozen=True, slots=True)
class Choice:
    """What was said about the configuration from outside: `config` is the file, `host` and `port` replace that
    part of every TCP listener, `passed` (addresses of sockets that systemd opened) replaces all listeners,
    `admin` the admin listener, `workers` their number, `log_format` that of both logs."""

    config: str | None = None
    host: str | None = None
    port: int | None = None
    admin: Listen | None = None
    passed: tuple[Listen, ...] = ()
    workers: int | Literal["auto"] | None = None
    log_format: LogFormat | None = None

    def form(self, config: Config, descriptor: int) -> LogFormat:
        """The form of what is written there: what was said; where nothing was, text for people and the default for
        everything else."""
        if self.log_format is not None:
            return self.log_format
        if ("server", "log_format") in config.lines or not os.isatty(descriptor):
            return config.server.log_format
        return "text"

    def find(self, environ: Mapping[str, str]) -> tuple[Config, Document]:
        """The configuration with all that applied, and what others make the same of (`config_of`). Raises
        ConfigError, also when it would open the gateway to other machines without a key."""
        path = self.config
        if path is None and Path(DEFAULT_FILE).exists():
            path = DEFAULT_FILE
        secrets: dict[str, str] = {}
        text = None if path is None else read(path)
        config = from_environment(environ) if path is None or text is None else parse(text, path, environ, secrets)
        listen, source, lines = config.server.listen, config.source, config.lines
        if self.passed:
            listen, source, lines = self.passed, "sockets passed by systemd", MappingProxyType({})
        elif self.host is not None or self.port is not None:
            listen = tuple(map(self._placed, listen))
            source, lines = "command line", MappingProxyType({})
        admin = self.admin or config.server.admin
        workers = count(self.workers or config.server.workers)
        config = _with(config, listen, admin, workers)
        refuse_public_without_keys(dataclasses.replace(config, source=source, lines=lines), closed_by(config))
        self._refuse_itself(config)
        config = dataclasses.replace(config, warnings=(*config.warnings, *operators_warnings(config)))
        return config, Document(config.source, text, secrets, tuple(map(str, listen)), str(admin), workers)

    @staticmethod
    def _refuse_itself(config: Config) -> None:
        """A client's variables (OPENAI_BASE_URL) on this machine may point at us: we would call ourselves. The
        file's own listeners were compared when it was read; these are the ones that hold."""
        for provider in config.providers:
            url = urlsplit(provider.base_url)
            port = url.port or (443 if url.scheme == "https" else 80)
            for one in (*config.server.listen, config.server.admin):
                near = one.kind == "tcp" and (one.is_local() or not one.host or one.host in ("0.0.0.0", "::"))  # noqa: S104
                if near and one.port == port and is_loopback(url.hostname or ""):
                    reason = f"{provider.base_url} is Dandolo's own listener {one}: expected a provider"
                    raise ConfigError([Problem(config.source, 0, f"provider {provider.name}", reason)])

    def _placed(self, one: Listen) -> Listen:
        if one.kind != "tcp":
            return one
        return dataclasses.replace(
            one,
            host=one.host if self.host is None else self.host,
            port=one.port if self.port is None else self.port,
        )


def config_of(document: Document, environ: Mapping[str, str]) -> Config:
    """The configuration that another process of this program read, with its listeners. Raises ConfigError."""
    if document.text is None:
        config = from_environment(environ)
    else:
        config = parse(document.text, document.source, environ, document.secrets)
    if document.state_dir:
        server = dataclasses.replace(config.server, state_dir=Path(document.state_dir))
        config = dataclasses.replace(config, server=server)
    return _with(config, tuple(map(parse_listen, document.listen)), parse_listen(document.admin), document.workers)


def count(workers: int | Literal["auto"]) -> int:
    """How many workers that is: "auto" is one for each core that we may use."""
    return len(os.sched_getaffinity(0)) if workers == "auto" else workers


def _with(config: Config, listen: tuple[Listen, ...], admin: Listen, workers: int) -> Config:
    server = dataclasses.replace(config.server, listen=listen, admin=admin, workers=workers)
    return dataclasses.replace(config, server=server)


def closed_by(config: Config) -> Callable[[], bool]:
    """Whether the database of keys keeps strangers out (see `Policy.closed`); asked only where that matters."""

    def closed() -> bool:
        # Not needed by most commands, so not loaded for them.
        from dandolo.control.keys import FILE, Keys

        if not (config.server.state_dir / FILE).exists():
            return False
        try:
            with Keys(config.server.state_dir) as keys:
                return keys.policy(time.time()).closed
        except GatewayError as error:
            raise ConfigError([Problem(config.source, 0, "server.state_dir", str(error))]) from None

    return closed


def listen_of(sock: socket.socket) -> Listen:
    """Where a listening socket stands, as the configuration would say it."""
    name = sock.getsockname()
    if sock.family == socket.AF_UNIX:
        return Listen("unix", path=os.fsdecode(name))
    return Listen("tcp", host=name[0], port=name[1])


def port(text: str) -> int:
    """A port for argparse."""
    if not text.isascii() or not text.isdigit() or int(text) > 65535:
        raise argparse.ArgumentTypeError("expected a port, 0 to 65535")
    return int(text)


def address(text: str) -> Listen:
    """HOST:PORT or unix:/path for argparse."""
    try:
        return parse_listen(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def host(text: str) -> str:
    """A host for argparse: an address, a name, or * for every address."""
    if text in ("", "*"):
        return ""
    name = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    if not name.isascii() or not name.isprintable() or any(c in name for c in " /[]") or len(name) > 253:
        raise argparse.ArgumentTypeError("expected an address or a host name without a port")
    return name
