"""`python scripts/collect.py key=value ...` is `gjwm collect key=value ...`."""

import sys

from gjwm.cli import main

if __name__ == "__main__":
    sys.exit(main(["collect", *sys.argv[1:]]))
