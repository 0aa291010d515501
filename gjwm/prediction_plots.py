"""An evaluation's prediction and calibration figures as one picture. Needs the extra `plots` (matplotlib)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gjwm.calibration import LEVELS


def plot_predictions(report: Mapping[str, Any], path: str | Path) -> Path:
    """R² and rank accuracy by horizon, coverage of central intervals, and PIT histograms.

    Args:
        report: what `gjwm.evaluate.evaluate` returned, or evaluation.json.
        path: .png, .svg or .pdf, by suffix.

    Returns:
        the path written.

    Raises:
        ModuleNotFoundError: without matplotlib.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("plots need matplotlib; install it with: pip install 'gjwm[plots]'.") from error
    prediction, calibration = report["prediction"], report["calibration"]
    laws = {"1 step": calibration}
    laws |= {f"{k.removeprefix('horizon_')} steps": v for k, v in calibration.items() if k.startswith("horizon_")}
    figure = Figure(figsize=(12, 3.4), layout="constrained")
    by_horizon, coverage, pit = figure.subplots(1, 3)

    steps = range(1, prediction["horizon"] + 1)
    by_horizon.plot(steps, prediction["r2_by_horizon"], "o-", label="R², model")
    by_horizon.plot(steps, prediction["copy_last_r2_by_horizon"], "--", color="grey", label="R², nothing changes")
    by_horizon.plot(steps, prediction["rank_accuracy_by_horizon"], "s-", ms=3, label="rank accuracy")
    by_horizon.set(xlabel="steps ahead", ylim=(min(0, *prediction["r2_by_horizon"]) - 0.02, 1.02), title="open loop")
    by_horizon.legend(fontsize=8)

    coverage.plot([0.45, 1], [0.45, 1], "--", color="grey", lw=1)
    for name, law in laws.items():
        coverage.plot(LEVELS, [law[f"coverage_{round(100 * level)}"] for level in LEVELS], "o-", ms=4, label=name)
        pit.stairs(law["pit"], [i / len(law["pit"]) for i in range(len(law["pit"]) + 1)], label=name)
    coverage.set(xlabel="promised", ylabel="covered", title="central intervals")
    coverage.legend(fontsize=8)
    pit.axhline(1, ls="--", color="grey", lw=1)
    pit.set(xlabel="PIT", ylim=(0, None), title="probability integral transform (ideal: 1)")
    pit.legend(fontsize=8)

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    return path
