"""Signs that a training from reward learns nothing: the rules stand here and nowhere else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gjwm.evaluation.verdict import COLLAPSED_VARIANCE, Finding

# A mechanism has a position and a velocity at least: on fewer directions no state fits. Of very
# small latents half of the directions will do.
LEAST_RANK = 2.0
# Values beyond what the largest reward, paid for ever, is worth are wrong; of an estimate the
# double is asked for before that is said.
RUNAWAY = 2.0
AT_THE_END = 0.9  # of the range of two-hot bins: beyond, they cannot say how much
ENOUGH = 6  # evaluations, of which the last third is then two


@dataclass(frozen=True, kw_only=True)
class Signs:
    """What a training from reward has shown so far; None where it is not known.

    Args:
        steps: agent steps; 0 where only data were learned from.
        largest_reward: |reward| at most.
        rank, std: of the latents of an update, see `gjwm.evaluation.geometry.glance`.
        latent_dim: D.
        value: mean action value of the states of an update.
        discount: g per step.
        value_ends: least and largest number that the values can say.
        value_begun: what they say before they have learned anything.
        evaluations: mean returns, in order.
        aimless, aimless_high: mean return of the episodes without a plan, and the upper end of its
            95% interval.
    """

    steps: int
    largest_reward: float | None = None
    rank: float | None = None
    std: float | None = None
    latent_dim: int | None = None
    value: float | None = None
    discount: float = 1.0
    value_ends: tuple[float, float] | None = None
    value_begun: float = 0.0
    evaluations: Sequence[float] = ()
    aimless: float | None = None
    aimless_high: float | None = None


def ailments(signs: Signs) -> tuple[Finding, ...]:
    """What is wrong with a training, and what to change; nothing where all is well or unknown."""
    checks = (_no_reward, _collapse, _runaway, _no_better)
    found = [finding for check in checks if (finding := check(signs)) is not None]
    # Without a reward chance cannot be beaten: the reason is enough.
    silent = {"no better"} if any(finding.name == "no reward" for finding in found) else set()
    return tuple(finding for finding in found if finding.name not in silent)


def sentence(finding: Finding) -> str:
    """A finding for the console and the page."""
    return f"{finding.why} {finding.change}"


def _no_reward(signs: Signs) -> Finding | None:
    if signs.largest_reward is None or signs.largest_reward > 0:
        return None
    if not signs.steps:
        return Finding(
            "no reward",
            "No reward but 0 in the data that were learned from.",
            "Collect episodes that earn something.",
        )
    return Finding(
        "no reward",
        f"No reward but 0 was seen in {signs.steps:,} steps: there is nothing to learn from yet.",
        "Act aimlessly for longer (online.aimless_limit) or louder (online.exploration.loudness), "
        "and check that the environment pays at all.",
    )


def _collapse(signs: Signs) -> Finding | None:
    change = "Raise objective.lam, and check that encoder.output_norm is batch."
    if signs.rank is not None:
        least = LEAST_RANK if signs.latent_dim is None else min(LEAST_RANK, signs.latent_dim / 2)
        if signs.rank < least:
            why = f"The latents have collapsed: their effective rank is {signs.rank:.1f}"
            asked = "" if signs.latent_dim is None else f" of {signs.latent_dim}"
            return Finding("collapse", f"{why}{asked}.", change)
    if signs.std is not None and signs.std**2 < COLLAPSED_VARIANCE:
        why = f"The latents have collapsed: their standard deviation is {signs.std:.2g} (asked: 1)."
        return Finding("collapse", why, change)
    return None


def _runaway(signs: Signs) -> Finding | None:
    value = signs.value
    if value is None:
        return None
    low, high = signs.value_ends or (0.0, 0.0)
    if (low < 0 and value < AT_THE_END * low) or (high > 0 and value > AT_THE_END * high):
        return Finding(
            "runaway",
            f"Values have run to the end of what they can say: {value:,.1f} on average, between "
            f"{low:,.1f} and {high:,.1f}.",
            "Lower learner.value_lr, or widen heads.value.low and high if returns are that large.",
        )
    if not signs.largest_reward or signs.discount >= 1:
        return None
    worth = signs.largest_reward / (1 - signs.discount)
    if abs(value) <= RUNAWAY * max(worth, abs(signs.value_begun)):
        return None
    return Finding(
        "runaway",
        f"Values run away: {value:,.1f} on average, where rewards of at most "
        f"{signs.largest_reward:.3g} are worth {worth:,.1f} for ever.",
        "Lower learner.value_lr or learner.target_rate.",
    )


def _no_better(signs: Signs) -> Finding | None:
    count, chance = len(signs.evaluations), signs.aimless
    if count < ENOUGH or chance is None:
        return None
    last = signs.evaluations[-(count // 3) :]
    earned = float(np.mean(last))
    high = chance if signs.aimless_high is None else signs.aimless_high
    if earned > high:
        return None
    return Finding(
        "no better",
        f"The last {len(last)} of {count} evaluations earned {earned:,.1f}, not clearly more than "
        f"actions without a plan ({chance:,.1f}, at most {high:,.1f} at 95%).",
        "Look whether train/reward and train/value fall; if they do, update more "
        "(online.update_ratio) or act for longer (online.steps).",
    )
