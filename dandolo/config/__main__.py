"""`python -m dandolo.config` prints every key as Markdown tables, for the README."""

import sys

from dandolo.config.reference import markdown

if __name__ == "__main__":
    sys.stdout.write(markdown())
