"""`python scripts/benchmark.py NAME [quick=true]` is `gjwm benchmark NAME [quick=true]`."""

import sys

from gjwm.cli import main

if __name__ == "__main__":
    sys.exit(main(["benchmark", *sys.argv[1:]]))
