"""dm_control's cartpole in torch: the world, its Gymnasium environment and its natively batched
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
from .torch_world import Planes, World, gaussian

TIMESTEP = 0.01  # s, one control step: one step of the classical Runge-Kutta integrator
CART_MASS, POLE_MASS = 1.0, 0.1  # kg
FORCE = 10.0  # N at |action| = 1
GRAVITY = 9.81  # m/s^2
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

SUCCESS_RADIUS = 0.1
FASTEST = 100.0  # m/s and rad/s that a state may have

VIEW = 4.8  # m, side of the picture, the rail across its middle
CART_HALF_SIZE, DRAWN_POLE_RADIUS = (0.25, 0.13), 0.06  # m, as drawn
FLOOR_COLOUR = (236, 236, 228)
RAIL_COLOUR = (150, 154, 164)
CART_COLOUR = (44, 52, 70)
POLE_COLOUR = (222, 44, 40)


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


class CartpoleWorld(World):
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

    def __init__(self, *, reward: str = "smooth", success_radius: float = SUCCESS_RADIUS, **common):
        super().__init__(success_radius=success_radius, **common)
        check_choices(reward=(reward, ("sparse", "smooth")))
        self.smooth = reward == "smooth"

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

    def goal_state_of(self, state: Planes) -> Planes:
        return (torch.zeros_like(state[0]),) * 4

    def vectors_of(self, state: Planes) -> Planes:
        return *self.position_of(state), *state[2:]

    def shown_by(self, state: Planes) -> dict[str, Planes]:
        shown = {"position": self.position_of(state)}
        return shown | {"velocity": state[2:]} if self.frame_stack > 1 else shown

    def valid(self, state: Planes) -> Tensor:
        return (
            super().valid(state)
            & (state[0].abs() <= RAIL + 1)
            & (state[2].abs() <= FASTEST)
            & (state[3].abs() <= FASTEST)
        )

    @functools.cached_property
    def _gains(self) -> list[float]:
        cost = (1.0, 10.0, 0.3, 1.0)
        return lqr_gains(
            self.advance, (0.0,) * 4, state_cost=cost, action_cost=1.0, repeat=self.action_repeat
        ).tolist()

    def expert(self, state: Planes) -> Planes:
        """Pump the pole's energy with the cart's acceleration (Åström & Furuta, 2000), then hold
        with a regulator."""
        x, angle, v, w = state
        sin, cos = torch.sin(angle), torch.cos(angle)
        wrapped = torch.atan2(sin, cos)
        energy = 0.5 * INERTIA * w * w + COUPLING * GRAVITY * (cos - 1)  # J, 0 upright at rest
        wanted = (40.0 * energy * w * cos).clamp(-6.0, 6.0) - 2.0 * x - 1.0 * v  # m/s^2 of the cart
        force = MASS * wanted + COUPLING * (
            cos * (COUPLING * GRAVITY * sin - COUPLING * cos * wanted) / INERTIA - sin * w * w
        )
        hold = -sum(gain * value for gain, value in zip(self._gains, (x, wrapped, v, w)))
        return (
            torch.where((hold.abs() < 3.0) & (wrapped.abs() < 0.5), hold, force / FORCE).clamp(
                -1.0, 1.0
            ),
        )

    # -- pictures ----------------------------------------------------------------------------------

    def backdrop(self, size: int) -> Tensor:
        """(3, size, size) uint8: the floor, and the rail with its ends."""
        metre, middle = size / VIEW, size / 2
        rows = raster.share(middle - 0.03 * metre, middle + 0.03 * metre, size, self.device)
        columns = raster.share(middle - RAIL * metre, middle + RAIL * metre, size, self.device)
        cover = rows[:, None] * columns
        floor, grey = (
            raster.ink(c, self.device)[:, None, None] for c in (FLOOR_COLOUR, RAIL_COLOUR)
        )
        return (floor + cover * (grey - floor) + 0.5).to(torch.uint8)

    def pictures(self, state: Planes, size: int, rows: Tensor | None = None) -> Tensor:
        x, angle = state[0], state[1]
        frames, metre, middle = self.canvas(size, *x.shape), size / VIEW, size / 2
        pictures = frames.flatten(0, 1)
        hinge, angle = middle + metre * x.flatten(), angle.flatten()
        right, down = torch.sin(angle), -torch.cos(angle)  # of the pole, in the picture
        length, radius = POLE_LENGTH * metre, DRAWN_POLE_RADIUS * metre
        half_length, half_width = (metre * half for half in CART_HALF_SIZE)
        dark, red = raster.ink(CART_COLOUR, self.device), raster.ink(POLE_COLOUR, self.device)

        def cart(dx: Tensor, dy: Tensor) -> list[tuple[Tensor, Tensor]]:
            return [(raster.box(dx, dy, half_length, half_width), dark)]

        def pole(dx: Tensor, dy: Tensor, cos: Tensor, sin: Tensor) -> list[tuple[Tensor, Tensor]]:
            along, across = raster.turned(dx, dy, cos, sin)
            return [(raster.capsule(along + length / 2, across, length, radius), red)]

        level = torch.full_like(hinge, middle)
        raster.stamp(pictures, hinge, level, half_length, cart)
        x, y = hinge + length / 2 * right, level + length / 2 * down
        raster.stamp(pictures, x, y, length / 2 + radius, pole, right, down)
        return frames


class CartpoleEnv(TorchEnv):
    """dm_control's cartpole-swingup in torch: a cart on a rail swings its pole up and balances it.

    ## Description

    A cart of 1 kg slides on a rail and carries a hinged pole, a capsule of 0.1 kg and 1 m. Masses,
    lengths, motor, damping, the soft ends of the rail at 1.8 m, time step and integrator are those
    of dm_control's `cartpole`, step for step (see the tests for the tolerance), so policies and
    models can move between the two; only the pictures differ.

    ## Action space

    `Box(-1, 1, (1,), float32)`; clipped to these bounds.

    | index | action            | unit | range   |
    |-------|-------------------|------|---------|
    | 0     | force on the cart | 10 N | [-1, 1] |

    A control step lasts 0.01 s.

    ## Observation space

    - `"pixels"` (`Box(0, 255, (3 * frame_stack, size, size), uint8)`): RGB frames of 4.8 m x 4.8 m,
      oldest first
    - `"state"` (`Box([-2.8, 2.8], [-1, 1], [-100, 100], (5,))`): cart m, cos, sin of the angle,
      cart m/s, pole rad/s
    - `"both"` (`Dict`): `"pixels"` and `"state"`

    The angle is from upright; a positive one leans to the right.

    ## Reward

    Per control step, summed over `action_repeat`: `reward="smooth"`, that of the suite's swingup:
    (1 + cos) / 2, times factors for a centred cart, a small action and a slow pole; `"sparse"`,
    that of swingup_sparse: 1 within 0.25 m of the middle and with a cosine of at least 0.995, else
    0.

    ## Starting state

    Hanging at rest in the middle; positions, angles and velocities with Gaussian noise of 0.01.

    ## Episode end

    Never terminated; truncated after `max_episode_steps`.

    ## State, goal and expert

    `get_state`: `x` m, `angle` rad (0 upright, not wrapped), `velocity` m/s, `angular_velocity`
    rad/s, float64. `position` is x, cos and sin (3,), the goal is (0, 1, 0). The expert pumps
    energy, then holds with a linear-quadratic regulator.

    ## Arguments

    | argument            | default    | meaning                                            |
    |---------------------|------------|----------------------------------------------------|
    | `reward`            | `"smooth"` | see above                                          |
    | `obs`               | `"pixels"` | `"pixels"`, `"state"` or `"both"`                  |
    | `size`              | 64         | side of the picture, pixels, 16 or more            |
    | `frame_stack`       | 1          | pictures per observation                           |
    | `action_repeat`     | 1          | control steps per action                           |
    | `success_radius`    | 0.1        | of position, m and unit circle                     |
    | `max_episode_steps` | None       | actions until truncation; None: 1000 control steps |
    | `terminate_on_goal` | False      | end the episode upright                            |

    and those of `TorchEnv`.

    Version: v0, the first.

    Raises:
        ValueError: for an argument outside this table, an action of another shape or with NaN, and
            a state that is none of this world."""

    world = CartpoleWorld


class CartpoleVectorEnv(TorchVectorEnv):
    """`num_envs` worlds of `CartpoleEnv` as one batch; see `TorchVectorEnv`."""

    world = CartpoleWorld
