"""Violation of expectation: does a world model notice what cannot happen?

Recorded episodes are spoiled in their pictures alone: an object jumps ("teleport"), changes colour
("colour"), or stands still while it should move ("frozen"). A step's score is its negative
log-probability per dimension, `WorldModel.surprise`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from scipy import stats
from torch import Tensor

from gjwm.data.dataset import Episode, newest_frames, restack
from gjwm.models.world_model import WorldModel

VIOLATIONS = ("teleport", "colour", "frozen")


class Spoiled(NamedTuple):
    """An episode with one impossible step."""

    o: np.ndarray  # (T+1, *O)
    a: np.ndarray  # (T, A)
    step: int  # the first step that cannot happen: from o[step] to o[step + 1]


def spoil(
    episode: Episode,
    kind: str,
    *,
    observation_space: spaces.Space,
    frame_stack: int = 1,
    frozen_steps: int = 5,
    rng: np.random.Generator,
) -> Spoiled:
    """One violation at a random step of an episode of pictures.

    teleport: the episode goes on from another of its own moments, at least a quarter of its length
    later and looking clearly different, with the actions taken there. colour: from the step on the
    colour channels are exchanged. frozen: for `frozen_steps` steps the picture stands still under
    the recorded actions.

    Raises:
        ValueError: for an unknown kind, observations other than pictures, or an episode too short.
    """
    if kind not in VIOLATIONS:
        raise ValueError(f"a violation must be one of {', '.join(VIOLATIONS)}, got {kind!r}.")
    if isinstance(episode.o, dict) or episode.o.ndim != 4:
        raise ValueError(
            "violations are painted into pictures; this episode has no picture observations alone."
        )
    length = len(episode.a)
    if length < 16:
        raise ValueError(f"a violation needs an episode of at least 16 steps, got {length}.")
    frames = newest_frames(episode.o, observation_space, frame_stack)
    a = episode.a
    step = int(rng.integers(4, length // 2))  # o[step + 1] is the first impossible picture
    if kind == "teleport":
        first = step + 1 + length // 4
        change = frames[first : length - 3].astype(np.float32) - frames[step]
        change = np.square(change.reshape(len(change), -1)).mean(1)
        # A moment that looks like this one, as where an agent rests, would be no jump.
        source = first + int(rng.choice(np.flatnonzero(change >= 0.9 * change.max())))
        frames = np.concatenate([frames[: step + 1], frames[source:]])
        # a[step] leads to the jump, then what was done there
        a = np.concatenate([a[: step + 1], a[source:]])
    elif kind == "colour":
        frames = np.concatenate([frames[: step + 1], frames[step + 1 :, [1, 2, 0]]])
    else:
        still = np.repeat(frames[step : step + 1], frozen_steps, 0)
        frames = np.concatenate([frames[: step + 1], still, frames[step + 1 :]])
        a = np.concatenate([a[: step + frozen_steps], a[step:]])
    return Spoiled(restack(frames, observation_space, frame_stack), a, step)


def auroc(positive: Tensor, negative: Tensor) -> float:
    """P(a positive scores higher than a negative), ties counted half."""
    p, n = len(positive), len(negative)
    ranks = stats.rankdata(torch.cat([positive, negative]).numpy())
    return float((ranks[:p].sum() - p * (p + 1) / 2) / (p * n))


@torch.inference_mode()
def violation_report(
    model: WorldModel,
    episodes: Sequence[Episode],
    *,
    observation_space: spaces.Space,
    frame_stack: int = 1,
    frozen_steps: int = 5,
    level: float = 0.01,
    seed: int = 0,
) -> dict[str, float | dict[str, float]]:
    """How well surprise tells violations from ordinary steps of the same held-out episodes.

    Args:
        episodes: of pictures, none of which trained or calibrated the model.
        level: p-value below which a step raises an alarm.
        seed: of where violations happen.

    Returns:
        false_alarm_rate: share of ordinary steps with a p-value below `level`, ideally `level`; and
        per violation auroc (the violating step's score against all ordinary steps; for frozen, the
        largest score over the frozen steps against the largest over as many ordinary steps) and
        detection_rate (share of episodes with an alarm there).
    """

    def scores(o: np.ndarray, a: np.ndarray) -> tuple[Tensor, Tensor]:
        surprise = model.surprise(
            torch.from_numpy(o)[None].to(model.device), torch.from_numpy(a)[None].to(model.device)
        )
        return surprise.score[0].cpu(), surprise.p_value[0].cpu()

    ordinary = [scores(e.o, e.a) for e in episodes]
    plain = torch.cat([s for s, _ in ordinary])
    windows = torch.cat([s.unfold(0, frozen_steps, frozen_steps).amax(-1) for s, _ in ordinary])
    report: dict[str, float | dict[str, float]] = {
        "false_alarm_rate": (torch.cat([p for _, p in ordinary]) < level).float().mean().item(),
        "level": level,
        "episodes": len(episodes),
    }
    for kind in VIOLATIONS:
        rng = np.random.default_rng([seed, VIOLATIONS.index(kind)])
        peaks, alarms = [], []
        for episode in episodes:
            spoiled = spoil(
                episode,
                kind,
                observation_space=observation_space,
                frame_stack=frame_stack,
                frozen_steps=frozen_steps,
                rng=rng,
            )
            score, p = scores(spoiled.o, spoiled.a)
            there = slice(spoiled.step, spoiled.step + (frozen_steps if kind == "frozen" else 1))
            peaks.append(score[there].max())
            alarms.append((p[there] < level).any())
        report[kind] = {
            "auroc": auroc(torch.stack(peaks), windows if kind == "frozen" else plain),
            "detection_rate": torch.stack(alarms).float().mean().item(),
        }
    return report
