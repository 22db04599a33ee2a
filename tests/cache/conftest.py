"""Makes the module beside the tests importable by name; the importlib mode leaves sys.path alone."""

from __future__ import annotations

import sys
from pathlib import Path

from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parent))

# How long an example takes is the machine's affair.
settings.register_profile("cache", deadline=None)
settings.load_profile("cache")
