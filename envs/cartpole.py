"""dm_control's cartpole in torch, one at a time or in batches."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from . import raster
from .swingup import FASTEST, GRAVITY, SwingUp
from .torch_env import TorchEnv, TorchVectorEnv
from .torch_world import Planes, gaussian

TIMESTEP = 0.01  # s, one control step: one step of the classical Runge-Kutta integrator
CART_MASS, POLE_MASS = 1.0, 0.1  # kg
FORCE = 10.0  # N at |action| = 1
CART_DAMPING, POLE_DAMPING = 5e-4, 2e-6  # N s/m, N m s
POLE_LENGTH, POLE_RADIUS = 1.0, 0.045  # m, a capsule
CENTRE = POLE_LENGTH / 2  # m, hinge to the pole's centre of mass
RAIL = 1.8  # m, from where a spring pushes the cart back


def _capsule_inertia(mass: float, length: float, radius: float) -> float:
    """About an axis across the middle of a solid capsule, kg m^2."""
    cylinder, ball = math.pi * radius**2 * length, 4 / 3 * math.pi * radius**3
    cylinder, ball = mass * cylinder / (cylinder + ball), mass * ball / (cylinder + ball)
    return cylinder * (3 * radius**2 + length**2) / 12 + ball * (
        2 * radius**2 / 5 + length**2 / 4 + 3 * length * radius / 8
    )


# kg m^2, about the hinge
INERTIA = _capsule_inertia(POLE_MASS, POLE_LENGTH, POLE_RADIUS) + POLE_MASS * CENTRE**2
MASS = CART_MASS + POLE_MASS
COUPLING = POLE_MASS * CENTRE  # kg m

# The rail's ends as MuJoCo has them (Todorov, 2014, "Convex and analytically-invertible dynamics"):
# a spring-damper in acceleration, softened by an impedance that grows from 0.9 to 0.95 over the
# first millimetre.
IMPEDANCE, IMPEDANCE_WIDTH, TIME_CONSTANT = (0.9, 0.95), 0.001, 0.08
STIFFNESS, DAMPING = 1 / (IMPEDANCE[1] * TIME_CONSTANT) ** 2, 2 / (IMPEDANCE[1] * TIME_CONSTANT)
INVERSE_MASS = INERTIA / (MASS * INERTIA - COUPLING**2)  # 1/kg, of the cart with the pole upright

VIEW = 4.8  # m, side of the picture, the rail across its middle
CART_HALF_SIZE, DRAWN_POLE_RADIUS = (0.25, 0.13), 0.06  # m, as drawn
RAIL_COLOUR = (150, 154, 164)


def _impedance(depth: Tensor) -> Tensor:
    x = (depth / IMPEDANCE_WIDTH).clamp(max=1.0)
    y = torch.where(x <= 0.5, 2 * x * x, 1 - 2 * (1 - x) ** 2)
    return IMPEDANCE[0] + (IMPEDANCE[1] - IMPEDANCE[0]) * y


def accelerations(
    angle: Tensor, x: Tensor, velocity: Tensor, angular: Tensor, force: Tensor
) -> tuple[Tensor, Tensor]:
    """The equations of motion -> cart m/s^2, pole rad/s^2.

    [ M        c cos a ] [x'']   [ F - b v + c sin a w^2  + rail ]
    [ c cos a  I       ] [a''] = [ c g sin a - d w               ],   c = m l."""
    sin, cos = torch.sin(angle), torch.cos(angle)
    cart = force - CART_DAMPING * velocity + COUPLING * sin * angular * angular
    pole = COUPLING * GRAVITY * sin - POLE_DAMPING * angular
    couple = COUPLING * cos
    determinant = MASS * INERTIA - couple * couple

    # The rail's end: a force that only pushes back, in closed form because there is one of them.
    side = torch.where(x >= 0, 1.0, -1.0)
    depth = (side * x - RAIL).clamp(min=0.0)
    impedance = _impedance(depth)
    wanted = -DAMPING * -side * velocity + STIFFNESS * impedance * depth  # inwards, m/s^2
    free = -side * (INERTIA * cart - couple * pole) / determinant
    compliance = INERTIA / determinant + (1 - impedance) / impedance * INVERSE_MASS
    rail = ((wanted - free) / compliance).clamp(min=0.0) * (depth > 0)
    cart = cart - side * rail
    return (INERTIA * cart - couple * pole) / determinant, (
        MASS * pole - couple * cart
    ) / determinant


def tolerance(value: Tensor, margin: float) -> Tensor:
    """dm_control's Gaussian `rewards.tolerance` around 0: 0.1 at the margin."""
    return torch.exp(math.log(0.1) * (value / margin) ** 2)


class CartpoleWorld(SwingUp):
    """The cart and pole as a `World`. A state is `x, angle, velocity, angular_velocity`; the angle
    is 0 upright, unwrapped."""

    state_names = ("x", "angle", "velocity", "angular_velocity")
    vector_names = ("x", "cos", "sin", "velocity", "angular_velocity")
    vector_bounds = (
        (-RAIL - 1, -1.0, -1.0, -FASTEST, -FASTEST),
        (RAIL + 1, 1.0, 1.0, FASTEST, FASTEST),
    )
    actions, draws, limit = 1, 8, 1000
    invalid = (
        f"has the cart more than 1 m beyond the rail's end, a velocity above {FASTEST}, or holds "
        "NaN"
    )

    costs = (1.0, 10.0, 0.3, 1.0)

    def __init__(self, *, reward: str = "smooth", **common):
        super().__init__(reward=reward, **common)

    def draw(self, u: Planes) -> Planes:
        x, angle, velocity, angular = (0.01 * gaussian(u[2 * k], u[2 * k + 1]) for k in range(4))
        return x, math.pi + angle, velocity, angular

    def advance(self, state: Planes, action: Planes, noise: Planes | None = None) -> Planes:
        x, angle, v, w = state
        force, h = FORCE * action[0], TIMESTEP
        # Position slopes are the velocities at each stage; names: 1..4 are the stages of
        # Runge-Kutta.
        a1, b1 = accelerations(angle, x, v, w, force)
        v2, w2 = v + h / 2 * a1, w + h / 2 * b1
        a2, b2 = accelerations(angle + h / 2 * w, x + h / 2 * v, v2, w2, force)
        v3, w3 = v + h / 2 * a2, w + h / 2 * b2
        a3, b3 = accelerations(angle + h / 2 * w2, x + h / 2 * v2, v3, w3, force)
        v4, w4 = v + h * a3, w + h * b3
        a4, b4 = accelerations(angle + h * w3, x + h * v3, v4, w4, force)
        return (
            x + h / 6 * (v + 2 * (v2 + v3) + v4),
            angle + h / 6 * (w + 2 * (w2 + w3) + w4),
            v + h / 6 * (a1 + 2 * (a2 + a3) + a4),
            w + h / 6 * (b1 + 2 * (b2 + b3) + b4),
        )

    def reward(self, before: Planes, action: Planes, after: Planes) -> Tensor:
        x, angle, _, angular = after
        cos = torch.cos(angle)
        if not self.smooth:
            return ((x.abs() <= 0.25) & (cos >= 0.995)).to(cos.dtype)
        upright, centred = (1 + cos) / 2, (1 + tolerance(x, 2.0)) / 2
        small_control, small_velocity = (5 - action[0] ** 2) / 5, (1 + tolerance(angular, 5.0)) / 2
        return upright * small_control * small_velocity * centred

    def position_of(self, state: Planes) -> Planes:
        return state[0], torch.cos(state[1]), torch.sin(state[1])

    def goal_of(self, state: Planes) -> Planes:
        zero = torch.zeros_like(state[0])
        return zero, zero + 1.0, zero

    def valid(self, state: Planes) -> Tensor:
        return super().valid(state) & (state[0].abs() <= RAIL + 1)

    def expert(self, state: Planes) -> Planes:
        """Pump the pole's energy with the cart's acceleration (Åström & Furuta, 2000), then
        hold."""
        x, angle, v, w = state
        sin, cos = torch.sin(angle), torch.cos(angle)
        wrapped = torch.atan2(sin, cos)
        energy = 0.5 * INERTIA * w * w + COUPLING * GRAVITY * (cos - 1)  # J, 0 upright at rest
        wanted = (40.0 * energy * w * cos).clamp(-6.0, 6.0) - 2.0 * x - 1.0 * v  # m/s^2 of the cart
        force = MASS * wanted + COUPLING * (
            cos * (COUPLING * GRAVITY * sin - COUPLING * cos * wanted) / INERTIA - sin * w * w
        )
        hold = self.hold((x, wrapped, v, w))
        near = (hold.abs() < 3.0) & (wrapped.abs() < 0.5)
        return (torch.where(near, hold, force / FORCE).clamp(-1.0, 1.0),)

    def backdrop(self) -> Tensor:
        """The floor, and the rail with its ends."""
        size = self.size
        metre, middle = size / VIEW, size / 2
        rows = raster.share(middle - 0.03 * metre, middle + 0.03 * metre, size, self.device)
        columns = raster.share(middle - RAIL * metre, middle + RAIL * metre, size, self.device)
        picture = raster.layered(rows[:, None] * columns, RAIL_COLOUR, raster.FLOOR)
        return (picture + 0.5).to(torch.uint8)

    def pictures(self, state: Planes, rows: Tensor | None = None) -> Tensor:
        x, angle = state[0], state[1]
        frames, metre, middle = self.canvas(*x.shape), self.size / VIEW, self.size / 2
        pictures, hinge, angle = frames.flatten(0, 1), middle + metre * x.flatten(), angle.flatten()
        way = torch.sin(angle), -torch.cos(angle)  # of the pole, to the right and down
        length, (wide, high) = POLE_LENGTH * metre, (metre * half for half in CART_HALF_SIZE)
        dark, level = raster.ink(raster.DARK, self.device), torch.full_like(hinge, middle)
        cart = lambda dx, dy: [(raster.box(dx, dy, wide, high), dark)]  # noqa: E731
        raster.stamp(pictures, hinge, level, wide, cart)
        x, y = hinge + length / 2 * way[0], level + length / 2 * way[1]
        raster.draw_pole(pictures, x, y, way, length, DRAWN_POLE_RADIUS * metre, raster.RED)
        return frames


class CartpoleEnv(TorchEnv):
    """dm_control's cartpole-swingup in torch: a cart on a rail swings its pole up and balances it.

    A cart of 1 kg slides on a rail and carries a hinged pole, a capsule of 0.1 kg and 1 m. All is
    as in dm_control's `cartpole`, the soft ends of the rail at 1.8 m included, step for step (see
    the tests for the tolerance), so policies and models can move between the two; only the pictures
    differ. A control step lasts 0.01 s. The angle is from upright; a positive one leans to the
    right.

    | action            | unit | range   |
    |-------------------|------|---------|
    | force on the cart | 10 N | [-1, 1] |

    - State vector (5,): cart m, cos, sin of the angle, cart m/s, pole rad/s; within 2.8 m and 100.
      Pictures are 4.8 m wide.
    - Reward per control step: `reward="smooth"` (default), that of the suite's swingup: (1 + cos) /
      2, times factors for a centred cart, a small action and a slow pole; `"sparse"`, that of
      swingup_sparse: 1 within 0.25 m of the middle and with a cosine of at least 0.995, else 0.
    - Start: hanging at rest in the middle, with Gaussian noise of 0.01 in all four numbers. End:
      truncated after 1000 control steps, or at the goal with `terminate_on_goal=True`.
    - `get_state`: `x` m, `angle` rad (0 upright, not wrapped), `velocity` m/s, `angular_velocity`
      rad/s. `position`: x, cos and sin, the goal (0, 1, 0), `success_radius` 0.1. The expert pumps
      energy, then holds with a linear-quadratic regulator."""

    world = CartpoleWorld


class CartpoleVectorEnv(TorchVectorEnv):
    """`num_envs` worlds of `CartpoleEnv` as one batch; see `TorchVectorEnv`."""

    world = CartpoleWorld
