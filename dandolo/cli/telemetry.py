"""Traces and metrics by OTLP, put together: what is told of this process, and when the SDK is loaded."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Sequence

from dandolo.config import Config
from dandolo.control.metrics import Snapshot
from dandolo.control.otlp import Export, Otlp


def otlp(config: Config, snapshots: Callable[[], Sequence[Snapshot]]) -> Otlp:
    """A sink of records for the collector that `config.otel` names."""
    about = {"service.instance.id": f"{socket.gethostname()}:{os.getpid()}"}
    if config.server.region:
        about["cloud.region"] = config.server.region
    started = time.time()

    def begin() -> Export:
        from dandolo.control.otlp_export import Exporter

        return Exporter(config.otel, about, started)

    return Otlp(config.otel, snapshots, begin)
