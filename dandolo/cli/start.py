"""What there is when a service starts (`cli.serve` makes it, `cli.service` runs it)."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass

from dandolo.cli.configured import Choice
from dandolo.cli.limits import Limits
from dandolo.config import Config
from dandolo.control.provisions import Provisions
from dandolo.control.spawn import Spawned
from dandolo.control.tenancy import Tenancy
from dandolo.net.succession import Predecessor


@dataclass(frozen=True, slots=True)
class Start:
    """What there is when a service starts: what holds, what was said from outside, and what has been opened."""

    config: Config
    choice: Choice
    provisions: Provisions
    limits: Limits
    admin: Sequence[socket.socket]
    early: Spawned
    """The first worker, which is loading already."""
    before: Sequence[Predecessor]
    """Who finishes once we serve."""
    tenancy: Tenancy
    """That nobody else uses the state folder."""
