"""`python -m dandolo` is `dandolo`."""

import sys

from dandolo.cli import main

if __name__ == "__main__":
    sys.exit(main())
