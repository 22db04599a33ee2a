"""The entry point of the single file: the same as `python -m dandolo`."""

import sys

from dandolo.cli import main

sys.exit(main())
