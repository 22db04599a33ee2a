"""Configuration: one TOML file, or the environment alone, to a frozen `Config`.

Owns every key's meaning, default, bound and description. Knows nothing of what is done with them.
"""

from dandolo.config.load import from_environment, load, parse
from dandolo.config.problem import ConfigError, Problem
from dandolo.config.rules import operators_warnings, refuse_public_without_keys
from dandolo.config.schema import Config, Secret

__all__ = [
    "Config",
    "ConfigError",
    "Problem",
    "Secret",
    "from_environment",
    "load",
    "operators_warnings",
    "parse",
    "refuse_public_without_keys",
]
