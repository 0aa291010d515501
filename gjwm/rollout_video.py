"""Film goal-reaching attempts: what happened | the goal | what the model imagined."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gjwm.collect import Episode, make_env
from gjwm.decoder import ConvDecoder
from gjwm.evaluate import attempt_goals, copies, goal_pairs_ahead, goal_pairs_from_resets, model_policy
from gjwm.planning import Planner
from gjwm.video import panel, write_video
from gjwm.world_model import WorldModel


def rollout_video(
    path: str | Path,
    model: WorldModel,
    decoder: ConvDecoder,
    env_id: str,
    env_kwargs: dict[str, Any],
    episodes: Sequence[Episode],
    planner: Planner,
    *,
    episodes_shown: int = 4,
    goals: str = "ahead",
    goal_offset: int | None = 12,
    steps: int = 25,
    horizon: int = 12,
    replan_every: int = 1,
    seed: int = 0,
    fps: int = 8,
    scale: int = 4,
) -> Path:
    """Attempt held-out goals and write one film of all attempts in turn (.mp4 or .gif, by suffix).

    The imagined column is the model's open-loop rollout: it sees the first observation and the executed actions, never a later
    picture, and is decoded for viewing. So its drift over the episode is the model's own.

    Returns:
        the path written.
    """
    kwargs = {**env_kwargs, "render_mode": "rgb_array"}
    envs = copies(make_env(env_id, **kwargs), episodes_shown)
    try:
        if goals == "ahead":
            pairs = goal_pairs_ahead(
                envs[0], episodes, offset=goal_offset, count=episodes_shown, rng=np.random.default_rng(seed)
            )
        else:
            pairs = goal_pairs_from_resets(envs[0], count=episodes_shown, seed=10_000_000 + seed)
        policy = model_policy(
            model,
            planner,
            pairs,
            horizon=horizon,
            replan_every=replan_every,
            generator=torch.Generator(model.device).manual_seed(seed),
        )
        first = [None]

        def remember_first(observation: np.ndarray, states: np.ndarray) -> np.ndarray:
            if first[0] is None:
                first[0] = observation
            return policy(observation, states)

        attempts = attempt_goals(envs, pairs, remember_first, steps=steps, record=True)
        radius = envs[0].unwrapped.success_radius
    finally:
        for env in envs:
            env.close()
    with torch.inference_mode():
        z0 = model.encode(torch.from_numpy(first[0]).to(model.device))
        a = torch.from_numpy(np.asarray(attempts.actions, np.float32)).to(model.device)
        imagined = decoder.image(model.rollout(z0, a)).cpu().numpy()  # (E, steps+1, C, h, w)
    channels = decoder.image_shape[0]
    films = []
    for i in range(episodes_shown):
        goal = np.moveaxis(pairs.goal_observation[i, -channels:], 0, -1)
        film = panel(
            {
                "what happened": attempts.frames[i],
                "goal": np.repeat(goal[None], steps + 1, 0),
                "imagined from step 0": np.moveaxis(imagined[i], 1, -1),
            },
            captions=[
                f"step {t:3d}   distance {d:.3f}" + ("   reached" if d <= radius else "")
                for t, d in enumerate(attempts.distance[i])
            ],
            scale=scale,
        )
        films.append(film)
    write_video(path, np.concatenate(films), fps=fps)
    return Path(path)
