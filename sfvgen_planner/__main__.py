"""`python -m sfvgen_planner` is `sfvgen`."""

import sys

from sfvgen_planner.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
