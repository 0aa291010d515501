"""Three lines on a model: is it good, why, and what to change. The rules are written down here and
nowhere else.

A model is first judged by what it is for: reaching goals, against chance and against the same
planner on the true simulator. The reason is then looked for along the chain that planning stands
on, in this order, and the first broken link is named:

    collapse -> representation -> prediction -> uncertainty -> planner

because a later link cannot be judged while an earlier one is broken. Links that hold but look odd
become remarks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Report = Mapping[str, Any]

# Of the oracle's success (the model costs the planner little), or of all goals without an oracle.
GOOD_SHARE = 0.9
# Below, the planner fails with a perfect model and success says little about this one.
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
    """One link of the chain that is broken, or a remark."""

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
    if grade == "good":
        why = _strengths(report)
        change = (
            remarks[0].change
            if remarks
            else "Nothing stands out. Ask more of it: harder goals, a longer horizon."
        )
        if broken:
            why, change = f"{why} Yet {_lower(broken[0].why)}", broken[0].change
    elif broken:
        why, change = broken[0].why, broken[0].change
    elif grade == "undecided":
        why, change = _strengths(report), _HARDER
    elif report["planning"].get("oracle") is None:
        why = f"{_strengths(report)} Whether the planner or the model falls short was not measured."
        change = (
            "Set evaluate.oracle=true, where the world allows it: the same planner on the true "
            "simulator tells the model's loss from the planner's."
        )
    else:
        why = (
            f"{_strengths(report)} So the loss lies between prediction and planning: distances in "
            "latent space mislead."
        )
        change = (
            "Look at the failures below, then try the planner (samples, horizon, "
            "replan_every) and the goal's cost."
        )
    return Verdict(grade, (first, why, change), broken, remarks)


_SEARCH = (
    "Make the planner solve the task on the simulator first: planner.samples, planner.iterations, "
    "evaluate.horizon."
)
_HARDER = (
    "Ask for goals that chance does not reach: evaluate.goal_offset further ahead, or fewer "
    "evaluate.steps."
)


def _grade(report: Report, broken: tuple[Finding, ...]) -> tuple[str, str]:
    planning = report["planning"]
    rate, (low, _) = planning["success_rate"], planning["ci95"]
    chance = max((planning[k] for k in ("random", "hold")), key=lambda row: row["success_rate"])
    oracle = planning.get("oracle")
    against = f"chance {chance['success_rate']:.0%}"
    if oracle is not None:
        against += f", true simulator {oracle['success_rate']:.0%}"
    success = f"reaches {rate:.0%} of {planning['episodes']} goals ({against})"
    if any(finding.name == "collapse" for finding in broken):
        return "poor", f"Not good: the latents have collapsed; the model {success}."
    if oracle is not None and oracle["success_rate"] < ORACLE_FLOOR:
        return (
            "undecided",
            f"Undecided: the planner fails even on the true simulator; the model {success}.",
        )
    if low <= chance["ci95"][1]:
        return "poor", f"Not good: it {success}, which is not clearly above chance."
    if oracle is None and rate < GOOD_SHARE:
        return "partly", f"Partly: it {success}. What its planner could do was not measured."
    if oracle is not None and (share := rate / oracle["success_rate"]) < GOOD_SHARE:
        return "partly", f"Partly: it {success}, {share:.0%} of what its planner could do."
    if chance["success_rate"] >= EASY:
        return "undecided", f"Undecided: it {success}, but goals this easy prove little."
    return "good", f"Good: it {success}."


def _strengths(report: Report) -> str:
    prediction, probe, calibration = report["prediction"], report["probe"], report["calibration"]
    linear = prediction.get("linear_gaussian")
    against = f"copying {prediction['copy_last_r2_by_horizon'][-1]:.2f}"
    if linear is not None:
        against = f"linear {linear['r2_by_horizon'][-1]:.2f}, {against}"
    return (
        f"It predicts {prediction['horizon']} steps with R² {prediction['r2_by_horizon'][-1]:.2f} "
        f"({against}), its 90% intervals hold {calibration['coverage_90']:.0%}, and the position "
        f"is read from z with R² {best_probe(probe):.2f}."
    )


def _lower(sentence: str) -> str:
    return sentence[:1].lower() + sentence[1:]


# -- the chain -------------------------------------------------------------------------------------


def _collapse(report: Report) -> Finding | None:
    variance = report["prediction"]["variance_per_dim"]
    rank = report["gaussianity"]["effective_rank"] / report["gaussianity"]["effective_rank_ideal"]
    if variance >= COLLAPSED_VARIANCE and rank >= COLLAPSED_RANK:
        return None
    return Finding(
        "collapse",
        f"The latents have variance {variance:.2g} per dimension (asked: 1) and {rank:.0%} of the "
        f"ideal effective rank.",
        "Train longer (train.steps) or raise objective.lam; check that a discrepancy is used and "
        "output_norm is batch.",
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
        "Let latents show what moves: more varied data, train.episodes (few per batch, against "
        "constant layouts), more train.steps, or a larger latent_dim.",
    )


def _prediction(report: Report) -> Finding | None:
    prediction = report["prediction"]
    ours, copied = prediction["r2_by_horizon"][-1], prediction["copy_last_r2_by_horizon"][-1]
    linear = prediction.get("linear_gaussian", {}).get("r2_by_horizon", [float("-inf")])[-1]
    change = (
        "Refine the dynamics (refine.steps), train longer (train.steps), on longer windows "
        "(train.length), with wider dynamics.hidden, or collect more."
    )
    if ours < PREDICTABLE:
        why = (
            f"Prediction fades: R² {ours:.2f} after {prediction['horizon']} steps (needed: "
            f"{PREDICTABLE})."
        )
    elif ours <= copied:
        why = (
            f"Prediction is no better than copying the last latent: R² {ours:.2f} against "
            f"{copied:.2f}."
        )
    elif ours <= linear:
        why = (
            f"The dynamics predict no better than a linear law of the same latents: R² {ours:.2f} "
            f"against {linear:.2f}."
        )
    else:
        return None
    return Finding("prediction", why, change)


def _uncertainty(report: Report) -> Finding | None:
    laws = {1: report["calibration"]}
    laws |= {
        int(k.removeprefix("horizon_")): v
        for k, v in report["calibration"].items()
        if k.startswith("horizon_")
    }
    steps, law = max(laws.items(), key=lambda item: abs(item[1]["coverage_90"] - 0.9))
    coverage = law["coverage_90"]
    if COVERAGE[0] <= coverage <= COVERAGE[1]:
        return None
    side = "too sure" if coverage < COVERAGE[0] else "too unsure"
    return Finding(
        "uncertainty",
        f"The model is {side}: 90% intervals {steps} step{'s' * (steps > 1)} ahead hold "
        f"{coverage:.0%}.",
        "Calibrate on more held-out episodes (calibrate.episodes, calibrate.horizon), and do not "
        "plan with particles until it holds.",
    )


def _planner(report: Report) -> Finding | None:
    oracle = report["planning"].get("oracle")
    if oracle is None or oracle["success_rate"] >= ORACLE_FLOOR:
        return None
    return Finding(
        "planner",
        f"The planner reaches {oracle['success_rate']:.0%} on the true simulator (needed: "
        f"{ORACLE_FLOOR:.0%}).",
        _SEARCH,
    )


_CHAIN: tuple[Callable[[Report], Finding | None], ...] = (
    _collapse,
    _representation,
    _prediction,
    _uncertainty,
    _planner,
)


# -- remarks ---------------------------------------------------------------------------------------


def _unused(report: Report) -> Finding | None:
    rank, ideal = (
        report["gaussianity"]["effective_rank"],
        report["gaussianity"]["effective_rank_ideal"],
    )
    if rank / ideal >= UNUSED_RANK:
        return None
    return Finding(
        "unused directions",
        f"The latents use {rank:.1f} of {ideal:.1f} directions.",
        f"It uses {rank:.1f} of {ideal:.1f} latent directions: a smaller latent_dim plans faster "
        f"and may do as well.",
    )


def _not_gaussian(report: Report) -> Finding | None:
    ours, null = report["gaussianity"]["epps_pulley"], report["gaussianity"]["epps_pulley_null"]
    if ours <= FAR_FROM_GAUSSIAN * null:
        return None
    return Finding(
        "far from Gaussian",
        f"The Epps-Pulley statistic is {ours:.1f} where a Gaussian sample has {null:.2f}.",
        f"The latents are {ours / null:.0f} times as far from Gaussian as a sample's own noise: "
        f"more objective.lam or steps.",
    )


_REMARKS: tuple[Callable[[Report], Finding | None], ...] = (_not_gaussian, _unused)
