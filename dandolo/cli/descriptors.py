"""How many connections the limit on descriptors carries."""

from __future__ import annotations

import dataclasses
import resource

from dandolo.config import Config

SHARE = 0.8
"""Of the descriptors that connections may use; files, logs and listeners need some too."""


def within_descriptors(config: Config) -> tuple[Config, str]:
    """Raise the limit on descriptors as far as we may, and take no more connections than it carries: each needs one
    descriptor for the client and one for the provider. The configuration that holds, and what is to be said of it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
        except (OSError, ValueError):
            pass
    most = max(1, int(soft * SHARE) // 2)
    if soft == resource.RLIM_INFINITY or config.limits.connections_max <= most:
        return config, ""
    said = (
        f"limits.connections_max is lowered from {config.limits.connections_max} to {most}: a process may have"
        f" {soft} descriptors (raise it with ulimit -n, or LimitNOFILE= in the unit)"
    )
    return dataclasses.replace(config, limits=dataclasses.replace(config.limits, connections_max=most)), said
