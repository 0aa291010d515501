"""`python scripts/benchmark.py NAME [quick=true]`: one benchmark, printed as a table."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import benchmarks


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one benchmark -> exit status: 0, or 1 after an error told in one sentence."""
    name, *options = list(sys.argv[1:] if arguments is None else arguments) or [""]
    try:
        if any(option not in ("quick=true", "quick=false") for option in options):
            raise ValueError(
                f"a benchmark takes quick=true or nothing else, got {' '.join(options)}."
            )
        print(benchmarks.table(benchmarks.run(name, quick="quick=true" in options)))
    except ValueError as error:
        print(f"benchmark: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
