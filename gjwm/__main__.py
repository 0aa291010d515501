"""`python -m gjwm` is the command `gjwm`."""

import sys

from gjwm.cli import main

if __name__ == "__main__":
    sys.exit(main())
