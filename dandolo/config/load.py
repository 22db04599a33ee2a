"""From TOML text, or from environment variables alone, to a `Config`, or to all that is wrong with it.

Reading goes in three passes over one document: each key by its own rules (`spec`, `kinds`), the keys of a
section put together, then the rules between keys (`rules`). No pass stops at the first problem. Nothing
is opened but the files that the document names, nothing is resolved, nothing is created.
"""

from __future__ import annotations

import dataclasses
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path as FilePath
from types import MappingProxyType
from typing import Any, Final

from dandolo.config import kinds, rules, schema
from dandolo.config.known import BASE_URLS, KNOWN, key_variable, url_variable
from dandolo.config.lines import find_lines
from dandolo.config.problem import ConfigError, Path, Problem, Unfit, quote
from dandolo.config.schema import Account, Config, Key, Provider, Server
from dandolo.config.secret import REFERENCE_FORM
from dandolo.config.spec import At, KeySpec, Reading, keys_of, walk
from dandolo.config.unenforced import warn_unenforced
from dandolo.config.units import describe

FILE_BYTES_MAX: Final = 4 << 20
TABLES_MAX: Final = 10_000
"""Elements of one array of tables."""

_FOREIGN_NAMES: Final = {
    "api_key": "key", "apikey": "key", "token": "key", "secret": "key", "url": "base_url",
    "api_base": "base_url", "endpoint": "base_url", "type": "profile", "kind": "profile",
    "host": "listen", "port": "listen", "bind": "listen", "address": "listen", "hash": "sha256",
}  # fmt: skip
"""What other programs call some of our keys."""


def load(path: str | os.PathLike[str], environ: Mapping[str, str]) -> Config:
    """The configuration in the file at `path`. Raises ConfigError with every problem.

    Relative paths inside start from the file's folder. Reads files (milliseconds): call it at start or in
    a thread, never on a busy event loop.
    """
    return parse(read(path), os.fspath(path), environ)


def read(path: str | os.PathLike[str]) -> str:
    """The text of a configuration file. Raises ConfigError when it cannot be one."""
    source = os.fspath(path)

    def refuse(reason: str) -> ConfigError:
        return ConfigError([Problem(source, 0, "", reason)])

    try:
        with open(path, "rb") as file:
            data = file.read(FILE_BYTES_MAX + 1)
    except FileNotFoundError:
        raise refuse("no such file: `dandolo init` writes one, --config FILE names another") from None
    except (OSError, ValueError) as error:
        raise refuse(f"cannot be read: {getattr(error, 'strerror', None) or 'not a file name'}") from None
    if len(data) > FILE_BYTES_MAX:
        raise refuse(f"larger than {FILE_BYTES_MAX >> 20} MiB: is this the right file?")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError([Problem(source, line, "", "not UTF-8, which TOML must be: save it as UTF-8")]) from None


def parse(text: str, source: str, environ: Mapping[str, str], secrets: dict[str, str] | None = None) -> Config:
    """The configuration that `text` says. `source` names it in errors, and where it is a path, its folder is
    where relative paths start. `secrets` has the contents of secret files by path: those are not read again, and
    what is read is put there, so that a second reader sees what the first one saw. Raises ConfigError with every
    problem."""
    try:
        document = tomllib.loads(text)
    except RecursionError:
        raise ConfigError([Problem(source, 1, "", "arrays or tables nested too deep")]) from None
    except ValueError as error:
        # Its texts name characters and keys, never values.
        where = re.search(r" \(at (?:line (\d+), column \d+|end of document)\)$", str(error))
        line = int(where[1]) if where and where[1] else text.count("\n") + 1
        reason = str(error)[: where.start()] if where else "a number that is too long"
        raise ConfigError([Problem(source, line, "", f"not valid TOML: {_plain(reason)}")]) from None
    reading = Reading(source, environ, FilePath(source).parent, find_lines(text))
    if secrets is not None:
        reading.secrets = secrets
    return _assemble(document, reading)


def assemble(document: dict[str, Any], source: str, environ: Mapping[str, str]) -> Config:
    """The configuration that a part of a file's document says, which `source` names. Raises ConfigError."""
    return _assemble(document, Reading(source, environ, FilePath(source).parent, MappingProxyType({})))


def from_environment(environ: Mapping[str, str]) -> Config:
    """The configuration when there is no file: a provider for every known NAME_API_KEY that is set (at
    NAME_BASE_URL, if set), the defaults for the rest. DANDOLO_KEY (or DANDOLO_API_KEY) becomes the one key
    that clients present. Raises ConfigError when no provider's key is set."""
    reading = Reading("environment", environ, FilePath.cwd(), MappingProxyType({}))
    names: dict[Path, str] = {}
    document: dict[str, Any] = {"providers": []}
    for name, known in KNOWN.items():
        # A base URL alone makes no provider: clients on this machine use the same variables, and theirs
        # may well point at Dandolo.
        if not environ.get(key_variable(name)):
            continue
        at: Path = ("providers", len(document["providers"]))
        names[(*at, "key")] = key_variable(name)
        names[(*at, "base_url")] = url_variable(name)
        document["providers"].append(
            {
                "name": name,
                "profile": known.profile,
                "base_url": environ.get(url_variable(name)) or known.base_url,
                "key": {"env": key_variable(name)},
            }
        )
    if not document["providers"]:
        listed = ", ".join(key_variable(name) for name in KNOWN)
        reason = f"no provider: set one of {listed}, or write a file with `dandolo init`"
        raise ConfigError([Problem("environment", 0, "", reason)])
    ours = [name for name in ("DANDOLO_KEY", "DANDOLO_API_KEY") if environ.get(name)]
    if len({environ[name] for name in ours}) == 2:
        raise ConfigError([Problem("environment", 0, "DANDOLO_API_KEY", "differs from DANDOLO_KEY: unset one of them")])
    if ours:
        names[("keys", 0, "key")] = ours[0]
        document["keys"] = [{"name": "environment", "key": {"env": ours[0]}}]
    reading.names = names
    return _assemble(document, reading)


def _assemble(document: dict[str, Any], reading: Reading) -> Config:
    root = reading.root()
    config: Config = _build(Config, document, root)
    models = rules.check(config, document, root)
    if reading.problems:
        raise ConfigError(reading.problems)
    warn_unenforced(document, root)
    return dataclasses.replace(
        config,
        models=models,
        source=reading.source,
        warnings=tuple(reading.warnings),
        lines=reading.lines,
    )


def _build(cls: type, value: object, at: At) -> Any:
    """An instance of the section `cls` from a TOML table. Problems are reported, and what they concern is
    replaced by a stand-in, so that everything else is still checked."""
    if not isinstance(value, dict):
        raise Unfit(f"observed {describe(value)}, expected a table")
    specs = keys_of(cls)
    for name in value:
        if name not in specs:
            at.child(name).report(_unknown(name, specs, at))
    values: dict[str, Any] = {}
    for name, spec in specs.items():
        if name in value:
            values[name] = _value(spec, value[name], at.child(name))
        elif spec.needed:
            at.child(name).report(f"is missing: expected {spec.kind.bound}")
            values[name] = spec.kind.fallback
        elif cls is Config and name == "server":
            # Even without a [server] table its defaults depend on the environment that was given to us.
            values[name] = _build(Server, {}, at.child(name))
    if cls is Key:
        _finish_key(values, at)
    elif cls is Provider:
        _finish_provider(values, at)
    elif cls is Server and "state_dir" not in values:
        values["state_dir"] = schema.default_state_dir(at.reading.environ)
    return cls(**values)


def _value(spec: KeySpec, value: object, at: At) -> Any:
    kind = spec.kind
    try:
        if kind.section is not None and kind.many:
            return _build_many(kind.section, value, at)
        if kind.section is not None:
            return _build(kind.section, value, at)
        assert kind.read is not None
        return kind.read(value, at)
    except Unfit as error:
        at.report(str(error))
    if spec.default is not None:
        return kind.read(tomllib.loads(f"value = {spec.default}")["value"], at) if kind.read else kind.fallback
    if kind.section is not None and not kind.many:
        return kind.section() if not spec.example else None
    return kind.fallback if spec.needed else None if not kind.many else ()


def _build_many(cls: type, value: object, at: At) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise Unfit(f"observed {describe(value)}, expected tables: write [[{at.name}]], with double brackets")
    if len(value) > TABLES_MAX:
        raise Unfit(f"observed {len(value)} tables, expected at most {TABLES_MAX}")
    built = []
    for index, one in enumerate(value):
        try:
            built.append(_build(cls, one, at.child(index)))
        except Unfit as error:
            at.child(index).report(str(error))
    return tuple(built)


def _finish_key(values: dict[str, Any], at: At) -> None:
    """`digest` from sha256 or from the key itself."""
    digest, key = values.pop("sha256", None), values.pop("key", None)
    sound = at.child("sha256").is_sound() and at.child("key").is_sound()
    if digest and key:
        at.report("has both sha256 and key: keep one")
    elif not digest and key is None and sound:
        at.report(f"needs sha256 (`dandolo keys create --print` makes one) or key = {REFERENCE_FORM}")
    if key is not None and len(key.reveal()) < 20:
        at.child("key").warn(
            "is shorter than 20 characters and may be guessed: `dandolo keys create` makes a strong one"
        )
    values["digest"] = key.digest() if key is not None else bytes.fromhex(digest or "")


def _finish_provider(values: dict[str, Any], at: At) -> None:
    """`base_url` from the profile where it is left out, `accounts` from key or accounts."""
    key, accounts = values.pop("key", None), values.get("accounts")
    if key is not None and accounts is not None:
        at.report("has both key and accounts: keep one")
    if accounts == () and at.child("accounts").is_sound():
        at.child("accounts").report("is empty: leave it out for a provider that needs no key")
    values["accounts"] = accounts or (Account(key=key),)
    profile = values.get("profile", "generic")
    if "base_url" not in values:
        if profile not in BASE_URLS and at.child("profile").is_sound():
            hint = f'; profile = "{name}" has' if (name := values.get("name")) in BASE_URLS else ""
            at.child("base_url").report(f"is missing: profile {profile} has no address of its own{hint}")
        values["base_url"] = BASE_URLS.get(profile, "")


def _unknown(name: str, specs: Mapping[str, KeySpec], at: At) -> str:
    foreign = _FOREIGN_NAMES.get(name.lower().replace("-", "_"), "")
    near = foreign if foreign in specs else kinds.nearest(name, specs)
    if near:
        return f"unknown key: did you mean {near}?"
    for path, many, cls in walk(Config):
        if name in keys_of(cls):
            brackets = ("[[", "]]") if many else ("[", "]")
            return f"unknown key here: it belongs in {brackets[0]}{'.'.join(path)}{brackets[1]}"
    return f"unknown key: expected one of {', '.join(specs)}"


def _plain(reason: str) -> str:
    return quote(reason, 200)[1:-1]
