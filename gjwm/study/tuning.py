"""One rule that chooses a setting for every method and task, on a seed that nothing else sees."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

Report = Mapping[str, Any]


def best(reports: Mapping[Any, Report]) -> Any:
    """{value: report of its tuning run} -> the value with the highest planning success; ties go to
    the higher R2 after 5 steps (or after the last, if there are fewer), and what is still equal to
    the value that comes first.

    Raises:
        ValueError: without a report.
    """
    if not reports:
        raise ValueError("a value is chosen among tuning runs, and none of them ended well.")

    def merit(value: Any) -> tuple[float, float]:
        report = reports[value]
        r2 = report["prediction"]["r2_by_horizon"][:5][-1]
        return report["planning"]["success_rate"], r2 if r2 is not None and math.isfinite(
            r2
        ) else -math.inf

    return max(reports, key=merit)  # max keeps the first of equals
