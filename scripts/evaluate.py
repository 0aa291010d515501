"""`python scripts/evaluate.py key=value ...` is `gjwm evaluate key=value ...`."""

import sys

from gjwm.cli import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
