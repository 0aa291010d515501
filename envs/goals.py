"""Goal-conditioned variants: any environment that offers its state, as a GoalEnv whose goals are
states of its own."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from gjwm.envs.common import (
    WORDS,
    check_choices,
    check_counts,
    checked_state,
    each,
    from_words,
    goal_distance,
    keywords,
    to_words,
)
from gjwm.envs.control_suite import ControlSuiteEnv

_TRIES = 20  # draws of a goal that is not reached already
_HOLD = 5  # steps that an action of the walk to a goal lasts, or it would stay near the start


class GoalEnv(gym.Env):
    """An environment with a goal: a state of its own, drawn at each reset, that the reward asks to
    be brought about.

    Goals are compared by the environment's `position` (for the control suite see
    `gjwm.envs.control_suite`): reached is within `success_radius` of it, by the environment's
    `goal_distance` where it has one, else Euclidean. That is the simulator's truth, never a
    picture's.

    Observation space: `Dict`, as hindsight relabelling (HER) expects it: `observation`, the
    environment's own; `achieved_goal` (`Box` (P,) float64): position, or with `goal="both"` a
    `Dict` of `state` (P,) and `pixels` uint8 (3, size, size), the newest frame; `desired_goal`: the
    same at the goal. Action space: the environment's own.

    Reward: `"sparse"`: 0 where the goal is reached, else -1. `"dense"`: minus the distance. Of
    the state after the step, whatever `action_repeat`; `compute_reward` takes whole batches.

    Start and end: `reset(seed=s)` starts where the environment itself starts with this seed;
    the goal is drawn from a stream of the same seed that is independent of the start, and where it
    is reached already up to 20 times ("ahead" walks on). The environment's own time limit
    truncates; `terminated` as the environment says, and at the goal with `terminate_on_goal`.

    Info: `is_success` bool and `distance`; of `reset` also `goal_state`, for the environment's
    `set_state`.

    Args:
        env: offers get_state, set_state, position, success_radius, observe, reset's option "state".
        goal: "state", or "both": as an image too, for environments that observe pixels.
        goals: "ahead": `offset` steps from the start under random actions, each held for 5 steps,
            so it can be reached; "reset": another start of the environment.
        offset: steps to the goal.
        reward: "sparse" or "dense".
        success_radius: None: the environment's own.
        terminate_on_goal: end the episode at the goal.

    Raises:
        ValueError: for unknown arguments, or an environment that does not offer its state."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 25}  # noqa: RUF012

    def __init__(
        self,
        env: gym.Env,
        *,
        goal: str = "state",
        goals: str = "ahead",
        offset: int = 25,
        reward: str = "sparse",
        success_radius: float | None = None,
        terminate_on_goal: bool = False,
    ):
        members = ("get_state", "set_state", "observe")
        missing = [name for name in members if not hasattr(env.unwrapped, name)]
        if missing:
            raise ValueError(
                f"{env.unwrapped} cannot be given goals: it has no {', '.join(missing)}."
            )
        check_choices(
            goal=(goal, ("state", "both")),
            goals=(goals, ("ahead", "reset")),
            reward=(reward, ("sparse", "dense")),
        )
        check_counts(offset=(offset, 1))
        self.env, self.world = env, env.unwrapped
        self.goal_kind, self.goals, self.offset = goal, goals, offset
        self.reward_kind, self.terminate_on_goal = reward, terminate_on_goal
        radius = self.world.success_radius if success_radius is None else success_radius
        self.success_radius = float(radius)
        self.action_space, self.render_mode = env.action_space, env.render_mode
        self.env.reset(seed=0)
        kind: spaces.Space = spaces.Box(-np.inf, np.inf, self.world.position.shape, np.float64)
        if goal == "both":
            if self._pixels() is None:
                raise ValueError(
                    "goal='both' shows goals as images: make the environment with obs='pixels' or "
                    "obs='both'."
                )
            pixels = spaces.Box(0, 255, self._pixels().shape, np.uint8)
            kind = spaces.Dict({"state": kind, "pixels": pixels})
        self.observation_space = spaces.Dict(
            {"observation": env.observation_space, "achieved_goal": kind, "desired_goal": kind}
        )
        self._goal_state = self.world.get_state()
        self._goal = self._achieved()

    def _pixels(self) -> np.ndarray | None:
        """The newest frame (3, size, size) of the current state, or None without pictures."""
        o = self.world.observe()
        o = o.get("pixels") if isinstance(o, Mapping) else o
        return o[-3:] if o is not None and o.dtype == np.uint8 and o.ndim == 3 else None

    def _achieved(self) -> Any:
        position = np.array(self.world.position, np.float64)
        if self.goal_kind == "state":
            return position
        return {"state": position, "pixels": self._pixels()}

    def _observation(self, observation: Any) -> dict[str, Any]:
        goal = each(self._goal, np.copy)
        return {"observation": observation, "achieved_goal": self._achieved(), "desired_goal": goal}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        """Start an episode and draw its goal -> (observation, info).

        `options={"state": s, "goal_state": g}` set start and goal, either or both, to states of the
        environment."""
        # Not the environment's own stream: the goal would be a function of the start.
        own = None if seed is None else int(np.random.SeedSequence([seed, 1]).generate_state(1)[0])
        super().reset(seed=own)
        options = dict(options or {})
        unknown = set(options) - {"state", "goal_state"}
        if unknown:
            raise ValueError(
                "reset's options may hold 'state' and 'goal_state', got also "
                f"{', '.join(sorted(unknown))}."
            )
        self.env.reset(seed=self._draw() if seed is None else seed)
        if "state" in options:
            self.world.set_state(options["state"])
        start = self.world.get_state()
        if "goal_state" in options:
            self._visit(options["goal_state"])
        else:
            self._draw_goal(start)
        # Through reset, because the walk to the goal must not count against the time limit.
        observation, info = self.env.reset(options={"state": start})
        distance = self._distance()
        return self._observation(observation), {
            **info,
            "goal_state": self._goal_state.copy(),
            "distance": distance,
            "is_success": distance <= self.success_radius,
        }

    def _draw(self) -> int:
        return int(self.np_random.integers(2**31))

    def _draw_goal(self, start: np.ndarray) -> None:
        self.env.reset(options={"state": start})
        here = np.array(self.world.position)
        for _ in range(_TRIES):
            if self.goals == "reset":
                self.env.reset(seed=self._draw())
            else:  # walks on where the last try ended
                for step in range(self.offset):
                    if step % _HOLD == 0:
                        drawn = self.np_random.uniform(-1, 1, self.action_space.shape)
                        action = drawn.astype(np.float32)
                    _, _, terminated, truncated, _ = self.env.step(action)
                    if terminated or truncated:
                        break
            if goal_distance(self.world, self.world.position, here) > self.success_radius:
                break
        self._visit(self.world.get_state())

    def _visit(self, goal_state: np.ndarray) -> None:
        """Go to the goal, to see it at rest."""
        self.world.set_state(goal_state)
        self._goal_state, self._goal = self.world.get_state(), self._achieved()

    def step(self, action):
        """One step of the environment -> (observation, reward, terminated, truncated, info)."""
        observation, task_reward, terminated, truncated, info = self.env.step(action)
        o = self._observation(observation)
        distance = self._distance()
        success = distance <= self.success_radius
        info = {**info, "task_reward": task_reward, "distance": distance, "is_success": success}
        reward = float(self.compute_reward(o["achieved_goal"], o["desired_goal"], info))
        return o, reward, terminated or (success and self.terminate_on_goal), truncated, info

    def _distance(self) -> float:
        return float(goal_distance(self.world, self.world.position, _position(self._goal)))

    def _distances(self, achieved_goal: Any, desired_goal: Any) -> np.ndarray:
        a, b = _position(achieved_goal), _position(desired_goal)
        if a.shape[-1:] != b.shape[-1:] or a.shape[-1:] != np.shape(self.world.position):
            raise ValueError(
                f"goals are positions (..., {len(self.world.position)}), got {a.shape} and "
                f"{b.shape}."
            )
        return goal_distance(self.world, a, b)

    def compute_reward(self, achieved_goal: Any, desired_goal: Any, info: Any = None) -> np.ndarray:
        """The reward of goals reached and wanted, for hindsight relabelling.

        Args:
            achieved_goal, desired_goal: as in the observation, one or a batch: positions (..., P),
                or dicts with "state".
            info: not needed; the signature is that of other goal environments.

        Returns:
            (...) float64."""
        distance = self._distances(achieved_goal, desired_goal)
        if self.reward_kind == "dense":
            return -distance
        return -(distance > self.success_radius).astype(np.float64)

    # -- states ------------------------------------------------------------------------------------

    def get_state(self) -> np.ndarray:
        """(2 X + 10,) float64: the environment's state, the goal's, and the generator of goals to
        come."""
        return np.concatenate([self.world.get_state(), self._goal_state, to_words(self.np_random)])

    def set_state(self, state: np.ndarray) -> None:
        """Go to a state of `get_state`, goal included."""
        half = len(self._goal_state)
        state = checked_state(state, 2 * half + WORDS, "a goal environment")
        self._visit(state[half:-WORDS])
        self.world.set_state(state[:half])
        from_words(self.np_random, state[-WORDS:])

    def observe(self) -> dict[str, Any]:
        """The observation of the current state, goal included."""
        return self._observation(self.world.observe())

    def goal_state(self) -> np.ndarray:
        """(2 X + 10,) float64: the state of having arrived at the goal."""
        return np.concatenate([self._goal_state, self._goal_state, to_words(self.np_random)])

    @property
    def position(self) -> np.ndarray:
        """(P,) float64: what success is measured on."""
        return self.world.position

    def true_state(self) -> dict[str, np.ndarray]:
        """The environment's named variables, for probes."""
        return self.world.true_state()

    def render(self) -> np.ndarray | None:
        """What the environment shows."""
        return self.env.render()

    def close(self) -> None:
        """Close the environment."""
        self.env.close()


def _position(goal: Any) -> np.ndarray:
    return np.asarray(goal["state"] if isinstance(goal, Mapping) else goal)


def make_goal_task(
    *, domain: str, task: str, max_episode_steps: int | None = None, **kwargs: Any
) -> gym.Env:
    """A control suite task with goals: arguments of `GoalEnv`, the others of `ControlSuiteEnv`."""
    own = {name: kwargs.pop(name) for name in keywords(GoalEnv) if name in kwargs}
    env = GoalEnv(ControlSuiteEnv(domain=domain, task=task, **kwargs), **own)
    if max_episode_steps is None:
        return env
    # Around it, so that a short episode does not cut the walk to its goal short.
    env.world.check_length(max_episode_steps)
    return gym.wrappers.TimeLimit(env, max_episode_steps)


_TAKES = {**keywords(ControlSuiteEnv), **keywords(GoalEnv)}
make_goal_task.__signature__ = inspect.Signature(
    [p.replace(kind=p.KEYWORD_ONLY) for name, p in _TAKES.items() if name != "env"]
)
