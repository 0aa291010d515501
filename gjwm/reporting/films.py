"""Film goal-reaching attempts: what happened | the goal | what the model imagined | how sure it
was, over curves.

Attempts are judged first; those that are filmed are played again from their recorded actions. What
is imagined is the model's open loop: it sees the first observation whose stack of pictures is full
and the executed actions, never a later picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from PIL import Image
from torch import Generator, Tensor

from gjwm._core.drawing import (
    IMAGINED,
    TRUTH,
    UNSURE,
    Curves,
    draw_curves,
    draw_paths,
    fit,
    grid_film,
    spread_of,
    stack_films,
)
from gjwm._core.settings import check
from gjwm._core.video import check_suffix, panel, write_video
from gjwm.data.acting import OneLane, RecordedActor, camera, goal_distance, play
from gjwm.data.dataset import Episode
from gjwm.evaluation import Details, Evaluation
from gjwm.evaluation.evaluate import Task, attempt, held_out_episodes
from gjwm.evaluation.goals import CostOfGoals, GoalPairs, check_cost, usual_cost
from gjwm.evaluation.prediction import encode_episodes
from gjwm.evaluation.probes import Readout, mlp_readout
from gjwm.models.calibration import past_of
from gjwm.models.decoder import ConvDecoder
from gjwm.models.world_model import WorldModel
from gjwm.planning import Planner

_WIDEST = 320  # pixels of one picture in a film


@dataclass(frozen=True)
class Recording:
    """One attempt played again, T steps."""

    observations: np.ndarray  # (T+1, *O)
    frames: np.ndarray  # uint8 (T+1, h, w, 3)
    goal: np.ndarray  # uint8 (h, w, 3), the goal at rest
    rewards: np.ndarray  # (T,)


def play_again(env: gymnasium.Env, pairs: GoalPairs, actions: np.ndarray, index: int) -> Recording:
    """Attempt `index` of `attempt_goals` once more, with its seed and so with its noise; actions
    are those of all attempts (E, T, A).
    """
    world, lane = env.unwrapped, OneLane(env)
    env.reset(seed=index)
    world.set_state(pairs.goal[index])
    goal = world.render()
    env.reset(seed=index)
    world.set_state(pairs.start[index])
    observations, frames, rewards = [world.observe()], [world.render()], []
    recorded = RecordedActor(actions[index : index + 1])
    for step in play(lane, recorded, observations[0][None], actions.shape[1]):
        observations.append(step.following[0])
        frames.append(world.render())
        rewards.append(float(step.r[0]))
    return Recording(np.stack(observations), np.stack(frames), goal, np.array(rewards))


def position_readout(
    latents: Tensor, episodes: Sequence[Episode], *, generator: Generator
) -> Readout:
    """z -> position for drawings, fitted on held-out latents (E, T+1, D)."""
    position = torch.from_numpy(np.concatenate([e.position for e in episodes])).double()
    return mlp_readout(
        latents.flatten(0, 1).double().cpu(), position, steps=600, generator=generator
    )


@dataclass(frozen=True)
class Filming:
    """All that films of attempts are drawn from.

    Args:
        env: renders pictures, see `camera`.
        details: the pairs, attempts and plans of an evaluation.
        decoder: z -> picture; None leaves the imagined columns out.
        position: z -> position; None leaves out what needs one: plans over the picture, imagined
            distances.
        imagined_from: the step that the open loop starts from, whose stack of pictures is full.
        particles: samples of the open loop.
        scale: pixels of a film per pixel of a picture, up to 320 wide; None: about 192 wide.
        seed: of the particles.
    """

    model: WorldModel
    env: gymnasium.Env
    details: Details
    decoder: ConvDecoder | None = None
    position: Readout | None = None
    imagined_from: int = 0
    particles: int = 24
    scale: int | None = None
    seed: int = 0

    @torch.inference_mode()
    def film(self, index: int, *, per_row: int | None = None) -> np.ndarray:
        """Attempt `index` -> uint8 (T+1, H, W, 3), see the module."""
        recording = play_again(self.env, self.details.pairs, self.details.attempts.actions, index)
        device = self.model.device
        z = self.model.encode(torch.from_numpy(recording.observations).to(device))  # (T+1, D)
        a = torch.from_numpy(np.asarray(self.details.attempts.actions[index], np.float32)).to(
            device
        )
        generator = torch.Generator(device).manual_seed(self.seed)
        s = min(self.imagined_from, len(a) - 1)
        mean, samples = self._imagined(z, a, s, a[s:], self.particles, generator)
        mean = torch.cat([z[:s], mean[0]])  # (T+1, D)
        samples = torch.cat([z[:s].expand(self.particles, -1, -1), samples], 1)  # (P, T+1, D)

        size = self._size(*recording.goal.shape[:2])
        happened = fit(recording.frames, *size)
        trace = self._plan_traces(index, z, a, generator)
        columns = {"what happened": happened if trace is None else draw_paths(happened, trace)}
        columns["goal"] = np.repeat(fit(recording.goal[None], *size), len(z), 0)
        if self.decoder is not None:
            columns[f"imagined from step {s}"] = fit(self._decoded(mean), *size)
            columns["where it is unsure"] = fit(spread_of(self._decoded(samples)), *size)
        distance, radius = self.details.attempts.distance[index], self.env.unwrapped.success_radius
        captions = [
            f"step {t:3d}   distance {d:.3f}" + ("   reached" if t and d <= radius else "")
            for t, d in enumerate(distance)
        ]
        top = panel(columns, captions=captions, scale=1, per_row=per_row)
        plots = self._curves(index, recording, z, mean, samples)
        return stack_films([top, draw_curves(plots, width=top.shape[2])])

    def small(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """For a grid: frames (T+1, h, w, 3) with the goal shining through, and where it is reached
        (T+1,).
        """
        recording = play_again(self.env, self.details.pairs, self.details.attempts.actions, index)
        mixed = (0.7 * recording.frames + 0.3 * recording.goal).astype(np.uint8)
        near = self.details.attempts.distance[index] <= self.env.unwrapped.success_radius
        near[0] = False
        height, width = self._size(*mixed.shape[1:3])
        return fit(mixed, height * 3 // 4, width * 3 // 4), np.maximum.accumulate(near)

    def _size(self, height: int, width: int) -> tuple[int, int]:
        """Of a picture in a film, from its own."""
        scale = max(1, round(192 / width)) if self.scale is None else self.scale
        scale = min(scale, max(1, _WIDEST // width)) if width <= _WIDEST else _WIDEST / width
        return round(height * scale), round(width * scale)

    def _imagined(
        self, z: Tensor, a: Tensor, step: int, ahead: Tensor, particles: int, generator: Generator
    ) -> tuple[Tensor, Tensor]:
        """Open loop of actions (H, A) from a step: mean (1, H+1, D), samples (P, H+1, D)."""
        past = past_of(z[None], a[None], step) if self.model.dynamics.has_memory else None
        start, ahead = z[step : step + 1], ahead[None]
        mean = self.model.rollout(start, ahead, past=past)
        return mean, self.model.rollout(start, ahead, particles, generator, past=past)[0]

    def _positions(self, z: Tensor) -> np.ndarray:
        """z (P, L, D) -> (P, L, 2)."""
        return self.position(z.flatten(0, 1).cpu()).view(*z.shape[:2], -1).numpy()

    def _decoded(self, z: Tensor) -> np.ndarray:
        return np.moveaxis(self.decoder.image(z).cpu().numpy(), -3, -1)

    def _plan_traces(
        self, index: int, z: Tensor, a: Tensor, generator: Generator
    ) -> list[np.ndarray | None] | None:
        """Per frame, what is left of the plan in force: (1 + P, L, 2) shares of the picture, the
        mean first.
        """
        seen_at = getattr(self.env.unwrapped, "image_position", None)
        known = self.position is not None and seen_at is not None
        if not known or seen_at(self.details.pairs.goal_position[index]) is None:
            return None
        traces: list[np.ndarray | None] = [None] * len(z)
        for step, means in self.details.plans:
            plan = torch.from_numpy(means[index]).to(z)
            path = seen_at(
                self._positions(torch.cat(self._imagined(z, a, step, plan, 8, generator)))
            )
            for t in range(step, min(len(z), step + path.shape[1] - 1)):
                traces[t] = path[:, t - step :]
        return traces

    def _curves(
        self, index: int, recording: Recording, z: Tensor, mean: Tensor, samples: Tensor
    ) -> list[Curves]:
        lines, band = [("true", TRUTH, self.details.attempts.distance[index])], None
        radius = self.env.unwrapped.success_radius
        if self.position is not None:
            goal = self.details.pairs.goal_position[index]
            away = goal_distance(self.env.unwrapped, self._positions(samples), goal)
            low, middle, high = np.quantile(away, [0.05, 0.5, 0.95], axis=0)
            lines.append(("imagined, 90%", IMAGINED, middle))
            band = (IMAGINED, low, high)
        plots = [Curves("distance to the goal", lines, band, level=radius)]
        error = (mean - z).square().mean(-1).sqrt().cpu().numpy()
        spread = samples.var(0).mean(-1).sqrt().cpu().numpy()
        plots.append(
            Curves("open loop, units of z", [("error", TRUTH, error), ("expected", UNSURE, spread)])
        )
        if recording.rewards.any():
            total = np.concatenate([[0.0], recording.rewards.cumsum()])
            plots.append(Curves("reward so far", [("task's own", TRUTH, total)]))
        return plots


def films_of(model: WorldModel, task: Task, details: Details, **drawing: Any) -> Filming:
    """Ready to film the attempts of an evaluation; `drawing` are further arguments of `Filming`.

    Raises:
        ValueError: when the environment draws no pictures.
    """
    return Filming(
        model,
        camera(task.env_id, task.env_kwargs),
        details,
        imagined_from=task.frame_stack - 1,
        **drawing,
    )


def film_attempts(
    model: WorldModel,
    task: Task,
    settings: Evaluation,
    *,
    count: int,
    planner: Planner | None = None,
    cost: CostOfGoals | None = None,
    readout_episodes: int = 64,
    workers: int | None = None,
    notify: Callable[[str], Any] = lambda message: None,
) -> Filming:
    """Attempt `count` held-out goals with the model, ready to be filmed.

    Args:
        planner: None: the usual search among the environment's actions.
        cost: goals (B, D) -> the cost of plans towards them; None: as `gjwm.evaluate`.
        readout_episodes: held-out episodes that teach z -> position; 0: films show no plans.
        workers: processes that collect, see `collect_episodes`.
        notify: told what is being done.

    Raises:
        ValueError: when the environment draws no pictures, or the cost asks for a reach and the
            model has none, before anything is collected.
    """
    filming = films_of(model, task, Details(), seed=settings.seed)
    task.require_fit(model)
    planner = task.default_planner() if planner is None else planner
    goals = task.goals(settings, planner)
    cost = usual_cost(model) if cost is None else cost
    check_cost(cost, model.latent_dim, model.reach is not None)
    settings = replace(settings, pairs=count, episodes=max(count, readout_episodes, 8))
    notify("collecting held-out episodes")
    episodes = held_out_episodes(task, settings, workers=workers)
    notify(f"planning to {count} goal{'s' * (count > 1)}")
    details = attempt(model, task, settings, episodes, goals, planner, cost)
    position = None
    if readout_episodes:
        notify("reading positions from latents")
        generator = torch.Generator().manual_seed(settings.seed)
        position = position_readout(encode_episodes(model, episodes), episodes, generator=generator)
    return replace(filming, details=details, position=position)


def film(
    model: WorldModel,
    path: str | Path = "goals.mp4",
    settings: Evaluation | None = None,
    *,
    shown: int = 4,
    grid: bool = False,
    planner: Planner | None = None,
    fps: float = 8,
    notify: Callable[[str], Any] = print,
) -> Path:
    """Film a model's attempts at held-out goals in the environment that it comes from.

    What is imagined is drawn by the model's decoder, where training made one.

    Args:
        path: .mp4 or .gif.
        settings: None: `Evaluation()`.
        shown: attempts.
        grid: all at once instead of one after the other in detail.
        planner: None: the usual search among the environment's actions.
        notify: told what is being done; whoever wants silence gives `lambda message: None`.

    Raises:
        ValueError: for a model of unknown origin, an environment that draws no pictures, or a path
            of another suffix, before anything is collected.
    """
    settings = Evaluation() if settings is None else settings
    check("gjwm.film's model", model, WorldModel)
    check("gjwm.film's settings", settings, Evaluation)
    check_suffix(path)
    if model.origin is None or model.origin.env_id is None:
        raise ValueError(
            "a model is filmed in the environment that it comes from, and this one does not say "
            "which: set model.origin = gjwm.models.Origin(env_id)."
        )
    task = Task.of(model)
    films = film_attempts(model, task, settings, count=shown, planner=planner, notify=notify)
    films = replace(films, decoder=model.decoder)
    notify(f"drawing {path}")
    return (grid_video if grid else goals_video)(path, films, shown=shown, fps=fps)


def goals_video(path: str | Path, films: Filming, *, shown: int, fps: float = 8) -> Path:
    """One film of the first `shown` attempts in turn, .mp4 or .gif by suffix."""
    return write_video(path, np.concatenate([films.film(i) for i in range(shown)]), fps=fps)


def grid_video(path: str | Path, films: Filming, *, shown: int, fps: float = 8) -> Path:
    """One film of the first `shown` attempts side by side, framed in green once they have reached
    their goal.
    """
    frames, reached = zip(*(films.small(i) for i in range(shown)))
    return write_video(path, grid_film(frames, reached), fps=fps)


def gallery(
    folder: str | Path,
    films: Filming,
    *,
    worst: int = 4,
    typical: int = 2,
    fps: float = 8,
    quality: int = 27,
) -> list[dict[str, Any]]:
    """Films of the attempts that went worst, and of some in the middle, with a poster each.

    Attempts are ordered by how near they came to the goal.

    Returns:
        per film, plain JSON: file and poster (names within `folder`), attempt, kind ("worst" or
        "typical"), reached, closest_distance, start_distance.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("attempt-*"):
        old.unlink()  # an earlier evaluation's
    closest = films.details.attempts.distance[:, 1:].min(1)
    order = np.argsort(-closest, kind="stable")
    middle = len(order) // 2
    chosen = [(int(i), "worst") for i in order[:worst]]
    taken = {i for i, _ in chosen}
    chosen += [(int(i), "typical") for i in order[middle : middle + typical] if int(i) not in taken]
    rows = []
    for index, kind in chosen:
        film = films.film(index, per_row=2)
        name = f"attempt-{index:03d}"
        write_video(folder / f"{name}.mp4", film, fps=fps, quality=quality)
        nearest = int(films.details.attempts.distance[index, 1:].argmin()) + 1
        Image.fromarray(film[nearest]).save(folder / f"{name}.jpg", quality=80)
        rows.append(
            {
                "file": f"{name}.mp4",
                "poster": f"{name}.jpg",
                "attempt": index,
                "kind": kind,
                "reached": bool(closest[index] <= films.env.unwrapped.success_radius),
                "closest_distance": float(closest[index]),
                "start_distance": float(films.details.attempts.distance[index, 0]),
            }
        )
    return rows
