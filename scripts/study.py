"""`python scripts/study.py key=value ...` is `gjwm study key=value ...`."""

import sys

from gjwm.cli import main

if __name__ == "__main__":
    sys.exit(main(["study", *sys.argv[1:]]))
