"""Both logs of a control process: a line a request on standard output, the program's own on standard error."""

from __future__ import annotations

from dandolo.cli.configured import Choice
from dandolo.config import Config
from dandolo.control.logwriter import LogWriter, change_form, configure_logging
from dandolo.control.sinks import AccessLog


class Logs:
    """Their forms are what was said on the command line, or the configuration's. `requests` is a sink of records."""

    def __init__(self, choice: Choice, config: Config) -> None:
        self._choice = choice
        form = choice.form(config, 1)
        self._access = LogWriter(1, form=form)
        self._program = configure_logging(choice.form(config, 2))
        self.requests = AccessLog(self._access, form)

    @property
    def dropped(self) -> int:
        """Lines that were lost."""
        return self._access.dropped + self._program.dropped

    def adopt(self, config: Config) -> None:
        """Write as another configuration says from now on."""
        self.requests.adopt(self._choice.form(config, 1))
        change_form(self._choice.form(config, 2))

    def close(self) -> None:
        """Write what is held."""
        self._access.close()
        self._program.close()
