"""Films of episodes whose returns were measured, played again from their recorded actions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gjwm._core.drawing import fit
from gjwm._core.video import panel, write_video
from gjwm.data.acting import OneLane, RecordedActor, camera, play

_WIDTH = 128  # pixels of a picture in a film
_FRAMES = 500  # at most: of longer episodes some are left out, evenly
_FPS = 25


def film_extremes(
    folder: str | Path,
    env_id: str,
    env_kwargs: Mapping[str, Any],
    *,
    returns: np.ndarray,
    actions: np.ndarray,
    seed: int,
) -> list[Path]:
    """`folder`/best.mp4 and worst.mp4: of episodes that `play_returns` has played, the one that
    earned most and the one that earned least.

    Args:
        env_id, env_kwargs: see `gjwm.make_env`.
        returns: (E,).
        actions: (E, T, A), those of an episode after its end are left out.
        seed: of the first of the episodes.

    Raises:
        ValueError: for an environment that draws no pictures, or where an episode earns something
            else when it is played again.
    """
    folder, made = Path(folder), []
    for name in ("best", "worst"):
        (folder / f"{name}.mp4").unlink(missing_ok=True)  # an earlier run's
    env = camera(env_id, env_kwargs)
    try:
        for name, index in (("best", np.argmax(returns)), ("worst", np.argmin(returns))):
            frames, earned = _played(env, actions[index], seed + int(index))
            if not math.isclose(earned[-1], returns[index], rel_tol=1e-4, abs_tol=1e-4):
                raise ValueError(
                    f"{env_id} cannot be filmed: an episode that earned {returns[index]:.6g} "
                    f"earned {earned[-1]:.6g} when it was played again."
                )
            count = min(len(frames), _FRAMES)
            shown = np.linspace(0, len(frames) - 1, count).round().astype(int)
            film = panel(
                {f"{name} of {len(returns)}: {returns[index]:.1f}": frames[shown]},
                captions=[f"step {t}: {earned[t]:.1f}" for t in shown],
                scale=1,
            )
            made.append(write_video(folder / f"{name}.mp4", film, fps=_FPS, quality=24))
    finally:
        env.close()
    return made


def _played(env: Any, actions: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """An episode of actions (T, A) -> pictures (L+1, h, w, 3), and what it had earned (L+1,)."""
    lane = OneLane(env)
    o, _ = lane.reset(seed=seed)
    height, width = env.unwrapped.render().shape[:2]
    size = round(_WIDTH * height / width), _WIDTH

    def picture() -> np.ndarray:
        return fit(env.unwrapped.render()[None], *size)[0]

    frames, earned = [picture()], [0.0]
    for step in play(lane, RecordedActor(actions[None]), o, steps=len(actions)):
        frames.append(picture())
        earned.append(earned[-1] + float(step.r[0]))
        if step.ended[0]:
            break
    return np.stack(frames), np.array(earned)
