"""Gets log lines out of the process without ever making the event loop wait.

`write` puts a line into a bounded buffer; a thread takes them out in batches and does the waiting. The thread
sleeps while there is nothing to say, is woken by the first line, and then lets 100 ms or 64 KiB gather, so
that a busy loop pays for one wake-up a batch and not one a line. When the reader at the other end stalls,
the buffer fills and the newest lines are dropped and counted; the count becomes a line once there is room.
"""

from __future__ import annotations

import logging
import os
import select
import threading
import time
from collections import deque

from dandolo.control.log import Form, LineFormatter, format_message

BUFFER_BYTES_MAX = 4 * 1024 * 1024
BATCH_BYTES = 64 * 1024
INTERVAL_S = 0.1
CLOSE_S = 2.0
_POLL_MS = 100


class LogWriter:
    """Writes lines to a file descriptor from a thread of its own, which starts with the first line.

    `descriptor` stays the caller's to close; `form` is that of the writer's own line about dropped ones.
    What cannot be written (a reader that has gone, a full disk) is dropped and counted, never raised.
    `dropped` is the number of lines lost so far.
    """

    def __init__(self, descriptor: int = 1, *, form: Form = "json", bytes_max: int = BUFFER_BYTES_MAX) -> None:
        self._descriptor = descriptor
        self._form: Form = form
        self._bytes_max = bytes_max
        self._lines: deque[bytes] = deque()
        self._held_bytes = 0
        self._lock = threading.Lock()
        self._waiting = threading.Event()
        self._enough = threading.Event()
        self._thread: threading.Thread | None = None
        self._woken = False
        self._closing = False
        self._deadline = 0.0
        self._torn = False
        self._reported = 0
        self.dropped = 0

    def adopt(self, form: Form) -> None:
        """Write its own line in another form from now on."""
        self._form = form

    def write(self, line: bytes, *, urgent: bool = False) -> None:
        """Take a line, with its line end; returns at once. `urgent` lines, and those before them, are not held
        back to gather a batch. May be called from any thread; after `close` the line is dropped."""
        with self._lock:
            held = self._held_bytes + len(line)
            if held > self._bytes_max or self._closing:
                self.dropped += 1
                return
            self._lines.append(line)
            self._held_bytes = held
            wake = not self._woken
            self._woken = True
        if wake:
            if self._thread is None:
                self._start()
            self._waiting.set()
        if (urgent or held >= BATCH_BYTES) and not self._enough.is_set():
            self._enough.set()

    def close(self) -> None:
        """Write what is held, for at most 2 s, and end the thread. What is left then is lost with the process."""
        with self._lock:
            self._closing = True
            self._deadline = time.monotonic() + CLOSE_S
        self._waiting.set()
        self._enough.set()
        if self._thread is not None:
            self._thread.join(CLOSE_S)

    # -- the thread ------------------------------------------------------------------------------------

    def _start(self) -> None:
        with self._lock:
            if self._thread is not None:
                return
            # A daemon: a reader that never reads must not keep the process from ending.
            self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while True:
            self._waiting.wait()
            if not self._closing:
                self._enough.wait(INTERVAL_S)
            # Cleared before the buffer is looked at: a line that comes later sets them again.
            self._enough.clear()
            with self._lock:
                self._waiting.clear()
                self._woken = False
            self._flush()
            if self._closing:
                self._flush()
                return

    def _flush(self) -> None:
        while True:
            with self._lock:
                batch, size = [], 0
                while self._lines and size < BATCH_BYTES:
                    batch.append(self._lines.popleft())
                    size += len(batch[-1])
            if not batch:
                return
            written = self._put(b"".join(batch))
            with self._lock:
                self._held_bytes -= size
                if not written:
                    self.dropped += len(batch)
                    continue
                # Said once there is room, and not with every batch of a flood.
                missing = self.dropped - self._reported if self._held_bytes <= self._bytes_max // 2 else 0
                self._reported += missing
            if missing:
                text = f"{missing} log lines were dropped: they could not be written fast enough, or at all"
                if not self._put(format_message(time.time(), "warning", text, self._form)):
                    self._reported -= missing

    def _put(self, data: bytes) -> bool:
        """Write all of `data`, waiting as long as it takes (until the deadline once closing). False: not all of it."""
        view = memoryview(b"\n" + data if self._torn else data)
        whole = len(view)
        try:
            while view:
                try:
                    view = view[os.write(self._descriptor, view) :]
                except BlockingIOError:
                    # Somebody made the descriptor non-blocking (terminals share this flag).
                    if self._closing and time.monotonic() > self._deadline:
                        break
                    poll = select.poll()
                    poll.register(self._descriptor, select.POLLOUT)
                    poll.poll(_POLL_MS)
        except (OSError, ValueError):
            # EPIPE, ENOSPC, EIO, EBADF: nobody could be told, so it is counted and we go on.
            pass
        if not view:
            self._torn = False
            return True
        if len(view) < whole:
            # Part of a line is out: the next one must not be glued to it.
            self._torn = True
        return False


class _Handler(logging.Handler):
    """Gives the program's own lines to a writer; errors are not held back."""

    def __init__(self, form: Form, descriptor: int) -> None:
        super().__init__()
        self._lines = LineFormatter(form)
        self.writer = LogWriter(descriptor, form=form)

    def emit(self, record: logging.LogRecord) -> None:
        """Never raises into the code that logs."""
        try:
            self.writer.write(self._lines.line(record), urgent=record.levelno >= logging.WARNING)
        except Exception:
            self.handleError(record)

    def adopt(self, form: Form) -> None:
        """Write in another form from now on."""
        self._lines = LineFormatter(form)
        self.writer.adopt(form)

    def close(self) -> None:
        """Called by the logging module when the process ends, too."""
        self.writer.close()
        super().close()


def configure_logging(form: Form, *, descriptor: int = 2) -> LogWriter:
    """Send what `logging.getLogger("dandolo")` and its children say (from INFO) to a descriptor, in this form.

    Standard error by default, through a `LogWriter`, which is returned: a stalled reader stops nothing. Called
    again, it replaces what it set up before. The end of the process flushes it.
    """
    logger = logging.getLogger("dandolo")
    for handler in list(logger.handlers):
        if isinstance(handler, _Handler):
            logger.removeHandler(handler)
            handler.close()
    new = _Handler(form, descriptor)
    logger.addHandler(new)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    return new.writer


def change_form(form: Form) -> None:
    """Have what `configure_logging` set up write in another form from now on."""
    for handler in logging.getLogger("dandolo").handlers:
        if isinstance(handler, _Handler):
            handler.adopt(form)
