"""Three lines on a model: is it good, why, and what to change. The rules stand here and nowhere
else.

A model is judged by the goals it reaches, against chance and against iCEM on the true simulator.
The reason is the first broken link of the chain that planning stands on:

    collapse -> representation -> prediction -> uncertainty -> planner

A later link cannot be judged while an earlier one is broken. What holds but is odd is a remark."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Report = Mapping[str, Any]

# Of the oracle's success, or of all goals without an oracle.
GOOD_SHARE = 0.9
# Below, planning fails with a perfect model and success says little about this one.
ORACLE_FLOOR = 0.8
EASY = 0.5  # success of chance above which reaching a goal proves little
COLLAPSED_VARIANCE = 0.1  # of z per dimension, where 1 is asked for
COLLAPSED_RANK = 0.1  # effective rank over that of a Gaussian batch
READABLE = 0.9  # R² of the best probe of the position
PREDICTABLE = 0.5  # R² at the horizon: half of the variance
COVERAGE = (0.8, 0.97)  # what 90% intervals may hold
UNUSED_RANK = 0.6  # of the ideal: a remark, a good model may need fewer directions than it has
FAR_FROM_GAUSSIAN = 5.0  # times the Epps-Pulley statistic of a Gaussian sample: a remark


@dataclass(frozen=True)
class Finding:
    """A broken link of the chain, or a remark."""

    name: str
    why: str
    change: str


@dataclass(frozen=True)
class Verdict:
    """What a reader needs first.

    Args:
        grade: "good", "partly", "poor" or "undecided".
        lines: is it good, why, what to change.
        broken: links that failed, in the chain's order; remarks: what holds but is odd.
    """

    grade: str
    lines: tuple[str, str, str]
    broken: tuple[Finding, ...]
    remarks: tuple[Finding, ...]


def judge(report: Report) -> Verdict:
    """The verdict on an evaluation.json.

    Raises:
        KeyError: when the report lacks prediction, probe, gaussianity, calibration or planning.
    """
    broken = tuple(finding for check in _CHAIN if (finding := check(report)) is not None)
    remarks = tuple(finding for check in _REMARKS if (finding := check(report)) is not None)
    grade, first = _grade(report, broken)
    strengths = _strengths(report)
    if grade == "good" and broken:
        why, change = f"{strengths} But: {broken[0].why}", broken[0].change
    elif broken:
        why, change = broken[0].why, broken[0].change
    elif grade == "good":
        why, change = strengths, "Nothing stands out. Ask for harder goals or a longer horizon."
        change = remarks[0].change if remarks else change
    elif grade == "undecided":
        why = strengths
        change = (
            "Ask for goals that chance does not reach: a larger evaluate.goal_offset or fewer "
            "evaluate.steps."
        )
    elif report["planning"].get("oracle") is None:
        why = f"{strengths} It was not measured whether the planner or the model falls short."
        change = (
            "Set evaluate.oracle=true. iCEM then plans on the true simulator, which shows what "
            "planning can reach."
        )
    else:
        why = f"{strengths} So distances in latent space mislead the planner."
        change = (
            "Look at the failures below. Then change the planner (samples, horizon, replan_every) "
            "or the cost."
        )
    return Verdict(grade, (first, why, change), broken, remarks)


def _grade(report: Report, broken: tuple[Finding, ...]) -> tuple[str, str]:
    planning = report["planning"]
    rate, (low, _) = planning["success_rate"], planning["ci95"]
    chance = max((planning[k] for k in ("random", "hold")), key=lambda row: row["success_rate"])
    best = (planning.get("oracle") or {}).get("success_rate")
    against = f"chance {chance['success_rate']:.0%}"
    against += "" if best is None else f", true simulator {best:.0%}"
    reaches = f"It reaches {rate:.0%} of {planning['episodes']} goals ({against})."
    if any(finding.name == "collapse" for finding in broken):
        return "poor", f"Not good. The latents have collapsed. {reaches}"
    if best is not None and best < ORACLE_FLOOR:
        return "undecided", f"Undecided. Planning fails even on the true simulator. {reaches}"
    if low <= chance["ci95"][1]:
        return "poor", f"Not good. {reaches} That is not clearly above chance."
    if best is None and rate < GOOD_SHARE:
        return "partly", f"Partly. {reaches} What planning can reach was not measured."
    if best is not None and rate / best < GOOD_SHARE:
        return "partly", f"Partly. {reaches} That is {rate / best:.0%} of the true simulator's."
    if chance["success_rate"] >= EASY:
        return "undecided", f"Undecided. {reaches} Goals this easy prove little."
    return "good", f"Good. {reaches}"


def _strengths(report: Report) -> str:
    prediction = report["prediction"]
    linear = prediction.get("linear_gaussian")
    against = "" if linear is None else f"linear {linear['r2_by_horizon'][-1]:.2f}, "
    against += f"copying {prediction['copy_last_r2_by_horizon'][-1]:.2f}"
    return (
        f"R² {prediction['horizon']} steps ahead is {prediction['r2_by_horizon'][-1]:.2f} "
        f"({against}). 90% intervals hold {report['calibration']['coverage_90']:.0%}. The position "
        f"is read from z with R² {best_probe(report['probe']):.2f}."
    )


# -- the chain -------------------------------------------------------------------------------------


def _rank(report: Report) -> tuple[float, float]:
    """Effective rank of the latents, and of a Gaussian batch."""
    gaussianity = report["gaussianity"]
    return gaussianity["effective_rank"], gaussianity["effective_rank_ideal"]


def _collapse(report: Report) -> Finding | None:
    variance, (rank, ideal) = report["prediction"]["variance_per_dim"], _rank(report)
    if variance >= COLLAPSED_VARIANCE and rank / ideal >= COLLAPSED_RANK:
        return None
    return Finding(
        "collapse",
        f"The latents have variance {variance:.2g} per dimension (asked: 1) and {rank / ideal:.0%} "
        "of the ideal effective rank.",
        "Train longer (train.steps) or raise objective.lam. Check that there is a discrepancy and "
        "that output_norm is batch.",
    )


def best_probe(probe: Report) -> float:
    """The highest R² of the linear, nearest-neighbour and MLP probes."""
    return max(probe["knn_r2"], probe["mlp_r2"], probe["linear_r2"])


def _representation(report: Report) -> Finding | None:
    best = best_probe(report["probe"])
    if best >= READABLE:
        return None
    return Finding(
        "representation",
        f"The position cannot be read from z: the best probe has R² {best:.2f} (needed: "
        f"{READABLE}).",
        "Collect more varied data, set train.episodes (few per batch, against constant layouts), "
        "raise train.steps or latent_dim.",
    )


def _prediction(report: Report) -> Finding | None:
    prediction = report["prediction"]
    ours, copied = prediction["r2_by_horizon"][-1], prediction["copy_last_r2_by_horizon"][-1]
    linear = prediction.get("linear_gaussian", {}).get("r2_by_horizon", [float("-inf")])[-1]
    why = f"R² {prediction['horizon']} steps ahead is {ours:.2f}"
    if ours < PREDICTABLE:
        why = f"Prediction fades. {why} (needed: {PREDICTABLE})."
    elif ours <= copied:
        why = f"Prediction is no better than copying the last latent. {why}, copying {copied:.2f}."
    elif ours <= linear:
        why = f"Prediction is no better than a linear law. {why}, the linear law's {linear:.2f}."
    else:
        return None
    return Finding(
        "prediction",
        why,
        "Refine the dynamics (refine.steps), train longer (train.steps), on longer windows "
        "(train.length), with wider dynamics.hidden, or collect more.",
    )


def _uncertainty(report: Report) -> Finding | None:
    calibration = report["calibration"]
    held = {1: calibration["coverage_90"]}
    for key, law in calibration.items():
        if key.startswith("horizon_"):
            held[int(key.removeprefix("horizon_"))] = law["coverage_90"]
    steps, coverage = max(held.items(), key=lambda item: abs(item[1] - 0.9))
    if COVERAGE[0] <= coverage <= COVERAGE[1]:
        return None
    side = "too sure" if coverage < COVERAGE[0] else "too unsure"
    return Finding(
        "uncertainty",
        f"The model is {side}: 90% intervals {steps} step{'s' * (steps > 1)} ahead hold "
        f"{coverage:.0%}.",
        "Calibrate on more held-out episodes (calibrate.episodes, calibrate.horizon). Do not plan "
        "with particles before that.",
    )


def _planner(report: Report) -> Finding | None:
    oracle = report["planning"].get("oracle")
    if oracle is None or oracle["success_rate"] >= ORACLE_FLOOR:
        return None
    return Finding(
        "planner",
        f"iCEM reaches {oracle['success_rate']:.0%} on the true simulator (needed: "
        f"{ORACLE_FLOOR:.0%}).",
        "Solve the task on the simulator first: planner.samples, planner.iterations, "
        "evaluate.horizon.",
    )


def _unused(report: Report) -> Finding | None:
    rank, ideal = _rank(report)
    if rank / ideal >= UNUSED_RANK:
        return None
    why = f"The latents use {rank:.1f} of {ideal:.1f} directions."
    change = "A smaller latent_dim plans faster and may do as well."
    return Finding("unused directions", why, f"{why} {change}")


def _not_gaussian(report: Report) -> Finding | None:
    ours, null = report["gaussianity"]["epps_pulley"], report["gaussianity"]["epps_pulley_null"]
    if ours <= FAR_FROM_GAUSSIAN * null:
        return None
    why = f"The Epps-Pulley statistic is {ours:.1f}. A Gaussian sample has {null:.2f}."
    return Finding("far from Gaussian", why, f"{why} Raise objective.lam or train.steps.")


_Check = Callable[[Report], Finding | None]
_CHAIN: tuple[_Check, ...] = (_collapse, _representation, _prediction, _uncertainty, _planner)
_REMARKS: tuple[_Check, ...] = (_not_gaussian, _unused)
