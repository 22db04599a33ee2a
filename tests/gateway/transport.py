"""A transport that goes nowhere, for connections without sockets."""

from __future__ import annotations

from typing import Any


class Transport:
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.sent = b""
        self.closing = False

    def write(self, data: bytes) -> None:
        self.sent += data

    def is_closing(self) -> bool:
        return self.closing

    def get_write_buffer_size(self) -> int:
        return 0

    def get_extra_info(self, name: str) -> None: ...

    def set_write_buffer_limits(self, high: int = 0, low: int = 0) -> None: ...

    def set_read_buffer_limits(self, high: int = 0) -> None: ...

    def set_protocol(self, protocol: Any) -> None: ...

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def can_write_eof(self) -> bool:
        return False

    def close(self) -> None:
        self.closing = True

    abort = close
