"""What an agent earns: undiscounted returns of whole episodes, on seeds of their own."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gjwm._core.files import replacing
from gjwm.data.acting import Actor, Memoryless, Moment, Transition, make_vec, play
from gjwm.evaluation.intervals import mean_interval
from gjwm.models.world_model import WorldModel


class PolicyActor(Memoryless):
    """A model's policy alone, without a plan."""

    def __init__(self, model: WorldModel):
        self.model = model

    @torch.no_grad()
    def act(self, o: Any, info: Moment) -> Tensor:
        z = self.model.encode(torch.as_tensor(o).to(self.model.device))
        return self.model.heads["policy"](z)


class Foresight:
    """An actor, watched for what the values promise at the first step and what follows.

    Args:
        model: has the head "value".
        discount: g per step.

    `promised` is the mean over environments of the values of what is done first; `followed` the
    mean of their discounted returns, once `play_returns` was given `saw` too.
    """

    def __init__(self, actor: Actor, model: WorldModel, discount: float):
        self.actor, self.model, self.discount = actor, model, discount
        self.promised = self.followed = 0.0
        self._weight, self._going = 1.0, np.ones(0)

    @torch.no_grad()
    def act(self, o: Any, info: Moment) -> Any:
        a = self.actor.act(o, info)
        if info.step == 0:
            device = self.model.device
            z = self.model.encode(torch.as_tensor(o).to(device))
            value = self.model.heads["value"](z, torch.as_tensor(a).to(z))
            self.promised = value.mean().item()
            self.followed, self._weight, self._going = 0.0, 1.0, np.ones(len(z))
        return a

    def reset(self, mask: Any = None) -> None:
        """The actor's."""
        self.actor.reset(mask)

    def saw(self, step: Transition) -> None:
        """A step that `act` was asked for."""
        self.followed += self._weight * float((step.r * self._going).mean())
        self._weight *= self.discount
        self._going *= ~step.ended


def play_returns(
    actor: Actor,
    env_id: str,
    env_kwargs: Mapping[str, Any],
    *,
    episodes: int,
    seed: int,
    workers: int | None = None,
    limit: int = 20_000,
    saw: Callable[[Transition], Any] = lambda step: None,
) -> tuple[np.ndarray, float]:
    """One episode in each of E environments side by side, with seeds seed, seed + 1, ...

    Args:
        actor: acts at each step, also for environments that are done.
        env_id, env_kwargs, workers: see `gjwm.envs.vector.make_vec`.
        limit: steps after which an episode should have ended.
        saw: called with each step.

    Returns:
        returns (E,), and seconds of thought per step of one environment.

    Raises:
        ValueError: without episodes, or for one that does not end.
        RuntimeError: when a worker process died, whose episodes would count as shorter than they
            are.
    """
    if not isinstance(episodes, int) or episodes < 1:
        raise ValueError(f"returns need at least one episode, got episodes={episodes!r}.")
    envs = make_vec(env_id, episodes, workers=workers, **env_kwargs)
    try:
        o, _ = envs.reset(seed=seed)
        returns, running, thought = np.zeros(episodes), np.ones(episodes, bool), 0.0
        for steps, step in enumerate(play(envs, actor, o), 1):
            if not step.valid.all():
                raise RuntimeError(
                    f"a worker process of {env_id} died while returns were measured; measure them "
                    f"again."
                )
            saw(step)
            thought += step.seconds
            returns[running] += step.r[running]
            running &= ~step.ended
            if not running.any():
                break
            if steps >= limit:
                raise ValueError(
                    f"an episode of {env_id} goes on after {limit} steps; returns need episodes "
                    "that end: set env.max_episode_steps."
                )
    finally:
        envs.close()
    return returns, thought / steps / episodes


def return_report(returns: np.ndarray, seconds_per_step: float) -> dict[str, Any]:
    """Returns (E,) -> their mean with a 95% interval over episodes (Student's t; None for one
    episode, which says nothing of others), and each of them.
    """
    mean, low, high = mean_interval(returns)
    return {
        "return_mean": mean,
        "ci95": None if low is None else [low, high],
        "returns": [float(x) for x in returns],
        "episodes": len(returns),
        "seconds_per_step": seconds_per_step,
    }


class ReturnCurve:
    """Every return of every evaluation of a run, as a CSV file.

    Args:
        path: of the file: step, frames, seconds, episode, return. Until `finish` it is
            <path>.partial, always whole: a run that fails leaves what an earlier one of its name
            has earned.
        repeat: frames per agent step.
        resume_after: rows up to this step of an interrupted run are kept; None: none are.
    """

    COLUMNS = ("step", "frames", "seconds", "episode", "return")

    def __init__(self, path: str | Path, *, repeat: int = 1, resume_after: int | None = None):
        self.path, self.repeat = Path(path), repeat
        self.partial = self.path.with_name(self.path.name + ".partial")
        self.rows: list[dict[str, Any]] = []
        source = self.partial if self.partial.is_file() else self.path
        if resume_after is not None and source.is_file():
            with open(source, newline="") as file:
                rows = csv.DictReader(file)
                self.rows = [row for row in rows if int(row["step"]) <= resume_after]
        self._write()  # from here on the rows of an earlier run of this name are none of this one's

    def add(self, step: int, seconds: float, returns: Sequence[float]) -> None:
        """The returns of an evaluation after `step` agent steps and so much time."""
        for episode, value in enumerate(returns):
            row = (step, step * self.repeat, round(seconds, 1), episode, round(value, 3))
            self.rows.append(dict(zip(self.COLUMNS, row)))
        self._write()

    def means(self) -> list[float]:
        """Mean return of each evaluation, in order."""
        evaluations: dict[int, list[float]] = {}
        for row in self.rows:
            evaluations.setdefault(int(row["step"]), []).append(float(row["return"]))
        return [float(np.mean(returns)) for returns in evaluations.values()]

    def _write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(self.partial) as aside, open(aside, "w", newline="") as file:
            writer = csv.DictWriter(file, self.COLUMNS)
            writer.writeheader()
            writer.writerows(self.rows)

    def finish(self) -> None:
        """Give the file its name, once the run has ended well."""
        self.partial.replace(self.path)
