"""`python -m dandolo` is `dandolo`."""

import sys

if __name__ == "__main__":
    if sys.argv[1:] == ["_worker"]:
        # What `dandolo serve` starts; see `dandolo.control.spawn`. It is no command of the command line.
        from dandolo.cli import work

        sys.exit(work.main())

    from dandolo.cli import main

    sys.exit(main())
