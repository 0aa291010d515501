"""`python scripts/report.py key=value ...` is `gjwm report key=value ...`."""

import sys

from gjwm.cli import main

if __name__ == "__main__":
    sys.exit(main(["report", *sys.argv[1:]]))
