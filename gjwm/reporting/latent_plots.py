"""Pictures of latents and of learning, by matplotlib, which is an optional dependency: `pip install
'gjwm[plots]'`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from scipy import stats

INK, OURS, IDEAL = "#333333", "#1f6fb2", "#c9c9c9"


def _figure_class():
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("figures need matplotlib: pip install 'gjwm[plots]'.") from error
    return Figure


def gaussianity_figure(
    path: str | Path,
    *,
    spectrum: np.ndarray,
    ideal_spectrum: np.ndarray,
    slices: np.ndarray,
    norms: np.ndarray,
) -> Path:
    """Three panels, each with what N(0, I) would show in grey: eigenvalues, quantiles of slices,
    norms -> `path` (PNG).

    Args:
        spectrum, ideal_spectrum: eigenvalues (D,) in falling order.
        slices: projected samples (N, S), sorted within each slice.
        norms: (N,).

    Raises:
        ImportError: without matplotlib.
    """
    Figure = _figure_class()
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # without pyplot: no state shared by callers
    figure = Figure(figsize=(12, 3.8), dpi=100, layout="constrained")
    left, middle, right = figure.subplots(1, 3)

    rank = np.arange(1, len(spectrum) + 1)
    left.semilogy(
        rank, np.maximum(ideal_spectrum, 1e-12), color=IDEAL, lw=3, label="Gaussian, same N and D"
    )
    left.semilogy(rank, np.maximum(spectrum, 1e-12), color=OURS, marker=".", lw=1, label="latents")
    left.set(title="Spectrum of the covariance", xlabel="principal direction", ylabel="variance")
    left.legend(frameon=False, fontsize=8)

    n = len(slices)
    # Few enough quantiles to draw, and a band that holds 95% of Gaussian slices at each of them.
    at = np.unique(np.linspace(0, n - 1, min(n, 200)).round().astype(int))
    quantile = stats.norm.ppf((at + 0.5) / n)
    low, high = (stats.norm.ppf(stats.beta.ppf(p, at + 1, n - at)) for p in (0.025, 0.975))
    middle.fill_between(quantile, low, high, color=IDEAL, lw=0, label="95% of Gaussian slices")
    middle.plot(quantile, slices[at], color=OURS, alpha=0.08, lw=0.7)
    middle.plot(quantile, slices[at].mean(1), color=OURS, lw=1.5, label="slices and their mean")
    middle.plot(quantile, quantile, color=INK, lw=0.8, ls="--")
    middle.set(
        title=f"Quantiles of {slices.shape[1]} random slices", xlabel="N(0, 1)", ylabel="latents"
    )
    middle.legend(frameon=False, fontsize=8)

    law = stats.chi(len(spectrum))
    grid = np.linspace(min(law.ppf(1e-4), norms.min()), max(law.ppf(1 - 1e-4), norms.max()), 300)
    right.hist(norms, bins=40, density=True, color=OURS, alpha=0.6, label="latents")
    right.plot(
        grid, law.pdf(grid), color=INK, lw=1.2, label=f"chi, {len(spectrum)} degrees of freedom"
    )
    right.set(title="Norms", xlabel="|z|", ylabel="density")
    right.set_ylim(top=1.3 * right.get_ylim()[1])  # room for the legend
    right.legend(frameon=False, fontsize=8, loc="upper right")
    for axes in (left, middle, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, format="png")
    return path


def curves_figure(
    path: str | Path,
    curves: Mapping[str, Mapping[int, np.ndarray]],
    levels: Mapping[str, Mapping[str, float]],
) -> Path:
    """A panel of learning curves per task, one line and band per run, with levels to compare with
    -> `path` (PNG).

    Args:
        curves: task -> run -> rows (R, 4) of frames, mean return, and the ends of its interval.
        levels: task -> name -> return.

    Raises:
        ImportError: without matplotlib.
    """
    Figure = _figure_class()
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = min(3, len(curves))
    lines = -(-len(curves) // columns)
    figure = Figure(figsize=(4.2 * columns, 3.0 * lines), dpi=80, layout="constrained")
    panels = np.atleast_1d(figure.subplots(lines, columns)).ravel()
    for axes, (task, runs) in zip(panels, curves.items()):
        for run, rows in runs.items():
            axes.plot(
                rows[:, 0] / 1e3,
                rows[:, 1],
                color=OURS,
                lw=1.4,
                label=None if run != min(runs) else "gjwm, per run",
            )
            axes.fill_between(
                rows[:, 0] / 1e3, rows[:, 2], rows[:, 3], color=OURS, alpha=0.12, lw=0
            )
        for (name, value), dash in zip(levels.get(task, {}).items(), ("--", ":", "-.")):
            axes.axhline(value, color=INK, lw=0.9, ls=dash, label=name)
        axes.set(title=task, ylim=(0, 1000), xlabel="1,000 frames", ylabel="return")
        axes.legend(frameon=False, fontsize=7)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in panels[len(curves) :]:
        axes.set_visible(False)
    figure.savefig(path, format="png")
    return path
