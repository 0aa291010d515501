"""`python -m gjwm` is the command `gjwm`."""

import sys

from gjwm.cli.app import main

if __name__ == "__main__":
    sys.exit(main())
