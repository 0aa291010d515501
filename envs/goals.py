"""Goal-conditioned variants: any environment that offers its state, as a GoalEnv whose goals are
states of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from gjwm.envs.common import WORDS, check_choices, check_counts, from_words, to_words

# GoalEnv's arguments
_OWN = ("goal", "goals", "offset", "reward", "success_radius", "terminate_on_goal")
_TRIES = 20  # draws of a goal that is not reached already
_HOLD = 5  # steps that an action of the walk to a goal lasts, or it would stay near the start


class GoalEnv(gym.Env):
    """An environment with a goal: a state of its own, drawn at each reset, that the reward asks to
    be brought about.

    Goals are compared by the environment's `position` (for the control suite see
    `gjwm.envs.control_suite`): reached is within `success_radius` of it, Euclidean. That is the
    simulator's truth, never a picture's.

    ## Observation space

    `Dict`, as hindsight relabelling (HER) expects it:

    - `observation`: the environment's own
    - `achieved_goal` (`Box` (P,) float64): position; with `goal="both"` a `Dict` of `state` (P,)
      and `pixels` uint8 (3, size, size), the newest frame
    - `desired_goal`: the same at the goal

    ## Action space

    The environment's own.

    ## Reward

    `"sparse"`: 0 where the goal is reached, else -1. `"dense"`: minus the distance. Of the state
    after the step, whatever `action_repeat`; `compute_reward` gives the same for whole batches.

    ## Starting state and episode end

    `reset(seed=s)` starts where the environment itself starts with this seed; the goal is drawn
    from a stream of the same seed that is independent of the start, and where it is reached already
    up to 20 times ("ahead" walks on). The environment's own time limit truncates; `terminated` as
    the environment says, and at the goal with `terminate_on_goal`.

    ## Info

    `is_success` bool and `distance`; of `reset` also `goal_state`, for the environment's
    `set_state`.

    ## Arguments

    - `env`: offers get_state, set_state, position, success_radius, observe, reset's option "state"
    - `goal` (default `"state"`): `"state"`, or `"both"`: as an image too, for environments that
      observe pixels
    - `goals` (default `"ahead"`): `"ahead"`: `offset` steps from the start under random actions,
      each held for 5 steps, so it can be reached; `"reset"`: another start of the environment
    - `offset` (default 25): steps to the goal
    - `reward` (default `"sparse"`): `"sparse"` or `"dense"`
    - `success_radius` (default None): None: the environment's own
    - `terminate_on_goal` (default False): end the episode at the goal

    Version: v0, the first.

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
        missing = [
            name
            for name in ("get_state", "set_state", "observe")
            if not hasattr(env.unwrapped, name)
        ]
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
        self.success_radius = float(
            self.world.success_radius if success_radius is None else success_radius
        )
        self.action_space, self.render_mode = env.action_space, env.render_mode
        self.env.reset(seed=0)
        pictures = self._pixels() is not None
        if goal == "both" and not pictures:
            raise ValueError(
                "goal='both' shows goals as images: make the environment with obs='pixels' or "
                "obs='both'."
            )
        state = spaces.Box(-np.inf, np.inf, self.world.position.shape, np.float64)
        kind: spaces.Space = state
        if goal == "both":
            kind = spaces.Dict(
                {"state": state, "pixels": spaces.Box(0, 255, self._pixels().shape, np.uint8)}
            )
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
        return (
            position if self.goal_kind == "state" else {"state": position, "pixels": self._pixels()}
        )

    def _observation(self, observation: Any) -> dict[str, Any]:
        goal = (
            {k: v.copy() for k, v in self._goal.items()}
            if isinstance(self._goal, dict)
            else self._goal.copy()
        )
        return {"observation": observation, "achieved_goal": self._achieved(), "desired_goal": goal}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        """Start an episode and draw its goal -> (observation, info).

        `options={"state": s, "goal_state": g}` set start and goal, either or both, to states of the
        environment."""
        # Not the environment's own stream: the goal would be a function of the start.
        super().reset(
            seed=None
            if seed is None
            else int(np.random.SeedSequence([seed, 1]).generate_state(1)[0])
        )
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
                        action = self.np_random.uniform(-1, 1, self.action_space.shape).astype(
                            np.float32
                        )
                    _, _, terminated, truncated, _ = self.env.step(action)
                    if terminated or truncated:
                        break
            if np.linalg.norm(self.world.position - here) > self.success_radius:
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
        goal = self._goal["state"] if isinstance(self._goal, dict) else self._goal
        return float(np.linalg.norm(self.world.position - goal))

    def compute_reward(self, achieved_goal: Any, desired_goal: Any, info: Any = None) -> np.ndarray:
        """The reward of goals reached and wanted, for hindsight relabelling.

        Args:
            achieved_goal, desired_goal: as in the observation, one or a batch: positions (..., P),
                or dicts with "state".
            info: not needed; the signature is that of other goal environments.

        Returns:
            (...) float64."""
        a, b = (
            np.asarray(g["state"] if isinstance(g, Mapping) else g)
            for g in (achieved_goal, desired_goal)
        )
        if a.shape[-1:] != b.shape[-1:] or a.shape[-1:] != np.shape(self.world.position):
            raise ValueError(
                f"goals are positions (..., {len(self.world.position)}), got {a.shape} and "
                f"{b.shape}."
            )
        distance = np.linalg.norm(a - b, axis=-1)
        return (
            -distance
            if self.reward_kind == "dense"
            else -(distance > self.success_radius).astype(np.float64)
        )

    def compute_terminated(
        self, achieved_goal: Any, desired_goal: Any, info: Any = None
    ) -> np.ndarray:
        """Whether the goal ends the episode, arguments as `compute_reward` -> (...) bool."""
        a, b = (
            np.asarray(g["state"] if isinstance(g, Mapping) else g)
            for g in (achieved_goal, desired_goal)
        )
        reached = np.linalg.norm(a - b, axis=-1) <= self.success_radius
        return reached & self.terminate_on_goal

    # -- states ------------------------------------------------------------------------------------

    def get_state(self) -> np.ndarray:
        """(2 X + 10,) float64: the environment's state, the goal's, and the generator of goals to
        come."""
        return np.concatenate([self.world.get_state(), self._goal_state, to_words(self.np_random)])

    def set_state(self, state: np.ndarray) -> None:
        """Go to a state of `get_state`, goal included."""
        state, half = np.asarray(state, np.float64), len(self._goal_state)
        if state.shape != (2 * half + WORDS,):
            raise ValueError(
                f"expected a state ({2 * half + WORDS},) from get_state, got {state.shape}."
            )
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


def make_goal_task(
    *, domain: str, task: str, max_episode_steps: int | None = None, **kwargs: Any
) -> gym.Env:
    """A control suite task with goals: arguments of `GoalEnv`, the others of `ControlSuiteEnv`."""
    from gjwm.envs.control_suite import ControlSuiteEnv

    own = {name: kwargs.pop(name) for name in _OWN if name in kwargs}
    env = GoalEnv(ControlSuiteEnv(domain=domain, task=task, **kwargs), **own)
    if max_episode_steps is None:
        return env
    # Around it, so that a short episode does not cut the walk to its goal short.
    env.world.check_length(max_episode_steps)
    return gym.wrappers.TimeLimit(env, max_episode_steps)
