"""`python scripts/train.py key=value ...` is `gjwm train key=value ...`."""

import sys

from gjwm.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
