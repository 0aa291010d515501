"""dm_control's pendulum in torch, one at a time or in batches."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from . import raster
from .swingup import FASTEST, GRAVITY, SwingUp
from .torch_env import TorchEnv, TorchVectorEnv
from .torch_world import Planes, within

# s, one control step: one step of MuJoCo's Euler integrator, which treats damping implicitly
TIMESTEP = 0.02
LENGTH = 0.5  # m, pivot to mass
MASS = 1.0  # kg, a ball of radius 0.05 m on a massless pole
INERTIA = MASS * LENGTH**2 + 0.4 * MASS * 0.05**2  # kg m^2, about the pivot
DAMPING = 0.1  # N m s
UPRIGHT = math.cos(math.radians(8))  # cosine from which the task rewards

VIEW = 1.4  # m, side of the picture, the pivot at its centre
POLE_RADIUS, MASS_RADIUS = 0.03, 0.07  # m, as drawn


class PendulumWorld(SwingUp):
    """The pendulum as a `World`. A state is `angle, velocity`; the angle is 0 upright and never
    wrapped."""

    state_names = ("angle", "velocity")
    vector_names = ("cos", "sin", "velocity")
    vector_bounds = (-1.0, -1.0, -FASTEST), (1.0, 1.0, FASTEST)
    actions, draws, limit = 1, 1, 1000
    invalid = f"has a velocity above {FASTEST} rad/s, or holds NaN"
    costs = (10.0, 1.0)

    def __init__(self, *, reward: str = "sparse", **common):
        super().__init__(reward=reward, **common)

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

    def expert(self, state: Planes) -> Planes:
        """Pump energy until it is that of standing upright (Åström & Furuta, 2000), then hold."""
        angle, velocity = state
        wrapped = torch.atan2(torch.sin(angle), torch.cos(angle))
        # J, 0 upright at rest
        energy = 0.5 * INERTIA * velocity**2 + MASS * GRAVITY * LENGTH * (torch.cos(angle) - 1)
        pump = -10.0 * energy * torch.where(velocity >= 0, 1.0, -1.0)
        hold = self.hold((wrapped, velocity))
        near = (hold.abs() < 2.0) & (wrapped.abs() < 0.4)
        return (torch.where(near, hold, pump).clamp(-1.0, 1.0),)

    def pictures(self, state: Planes, rows: Tensor | None = None) -> Tensor:
        angle, size = state[0], self.size
        frames = self.canvas(*angle.shape)
        pictures, angle, metre, middle = (
            frames.flatten(0, 1),
            angle.flatten(),
            size / VIEW,
            size / 2,
        )
        way = torch.sin(angle), -torch.cos(angle)  # of the pole, to the right and down
        length = LENGTH * metre
        x, y = (middle + length / 2 * part for part in way)
        raster.draw_pole(pictures, x, y, way, length, POLE_RADIUS * metre, raster.DARK)
        x, y = (middle + length * part for part in way)
        raster.draw_disc(pictures, x, y, MASS_RADIUS * metre, raster.RED)
        return frames


class PendulumEnv(TorchEnv):
    """dm_control's pendulum-swingup in torch: a motor too weak to lift the pole has to swing it up.

    A ball of 1 kg on a massless pole of 0.5 m turns about a hinge with damping 0.1 N m s under
    gravity of 9.81 m/s². All is as in dm_control's `pendulum`, step for step (see the tests for the
    tolerance), so policies and models can move between the two; only the pictures differ. A control
    step lasts 0.02 s. The angle is from upright; a positive one leans to the right.

    | action | unit              | range   |
    |--------|-------------------|---------|
    | torque | N m, of 4.9 asked | [-1, 1] |

    - State vector (3,): cos and sin of the angle, rad/s; at most 100. Pictures are 1.4 m wide.
    - Reward per control step: `reward="sparse"` (default), the suite's own: 1 within 8 degrees of
      upright, else 0; `"smooth"`: (1 + cos) / 2, which has gradients.
    - Start: at rest at an angle uniform on [-pi, pi]. End: truncated after 1000 control steps, or
      at the goal with `terminate_on_goal=True`.
    - `get_state`: `angle` rad (0 upright, not wrapped) and `velocity` rad/s. `position`: cos and
      sin, the goal (1, 0), `success_radius` 0.1 (5.7 degrees). The expert pumps energy, then holds
      with a linear-quadratic regulator."""

    world = PendulumWorld


class PendulumVectorEnv(TorchVectorEnv):
    """`num_envs` worlds of `PendulumEnv` as one batch; see `TorchVectorEnv`."""

    world = PendulumWorld
