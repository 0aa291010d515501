"""The figures of a report: from plain numbers to a plot with one sentence on how to read it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from gjwm.reporting.svg import Figure

Report = Mapping[str, Any]
Arrays = Mapping[str, np.ndarray]

POLICIES = {"model": "model", "oracle": "true simulator", "random": "random", "hold": "stand still"}
_ROLES = {"model": "model", "oracle": "oracle", "random": "chance", "hold": "plain"}


# -- planning --------------------------------------------------------------------------------------


def outcomes(planning: Report) -> dict[str, Report]:
    """{policy: what it reached}, of those that acted."""
    rows = {key: planning if key == "model" else planning.get(key) for key in POLICIES}
    return {key: row for key, row in rows.items() if row is not None}


def success_figure(planning: Report) -> Figure:
    """Success of the model and of those it is measured against, with Wilson's intervals."""
    rows = outcomes(planning)
    protocol = planning["protocol"]
    ahead = protocol["goals"] == "ahead"
    goal = f"{protocol['goal_offset']} steps ahead" if ahead else "drawn by the world"
    figure = Figure(
        "planning-success",
        "Goals reached",
        f"{planning['episodes']} held-out goals {goal}, {protocol['steps']} steps to come within "
        f"{protocol['success_radius']:g} of them, the same for all. Whiskers: 95% (Wilson).",
        labels=("who acts", "share of goals reached"),
        categories=[POLICIES[key] for key in rows],
        y=(0, 1.08),
    )
    for i, (key, row) in enumerate(rows.items()):
        low, high = row["ci95"]
        figure.bars((i - 0.32, i + 0.32), (row["success_rate"],), _ROLES[key])
        figure.interval(i, low, high, "ink")
        figure.text(i + 0.06, high, f"{row['success_rate']:.0%}", anchor="start")
    return figure


def reached_figure(arrays: Arrays, radius: float) -> Figure | None:
    """The share of goals reached by each step."""
    figure = Figure(
        "planning-reached",
        "How fast",
        "Steep and early is good; a late rise means detours.",
        labels=("agent step", "share reached so far"),
        y=(0, 1.04),
    )
    distances = _distances(arrays)
    for key, distance in distances.items():
        near = distance <= radius
        near[:, 0] = False  # starting there is no success
        _policy_line(figure, key, np.maximum.accumulate(near, 1).mean(0))
    return figure if distances else None


def distance_figure(arrays: Arrays, radius: float) -> Figure | None:
    """Distance to the goal over an attempt: medians, and the model's middle half."""
    figure = Figure(
        "planning-distance",
        "On the way",
        "Medians; shaded: the middle half of the model's attempts.",
        labels=("agent step", "distance to the goal"),
        y=(0, None),
    )
    distances = _distances(arrays)
    if not distances:
        return None
    quarters = np.quantile(distances["model"], [0.25, 0.75], axis=0)
    figure.band(range(len(quarters[0])), *quarters, "model")
    for key, distance in distances.items():
        _policy_line(figure, key, np.median(distance, 0))
    return figure.level(radius, "ideal", "success radius")


def _distances(arrays: Arrays) -> dict[str, np.ndarray]:
    """{policy: (attempts, steps)}, empty without the model's."""
    distances = {k: arrays[f"distance_{k}"] for k in POLICIES if f"distance_{k}" in arrays}
    return distances if "model" in distances else {}


def _policy_line(figure: Figure, key: str, values: np.ndarray) -> None:
    dashed = key not in ("model", "oracle")
    figure.line(range(len(values)), values, _ROLES[key], POLICIES[key], dashed=dashed)


# -- prediction ------------------------------------------------------------------------------------


def prediction_figure(prediction: Report) -> Figure:
    """R² by horizon, beside copying, a linear-Gaussian law and the noise floor."""
    steps, ours = range(1, prediction["horizon"] + 1), prediction["r2_by_horizon"]
    copied, linear = prediction["copy_last_r2_by_horizon"], prediction.get("linear_gaussian")
    floor = prediction.get("noise_floor")
    lowest = min(*ours, *copied, *(linear["r2_by_horizon"] if linear else ()))
    if floor is None:
        limit = "This world cannot be played again, so its noise floor is unknown."
    elif floor["deterministic"]:
        limit = "Played again from one state, the world does the same: perfect is 1."
    else:
        limit = (
            f"The noise floor is what two futures of one state have in common "
            f"({floor['windows']} played again)."
        )
    figure = Figure(
        "prediction-r2",
        "Open-loop prediction",
        f"1 is perfect, 0 is guessing the mean. {limit}",
        labels=("agent steps ahead", "R² of the latent"),
        y=(max(-1.0, min(0.0, lowest) - 0.02), 1.03),
    )
    if floor is not None and any(r2 is not None for r2 in floor["r2_by_horizon"]):
        figure.line(steps, floor["r2_by_horizon"], "ideal", "noise floor", dashed=True)
    if "r2_ci95_by_horizon" in prediction:
        figure.band(steps, *prediction["r2_ci95_by_horizon"], "model")
    figure.line(steps, ours, "model", "model", dots=True)
    if linear is not None:
        figure.line(steps, linear["r2_by_horizon"], "linear", "linear-Gaussian")
    return figure.line(steps, copied, "plain", "copy the last", dashed=True)


def rank_figure(prediction: Report) -> Figure:
    """How often the predicted latent is nearest to the true one among many."""
    accuracy = prediction["rank_accuracy_by_horizon"]
    others = round(1 / prediction["rank_chance"]) - 1
    figure = Figure(
        "prediction-rank",
        "Telling moments apart",
        f"How often the prediction is nearer to what happened than to {others} other moments. It "
        "needs no scale.",
        labels=("agent steps ahead", "rank accuracy"),
        y=(0, 1.04),
    )
    figure.line(range(1, len(accuracy) + 1), accuracy, "model", "model", dots=True)
    return figure.level(prediction["rank_chance"], "chance", "chance")


def skill_figure(prediction: Report) -> Figure:
    """One-step log-likelihood over that of z's own marginal Gaussian."""
    linear = prediction.get("linear_gaussian", {}).get("skill_nats_per_dim")
    rows = [
        ("model", "model", prediction["skill_nats_per_dim"]),
        *([] if linear is None else [("linear", "linear-Gaussian", linear)]),
        ("plain", "copy the last", prediction["skill_copy_last_nats_per_dim"]),
    ]
    figure = Figure(
        "prediction-skill",
        "Skill of one step",
        "Likelihood gained on knowing only the mean and variance of each dimension of z. The "
        "linear law has a full covariance, so where latents move together it can lead and still "
        "predict worse.",
        labels=("law of the next latent", "nats per dimension"),
        categories=[name for _, name, _ in rows],
    )
    for i, (role, _, value) in enumerate(rows):
        if value >= 0:
            figure.bars((i - 0.3, i + 0.3), (value,), role)
        else:
            figure.dot(i, value, role, radius=4)
        figure.text(i, max(value, 0), f"{value:.2f}")
    return figure


# -- calibration -----------------------------------------------------------------------------------


def laws(calibration: Report) -> list[tuple[str, str, Report]]:
    """(role, name, figures) of the one-step law and of up to two further ahead."""
    prefix = "horizon_"
    ahead = sorted(int(key.removeprefix(prefix)) for key in calibration if key.startswith(prefix))
    further = zip(("second", "third"), ahead, strict=False)
    return [
        ("model", "1 step", calibration),
        *((role, f"{k} steps", calibration[f"{prefix}{k}"]) for role, k in further),
    ]


def coverage_from_pit(pit: Sequence[float]) -> tuple[list[float], list[float]]:
    """Levels and coverage of central intervals, from a PIT histogram with an even number of bins:
    the middle 2k of B bins are the central interval of level 2k / B.
    """
    middle = len(pit) // 2
    levels = [k / middle for k in range(middle + 1)]
    return levels, [sum(pit[middle - k : middle + k]) / len(pit) for k in range(middle + 1)]


def reliability_figure(calibration: Report) -> Figure:
    """Coverage against level of central intervals."""
    figure = Figure(
        "calibration-reliability",
        "Do intervals hold what they promise?",
        "Below the diagonal the model is too sure, above it too unsure.",
        labels=("promised", "covered"),
        x=(0, 1),
        y=(0, 1.02),
    )
    figure.line((0, 1), (0, 1), "ideal", "ideal", dashed=True)
    for role, name, law in laws(calibration):
        figure.line(*coverage_from_pit(law["pit"]), role, name, dots=True)
    return figure


def pit_figure(calibration: Report) -> Figure:
    """Histograms of the probability integral transform."""
    figure = Figure(
        "calibration-pit",
        "Probability integral transform",
        "Flat is right. A cup: too sure; a hill: too unsure; a slope: the mean is off.",
        labels=("predicted probability of less than what happened", "density"),
        y=(0, None),
    )
    for role, name, law in laws(calibration):
        bins = len(law["pit"])
        edges = np.arange(bins + 1) / bins
        if role == "model":
            figure.bars(edges, law["pit"], role, name)
        else:
            figure.line(edges[:-1] + 0.5 / bins, law["pit"], role, name)
    return figure.level(1, "ideal", "ideal")


def temperature_figure(calibration: Report) -> Figure | None:
    """The factors on the predicted standard deviation that calibration chose."""
    factors = calibration.get("temperature_by_horizon")
    if not factors or len(factors) < 2:
        return None
    figure = Figure(
        "calibration-temperature",
        "What calibration corrected",
        "Fitted to other held-out episodes. Far from 1, the network's own spread was wrong.",
        labels=("agent steps ahead", "factor on the spread"),
    )
    figure.level(1, "ideal", "none needed")
    return figure.line(range(1, len(factors) + 1), factors, "model", "in use", dots=True)


# -- geometry --------------------------------------------------------------------------------------


def spectrum_figure(arrays: Arrays) -> Figure:
    """Eigenvalues of the latents' covariance beside those of a Gaussian batch of the same size."""
    ours = np.maximum(arrays["spectrum"], 1e-8)
    rank = range(1, len(ours) + 1)
    figure = Figure(
        "geometry-spectrum",
        "Spectrum of the covariance",
        "A cliff means unused directions: there is nothing more to say, or a collapse.",
        labels=("principal direction", "variance"),
        y=(min(float(ours.min()), 0.1) / 1.5, None),
        log_y=True,
    )
    figure.line(rank, arrays["spectrum_ideal"], "ideal", "Gaussian, same size")
    return figure.line(rank, ours, "model", "latents", dots=len(ours) <= 64)


def quantile_figure(arrays: Arrays) -> Figure:
    """Quantiles of random slices against those of N(0, 1)."""
    normal = stats.norm.ppf(arrays["levels"].astype(np.float64))
    slices = arrays["slices"]
    figure = Figure(
        "geometry-slices",
        "Quantiles of slices",
        "Random directions of z, one step of each episode. Inside the band they are as Gaussian as "
        "can be told.",
        labels=("quantile of N(0, 1)", "quantile of the slice"),
    )
    band = arrays["slices_low"], arrays["slices_high"]
    figure.band(normal, *band, "ideal", "95% of Gaussian slices")
    for k, values in enumerate(slices.T):
        figure.line(normal, values, "model", None if k else "slices", faint=True)
    return figure.line(normal, slices.mean(1), "model", "their mean")


def norm_figure(arrays: Arrays) -> Figure:
    """Norms beside the chi law of a Gaussian."""
    norms, dim = arrays["norms"].astype(np.float64), len(arrays["spectrum"])
    law = stats.chi(dim)
    low, high = float(min(law.ppf(1e-3), norms.min())), float(max(law.ppf(0.999), norms.max()))
    grid = np.linspace(low, high, 120)
    bins = int(np.clip(1.5 * np.sqrt(len(norms)), 6, 30))
    heights, edges = np.histogram(norms, bins=bins, range=(low, high), density=True)
    figure = Figure(
        "geometry-norms",
        "Norms",
        "Too wide: latents are spread unevenly between directions or moments.",
        labels=("|z|", "density"),
        y=(0, None),
    )
    figure.bars(edges, heights, "model", "latents")
    return figure.line(grid, law.pdf(grid), "ideal", f"Gaussian in {dim} dimensions")


def memory_figure(trajectory: Report) -> Figure:
    """Autocorrelation along episodes."""
    rho, time = trajectory["autocorrelation"], trajectory["correlation_time"]
    known = f"{time:.1f} steps" if time is not None else f"more than {len(rho) - 1} steps"
    figure = Figure(
        "geometry-memory",
        "How latents move",
        f"Correlation time {known}. Straightness {trajectory['straightness']:.2f} (1: straight "
        f"lines; a Gaussian Markov chain {trajectory['straightness_markov']:.2f}, white noise "
        "-0.5).",
        labels=("lag, agent steps", "autocorrelation"),
        y=(min(0.0, *rho), None),
    )
    figure.line(range(len(rho)), rho, "model", "latents")
    return figure.level(float(np.exp(-1)), "ideal", "1/e")


# -- probes ----------------------------------------------------------------------------------------

# kind, name, role
PROBES = (
    ("linear", "linear", "linear"),
    ("knn", "nearest neighbours", "second"),
    ("mlp", "MLP", "model"),
)


def probe_figure(probe: Report) -> Figure:
    """R² of every true state variable, by three probes, with intervals over episodes."""
    variables = probe["variables"]

    def ends(row: Report, kind: str) -> Sequence[float]:
        return row.get(f"{kind}_r2_ci95", [row[f"{kind}_r2"]] * 2)

    lowest = min(ends(row, kind)[0] for row in variables.values() for kind, *_ in PROBES)
    figure = Figure(
        "probe-r2",
        "R² of probes",
        "What can be read from z. What only the MLP reads is there, but folded. Whiskers: 95% over "
        "episodes.",
        labels=("true state variable", "R² on other episodes"),
        categories=list(variables),
        y=(max(-0.5, min(0.0, lowest) - 0.02), 1.05),
    )
    for j, (kind, name, role) in enumerate(PROBES):
        for i, row in enumerate(variables.values()):
            x, value = i + 0.2 * (j - 1), row[f"{kind}_r2"]
            figure.interval(x, *ends(row, kind), role)
            figure.dot(x, value, role, f"{name}: {value:.3f}", radius=3.6)
        figure.legend.append((role, "dot", name))
    return figure


# -- training --------------------------------------------------------------------------------------

# Metrics that share a plot: title, keys, logarithmic?
_PANELS = (
    (
        "Prediction error in training",
        ("train/one_step", "train/open_loop", "train/alignment"),
        True,
    ),
    (
        "Return of acting, evaluated, and without a plan",
        ("return", "evaluate/return", "aimless/return"),
        False,
    ),
    ("95% interval of evaluations", ("evaluate/low", "evaluate/high", "aimless/high"), False),
    (
        "What values promised, and the discounted return that followed",
        ("evaluate/value", "evaluate/followed"),
        False,
    ),
    ("Discrepancy to the Gaussian", ("train/discrepancy",), True),
    ("Effective rank of the latents", ("train/rank",), False),
    ("Epps-Pulley statistic of the latents", ("train/epps_pulley",), True),
    ("Loss, and the spread's part", ("loss", "train/nll"), False),
    ("Gradient norm", ("train/grad_norm",), True),
    ("Learning rate", ("train/lr",), False),
    ("Speed", ("frames_per_second",), False),
    ("Prediction error while the dynamics are refined", ("refine/mean_squared_error",), True),
    ("Minus the information of pairs while the reach is fitted", ("reach/loss",), False),
    ("Decoder, for pictures only", ("decoder/squared_error",), True),
)
_SERIES_ROLES = ("model", "second", "third", "linear")


def training_figures(metrics: Sequence[Report]) -> list[Figure]:
    """Curves of metrics.jsonl, the known ones grouped and any other on its own."""
    series: dict[str, list[tuple[float, float]]] = {}
    for row in metrics:
        for key, value in row.items():
            if key != "step" and value is not None:
                series.setdefault(key, []).append((row["step"], value))
    grouped = {key for _, group, _ in _PANELS for key in group}
    panels = [*_PANELS, *((key, (key,), False) for key in series if key not in grouped)]
    curves = [{key: series[key] for key in keys if key in series} for _, keys, _ in panels]
    return [
        _training_figure(title, lines, log)
        for (title, _, log), lines in zip(panels, curves)
        if lines
    ]


def _training_figure(
    title: str, curves: Mapping[str, list[tuple[float, float]]], log: bool
) -> Figure:
    log = log and all(value > 0 for rows in curves.values() for _, value in rows)
    short = [key.rpartition("/")[2] for key in curves]
    names = short if len(set(short)) == len(short) else curves  # return, or evaluate/return
    last = ", ".join(f"{name} {rows[-1][1]:.4g}" for name, rows in zip(names, curves.values()))
    figure = Figure(
        "training-" + "".join(c if c.isalnum() else "-" for c in next(iter(curves))),
        title,
        f"Last: {last}.",
        labels=("step", "log scale" if log else ""),
        log_y=log,
    )
    for (key, rows), role in zip(curves.items(), _SERIES_ROLES, strict=False):
        figure.line(*zip(*rows), role, key)
    return figure
