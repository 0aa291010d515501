"""Torch-native worlds as Gymnasium environments, one at a time or many as one batch of tensors.

Both classes dress the same `torch_world.World`: an environment is a batch of one. Environment i of
a vector environment reset with `seed=s` plays the same episodes as a single environment reset with
`seed=s + i`, bit for bit on one device. A new world subclasses both and names its `World`."""

from __future__ import annotations

import inspect
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import torch
from einops import rearrange
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from torch import Tensor

from .common import (
    by_lane,
    cannot_render,
    check_choices,
    each,
    keywords,
    observation_space,
    state_option,
    write,
)
from .torch_world import Planes, Seed, World


class _Dressed:
    """What one environment and a batch of them have in common. Shapes are those of one environment;
    a batch has an axis B = num_envs in front."""

    world: ClassVar[type[World]]

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        if hasattr(cls, "world"):  # what it takes can be asked for: its own keywords, its world's
            taken = {**keywords(cls.world), **keywords(cls)}
            del taken["worlds"]
            if "num_envs" not in taken:
                del taken["device"]
            cls.__signature__ = inspect.Signature(list(taken.values()))

    def _dress(self, worlds: World, render_mode: str | None) -> tuple[spaces.Space, spaces.Box]:
        """Keep the worlds and the argument -> spaces of observations and actions of one."""
        check_choices(render_mode=(render_mode, (None, "rgb_array")))
        self._worlds, self.success_radius = worlds, worlds.success_radius
        self.render_mode = render_mode
        shape = (len(worlds.vector_names or worlds.state_names),)
        low, high = (np.broadcast_to(np.float32(bound), shape) for bound in worlds.vector_bounds)
        state = spaces.Box(low, high, dtype=np.float32)
        return (
            observation_space(worlds.obs, worlds.size, worlds.frame_stack, state),
            spaces.Box(-1.0, 1.0, (worlds.actions,), np.float32),
        )

    def _out(self, value: Any) -> Any:
        """Tensors (B, ...), or a dict of them, as this environment hands them out."""
        raise NotImplementedError

    def _stacked(self, planes: Planes) -> Any:
        return self._out(torch.stack(planes, -1).double())

    @property
    def frame_stack(self) -> int:
        """Pictures per observation."""
        return self._worlds.frame_stack

    def observe(self):
        """The observation of the current state, shaped as `observation_space`."""
        return self._out(self._worlds.observe())

    def get_state(self):
        """(X,) float64, see the class. The episode's clock is not part of it; in worlds with noise
        its counter is, last."""
        return self._out(self._worlds.state_of(self._worlds.planes))

    @property
    def position(self):
        """(P,) float64: what success is measured on."""
        return self._stacked(self._worlds.position_of(self._worlds.planes))

    @property
    def goal(self):
        """(P,) float64: where `position` should be."""
        return self._stacked(self._worlds.goal_of(self._worlds.planes))

    def goal_state(self):
        """(X,) float64: the state, for `set_state`, of having arrived at the goal."""
        return self._out(self._worlds.state_of(self._worlds.goal_state_of(self._worlds.planes)))

    def goal_image(self):
        """uint8 (3, size, size): this episode's world at the goal."""
        state = tuple(p[:, None] for p in self._worlds.goal_state_of(self._worlds.planes))
        return self._out(self._worlds.pictures(state)[:, 0])

    def true_state(self) -> dict[str, Any]:
        """Named variables that pictures show, for probes: "position" (P,) and the world's own,
        float64."""
        shown = self._worlds.shown_by(self._worlds.planes)
        return {name: self._stacked(planes) for name, planes in shown.items()}

    def expert_action(self):
        """(A,) float32: the scripted policy's."""
        return self._out(torch.stack(self._worlds.expert(self._worlds.planes), -1))

    def random_place(self, u):
        """Where a wanderer (`gjwm.data.behaviours.Wandering`) heads next in a straight line, (P,)
        float64, by the uniform numbers u (3,). NotImplementedError in a world that offers none."""
        u = self._worlds.tensor(u).reshape(-1, 3).unbind(-1)
        return self._stacked(self._worlds.random_place(self._worlds.planes, u))

    def simulate(
        self,
        states,
        actions,
        particles: int | None = None,
        generator: torch.Generator | None = None,
    ):
        """True positions under many action sequences, without changing this environment.

        Args:
            states: (B, X) from `get_state`, any B.
            actions: (B, N, H, A); clipped to [-1, 1], each applied for `action_repeat` control
                steps.
            particles: None: without noise. P: as many outcomes of every plan, with the same noise
                for all plans of a world.
            generator: draws the noise.

        Returns:
            (B, N, [P,] H+1, P') float32, index 0 the start: a tensor, which carries gradients, if
            `actions` is one, else an array. Goals end nothing here."""
        path = [
            torch.stack([p.expand(shape) for p in self._worlds.position_of(state)], -1)
            for state, _, shape in self._worlds.rollout(
                states, self._worlds.tensor(actions), particles, generator
            )
        ]
        positions = torch.stack(path, -2)
        return positions if isinstance(actions, Tensor) else positions.cpu().numpy()

    def way_length(self, states, positions, goals):
        """How long a way from positions to goals is, past all walls, in the position's units: the
        shortest in two-room, one from cell to cell in a maze. Infinite where there is none.

        Args:
            states: (B, X) from `get_state`, any B: where the walls are.
            positions: (B, ..., P).
            goals: (B, P).

        Returns:
            (B, ...) float32: a tensor if `positions` is one, else an array.

        Raises:
            ValueError: for other shapes."""
        planes, _ = self._worlds.check_states(states)
        places, ends = (self._worlds.tensor(x) for x in (positions, goals))
        expected = (len(planes[0]), len(self._worlds.position_of(planes)))
        if tuple(ends.shape) != expected or (len(places), places.shape[-1]) != expected:
            raise ValueError(
                f"a way leads from positions ({expected[0]}, ..., {expected[1]}) to goals "
                f"{expected} for {expected[0]} states, got {tuple(places.shape)} and "
                f"{tuple(ends.shape)}"
            )
        if not (places.isfinite().all() and ends.isfinite().all()):
            raise ValueError("a way leads between places, got NaN or infinity")
        between = (len(places), *[1] * (places.dim() - 2))
        state = tuple(plane.view(between) for plane in planes)
        goal = tuple(plane.view(between) for plane in ends.unbind(-1))
        length = self._worlds.way_length(state, places.unbind(-1), goal)
        return length if isinstance(positions, Tensor) else length.cpu().numpy()

    def simulate_return(
        self,
        states,
        actions,
        particles: int | None = None,
        generator: torch.Generator | None = None,
    ):
        """As `simulate` -> the rewards' sum over the horizon, (B, N[, P]) float32."""
        plans, total = self._worlds.tensor(actions), 0.0
        for _, reward, _ in self._worlds.rollout(states, plans, particles, generator):
            total = total if reward is None else total + reward
        return total if isinstance(actions, Tensor) else total.cpu().numpy()


class TorchEnv(_Dressed, gym.Env):
    """A torch-native world as a Gymnasium environment. What all of them share:

    - Actions are `Box(-1, 1, (A,), float32)`, clipped.
    - `obs="pixels"` observes RGB frames, uint8 (3 * frame_stack, size, size), oldest first;
      `"state"` the world's vector, float32; `"both"` a Dict of the two.
    - `reset(options={"state": s})` starts from `s`, as `set_state` does. Its info has "goal" (P,)
      float32; that of `step` "success" bool.
    - `get_state` is float64 and ends, where steps are noisy, in the noise's counter, so that
      `set_state(get_state())` goes on with the same noise.

    | argument            | default    | meaning                                             |
    |---------------------|------------|-----------------------------------------------------|
    | `obs`               | `"pixels"` | `"pixels"`, `"state"` or `"both"`                   |
    | `size`              | 64         | side of the picture, pixels, 16 or more             |
    | `frame_stack`       | 1          | pictures per observation                            |
    | `action_repeat`     | 1          | control steps per action; rewards add up            |
    | `max_episode_steps` | None       | actions until truncation; None: the world's own     |
    | `success_radius`    | the class  | how near to its goal `position` has arrived         |
    | `terminate_on_goal` | the class  | end the episode at the goal                         |
    | `render_mode`       | None       | `"rgb_array"` for `render()`                        |

    `gym.make` keeps an argument named `max_episode_steps` for a `TimeLimit` around the environment,
    which can only shorten episodes; `make_env` and `make_vec` hand it to the class.

    Raises:
        ValueError: for an argument of another kind, an action of another shape or with NaN, and a
            state that is none of this world."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012

    def __init__(self, *, render_mode: str | None = None, **world: Any):
        self.observation_space, self.action_space = self._dress(
            self.world(worlds=1, **world), render_mode
        )

    def _out(self, value: Any) -> Any:
        return each(value, lambda tensor: tensor[0].numpy())

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        """Start an episode -> `(observation, info)`."""
        super().reset(seed=seed)
        state = state_option(options)
        self._worlds.seed(seed)
        if state is None:
            self._worlds.begin()
        else:
            self.set_state(state)
        return self.observe(), {"goal": self.goal.astype(np.float32)}

    def step(self, action):
        """Apply `action (A,)` -> (observation, reward, terminated, truncated, info)."""
        action = self._worlds.check_actions(action, self.action_space.shape)
        reward, *flags = self._worlds.step(action[None])
        success, terminated, truncated = map(bool, flags)
        return self.observe(), float(reward), terminated, truncated, {"success": success}

    def render(self) -> np.ndarray | None:
        """uint8 (size, size, 3): the world, and its goal where observations do not show that."""
        return None if cannot_render(self) else _for_people(self._worlds)[0]

    def set_state(self, state: np.ndarray) -> None:
        """Go to `state (X,)`: the frame stack repeats the current picture and the episode's clock
        restarts."""
        self._worlds.set_state(np.asarray(state, np.float64)[None])


class TorchVectorEnv(_Dressed, VectorEnv):
    """`num_envs` worlds of one kind, stepped as one batch of tensors on the CPU or on an
    accelerator.

    Spaces, rewards, episodes and constructor arguments are those of the single environment, with a
    leading axis B = num_envs, and two arguments more:

    - `num_envs` (default 1): B
    - `device` (default None): None: computed on the CPU, numpy in the results. "cpu", "cuda", ...:
      torch tensors there

    Actions may be numpy or torch, whatever the device. Rewards are float32 (B,), flags bool (B,).
    Every returned array or tensor is fresh: later steps never write into it.

    Seeds: `reset(seed=s)` seeds environment i with s + i, `reset(seed=[...])` each by name,
    `reset()` goes on with the next episodes.

    Autoreset is `SAME_STEP`, with `infos["final_obs"]` as `gjwm.envs.vector` tells. With a device
    it is there on steps where an episode ended; on an accelerator on every step, because to ask
    whether one ended would wait for the device.

    `infos` of step: `"success"` (B,) bool, whether the step ended at the goal, and with
    `"final_obs"` also `"final_info"` (the ended episodes' `"success"`) and `"goal"` (B, P), with
    Gymnasium's `_`-masks. `infos` of reset: `"goal"`."""

    metadata = {**TorchEnv.metadata, "autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012
    # False: an episode that ended goes on instead of making way for the next
    autoreset = True

    def __init__(
        self,
        *,
        num_envs: int = 1,
        render_mode: str | None = None,
        device: str | torch.device | None = None,
        **world: Any,
    ):
        worlds = self.world(worlds=num_envs, device="cpu" if device is None else device, **world)
        spaces_of_one = self._dress(worlds, render_mode)
        self.single_observation_space, self.single_action_space = spaces_of_one
        self._numpy = device is None
        self.num_envs, self.device = worlds.worlds, worlds.device
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)

    def _out(self, value: Any) -> Any:
        return each(value, Tensor.numpy) if self._numpy else value  # no copy is made

    def reset(self, *, seed: Seed = None, options: dict[str, Any] | None = None):
        """Start an episode in every environment -> `(observations, infos)`; `options={"state": (B,
        X)}` says where."""
        super().reset(seed=int(seed) if isinstance(seed, int | np.integer) else None)
        state = state_option(options)
        self._worlds.seed(seed)
        if state is None:
            self._worlds.begin()
        else:
            self.set_state(state)
        everyone = torch.ones(self.num_envs, dtype=torch.bool, device=self.device)
        return self.observe(), self._goal_infos(everyone)

    def step(self, actions):
        """Apply `actions (B, A)` -> `(observations, rewards, terminations, truncations, infos)`;
        see the class."""
        worlds = self._worlds
        actions = worlds.check_actions(actions, self.action_space.shape)
        rewards, success, terminated, truncated = worlds.step(actions)
        observations = worlds.observe()
        infos = {"success": self._out(success), "_success": self._out(torch.ones_like(success))}

        ended = terminated | truncated
        on_cpu = self.device.type == "cpu"
        if self.autoreset and (not on_cpu or bool(ended.any())):
            infos["_final_obs"] = self._out(ended)
            infos["final_info"] = {
                "success": self._out(success & ended),
                "_success": self._out(ended.clone()),
            }
            infos["_final_info"] = self._out(ended.clone())
            if self._numpy:
                infos["final_obs"] = by_lane(each(observations, Tensor.numpy), ended.numpy())
            else:
                infos["final_obs"] = observations
            worlds.begin(ended)
            if on_cpu:
                rows = ended.nonzero()[:, 0]
                observations = observations if self._numpy else each(observations, Tensor.clone)
                write(observations, rows, worlds.observe(rows))
            else:  # every first observation is drawn, so that nobody asks how many are needed
                observations = _choose(ended, worlds.observe(), observations)
            infos.update(self._goal_infos(ended))
        flags = (self._out(terminated.clone()), self._out(truncated))
        return self._out(observations), self._out(rewards), *flags, infos

    def _goal_infos(self, started: Tensor) -> dict[str, Any]:
        goal = torch.stack(self._worlds.goal_of(self._worlds.planes), -1).float()
        return {"goal": self._out(goal), "_goal": self._out(started.clone())}

    def render(self) -> tuple[np.ndarray, ...] | None:
        """One picture per environment, as the single environment's `render`."""
        return None if cannot_render(self) else tuple(_for_people(self._worlds))

    def set_state(self, states) -> None:
        """Go to `states (B, X)`: frame stacks repeat the current picture and the episodes' clocks
        restart."""
        self._worlds.set_state(states)


def _for_people(worlds: World) -> np.ndarray:
    """uint8 (B, size, size, 3)."""
    pictures = rearrange(worlds.scenes(worlds.planes), "b c h w -> b h w c")
    return pictures.contiguous().cpu().numpy()


def _choose(mask: Tensor, chosen: Any, other: Any) -> Any:
    """chosen where mask (B,), else other."""
    if isinstance(chosen, dict):
        return {name: _choose(mask, value, other[name]) for name, value in chosen.items()}
    return torch.where(mask.view(-1, *[1] * (chosen.ndim - 1)), chosen, other)
