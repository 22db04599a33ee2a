"""The keys as documents: Markdown tables, and the commented file that `dandolo init` writes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from dandolo.config.known import BASE_URLS, KNOWN, key_variable
from dandolo.config.schema import CachePeers, Config, Provider, Server
from dandolo.config.spec import KeySpec, keys_of, walk
from dandolo.config.unenforced import NOT_YET

_ABOUT_COLUMN: Final = 46
_INLINE: Final = (
    "server.tls", "server.admin_tls", "cache.peers.tls", "providers.probe", "providers.accounts", "providers.models",
)  # fmt: skip


def _sections() -> Iterator[tuple[str, bool, dict[str, KeySpec]]]:
    """Each section's header, whether it is an array of tables, and its own keys (`models` is one of its own)."""
    for path, many, cls in walk(Config):
        own = {name: spec for name, spec in keys_of(cls).items() if spec.kind.section is None}
        yield ".".join(path), many, own


def _default(spec: KeySpec) -> str:
    if spec.needed:
        return "required"
    return "–" if spec.default is None else f"`{spec.default}`"


def markdown() -> str:
    """One table a section: key, default, unit, bound, what it does."""
    out = []
    head = ["| key | default | unit | bound | |", "|---|---|---|---|---|"]
    for title, many, own in _sections():
        out += [f"#### `[[{title}]]`" if many else f"#### `[{title}]`", "", *head]
        for name, spec in own.items():
            about = spec.about
            if f"{title}.{name}" in NOT_YET or title in NOT_YET:
                about += " *(not enforced yet)*"
            cells = (f"`{name}`", _default(spec), spec.kind.unit, spec.kind.bound, about)
            out.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        out.append("")
    models = keys_of(Config)["models"]
    out += ["#### `[models]`", "", f"`{models.kind.bound}`: {models.about}.", ""]
    return "\n".join(out)


def starter(providers: Iterable[str]) -> str:
    """A file to begin with: `providers` (names from KNOWN) and one listener are set, every other key is
    there as a comment with its default or an example. It parses as it is once the variables are set."""
    out = [
        "# Dandolo's configuration. Everything but one provider may be left out.",
        "# What stands in comments is the default, or an example where there is none (marked e.g.).",
        '# Sizes: "64MiB". Durations: "500ms", "10s", "1h". Secrets are never written here:',
        '# { env = "NAME" }, { file = "/path" } or { credential = "name" } (systemd).',
        "# `dandolo check` says what is wrong with a file, and what would run.",
    ]
    for title, many, own in _sections():
        if title in _INLINE:
            # Written inline, or as examples below.
            continue
        out.append("")
        if title == "providers":
            for one in providers:
                out += ["[[providers]]", f'name = "{one}"', f'profile = "{KNOWN[one].profile}"']
                if KNOWN[one].profile not in BASE_URLS:
                    out.append(f'base_url = "{KNOWN[one].base_url}"')
                out += [f'key = {{ env = "{key_variable(one)}" }}', ""]
            own = {name: spec for name, spec in own.items() if name not in ("name", "profile", "key")}
            out += ["# Further keys of a provider, with one table of accounts and models each:"]
            out += [_comment(name, spec) for name, spec in own.items()]
            out.append(_comment("probe", keys_of(Provider)["probe"]))
            for inner, _, keys in _sections():
                if inner in ("providers.accounts", "providers.models"):
                    out += [f"# [[{inner}]]", *(_comment(name, spec) for name, spec in keys.items())]
            out += [
                "",
                "[models]",
                '# fast = ["venice/llama-3.3-70b"]  # names clients may use: "provider/model id", …',
            ]
            continue
        out.append(f"# [[{title}]]" if many else f"[{title}]")
        for name, spec in own.items():
            out.append(f"listen = {spec.default}" if title == "server" and name == "listen" else _comment(name, spec))
        if title == "server":
            out += [_comment(name, keys_of(Server)[name]) for name in ("tls", "admin_tls")]
        if title == "cache.peers":
            out.append(_comment("tls", keys_of(CachePeers)["tls"]))
    return "\n".join(out) + "\n"


def _comment(name: str, spec: KeySpec) -> str:
    value = spec.default if spec.default is not None else spec.example
    about = spec.about if spec.default is not None or spec.needed else f"e.g.; {spec.about}"
    return f"{f'# {name} = {value}':<{_ABOUT_COLUMN}}  # {about}"
