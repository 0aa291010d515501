"""dm_control's pendulum in torch: the world, its Gymnasium environment and its natively batched
vector environment."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from . import raster
from .common import check_choices
from .lqr import lqr_gains
from .torch_env import TorchEnv, TorchVectorEnv
from .torch_world import Planes, World, within

# s, one control step: one step of MuJoCo's Euler integrator, which treats damping implicitly
TIMESTEP = 0.02
LENGTH = 0.5  # m, pivot to mass
MASS = 1.0  # kg, a ball of radius 0.05 m on a massless pole
INERTIA = MASS * LENGTH**2 + 0.4 * MASS * 0.05**2  # kg m^2, about the pivot
DAMPING = 0.1  # N m s
GRAVITY = 9.81  # m/s^2
UPRIGHT = math.cos(math.radians(8))  # cosine from which the task rewards
SUCCESS_RADIUS = 0.1
FASTEST = 100.0  # rad/s that a state may have; the motor alone brings it to about 12

VIEW = 1.4  # m, side of the picture, the pivot at its centre
POLE_RADIUS, MASS_RADIUS = 0.03, 0.07  # m, as drawn
FLOOR_COLOUR = (236, 236, 228)
POLE_COLOUR = (44, 52, 70)
MASS_COLOUR = (222, 44, 40)


class PendulumWorld(World):
    """The pendulum as a `World`. A state is `angle, velocity`; the angle is 0 upright and never
    wrapped."""

    state_names = ("angle", "velocity")
    vector_names = ("cos", "sin", "velocity")
    vector_bounds = (-1.0, -1.0, -FASTEST), (1.0, 1.0, FASTEST)
    actions, draws, limit = 1, 1, 1000
    invalid = f"has a velocity above {FASTEST} rad/s, or holds NaN"

    def __init__(self, *, reward: str = "sparse", success_radius: float = SUCCESS_RADIUS, **common):
        super().__init__(success_radius=success_radius, **common)
        check_choices(reward=(reward, ("sparse", "smooth")))
        self.smooth = reward == "smooth"

    def draw(self, u: Planes) -> Planes:
        return within(-math.pi, math.pi, u[0]), torch.zeros_like(u[0])

    def advance(self, state: Planes, action: Planes, noise: Planes | None = None) -> Planes:
        angle, velocity = state
        torque = action[0] + MASS * GRAVITY * LENGTH * torch.sin(angle) - DAMPING * velocity
        velocity = velocity + TIMESTEP / (INERTIA + TIMESTEP * DAMPING) * torque
        return angle + TIMESTEP * velocity, velocity

    def reward(self, before: Planes, action: Planes, after: Planes) -> Tensor:
        height = torch.cos(after[0])
        return (1 + height) / 2 if self.smooth else (height >= UPRIGHT).to(height.dtype)

    def position_of(self, state: Planes) -> Planes:
        return torch.cos(state[0]), torch.sin(state[0])

    def goal_of(self, state: Planes) -> Planes:
        return torch.ones_like(state[0]), torch.zeros_like(state[0])

    def goal_state_of(self, state: Planes) -> Planes:
        return torch.zeros_like(state[0]), torch.zeros_like(state[0])

    def valid(self, state: Planes) -> Tensor:
        return super().valid(state) & (state[1].abs() <= FASTEST)

    def vectors_of(self, state: Planes) -> Planes:
        return *self.position_of(state), state[1]

    def shown_by(self, state: Planes) -> dict[str, Planes]:
        shown = {"position": self.position_of(state)}
        return shown | {"velocity": state[1:]} if self.frame_stack > 1 else shown

    @functools.cached_property
    def _gains(self) -> tuple[float, float]:
        gains = lqr_gains(
            self.advance,
            (0.0, 0.0),
            state_cost=(10.0, 1.0),
            action_cost=1.0,
            repeat=self.action_repeat,
        )
        return float(gains[0]), float(gains[1])

    def expert(self, state: Planes) -> Planes:
        """Pump energy until it is that of standing upright (Åström & Furuta, 2000), then hold with
        a regulator."""
        angle, velocity = state
        wrapped = torch.atan2(torch.sin(angle), torch.cos(angle))
        # J, 0 upright at rest
        energy = 0.5 * INERTIA * velocity**2 + MASS * GRAVITY * LENGTH * (torch.cos(angle) - 1)
        pump = -10.0 * energy * torch.where(velocity >= 0, 1.0, -1.0)
        hold = -self._gains[0] * wrapped - self._gains[1] * velocity
        return (
            torch.where((hold.abs() < 2.0) & (wrapped.abs() < 0.4), hold, pump).clamp(-1.0, 1.0),
        )

    # -- pictures ----------------------------------------------------------------------------------

    def backdrop(self, size: int) -> Tensor:
        return (
            raster.ink(FLOOR_COLOUR, self.device)
            .to(torch.uint8)[:, None, None]
            .expand(3, size, size)
        )

    def pictures(self, state: Planes, size: int, rows: Tensor | None = None) -> Tensor:
        angle = state[0]
        frames = self.canvas(size, *angle.shape)
        pictures, angle, metre = frames.flatten(0, 1), angle.flatten(), size / VIEW
        right, down = torch.sin(angle), -torch.cos(angle)  # of the pole, in the picture
        length, pole, mass = LENGTH * metre, POLE_RADIUS * metre, MASS_RADIUS * metre
        dark, red = raster.ink(POLE_COLOUR, self.device), raster.ink(MASS_COLOUR, self.device)

        def rod(dx: Tensor, dy: Tensor, cos: Tensor, sin: Tensor) -> list[tuple[Tensor, Tensor]]:
            along, across = raster.turned(dx, dy, cos, sin)
            return [(raster.capsule(along + length / 2, across, length, pole), dark)]

        def ball(dx: Tensor, dy: Tensor) -> list[tuple[Tensor, Tensor]]:
            return [(raster.disc(dx, dy, mass), red)]

        middle = size / 2
        x, y = middle + length / 2 * right, middle + length / 2 * down
        raster.stamp(pictures, x, y, length / 2 + pole, rod, right, down)
        raster.stamp(pictures, middle + length * right, middle + length * down, mass, ball)
        return frames


class PendulumEnv(TorchEnv):
    """dm_control's pendulum-swingup in torch: a motor too weak to lift the pole has to swing it up.

    ## Description

    A ball of 1 kg on a massless pole of 0.5 m turns about a hinge with damping 0.1 N m s under
    gravity of 9.81 m/s². Masses, lengths, motor, damping, time step and integrator are those of
    dm_control's `pendulum`, step for step (see the tests for the tolerance), so policies and models
    can move between the two; only the pictures differ.

    ## Action space

    `Box(-1, 1, (1,), float32)`; clipped to these bounds.

    | index | action          | unit | range   |
    |-------|-----------------|------|---------|
    | 0     | torque of motor | N m  | [-1, 1] |

    Gravity's torque reaches 4.9 N m. A control step lasts 0.02 s.

    ## Observation space

    - `"pixels"` (`Box(0, 255, (3 * frame_stack, size, size), uint8)`): RGB frames of 1.4 m x 1.4 m,
      oldest first
    - `"state"` (`Box([-1, 1] and [-100, 100], (3,), float32)`): cos and sin of the angle from
      upright, rad/s
    - `"both"` (`Dict`): `"pixels"` and `"state"`

    A positive angle leans to the right.

    ## Reward

    Per control step, summed over `action_repeat`: `reward="sparse"`, the suite's own: 1 within 8
    degrees of upright, else 0; `"smooth"`: (1 + cos) / 2, which has gradients.

    ## Starting state

    At rest at an angle uniform on [-pi, pi].

    ## Episode end

    Never terminated; truncated after `max_episode_steps`.

    ## State, goal and expert

    `get_state`: `angle` rad (0 upright, not wrapped) and `velocity` rad/s, float64. `position` is
    cos and sin (2,), the goal is (1, 0). The expert pumps energy, then holds with a
    linear-quadratic regulator.

    ## Arguments

    | argument            | default    | meaning                                            |
    |---------------------|------------|----------------------------------------------------|
    | `reward`            | `"sparse"` | see above                                          |
    | `obs`               | `"pixels"` | `"pixels"`, `"state"` or `"both"`                  |
    | `size`              | 64         | side of the picture, pixels, 16 or more            |
    | `frame_stack`       | 1          | pictures per observation                           |
    | `action_repeat`     | 1          | control steps per action                           |
    | `success_radius`    | 0.1        | of position, unit circle (5.7 degrees)             |
    | `max_episode_steps` | None       | actions until truncation; None: 1000 control steps |
    | `terminate_on_goal` | False      | end the episode upright                            |

    and those of `TorchEnv`.

    Version: v0, the first.

    Raises:
        ValueError: for an argument outside this table, an action of another shape or with NaN, and
            a state that is none of this world."""

    world = PendulumWorld


class PendulumVectorEnv(TorchVectorEnv):
    """`num_envs` worlds of `PendulumEnv` as one batch; see `TorchVectorEnv`."""

    world = PendulumWorld
