"""`python scripts/data.py info|verify|convert ...` is `gjwm data info|verify|convert ...`."""

import sys

from gjwm.cli import main

if __name__ == "__main__":
    sys.exit(main(["data", *sys.argv[1:]]))
