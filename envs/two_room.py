"""Two rooms, one door: a Gymnasium environment and its natively batched vector environment on torch tensors.

Both classes wrap the same batch of worlds (`torch_world.Worlds`): an environment is a batch of one. Environment i of a
vector environment reset with `seed=s` plays the same episodes as a single environment reset with `seed=s + i`, bit for
bit on one device.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from torch import Tensor

from .torch_world import SLIP, STATE, SUCCESS_RADIUS, Seed, Worlds


def _observation_space(obs: str, size: int, frame_stack: int) -> spaces.Space:
    pixels = spaces.Box(0, 255, (3 * frame_stack, size, size), np.uint8)
    state = spaces.Box(0.0, 1.0, (len(STATE),), np.float32)
    return {"pixels": pixels, "state": state, "both": spaces.Dict({"pixels": pixels, "state": state})}[obs]


def _check_render(render_mode: str | None, render_size: int | None, size: int) -> int:
    if render_mode not in (None, "rgb_array"):
        raise ValueError(f"render_mode is {render_mode!r}; pass None or 'rgb_array'")
    if render_size is not None and render_size < 16:
        raise ValueError(f"render_size is {render_size!r}; pass a whole number, 16 or more")
    return size if render_size is None else int(render_size)


def _state_option(options: dict[str, Any] | None) -> Any:
    """The "state" of reset's options, or None; other options have no meaning here and are refused."""
    unknown = sorted(set(options or {}) - {"state"})
    if unknown:
        raise ValueError(f"options holds {unknown}; the only option of this environment is 'state'")
    return (options or {}).get("state")


class TwoRoomEnv(gym.Env):
    """A dot in two rooms joined by a door: the smallest world that needs a detour to be planned.

    ## Description

    The agent is a dot in the unit square, which a vertical wall with one door cuts into two rooms. It is asked to
    move to a goal position. The picture shows walls, door and agent and **not** the goal: the goal is a picture of
    its own (`goal_image()`), so the task is to get from what is seen to what is wanted.

    Units: 1 is the side of the square (`size` pixels); x grows to the right, y downwards; time is in steps.

    ## Action space

    `Box(-1, 1, (2,), float32)`; clipped to these bounds.

    | index | action         | unit                       | range   |
    |-------|----------------|----------------------------|---------|
    | 0     | displacement x | `speed` (0.04) world units | [-1, 1] |
    | 1     | displacement y | `speed` (0.04) world units | [-1, 1] |

    The straight line of the step is swept exactly: whatever the agent meets (wall, door post, border) drops the
    blocked component for the rest of the step, and the other component goes on. The agent's centre keeps 0.035 away
    from anything solid. Wall thickness 0.04, door 0.16 wide (0.09 for the centre), border 0.03.

    With `shortcut=y` the wall has a second opening around y, 0.24 wide for the centre: a frozen bridge, 0.08 wide, with
    water on both sides. Each step from the bridge is displaced by Gaussian noise of standard deviation `slip` per axis. An
    agent whose centre leaves the bridge inside the opening is in the water and moves no more.
    `gjwm/two-room-slippery-v0` has the bridge at 0.35 and the safe door far off at 0.8.

    ## Observation space

    | obs        | space                                               | contents                                   |
    |------------|-----------------------------------------------------|--------------------------------------------|
    | `"pixels"` | `Box(0, 255, (3 * frame_stack, size, size), uint8)` | RGB frames, oldest first, newest last      |
    | `"state"`  | `Box(0, 1, (6,), float32)`                          | `x, y, goal_x, goal_y, wall_x, door_y`, wu |
    | `"both"`   | `Dict` of `"pixels"` and `"state"`                  |                                            |

    wu: world units.

    ## Reward

    1 on a step that ends less than `success_radius` from the goal, else 0.

    ## Starting state

    Start uniform over both rooms; goal uniform over both rooms (`goal="any"`) or over the room without the agent
    (`"other-room"`), at least `2 * success_radius` from the start. wall_x and door_y are 0.5, or uniform on
    [0.35, 0.65] and [0.2, 0.8] where "random". `options={"state": s}` starts from `s` instead, as `set_state` does.

    ## Episode end

    Terminated at the goal (unless `terminate_on_goal=False`); truncated after `max_episode_steps`.

    ## Info

    `reset`: `"goal"` float32 (2,) world units, and `"goal_image"` if `goal_in_info`. `step`: `"success"` bool.

    ## Arguments

    | argument            | default    | meaning                                                         |
    |---------------------|------------|-----------------------------------------------------------------|
    | `obs`               | `"pixels"` | `"pixels"`, `"state"` or `"both"`                               |
    | `size`              | 64         | side of the picture, pixels                                     |
    | `frame_stack`       | 1          | pictures per observation                                        |
    | `wall`              | `"fixed"`  | `"fixed"` (0.5), `"random"` per episode, or wall_x              |
    | `door`              | `"fixed"`  | `"fixed"` (0.5), `"random"` per episode, or door_y              |
    | `goal`              | `"any"`    | `"any"` or `"other-room"`                                       |
    | `shortcut`          | None       | y of a second opening: a frozen bridge over water (see below)   |
    | `slip`              | 0.04       | std of a step's slip on the ice, world units per axis           |
    | `speed`             | 0.04       | world units per step at full action                             |
    | `success_radius`    | 0.05       | world units                                                     |
    | `max_episode_steps` | 100        | steps until truncation (see below)                              |
    | `terminate_on_goal` | True       | end the episode at the goal                                     |
    | `goal_in_info`      | False      | add the goal picture to reset's info                            |
    | `render_mode`       | None       | `"rgb_array"` for `render()`                                    |
    | `render_size`       | `size`     | side of `render()`'s picture, pixels                            |

    `gym.make` keeps an argument named `max_episode_steps` for a `TimeLimit` around the environment, which can only
    shorten episodes; longer ones are asked for here, in the id's registered `kwargs`, or through `gym.make_vec`.

    Raises:
        ValueError: for an argument outside this table, an action of another shape or with NaN, and a state that
            is none of this world.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012

    def __init__(
        self,
        *,
        obs: str = "pixels",
        size: int = 64,
        frame_stack: int = 1,
        wall: str | float = "fixed",
        door: str | float = "fixed",
        goal: str = "any",
        shortcut: float | None = None,
        slip: float = SLIP,
        speed: float = 0.04,
        success_radius: float = SUCCESS_RADIUS,
        max_episode_steps: int = 100,
        terminate_on_goal: bool = True,
        goal_in_info: bool = False,
        render_mode: str | None = None,
        render_size: int | None = None,
    ):
        self._worlds = Worlds(
            worlds=1,
            obs=obs,
            size=size,
            frame_stack=frame_stack,
            wall=wall,
            door=door,
            goal=goal,
            shortcut=shortcut,
            slip=slip,
            speed=speed,
            success_radius=success_radius,
            max_episode_steps=max_episode_steps,
            terminate_on_goal=terminate_on_goal,
        )
        self.success_radius = self._worlds.success_radius
        self.goal_in_info = goal_in_info
        self.render_size = _check_render(render_mode, render_size, size)
        self.render_mode = render_mode
        self.observation_space = _observation_space(obs, size, frame_stack)
        self.action_space = spaces.Box(-1.0, 1.0, (2,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        """Start an episode -> `(observation, info)`; see the class for the options."""
        super().reset(seed=seed)
        state = _state_option(options)
        self._worlds.seed(seed)
        if state is None:
            self._worlds.begin()
        else:
            self.set_state(state)
        info = {"goal": self._worlds.goal[0].numpy().copy()}
        if self.goal_in_info:
            info["goal_image"] = self.goal_image()
        return self.observe(), info

    def step(self, action):
        """Move by `action (2,)` -> `(observation, reward, terminated, truncated, info)`."""
        action = self._worlds.check_actions(action, (2,))
        reached, terminated, truncated = (bool(flag) for flag in self._worlds.step(action[None]))
        return self.observe(), float(reached), terminated, truncated, {"success": reached}

    def observe(self):
        """The observation of the current state, shaped as `observation_space`."""
        observation = self._worlds.observe()
        if isinstance(observation, dict):
            return {name: value[0].numpy() for name, value in observation.items()}
        return observation[0].numpy()

    def render(self) -> np.ndarray | None:
        """uint8 (render_size, render_size, 3): the world with the agent in red and, unlike observations, the goal in
        green."""
        if self.render_mode is None:
            gym.logger.warn("render() shows nothing with render_mode=None; make the environment with 'rgb_array'")
            return None
        return self._worlds.frames(self.render_size)[0]

    def get_state(self) -> np.ndarray:
        """(6,) float64: x, y, goal_x, goal_y, wall_x, door_y in world units. The episode's clock is not part of it."""
        return self._worlds.state()[0].numpy()

    def set_state(self, state: np.ndarray) -> None:
        """Go to `state (6,)`: the frame stack repeats the current picture and the episode's clock restarts."""
        state = np.asarray(state, dtype=np.float64)
        if state.shape != (len(STATE),):
            raise ValueError(f"state has shape {state.shape}; expected ({len(STATE)},): {', '.join(STATE)}")
        self._worlds.set_state(state[None])

    @property
    def position(self) -> np.ndarray:
        """(2,) float64: the agent's centre x, y, world units; what success is measured on."""
        return self._worlds.position[0].double().numpy()

    def image_position(self, position: np.ndarray) -> np.ndarray:
        """Where positions (..., 2) are seen in a picture: shares of its width and height from the top left corner."""
        return np.asarray(position, np.float64)  # the unit square is the picture

    @property
    def sunk(self) -> bool:
        """Whether the agent lies in the water beside the shortcut."""
        return bool(self._worlds.sunk()[0])

    @property
    def goal(self) -> np.ndarray:
        """(2,) float64: the goal position x, y, world units."""
        return self._worlds.goal[0].double().numpy()

    def goal_state(self) -> np.ndarray:
        """(6,) float64: the state, for `set_state`, of having arrived at the goal."""
        state = self.get_state()
        state[:2] = state[2:4]
        return state

    def goal_image(self) -> np.ndarray:
        """uint8 (3, size, size): this episode's walls with the agent at the goal."""
        return self._worlds.goal_images()[0].numpy()

    def true_state(self) -> dict[str, np.ndarray]:
        """Named variables that the picture shows, for probes: position (2,), and wall_x (1,), door_y (1,) if random."""
        return {name: value[0].numpy() for name, value in self._worlds.true_state().items()}

    def expert_action(self, noise: float = 0.0, *, generator: torch.Generator | None = None) -> np.ndarray:
        """(2,) float32: the scripted through-the-door policy, plus `noise` times a standard normal, clipped.

        Noise comes from `generator` (CPU) or else from one that reset seeds; it never changes later episodes.
        """
        return self._worlds.expert_action(noise, generator)[0].numpy()

    def simulate(
        self,
        states: np.ndarray,
        actions: np.ndarray,
        particles: int | None = None,
        generator: torch.Generator | None = None,
    ) -> np.ndarray:
        """True positions under many action sequences, without changing this environment.

        Args:
            states: (B, 6) from `get_state`, any B.
            actions: (B, N, H, 2); clipped to [-1, 1].
            particles: None: nobody slips. P: as many outcomes of every plan, with the same slips for all plans of a world.
            generator: draws the slips.

        Returns:
            (B, N, [P,] H+1, 2) float32 world units, index 0 the start. Goals end nothing here.
        """
        return self._worlds.simulate(states, self._worlds.tensor(actions), particles, generator).numpy()


class TwoRoomVectorEnv(VectorEnv):
    """`num_envs` two-room worlds stepped as one batch of tensors, on the CPU or on an accelerator.

    Spaces, rewards, episodes and constructor arguments are those of `TwoRoomEnv`, with a leading axis B = num_envs,
    and two arguments more:

    | argument   | default | meaning                                                                             |
    |------------|---------|-------------------------------------------------------------------------------------|
    | `num_envs` | 1       | B                                                                                   |
    | `device`   | None    | None: computed on the CPU, numpy in the results. "cpu", "cuda", ...: torch tensors there |

    Actions may be numpy or torch, whatever the device. Rewards are float32 (B,), flags bool (B,). Every returned
    array or tensor is fresh: later steps never write into it.

    Seeds: `reset(seed=s)` seeds environment i with s + i, `reset(seed=[...])` each by name, `reset()` goes on with
    the next episodes. Episodes are drawn on the CPU, so they are the same on every device.

    Autoreset is `SAME_STEP`: where an episode ends, `step` returns the first observation of the next one. The last
    observation of the ended one is in `infos["final_obs"]`, with the mask `infos["_final_obs"]`, on steps where any
    episode ended. With `device=None` that is Gymnasium's object array, None where nothing ended; with a device it is
    a batch of the true next observations of *all* environments, ready for a replay buffer.

    `infos` of step: `"success"` (B,) bool, whether the goal was reached on this step, and on steps where an episode
    ended also `"final_info"` (the ended episodes' `"success"`) and `"goal"` (B, 2), with Gymnasium's `_`-masks.
    `infos` of reset: `"goal"`, and `"goal_image"` if `goal_in_info`.
    """

    metadata = {  # noqa: RUF012
        "render_modes": ["rgb_array"],
        "render_fps": 10,
        "autoreset_mode": AutoresetMode.SAME_STEP,
    }

    def __init__(
        self,
        *,
        num_envs: int = 1,
        obs: str = "pixels",
        size: int = 64,
        frame_stack: int = 1,
        wall: str | float = "fixed",
        door: str | float = "fixed",
        goal: str = "any",
        shortcut: float | None = None,
        slip: float = SLIP,
        speed: float = 0.04,
        success_radius: float = SUCCESS_RADIUS,
        max_episode_steps: int = 100,
        terminate_on_goal: bool = True,
        goal_in_info: bool = False,
        render_mode: str | None = None,
        render_size: int | None = None,
        device: str | torch.device | None = None,
    ):
        self._worlds = Worlds(
            worlds=num_envs,
            obs=obs,
            size=size,
            frame_stack=frame_stack,
            wall=wall,
            door=door,
            goal=goal,
            shortcut=shortcut,
            slip=slip,
            speed=speed,
            success_radius=success_radius,
            max_episode_steps=max_episode_steps,
            terminate_on_goal=terminate_on_goal,
            device="cpu" if device is None else device,
        )
        self._numpy = device is None
        self.num_envs = self._worlds.worlds
        self.device = self._worlds.device
        self.success_radius = self._worlds.success_radius
        self.goal_in_info = goal_in_info
        self.render_size = _check_render(render_mode, render_size, size)
        self.render_mode = render_mode
        self.single_observation_space = _observation_space(obs, size, frame_stack)
        self.single_action_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)

    def _out(self, value):
        """A tensor, or a dict of them, as this environment hands it out: no copy is made."""
        if isinstance(value, dict):
            return {name: self._out(v) for name, v in value.items()}
        return value.numpy() if self._numpy else value

    def reset(self, *, seed: Seed = None, options: dict[str, Any] | None = None):
        """Start an episode in every environment -> `(observations, infos)`; `options={"state": (B, 6)}` says where."""
        super().reset(seed=int(seed) if isinstance(seed, int | np.integer) else None)
        state = _state_option(options)
        self._worlds.seed(seed)
        if state is None:
            self._worlds.begin()
        else:
            self.set_state(state)
        everyone = torch.ones(self.num_envs, dtype=torch.bool, device=self.device)
        return self.observe(), self._goal_infos(everyone)

    def step(self, actions):
        """Move by `actions (B, 2)` -> `(observations, rewards, terminations, truncations, infos)`; see the class."""
        worlds = self._worlds
        actions = worlds.check_actions(actions, (self.num_envs, 2))
        reached, terminated, truncated = worlds.step(actions)
        observations = worlds.observe()
        infos = {"success": self._out(reached), "_success": self._out(torch.ones_like(reached))}

        ended = terminated | truncated
        rows = ended.nonzero()[:, 0]
        if len(rows):
            infos["_final_obs"] = self._out(ended)
            infos["final_info"] = {"success": self._out(reached & ended), "_success": self._out(ended.clone())}
            infos["_final_info"] = self._out(ended.clone())
            if self._numpy:
                infos["final_obs"] = _by_environment(observations, rows, self.num_envs)
            else:
                infos["final_obs"] = observations
                observations = _each(observations, Tensor.clone)
            worlds.begin(rows.cpu())
            _write(observations, rows, worlds.observe(rows))
            infos.update(self._goal_infos(ended))
        return (
            self._out(observations),
            self._out(reached.float()),
            self._out(terminated.clone()),
            self._out(truncated),
            infos,
        )

    def _goal_infos(self, started: Tensor) -> dict[str, Any]:
        infos = {"goal": self._out(self._worlds.goal.clone()), "_goal": self._out(started.clone())}
        if self.goal_in_info:
            infos |= {"goal_image": self.goal_images(), "_goal_image": self._out(started.clone())}
        return infos

    def observe(self):
        """The observations of the current states, shaped as `observation_space`."""
        return self._out(self._worlds.observe())

    def render(self) -> tuple[np.ndarray, ...] | None:
        """One uint8 (render_size, render_size, 3) picture per environment, agent in red and goal in green."""
        if self.render_mode is None:
            gym.logger.warn("render() shows nothing with render_mode=None; make the environment with 'rgb_array'")
            return None
        return tuple(self._worlds.frames(self.render_size))

    def get_state(self):
        """(B, 6) float64: x, y, goal_x, goal_y, wall_x, door_y in world units, exactly invertible by `set_state`."""
        return self._out(self._worlds.state())

    def set_state(self, states) -> None:
        """Go to `states (B, 6)`: frame stacks repeat the current picture and the episodes' clocks restart."""
        shape = tuple(np.shape(states))
        if shape != (self.num_envs, len(STATE)):
            raise ValueError(f"state has shape {shape}; expected {(self.num_envs, len(STATE))}: {', '.join(STATE)}")
        self._worlds.set_state(states)

    @property
    def position(self):
        """(B, 2) float64: the agents' centres x, y, world units."""
        return self._out(self._worlds.position.double())

    @property
    def sunk(self):
        """(B,) bool: which agents lie in the water beside the shortcut."""
        return self._out(self._worlds.sunk())

    @property
    def goal(self):
        """(B, 2) float64: the goal positions x, y, world units."""
        return self._out(self._worlds.goal.double())

    def goal_images(self):
        """uint8 (B, 3, size, size): each episode's walls with the agent at the goal."""
        return self._out(self._worlds.goal_images())

    def true_state(self) -> dict[str, Any]:
        """As `TwoRoomEnv.true_state`, float64 with a leading axis B."""
        return self._out(self._worlds.true_state())

    def expert_action(self, noise: float = 0.0, *, generator: torch.Generator | None = None):
        """(B, 2) float32: as `TwoRoomEnv.expert_action`, with independent noise in every environment."""
        return self._out(self._worlds.expert_action(noise, generator))

    def simulate(self, states, actions, particles: int | None = None, generator: torch.Generator | None = None):
        """As `TwoRoomEnv.simulate`, computed on this environment's device; B need not be num_envs.

        Returns:
            (B, N, [P,] H+1, 2) float32: a tensor on the device if `actions` is a tensor, else a numpy array.
        """
        positions = self._worlds.simulate(states, self._worlds.tensor(actions), particles, generator)
        return positions if isinstance(actions, Tensor) else positions.cpu().numpy()


def _each(observations: Tensor | dict[str, Tensor], function) -> Tensor | dict[str, Tensor]:
    if isinstance(observations, dict):
        return {name: function(value) for name, value in observations.items()}
    return function(observations)


def _write(observations: Tensor | dict[str, Tensor], rows: Tensor, new: Tensor | dict[str, Tensor]) -> None:
    """observations[rows] = new, in place."""
    if isinstance(observations, dict):
        for name, value in observations.items():
            value[rows] = new[name]
    else:
        observations[rows] = new


def _by_environment(observations: Tensor | dict[str, Tensor], rows: Tensor, num_envs: int) -> np.ndarray:
    """Gymnasium's `final_obs`: an object array (B,) with a copy of each observation in `rows`, None elsewhere."""
    last = _each(observations, lambda value: value[rows].numpy())
    array = np.full(num_envs, None, dtype=object)
    for k, i in enumerate(rows.tolist()):
        array[i] = {name: value[k] for name, value in last.items()} if isinstance(last, dict) else last[k]
    return array
