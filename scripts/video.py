"""`python scripts/video.py key=value ...` is `gjwm video key=value ...`."""

import sys

from gjwm.cli import main

if __name__ == "__main__":
    sys.exit(main(["video", *sys.argv[1:]]))
