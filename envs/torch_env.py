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
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from torch import Tensor

from .common import (
    by_lane,
    cannot_render,
    check_choices,
    check_counts,
    each,
    observation_space,
    state_option,
    write,
)
from .torch_world import Seed, World


def _signature(env: type, kind: type[World], first: str | None) -> inspect.Signature:
    """What a class of environments takes: its own keywords, and those of every class its world
    descends from."""
    taken: dict[str, inspect.Parameter] = {}
    for cls in (*kind.__mro__, *env.__mro__):
        if "__init__" in vars(cls):
            for name, parameter in inspect.signature(cls.__init__).parameters.items():
                if parameter.kind is parameter.KEYWORD_ONLY and name not in ("worlds", "device"):
                    taken.setdefault(name, parameter)
    if first is not None:
        own = inspect.signature(TorchVectorEnv.__init__).parameters
        taken = {first: own[first], **taken, "device": own["device"]}
    return inspect.Signature(list(taken.values()))


class _Dressed:
    """What one environment and a batch of them have in common. Shapes are those of one environment;
    a batch has an axis B = num_envs in front."""

    world: ClassVar[type[World]]

    def _dress(
        self, worlds: World, goal_in_info: bool, render_mode: str | None, render_size: int | None
    ) -> tuple[spaces.Space, spaces.Box]:
        """Keep the worlds and the arguments -> spaces of observations and actions of one."""
        check_choices(render_mode=(render_mode, (None, "rgb_array")))
        check_counts(render_size=(16 if render_size is None else render_size, 16))
        self._worlds, self.success_radius = worlds, worlds.success_radius
        self.goal_in_info, self.render_mode = goal_in_info, render_mode
        self.render_size = worlds.size if render_size is None else int(render_size)
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
        return self._out(self._worlds.state())

    @property
    def position(self):
        """(P,) float64: what success is measured on."""
        return self._out(self._worlds.stacked(self._worlds.position_of).double())

    @property
    def goal(self):
        """(P,) float64: where `position` should be."""
        return self._out(self._worlds.stacked(self._worlds.goal_of).double())

    def goal_state(self):
        """(X,) float64: the state, for `set_state`, of having arrived at the goal."""
        return self._out(self._worlds.goal_states())

    def goal_image(self):
        """uint8 (3, size, size): this episode's world at the goal."""
        return self._out(self._worlds.goal_images())

    def true_state(self) -> dict[str, Any]:
        """Named variables that pictures show, for probes: "position" (P,) and the world's own,
        float64."""
        return self._out(self._worlds.true_state())

    def expert_action(self, noise: float = 0.0, *, generator: torch.Generator | None = None):
        """(A,) float32: the scripted policy, plus `noise` times a standard normal, clipped.

        Noise comes from `generator` (CPU) or else from one that reset seeds; it never changes later
        episodes."""
        return self._out(self._worlds.expert_action(noise, generator))

    def random_place(self, u):
        """Where a wanderer heads next, (P,) float64, drawn by the uniform numbers u (3,): often
        through a narrow place.

        It is to be walked to in a straight line, whatever stands in between: see
        `gjwm.data.behaviours.Wandering`.

        Raises:
            NotImplementedError: in a world that offers none."""
        u = self._worlds.tensor(u).reshape(-1, 3)
        return self._out(self._worlds.random_places(u).double())

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
        plans = self._worlds.tensor(actions)
        paths = self._worlds.simulate(states, plans, particles, generator)
        return paths if isinstance(actions, Tensor) else paths.cpu().numpy()

    def simulate_return(
        self,
        states,
        actions,
        particles: int | None = None,
        generator: torch.Generator | None = None,
    ):
        """As `simulate` -> the rewards' sum over the horizon, (B, N[, P]) float32."""
        plans = self._worlds.tensor(actions)
        returns = self._worlds.simulate_return(states, plans, particles, generator)
        return returns if isinstance(actions, Tensor) else returns.cpu().numpy()


class TorchEnv(_Dressed, gym.Env):
    """A torch-native world as a Gymnasium environment: see the subclasses for what each of them is.

    | argument        | default | meaning                                                  |
    |-----------------|---------|----------------------------------------------------------|
    | `goal_in_info`  | False   | add the goal picture to reset's info                     |
    | `render_mode`   | None    | `"rgb_array"` for `render()`                             |
    | `render_size`   | `size`  | side of `render()`'s picture, pixels                     |

    All other arguments are the world's own. `gym.make` keeps an argument named `max_episode_steps`
    for a `TimeLimit` around the environment, which can only shorten episodes; longer ones are asked
    for at the class, in the id's registered `kwargs`, or through `gym.make_vec`,
    `gjwm.envs.make_vec` and `gjwm.envs.making.make_env`."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        cls.__signature__ = _signature(cls, cls.world, None)

    def __init__(
        self,
        *,
        goal_in_info: bool = False,
        render_mode: str | None = None,
        render_size: int | None = None,
        **world: Any,
    ):
        self.observation_space, self.action_space = self._dress(
            self.world(worlds=1, **world), goal_in_info, render_mode, render_size
        )

    def _out(self, value: Any) -> Any:
        return each(value, lambda tensor: tensor[0].numpy())

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        """Start an episode -> `(observation, info)`; `options={"state": s}` says where, as
        `set_state` does."""
        super().reset(seed=seed)
        state = state_option(options)
        self._worlds.seed(seed)
        if state is None:
            self._worlds.begin()
        else:
            self.set_state(state)
        info = {"goal": self.goal.astype(np.float32)}
        if self.goal_in_info:
            info["goal_image"] = self.goal_image()
        return self.observe(), info

    def step(self, action):
        """Apply `action (A,)` -> (observation, reward, terminated, truncated, info "success")."""
        action = self._worlds.check_actions(action, self.action_space.shape)
        reward, success, terminated, truncated = self._worlds.step(action[None])
        return (
            self.observe(),
            float(reward),
            bool(terminated),
            bool(truncated),
            {"success": bool(success)},
        )

    def render(self) -> np.ndarray | None:
        """uint8 (render_size, render_size, 3): the world, and its goal where observations do not
        show that."""
        if cannot_render(self):
            return None
        return self._worlds.frames(self.render_size)[0]

    def set_state(self, state: np.ndarray) -> None:
        """Go to `state (X,)`: the frame stack repeats the current picture and the episode's clock
        restarts."""
        state = np.asarray(state, dtype=np.float64)
        width = len(self._worlds.state_names)
        if state.shape != (width,) and not (self._worlds.noises and state.shape == (width + 1,)):
            raise ValueError(
                f"state has shape {state.shape}; expected {self._worlds.state_shape()}"
            )
        self._worlds.set_state(state[None])


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
    `reset()` goes on with the next episodes. Episodes are drawn by integer arithmetic, the same on
    every device.

    Autoreset is `SAME_STEP`: where an episode ends, `step` returns the first observation of the
    next one. The last observation of the ended one is in `infos["final_obs"]`, with the mask
    `infos["_final_obs"]`. With `device=None` that is Gymnasium's object array, None where nothing
    ended; with a device it is a batch of the true next observations of *all* environments, ready
    for a replay buffer. On the CPU these are there on steps where an episode ended; on an
    accelerator on every step, because to ask whether one ended would wait for the device.

    `infos` of step: `"success"` (B,) bool, whether the step ended at the goal, and with
    `"final_obs"` also `"final_info"` (the ended episodes' `"success"`) and `"goal"` (B, P), with
    Gymnasium's `_`-masks. `infos` of reset: `"goal"`, and `"goal_image"` if `goal_in_info`."""

    metadata = {  # noqa: RUF012
        "render_modes": ["rgb_array"],
        "render_fps": 10,
        "autoreset_mode": AutoresetMode.SAME_STEP,
    }
    # False: an episode that ended goes on instead of making way for the next
    autoreset = True

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        cls.__signature__ = _signature(cls, cls.world, "num_envs")

    def __init__(
        self,
        *,
        num_envs: int = 1,
        goal_in_info: bool = False,
        render_mode: str | None = None,
        render_size: int | None = None,
        device: str | torch.device | None = None,
        **world: Any,
    ):
        worlds = self.world(worlds=num_envs, device="cpu" if device is None else device, **world)
        self.single_observation_space, self.single_action_space = self._dress(
            worlds, goal_in_info, render_mode, render_size
        )
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
        rewards, success, terminated, truncated = worlds.step(
            worlds.check_actions(actions, self.action_space.shape)
        )
        observations = worlds.observe()
        infos = {"success": self._out(success), "_success": self._out(torch.ones_like(success))}

        ended = terminated | truncated
        on_cpu = self.device.type == "cpu"
        if self.autoreset and (not on_cpu or bool(ended.any())):
            rows = ended.nonzero()[:, 0] if on_cpu else None
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
            # every first observation is drawn, so that nobody asks how many are needed
            if rows is None:
                observations = _choose(ended, worlds.observe(), observations)
            else:
                observations = observations if self._numpy else each(observations, Tensor.clone)
                write(observations, rows, worlds.observe(rows))
            infos.update(self._goal_infos(ended))
        return (
            self._out(observations),
            self._out(rewards),
            self._out(terminated.clone()),
            self._out(truncated),
            infos,
        )

    def _goal_infos(self, started: Tensor) -> dict[str, Any]:
        infos = {
            "goal": self._out(self._worlds.stacked(self._worlds.goal_of).float()),
            "_goal": self._out(started.clone()),
        }
        if self.goal_in_info:
            infos |= {"goal_image": self.goal_image(), "_goal_image": self._out(started.clone())}
        return infos

    def render(self) -> tuple[np.ndarray, ...] | None:
        """One uint8 (render_size, render_size, 3) picture per environment, as the single
        environment's `render`."""
        if cannot_render(self):
            return None
        return tuple(self._worlds.frames(self.render_size))

    def set_state(self, states) -> None:
        """Go to `states (B, X)`: frame stacks repeat the current picture and the episodes' clocks
        restart."""
        shape = tuple(np.shape(states))
        if len(shape) != 2 or shape[0] != self.num_envs:
            raise ValueError(
                f"state has shape {shape}; expected {self._worlds.state_shape(self.num_envs)}"
            )
        self._worlds.set_state(states)


def _choose(mask: Tensor, chosen: Any, other: Any) -> Any:
    """chosen where mask (B,), else other."""
    if isinstance(chosen, dict):
        return {name: _choose(mask, value, other[name]) for name, value in chosen.items()}
    return torch.where(mask.view(-1, *[1] * (chosen.ndim - 1)), chosen, other)
