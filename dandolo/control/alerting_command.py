"""Notices by a program: run without a shell, one at a time, the notice as one line of JSON on its standard input.

It gets an environment of its own (PATH, HOME, LANG and what names the notice): ours holds providers' keys. What it
writes goes nowhere. One that runs too long is killed, with all that is in its process group then.
"""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Final

import msgspec

from dandolo.config.alerts import Command
from dandolo.control.courier import Undelivered
from dandolo.notice import Notice

PASSED: Final = ("PATH", "HOME", "LANG", "TZ")


class CommandSink:
    """Delivers notices to one program. `instance` names whose alert it is."""

    def __init__(self, command: Command, instance: str) -> None:
        self._argv = command.argv
        self._timeout_s = command.timeout
        self._instance = instance

    async def deliver(self, notice: Notice) -> None:
        """Run it once. Raises Undelivered when it cannot be started, fails, or takes too long; only the last two may
        be tried again. Cancelling kills it."""
        environ = {name: os.environ[name] for name in PASSED if name in os.environ}
        environ |= {
            "DANDOLO_ALERT": notice.alert,
            "DANDOLO_ALERT_STATE": notice.state,
            "DANDOLO_ALERT_INSTANCE": self._instance,
        }
        # A file, not a pipe: whoever ends without reading breaks nothing.
        given = os.memfd_create("notice")
        try:
            os.write(given, msgspec.json.encode(notice) + b"\n")
            os.lseek(given, 0, os.SEEK_SET)
            process = await asyncio.create_subprocess_exec(
                *self._argv,
                stdin=given,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.DEVNULL,
                env=environ,
                cwd="/",
                start_new_session=True,
            )
        except OSError as error:
            raise Undelivered(f"it cannot be run: {error.strerror}", again=False) from None
        finally:
            os.close(given)
        try:
            async with asyncio.timeout(self._timeout_s):
                await process.wait()
        except TimeoutError:
            raise Undelivered(f"it ran longer than {self._timeout_s:g} s and was killed", again=True) from None
        finally:
            if process.returncode is None:
                _kill(process.pid)
                await asyncio.shield(process.wait())
        code = process.returncode
        if code:
            how = f"signal {-code}" if code < 0 else f"status {code}"
            raise Undelivered(f"it ended with {how}", again=True)


def _kill(group: int) -> None:
    """End a process group whose leader has not been waited for, so that its number is nobody else's."""
    try:
        os.killpg(group, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass
