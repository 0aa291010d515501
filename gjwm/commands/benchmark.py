"""`gjwm benchmark`: speed, ours beside a reference and the floor."""

from __future__ import annotations

from collections.abc import Sequence

from gjwm import benchmarks


def benchmark_command(arguments: Sequence[str]) -> None:
    """`NAME [quick=true]`: run one of gjwm.benchmarks and print its table."""
    name, *options = arguments or [""]
    if any(option not in ("quick=true", "quick=false") for option in options):
        raise ValueError(f"a benchmark takes quick=true or nothing else, got {' '.join(options)}.")
    print(benchmarks.table(benchmarks.run(name, quick="quick=true" in options)))
