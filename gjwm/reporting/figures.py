"""The figures of a report, each from plain numbers to a plot with a title, a legend and one
sentence on how to read it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from gjwm.reporting.svg import Plot, extent, ticks

POLICIES = {"model": "model", "oracle": "true simulator", "random": "random", "hold": "stand still"}
_ROLES = {"model": "model", "oracle": "oracle", "random": "chance", "hold": "plain"}


@dataclass(frozen=True)
class Figure:
    """One plot of the page."""

    key: str  # the element's id
    title: str
    plot: Plot
    note: str


def _counted(last: int) -> list[tuple[float, str]]:
    """Ticks of an axis that counts from 1."""
    return [
        (1, "1"),
        *(
            (value, f"{value:g}")
            for value in ticks(0, last, 4)
            if value > 0.15 * last and value % 1 == 0
        ),
    ]


# -- planning --------------------------------------------------------------------------------------
# planning


def success_figure(planning: Mapping[str, Any]) -> Figure:
    """Success of the model and of who it is measured against, with Wilson's intervals."""
    rows = [
        (key, planning if key == "model" else planning[key])
        for key in POLICIES
        if key == "model" or key in planning
    ]
    plot = Plot(
        x=(-0.6, len(rows) - 0.4),
        y=(0, 1.08),
        x_label="who acts",
        y_label="share of goals reached",
        describe="Success: "
        + ", ".join(f"{POLICIES[k]} {row['success_rate']:.0%}" for k, row in rows),
        x_ticks=[(i, POLICIES[key]) for i, (key, _) in enumerate(rows)],
    )
    for i, (key, row) in enumerate(rows):
        low, high = row["ci95"]
        plot.bars((i - 0.32, i + 0.32), (row["success_rate"],), _ROLES[key])
        plot.interval(i, low, high, "ink")
        plot.text(
            i + 0.06, min(high + 0.015, 1.02), f"{row['success_rate']:.0%}", "value", anchor="start"
        )
    protocol = planning["protocol"]
    kappa = protocol.get("kappa")
    members = (
        ""
        if kappa is None
        else f" The model's plans are judged by all members of its ensemble, kappa {kappa:g}."
    )
    goal = (
        f"{protocol['goal_offset']} steps ahead"
        if protocol["goals"] == "ahead"
        else "drawn by the world"
    )
    return Figure(
        "planning-success",
        "Goals reached",
        plot,
        f"{planning['episodes']} held-out goals {goal}, {protocol['steps']} steps to come within "
        f"{protocol['success_radius']:g} of them, the same for all. Whiskers: 95% "
        f"(Wilson).{members}",
    )


def reached_figure(arrays: Mapping[str, np.ndarray], radius: float) -> Figure | None:
    """The share of goals reached by each step."""
    runs = _distances(arrays)
    if not runs:
        return None
    steps = next(iter(runs.values())).shape[1]
    plot = Plot(
        x=(0, steps - 1),
        y=(0, 1.04),
        x_label="agent step",
        y_label="share reached so far",
        describe="Share of goals reached by each step, for each policy.",
    )
    for key, distance in runs.items():
        near = distance <= radius
        near[:, 0] = False  # to start there is no success
        share = np.maximum.accumulate(near, 1).mean(0)
        plot.line(
            range(steps),
            share.tolist(),
            _ROLES[key],
            POLICIES[key],
            dashed=key not in ("model", "oracle"),
        )
    return Figure(
        "planning-reached", "How fast", plot, "Steep and early is good; a late rise means detours."
    )


def distance_figure(arrays: Mapping[str, np.ndarray], radius: float) -> Figure | None:
    """Distance to the goal over an attempt: medians, and the model's middle half."""
    runs = _distances(arrays)
    if not runs:
        return None
    steps = next(iter(runs.values())).shape[1]
    medians = {key: np.median(distance, 0) for key, distance in runs.items()}
    quarters = np.quantile(runs["model"], [0.25, 0.75], axis=0)
    plot = Plot(
        x=(0, steps - 1),
        y=extent(*medians.values(), quarters, least=0.0),
        x_label="agent step",
        y_label="distance to the goal",
        describe="Median distance to the goal at each step, for each policy.",
    )
    plot.band(range(steps), quarters[0].tolist(), quarters[1].tolist(), "model")
    for key, median in medians.items():
        plot.line(
            range(steps),
            median.tolist(),
            _ROLES[key],
            POLICIES[key],
            dashed=key not in ("model", "oracle"),
        )
    plot.level(radius, "ideal", "success radius")
    return Figure(
        "planning-distance",
        "On the way",
        plot,
        "Medians; shaded: the middle half of the model's attempts.",
    )


def _distances(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    found = {key: arrays[f"distance_{key}"] for key in POLICIES if f"distance_{key}" in arrays}
    return found if "model" in found else {}


# -- prediction ------------------------------------------------------------------------------------
# prediction


def prediction_figure(prediction: Mapping[str, Any]) -> Figure:
    """R² by horizon, beside copying, a linear-Gaussian law and the noise floor."""
    steps = list(range(1, prediction["horizon"] + 1))
    ours = prediction["r2_by_horizon"]
    linear, floor = prediction.get("linear_gaussian"), prediction.get("noise_floor")
    shown = [ours, prediction["copy_last_r2_by_horizon"]] + (
        [linear["r2_by_horizon"]] if linear else []
    )
    lowest = min(min(values) for values in shown)
    plot = Plot(
        x=(1, max(steps[-1], 1.5)),
        y=(max(-1.0, min(0.0, lowest) - 0.02), 1.03),
        x_label="agent steps ahead",
        y_label="R² of the latent",
        x_ticks=_counted(steps[-1]),
        describe=(
            f"R squared of open-loop prediction, from {ours[0]:.3f} at 1 step to "
            f"{ours[-1]:.3f} at {steps[-1]} steps."
        ),
    )
    if floor is not None and any(r2 is not None for r2 in floor["r2_by_horizon"]):
        plot.line(steps, floor["r2_by_horizon"], "ideal", "noise floor", dashed=True)
    if "r2_ci95_by_horizon" in prediction:
        plot.band(steps, *prediction["r2_ci95_by_horizon"], "model")
    plot.line(steps, ours, "model", "model", dots=True)
    if linear is not None:
        plot.line(steps, linear["r2_by_horizon"], "linear", "linear-Gaussian")
    plot.line(steps, prediction["copy_last_r2_by_horizon"], "plain", "copy the last", dashed=True)
    if floor is None:
        told = "This world cannot be played again, so its noise floor is unknown."
    elif floor["deterministic"]:
        told = (
            "Played again from the same state, the world does the same: a perfect model would "
            "reach 1."
        )
    else:
        told = (
            f"The noise floor is what two futures of one state have in common "
            f"({floor['windows']} played again)."
        )
    return Figure(
        "prediction-r2",
        "Open-loop prediction",
        plot,
        f"1 is perfect, 0 is guessing the mean. {told}",
    )


def rank_figure(prediction: Mapping[str, Any]) -> Figure:
    """How often the predicted latent is nearest to the true one among many."""
    steps = list(range(1, prediction["horizon"] + 1))
    others = round(1 / prediction["rank_chance"]) - 1
    plot = Plot(
        x=(1, max(steps[-1], 1.5)),
        y=(0, 1.04),
        x_label="agent steps ahead",
        y_label="rank accuracy",
        x_ticks=_counted(steps[-1]),
        describe=f"Rank accuracy, {prediction['rank_accuracy']:.2f} at the horizon.",
    )
    plot.line(steps, prediction["rank_accuracy_by_horizon"], "model", "model", dots=True)
    plot.level(prediction["rank_chance"], "chance", "chance")
    note = (
        f"How often the prediction is nearer to what happened than to {others} other moments. It "
        "needs no scale."
    )
    return Figure("prediction-rank", "Telling moments apart", plot, note)


def skill_figure(prediction: Mapping[str, Any]) -> Figure:
    """One-step log-likelihood over that of N(0, I)."""
    rows = [("model", "model", prediction["skill_nats_per_dim"])]
    if "linear_gaussian" in prediction:
        rows.append(
            ("linear", "linear-Gaussian", prediction["linear_gaussian"]["skill_nats_per_dim"])
        )
    rows.append(("plain", "copy the last", prediction["skill_copy_last_nats_per_dim"]))
    values = [value for *_, value in rows]
    plot = Plot(
        x=(-0.6, len(rows) - 0.4),
        y=extent(values, [0.0], pad=0.1),
        x_label="law of the next latent",
        y_label="nats per dimension",
        describe="Skill: " + ", ".join(f"{name} {value:.2f}" for _, name, value in rows),
        x_ticks=[(i, name) for i, (_, name, _) in enumerate(rows)],
    )
    for i, (role, _, value) in enumerate(rows):
        plot.bars((i - 0.3, i + 0.3), (value,), role) if value >= 0 else plot.dot(
            i, value, role, radius=4
        )
        plot.text(
            i, max(value, 0) + 0.03 * (max(values) - min(0, *values)), f"{value:.2f}", "value"
        )
    return Figure(
        "prediction-skill",
        "Skill of one step",
        plot,
        "Likelihood gained on knowing only that z is N(0, I). The linear law has a full "
        "covariance, so where latents move together it can lead and still predict worse.",
    )


# -- calibration -----------------------------------------------------------------------------------
# calibration


def laws(calibration: Mapping[str, Any]) -> list[tuple[str, str, Mapping[str, Any]]]:
    """(role, name, figures) of the one-step law and of up to two further ahead."""
    ahead = sorted(
        int(key.removeprefix("horizon_")) for key in calibration if key.startswith("horizon_")
    )
    first = [("model", "1 step", calibration)]
    return first + [
        (role, f"{k} steps", calibration[f"horizon_{k}"])
        for role, k in zip(("second", "third"), ahead, strict=False)
    ]


def coverage_from_pit(pit: Sequence[float]) -> tuple[list[float], list[float]]:
    """Levels and coverage of central intervals, from a histogram of the probability integral
    transform with an even number of
    bins, each ideally 1: the middle 2k of B bins are the central interval of level 2k / B,
    exactly."""
    bins = len(pit)
    middle = bins // 2
    levels = [2 * k / bins for k in range(middle + 1)]
    return levels, [sum(pit[middle - k : middle + k]) / bins for k in range(middle + 1)]


def reliability_figure(calibration: Mapping[str, Any]) -> Figure:
    """Coverage against level of central intervals."""
    plot = Plot(
        x=(0, 1),
        y=(0, 1.02),
        x_label="promised",
        y_label="covered",
        describe=(
            f"Reliability: 90% intervals cover {calibration['coverage_90']:.3f} one step ahead."
        ),
    )
    plot.line((0, 1), (0, 1), "ideal", "ideal", dashed=True)
    for role, name, law in laws(calibration):
        plot.line(*coverage_from_pit(law["pit"]), role, name, dots=True)
    note = "Below the diagonal the model is too sure, above it too unsure."
    return Figure("calibration-reliability", "Do intervals hold what they promise?", plot, note)


def pit_figure(calibration: Mapping[str, Any]) -> Figure:
    """Histograms of the probability integral transform."""
    shown = laws(calibration)
    top = max(max(law["pit"]) for *_, law in shown)
    plot = Plot(
        x=(0, 1),
        y=(0, max(1.5, 1.05 * top)),
        x_label="predicted probability of less than what happened",
        y_label="density",
        describe="Histograms of the probability integral transform, ideally flat at 1.",
    )
    for role, name, law in shown:
        bins = len(law["pit"])
        if role == "model":
            plot.bars([i / bins for i in range(bins + 1)], law["pit"], role, name)
        else:
            plot.line([(i + 0.5) / bins for i in range(bins)], law["pit"], role, name)
    plot.level(1, "ideal", "ideal")
    note = "Flat is right. A cup: too sure; a hill: too unsure; a slope: the mean is off."
    return Figure("calibration-pit", "Probability integral transform", plot, note)


def temperature_figure(calibration: Mapping[str, Any]) -> Figure | None:
    """The factors on the predicted standard deviation that calibration found."""
    factors = calibration.get("temperature_by_horizon")
    if not factors or len(factors) < 2:
        return None
    plot = Plot(
        x=(1, len(factors)),
        y=extent(factors, [1.0], pad=0.3),
        x_label="agent steps ahead",
        y_label="factor on the spread",
        x_ticks=_counted(len(factors)),
        describe=f"Calibration factors between {min(factors):.2f} and {max(factors):.2f}.",
    )
    plot.level(1, "ideal", "none needed")
    plot.line(range(1, len(factors) + 1), factors, "model", "in use", dots=True)
    note = "Found on other held-out episodes. Far from 1, the network's own spread was wrong."
    return Figure("calibration-temperature", "What calibration corrected", plot, note)


# -- geometry --------------------------------------------------------------------------------------
# geometry


def spectrum_figure(arrays: Mapping[str, np.ndarray]) -> Figure:
    """Eigenvalues of the latents' covariance beside those of a Gaussian batch of the same size."""
    ours, ideal = np.maximum(arrays["spectrum"], 1e-8), arrays["spectrum_ideal"]
    rank = list(range(1, len(ours) + 1))
    plot = Plot(
        x=(1, max(len(ours), 1.5)),
        y=(min(float(ours.min()), 0.1) / 1.5, 2 * max(float(ours.max()), 1.0)),
        x_label="principal direction",
        y_label="variance",
        describe=(
            f"Variance along the {len(ours)} principal directions, from {ours[0]:.2g} to "
            f"{ours[-1]:.2g}."
        ),
        log_y=True,
        x_ticks=_counted(len(ours)),
    )
    plot.line(rank, ideal.tolist(), "ideal", "Gaussian, same size")
    plot.line(rank, ours.tolist(), "model", "latents", dots=len(ours) <= 64)
    note = (
        "A cliff means unused directions: as many as there is nothing more to say, or a collapse."
    )
    return Figure("geometry-spectrum", "Spectrum of the covariance", plot, note)


def quantile_figure(arrays: Mapping[str, np.ndarray]) -> Figure:
    """Quantiles of random slices against those of N(0, 1)."""
    normal = stats.norm.ppf(arrays["levels"].astype(np.float64))
    slices = arrays["slices"]
    plot = Plot(
        x=extent(normal),
        y=extent(normal, slices.min(), slices.max()),
        x_label="quantile of N(0, 1)",
        y_label="quantile of the slice",
        describe=(
            f"Quantiles of {slices.shape[1]} random slices of the latents against a "
            f"standard normal."
        ),
    )
    at = normal.tolist()
    plot.band(
        at,
        arrays["slices_low"].tolist(),
        arrays["slices_high"].tolist(),
        "ideal",
        "95% of Gaussian slices",
    )
    for k in range(slices.shape[1]):
        plot.line(at, slices[:, k].tolist(), "model", "slices" if k == 0 else None, faint=True)
    plot.line(at, slices.mean(1).tolist(), "model", "their mean")
    note = (
        "Random directions of z, one step of each episode. Inside the band they are as Gaussian "
        "as can be told."
    )
    return Figure("geometry-slices", "Quantiles of slices", plot, note)


def norm_figure(arrays: Mapping[str, np.ndarray]) -> Figure:
    """Norms beside the chi law of a Gaussian."""
    norms = arrays["norms"].astype(np.float64)
    law = stats.chi(len(arrays["spectrum"]))
    low, high = min(law.ppf(1e-3), norms.min()), max(law.ppf(1 - 1e-3), norms.max())
    low, high = float(low), float(high) if high > low else float(low) + 1
    bins = int(np.clip(1.5 * np.sqrt(len(norms)), 6, 30))
    heights, edges = np.histogram(norms, bins=bins, range=(low, high), density=True)
    grid = np.linspace(low, high, 120)
    density = law.pdf(grid)
    plot = Plot(
        x=(low, high),
        y=(0, 1.08 * float(max(heights.max(), density.max()))),
        x_label="|z|",
        y_label="density",
        describe=(
            f"Norms of the latents, mean {norms.mean():.2f}; a Gaussian's would have mean "
            f"{law.mean():.2f}."
        ),
    )
    plot.bars(edges.tolist(), heights.tolist(), "model", "latents")
    plot.line(
        grid.tolist(),
        density.tolist(),
        "ideal",
        f"Gaussian in {len(arrays['spectrum'])} dimensions",
    )
    return Figure(
        "geometry-norms",
        "Norms",
        plot,
        "Too wide: latents are spread unevenly between directions or moments.",
    )


def memory_figure(trajectory: Mapping[str, Any]) -> Figure:
    """Autocorrelation along episodes."""
    rho = trajectory["autocorrelation"]
    time, straight = trajectory["correlation_time"], trajectory["straightness"]
    plot = Plot(
        x=(0, max(len(rho) - 1, 1)),
        y=extent(rho, [0.0], pad=0.05),
        x_label="lag, agent steps",
        y_label="autocorrelation",
        describe="Autocorrelation of the latents along episodes.",
    )
    plot.line(range(len(rho)), rho, "model", "latents")
    plot.level(float(np.exp(-1)), "ideal", "1/e")
    known = f"{time:.1f} steps" if time is not None else f"more than {len(rho) - 1} steps"
    note = (
        f"Correlation time {known}. Straightness {straight:.2f} (1: straight lines; a Gaussian "
        f"Markov chain {trajectory['straightness_markov']:.2f}, white noise -0.5)."
    )
    return Figure("geometry-memory", "How latents move", plot, note)


# -- probes ----------------------------------------------------------------------------------------
# probes

PROBES = (
    ("linear", "linear", "linear"),
    ("knn", "nearest neighbours", "second"),
    ("mlp", "MLP", "model"),
)


def probe_figure(probe: Mapping[str, Any]) -> Figure:
    """R² of every true state variable, by three probes, with intervals over episodes."""
    variables = probe["variables"]
    ends = [
        row.get(f"{kind}_r2_ci95", [row[f"{kind}_r2"]])[0]
        for row in variables.values()
        for kind, *_ in PROBES
    ]
    plot = Plot(
        x=(-0.6, len(variables) - 0.4),
        y=(max(-0.5, min(0.0, *ends) - 0.02), 1.05),
        x_label="true state variable",
        y_label="R² on other episodes",
        describe="R squared of probes: "
        + ", ".join(
            f"{name} {max(row[f'{kind}_r2'] for kind, *_ in PROBES):.2f}"
            for name, row in variables.items()
        ),
        x_ticks=[(i, name) for i, name in enumerate(variables)],
    )
    for j, (kind, name, role) in enumerate(PROBES):
        for i, row in enumerate(variables.values()):
            x, value = i + 0.2 * (j - 1), row[f"{kind}_r2"]
            if f"{kind}_r2_ci95" in row:
                plot.interval(x, *row[f"{kind}_r2_ci95"], role)
            plot.dot(x, value, role, f"{name}: {value:.3f}", radius=3.6)
        plot.legend.append((role, "dot", name))
    note = (
        "What can be read from z. What only the MLP reads is there, but folded. Whiskers: 95% "
        "over episodes."
    )
    return Figure("probe-r2", "R² of probes", plot, note)


# -- training --------------------------------------------------------------------------------------
# training

# Metrics that share a plot: title, keys, logarithmic?
_PANELS = (
    (
        "Prediction error in training",
        ("train/one_step", "train/open_loop", "train/alignment"),
        True,
    ),
    ("Discrepancy to the Gaussian", ("train/discrepancy",), True),
    ("Loss, and the spread's part", ("loss", "train/nll"), False),
    ("Gradient norm", ("train/grad_norm",), True),
    ("Learning rate", ("train/lr",), False),
    ("Speed", ("frames_per_second",), False),
    ("Prediction error while the dynamics are refined", ("refine/mean_squared_error",), True),
    ("Decoder, for pictures only", ("decoder/squared_error",), True),
)
_SERIES_ROLES = ("model", "second", "third", "linear")


def training_figures(metrics: Sequence[Mapping[str, Any]]) -> list[Figure]:
    """Curves of metrics.jsonl, the known ones grouped and any other on its own."""
    keys = list(dict.fromkeys(key for row in metrics for key in row if key != "step"))
    known = {key for _, group, _ in _PANELS for key in group}
    panels = list(_PANELS) + [(key, (key,), False) for key in keys if key not in known]
    return [
        figure
        for title, group, log in panels
        if (figure := _training_figure(title, [k for k in group if k in keys], metrics, log))
        is not None
    ]


def _training_figure(
    title: str, keys: list[str], metrics: Sequence[Mapping[str, Any]], log: bool
) -> Figure | None:
    series = {}
    for key in keys:
        rows = [(row["step"], row[key]) for row in metrics if row.get(key) is not None]
        if rows:
            series[key] = rows
    if not series:
        return None
    steps = [step for rows in series.values() for step, _ in rows]
    values = [value for rows in series.values() for _, value in rows]
    positive = [value for value in values if value > 0]
    log = log and len(positive) == len(values)
    y = (min(values) / 1.3, 1.3 * max(values)) if log else extent(values)
    low = min(steps)
    plot = Plot(
        x=(low, max(steps) if max(steps) > low else low + 1),
        y=y,
        x_label="step",
        y_label="log scale" if log else "",
        describe=f"{title} over {max(steps)} steps, last {values[-1]:.4g}.",
        log_y=log,
        x_ticks=[(v, f"{v:g}") for v in ticks(low, max(steps), 4)] if max(steps) > low else None,
    )
    for (key, rows), role in zip(series.items(), _SERIES_ROLES, strict=False):
        plot.line([step for step, _ in rows], [value for _, value in rows], role, key)
    last = ", ".join(f"{key.rpartition('/')[2]} {rows[-1][1]:.4g}" for key, rows in series.items())
    return Figure("training-" + _slug(keys[0]), title, plot, f"Last: {last}.")


def _slug(key: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in key)
